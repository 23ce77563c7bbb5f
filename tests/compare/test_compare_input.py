"""Recordings that are no recordings, or of something else: what `compare` says, and that it says what to do."""

import numpy as np
import pytest
from conftest import small_inputs, small_model

import minivl
from minivl.cli import main
from minivl.compare.comparison import compare
from minivl.compare.recordings import open_recording


@pytest.fixture(scope="module")
def right():
    vlm = small_model("numpy")
    return vlm, vlm.trace(small_inputs(vlm.config, grids=((1, 4, 6),)))


BLOCK = "visual.blocks.0"


@pytest.mark.parametrize(
    "theirs, words",
    [
        ({}, "has no tensors"),
        ({"v.blk.0.ln1": np.zeros((24, 32))}, r"One there is 'v.blk.0.ln1'. Did you mean visual"),
        ({BLOCK: np.zeros(3, dtype=complex)}, "must be an array of numbers"),
        ({BLOCK: [[1, 2], [3]]}, "is no array"),
        ({BLOCK: object()}, "must be an array of numbers"),
        ({"visual.mergr": np.zeros(3)}, "Did you mean visual.merger"),
    ],
)
def test_errors_say_what_to_do(right, theirs, words):
    with pytest.raises(minivl.Error, match=words):
        compare(right[1], theirs)


def test_files_that_are_none(right, tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "a.json").write_text("{}")
    for name, words in (
        ("one.npy", "numpy.savez"),
        ("a.json", "numpy.savez"),
        ("", "is a folder"),
        ("no.npz", "not exist"),
    ):
        with pytest.raises(minivl.Error, match=words):
            open_recording(tmp_path / name)
    right[1].save(tmp_path / "ours.safetensors")
    assert main(["compare", str(tmp_path / "ours.safetensors"), str(tmp_path / "one.npy")]) == 1
    assert "numpy.savez" in capsys.readouterr().err


def test_nan_has_no_cause_but_a_hint(right):
    vlm, trace = right
    for share in (slice(None), slice(3, 4)):
        broken = np.array(trace[BLOCK])
        broken[share] = np.nan
        found = compare(trace, {BLOCK: broken}, config=vlm.config)
        assert found.first.causes == () and found.first.nans == np.isnan(broken).sum()
        assert "an overflow (of float16?)" in str(found)


def test_empty_tensors(right):
    vlm, trace = right
    found = compare(trace, {BLOCK: np.zeros((0, 32), dtype=np.float32)}, config=vlm.config)
    assert found.first.status == "SHAPE" and "It is empty" in str(found) and not found.ok


def test_another_prompt(right):
    vlm, trace = right
    other = vlm.trace(small_inputs(vlm.config, grids=((1, 4, 6),), seed=1))
    assert "do both run the same question" in str(compare(trace, other, config=vlm.config))
    assert "do both run the same question" not in str(
        compare(trace, {**trace, BLOCK: trace[BLOCK] * 2}, config=vlm.config)
    )


def test_what_to_give_where_no_cause_is_found(right):
    vlm, trace = right
    noise = np.random.default_rng(0).standard_normal(trace[BLOCK].shape).astype(np.float32)
    assert "give config=" in str(compare(dict(trace), {BLOCK: noise}, config=None))
    assert "give model=" in str(compare(trace, {BLOCK: noise}, config=vlm.config))
    down = {name: trace[name] for name in (f"{BLOCK}.attn_residual", f"{BLOCK}.mlp.down_proj")}
    assert "look at its own stage" in str(compare(trace, {**down, BLOCK: noise}, config=vlm.config))


