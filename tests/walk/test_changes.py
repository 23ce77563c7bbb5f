"""Changes that a person makes at a stop of a walk: what each does, and what it refuses."""

import numpy as np
import pytest
from conftest import small_inputs, small_model

from minivl.cli.walk_terminal import walk_by_commands
from minivl.errors import Error
from minivl.walk.changes import CHANGES, change, load, parse_index, parse_number

VLM = small_model()
INPUTS = small_inputs(VLM.config)


def step_at(name):
    return VLM.walk(INPUTS, max_new_tokens=1).until(name)


def test_each_change():
    step = step_at("visual.blocks.1")
    x = step.value
    assert not change(step, "zero").any()
    assert np.array_equal(change(step, "scale", "-0.5"), x * np.float32(-0.5))
    rows = change(step, "row", "3 0.25")
    assert np.all(rows[3] == 0.25) and np.array_equal(np.delete(rows, 3, 0), np.delete(x, 3, 0))
    swapped = change(step, "swap", "3 8")
    assert np.array_equal(swapped[[8, 3]], x[[3, 8]]) and np.array_equal(
        np.delete(swapped, [3, 8], 0), np.delete(x, [3, 8], 0)
    )
    noise = change(step, "noise", "0.5 7") - x
    assert abs(noise.std() - 0.5) < 0.05 and noise.dtype == np.float32
    assert np.array_equal(noise, change(step, "noise", "0.5 7") - x)
    assert not np.array_equal(noise, change(step, "noise", "0.5 8") - x)


def test_rows_of_heads_are_the_second_axis():
    step = step_at("visual.blocks.1.attn.q_rope")
    swapped = change(step, "swap", "3 8")
    assert np.array_equal(swapped[:, [8, 3]], step.value[:, [3, 8]])


def test_integers():
    step = step_at("visual.window_index")
    swapped = change(step, "swap", "0 1")
    assert swapped[0] == step.value[1] and swapped.dtype == np.int64
    assert change(step, "row", "0 7")[0] == 7
    for name, text in (("row", "0 7.5"), ("row", "0 1e30"), ("scale", "2"), ("noise", "1 0")):
        with pytest.raises(Error, match="integers|float32"):
            change(step, name, text)


def test_from_a_file(tmp_path):
    """Of a .npy file and of a recording; another shape is refused by the walk itself, and the walk continues."""
    walk = VLM.walk(INPUTS, max_new_tokens=1)
    step = walk.until("visual.merger")
    path = tmp_path / "my rows.npy"
    np.save(path, step.value[::-1])
    assert np.array_equal(walk.replace(change(step, "load", str(path))).value, step.value[::-1])
    VLM.trace(INPUTS, keep="visual.merger").save(tmp_path / "run.safetensors")
    assert np.array_equal(change(walk.step, "load", str(tmp_path / "run.safetensors")), step.value)
    np.save(path, step.value[:2])
    with pytest.raises(Error, match="same shape"):
        walk.replace(change(walk.step, "load", str(path)))
    with pytest.raises(Error, match="holds no visual. Record it"):
        change(walk.until("visual"), "load", str(tmp_path / "run.safetensors"))
    (tmp_path / "a.npy").write_bytes(b"no array")
    for name, words in (("a.npy", "cannot read"), ("no.npy", "No such file"), ("a.txt", "neither")):
        with pytest.raises(Error, match=words):
            change(walk.step, "load", str(tmp_path / name))


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("scale", "", "scale takes 1 argument: scale X"),
        ("zero", "3", "zero takes no arguments"),
        ("row", "3", "row takes 2 arguments: row N X"),
        ("scale", "much", "'much' is not a finite number"),
        ("scale", "nan", "'nan' is not a finite number"),
        ("swap", "-1 0", "'-1' is not an integer from 0"),
        ("swap", "0 4000", "it has 164 rows"),
        ("noise", "1 x", "'x' is not an integer"),
        ("load", "", "load takes 1 argument"),
        ("rotate", "", "there is no change 'rotate'.*There are: zero, scale"),
    ],
)
def test_what_is_refused(name, text, words):
    with pytest.raises(Error, match=words):
        change(step_at("visual.blocks.1"), name, text)


def test_changes_in_a_terminal(capsys):
    """The run continues with the changed tensor: two changes of one tensor add up, as an edit of a trace does."""
    lines = ["u visual.merger", "scale 2", "swap 0 5", "f"]
    answer = walk_by_commands(VLM.walk(INPUTS, max_new_tokens=3), lines)
    assert capsys.readouterr().out.count("(replaced)") == 2

    def edit(x):
        x = x * np.float32(2)
        x[[0, 5]] = x[[5, 0]]
        return x

    assert answer.ids == VLM.trace(INPUTS, edit={"visual.merger": edit}, max_new_tokens=3).result.ids


def test_unknown_commands_are_answered_with_those_that_exist(capsys):
    walk_by_commands(VLM.walk(INPUTS, max_new_tokens=1), ["scal 2", "next", "s now", "v 3", "?", "q"])
    out = capsys.readouterr().out
    assert "there is no command scal. Did you mean scale" in out and "there is no command next." in out
    assert all(f" {name} " in out.splitlines()[2] for name in ("u", "b", *CHANGES) if name != "load")
    assert "s takes no argument; now followed it" in out and "v takes no argument" in out
    assert all(meaning in out for _, _, meaning in CHANGES.values())


def test_what_cannot_be_loaded_is_said(tmp_path, monkeypatch):
    (tmp_path / "empty.npy").write_bytes(b"")
    monkeypatch.delenv("HOME", raising=False)
    for path in (tmp_path / "empty.npy", "~nobody-of-this-name/x.npy"):
        with pytest.raises(Error, match="cannot read"):
            load(None, str(path))
    for text in ("1" * 5000, "-1", "x"):
        with pytest.raises(Error, match="is not an integer"):
            parse_index(text, "row N X")
    for text in ("1e300", "nan", "-inf"):
        with pytest.raises(Error, match="is not a finite number"):
            parse_number(text, "row N X")
