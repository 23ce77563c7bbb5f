"""Any configuration, any grids, any prompt: compiled and plain kernels, caches, chunks and edits agree."""

import numpy as np
from conftest import SMALL, small_inputs, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from minivl.stream import run
from minivl.trace.recorder import record

CLOSE = 3e-5  # two orders of summation; of the tensor's largest value


@st.composite
def configurations(draw):
    """Changes of SMALL: a model of any heads, layouts and windows."""
    keys, group, half = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(3, 8))
    time = draw(st.integers(1, half - 2))
    rows = draw(st.integers(1, half - time - 1))
    hidden, heads, depth = 2 * half * keys * group, draw(st.integers(1, 4)), draw(st.integers(1, 3))
    blocks = draw(st.sets(st.integers(0, depth - 1)))
    vision = {
        "depth": depth,
        "num_heads": heads,
        "hidden_size": heads * 4 * draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(5, 40)),
        "window_size": draw(st.sampled_from([8, 16, 32, 40])),
        "fullatt_block_indexes": sorted(blocks),
        "out_hidden_size": hidden,
    }
    return {
        "hidden_size": hidden,
        "num_attention_heads": keys * group,
        "num_key_value_heads": keys,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(5, 60)),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-4])),
        "rope_theta": draw(st.sampled_from([10.0, 1e4, 1e6])),
        "rope_scaling": {"type": "mrope", "mrope_section": [time, rows, half - time - rows]},
        "tie_word_embeddings": draw(st.booleans()),
        "vision_config": {**SMALL["vision_config"], **vision},
    }


SIDES = st.integers(1, 7).map(lambda n: 2 * n)
GRIDS = st.lists(st.tuples(st.just(1), SIDES, SIDES), max_size=3)
LENGTHS = st.integers(1, 12)
MANY = settings(deadline=None, max_examples=15, derandomize=True)


def close(a, b):
    finite = np.isfinite(b)
    assert np.array_equal(np.isfinite(a), finite)
    return not finite.any() or np.abs(a[finite] - b[finite]).max() <= CLOSE * max(np.abs(b[finite]).max(), 1e-30)


@MANY
@given(configurations(), GRIDS, LENGTHS)
def test_compiled_kernels_agree_with_plain_ones(changes, grids, text):
    compiled, plain = small_model("numba", **changes), small_model("numpy", **changes)
    inputs = small_inputs(plain.config, grids, text)
    a, b = compiled.trace(inputs, max_new_tokens=2), plain.trace(inputs, max_new_tokens=2)
    assert a.names == b.names or a.info["generated_ids"] != b.info["generated_ids"]
    for name in (name for name in b if not name.startswith("steps.")):
        if b[name].dtype == np.float32:
            assert close(a[name], b[name]), name
        elif name != "next_token":
            assert np.array_equal(a[name], b[name]), name


@MANY
@given(configurations(), GRIDS, LENGTHS, st.integers(1, 4), st.sampled_from(["numba", "numpy"]))
def test_a_cache_gives_what_a_whole_prompt_gives(changes, grids, text, later, backend):
    """The last tokens one by one, each after those in the cache."""
    vlm = small_model(backend, **changes)
    inputs, tail = small_inputs(vlm.config, grids, text), np.random.default_rng(later).integers(0, 100, later)
    cache = vlm.new_cache()
    run(vlm.prefill(inputs, cache))
    for token in tail:
        logits = run(vlm.decode(np.array([token]), cache))
    inputs.input_ids = np.concatenate([inputs.input_ids, tail])
    assert close(logits, run(vlm.prefill(inputs, vlm.new_cache())))
    again = run(vlm.prefill(inputs, cache))  # the cache holds all but the last token
    assert close(again, logits)


@MANY
@given(configurations(), GRIDS, LENGTHS, st.integers(1, 40), st.sampled_from(["numba", "numpy"]))
def test_chunks_give_what_a_whole_prompt_gives(changes, grids, text, most, backend):
    vlm = small_model(backend, **changes)
    inputs = small_inputs(vlm.config, grids, text)
    whole = run(vlm.prefill(inputs, vlm.new_cache()))
    vlm.prefill_chunk = most
    assert close(run(vlm.prefill(inputs, vlm.new_cache())), whole)


@MANY
@given(configurations(), GRIDS, LENGTHS, st.data())
def test_an_edit_changes_what_comes_after_it_and_nothing_before(changes, grids, text, data):
    vlm = small_model("numpy", **changes)
    inputs = small_inputs(vlm.config, grids, text)
    before = record(vlm.prefill(inputs, vlm.new_cache()))
    same = record(vlm.prefill(inputs, vlm.new_cache()), edit={"*": lambda x: x.copy()})
    assert all(np.array_equal(same[name], before[name], equal_nan=True) for name in before)
    floats = [name for name in before if before[name].dtype == np.float32]
    name = data.draw(st.sampled_from(floats))
    edited = record(vlm.prefill(inputs, vlm.new_cache()), edit={name: lambda x: x * np.float32(0.5)})
    for earlier in before.names[: before.names.index(name)]:
        assert np.array_equal(edited[earlier], before[earlier], equal_nan=True), earlier
    with np.errstate(invalid="ignore"):
        assert np.array_equal(edited[name], before[name] * np.float32(0.5), equal_nan=True)