def test_an_eps_below_rounding_is_seen_in_all_rows(right):
    """Another program's rounding, as large as what the eps does to a value; without that nothing is said."""
    vlm, _ = right
    trace = vlm.trace(small_inputs(vlm.config, grids=((1, 16, 20),)))
    name, rng = "visual.blocks.1.norm1", np.random.default_rng(0)
    x = np.array(trace["visual.blocks.0"], dtype=np.float64) * 4 * np.exp(0.7 * rng.standard_normal((320, 1)))
    weight = np.array(vlm.weights[f"{name}.weight"], dtype=np.float64)
    rounding = 1 + 6e-7 * rng.standard_normal(x.shape)

    def norm(eps):
        return (x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps) * weight).astype(np.float32)

    ours = {"visual.blocks.0": x.astype(np.float32), name: norm(1e-6)}
    for eps, ok in ((1e-6, True), (1e-5, False)):
        theirs = {"visual.blocks.0": ours["visual.blocks.0"], name: (norm(eps) * rounding).astype(np.float32)}
        found = compare(ours, theirs, config=vlm.config)
        assert found.ok == ok, f"\n{found}"
    assert (
        found.first.causes[0].name == "wrong eps" and "about 1e-05 instead of 1e-06" in found.first.causes[0].sentence
    )


def test_what_softmax_makes_of_rounding_is_no_difference(right):
    """Scores of 60: agreeing to 5e-6 of the largest, they give probabilities that are off by more than the tolerance."""
    rng = np.random.default_rng(0)
    room, scores = "model.layers.0.self_attn", rng.uniform(-60, 60, (6, 40, 40))

    def probs(scores):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)

    off = scores + 60 * 5e-6 * rng.uniform(-1, 1, scores.shape)
    ours = {f"{room}.scores": scores.astype(np.float32), f"{room}.probs": probs(scores)}
    found = compare(ours, {f"{room}.scores": off.astype(np.float32), f"{room}.probs": probs(off)})
    assert found.ok and found[f"{room}.probs"].status == "OK~" and found[f"{room}.probs"].error > 2e-5
    wrong = compare(ours, {f"{room}.scores": off.astype(np.float32), f"{room}.probs": probs(off) ** 1.01})
    assert wrong.first.name == f"{room}.probs"
    # what is computed from them may be off as well, by a little; the same without a softmax before it may not
    context, mlp = f"{room}.context", "model.layers.0.mlp"
    ours |= {context: rng.standard_normal((40, 96)).astype(np.float32), mlp: ours[f"{room}.probs"][0].copy()}
    for error, ok in ((4e-5, True), (2e-4, False)):
        theirs = {f"{room}.scores": off.astype(np.float32), f"{room}.probs": probs(off)}
        theirs |= {context: ours[context] * np.float32(1 + 4e-5), mlp: ours[mlp] * np.float32(1 + error)}
        found = compare(ours, theirs)
        assert (found.ok, found[context].status) == (ok, "OK~") and found[mlp].status == ("OK~" if ok else "DIFF")
        assert compare({mlp: ours[mlp]}, {mlp: theirs[mlp]})[mlp].status == "DIFF"


def test_a_token_is_never_off_by_rounding():
    """Not even after a softmax that is: of the ids 1 in 150,000 is 7e-6 of the largest."""
    rng, room = np.random.default_rng(0), "model.layers.0.self_attn"
    scores, context = rng.uniform(-60, 60, (6, 4, 4)).astype(np.float32), rng.standard_normal((4, 96)).astype(np.float32)
    ours = {f"{room}.scores": scores, f"{room}.context": context, "tokens": np.array([151_644, 151_645])}
    theirs = {
        f"{room}.scores": scores * np.float32(1 + 5e-6), f"{room}.context": context * np.float32(1 + 4e-5),
        "tokens": np.array([151_644, 151_644]),
    }  # fmt: skip
    found = compare(ours, theirs)
    assert found[f"{room}.context"].status == "OK~" and found["tokens"].status == "DIFF"


def test_a_prompt_in_parts_is_one(right):
    """What went through the decoder in parts is compared whole."""
    vlm, trace = right
    other = small_model("numpy")
    other.prefill_chunk = 6
    parts = other.trace(small_inputs(vlm.config, grids=((1, 4, 6),)))
    assert "chunks.1.model.norm" in parts
    for found in (compare(trace, parts, config=vlm.config), compare(parts, trace, config=vlm.config)):
        assert found.ok and {row.status for row in found.rows} == {"OK"}, f"\n{found}"
