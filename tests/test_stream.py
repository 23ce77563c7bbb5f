"""The protocol: names are prefixed, tensors pass unchanged, edits go in, a lazy tensor is built only for who looks."""

import numpy as np
import pytest

from minivl.errors import Error
from minivl.stream import Lazy, drive, run, under, value_of


def inner(x):
    x = yield "double", x * 2
    return (yield "plus_one", x + 1)


def outer(x, built):
    x = yield "blocks.0", (yield from under("blocks.0", inner(x)))
    lazy = yield "lazy", Lazy(x.shape, lambda: built.append(1) or x * 10)
    return x if isinstance(lazy, Lazy) else lazy


ONES = np.ones(3, dtype=np.float32)


def test_names_in_order_and_result():
    steps = drive(outer(ONES, []))
    assert [name for name, _ in steps] == ["blocks.0.double", "blocks.0.plus_one", "blocks.0", "lazy"]
    np.testing.assert_array_equal(run(outer(ONES, [])), [3, 3, 3])


def test_lazy_is_built_once_and_only_when_looked_at():
    built = []
    run(outer(ONES, built), see=lambda name, tensor: tensor)
    assert built == []
    seen = []
    run(outer(ONES, built), see=lambda name, tensor: seen.extend([value_of(tensor), value_of(tensor)]))
    assert built == [1]
    np.testing.assert_array_equal(seen[-1], [30, 30, 30])


def test_looking_at_a_lazy_tensor_keeps_the_fused_path():
    looked = run(outer(ONES, []), see=lambda name, tensor: value_of(tensor))
    np.testing.assert_array_equal(looked, [30, 30, 30])  # an array came back: the stage continues from it
    looked = run(outer(ONES, []), see=lambda name, tensor: value_of(tensor) is None or None)
    np.testing.assert_array_equal(looked, [3, 3, 3])


def test_edit():
    def see(name, tensor):
        return tensor * 0 if name == "blocks.0.double" else None

    np.testing.assert_array_equal(run(outer(ONES, []), see), [1, 1, 1])


@pytest.mark.parametrize("answer", [np.zeros(4, dtype=np.float32), np.zeros(3, dtype=np.float64)])
def test_edit_of_wrong_shape_or_dtype(answer):
    with pytest.raises(Error, match=r"blocks\.0\.double.*\[3\]"):
        run(outer(ONES, []), see=lambda name, tensor: answer)


def test_what_is_shown_cannot_be_written():
    def see(name, tensor):
        with pytest.raises(ValueError, match="read-only"):
            value_of(tensor)[0] = 5
        return None

    run(inner(ONES.copy()), see)


def test_an_edit_is_copied():
    mine = np.zeros(3, dtype=np.float32)

    def see(name, tensor):
        if name == "double":
            return mine
        mine[:] = 7  # too late to matter
        return None

    np.testing.assert_array_equal(run(inner(ONES), see), [1, 1, 1])


def test_stop_runs_nothing_further():
    seen = []
    assert run(outer(ONES, []), lambda name, _: seen.append(name), stop=lambda name: name == "blocks.0.double") is None
    assert seen == ["blocks.0.double"]
