"""A coarse recording and the model: the mistake lies between two recorded tensors, and runs with each are compared."""

import re

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model

from minivl.compare import rerun
from minivl.compare.comparison import compare
from minivl.compare.judge import load_model
from minivl.compare.mistakes import replay
from minivl.errors import Error
from minivl.faults import fault
from minivl.faults.what_if import with_fresh_kernels

BLOCKS = [f"visual.blocks.{i}" for i in range(3)]
LAYERS = [f"model.layers.{i}" for i in range(3)]


@pytest.fixture(scope="module")
def right():
    """Two pictures: two windows, and one."""
    vlm = small_model("numpy")
    inputs = small_inputs(vlm.config, grids=((1, 6, 10), (1, 4, 4)), text=2)
    return vlm, inputs, vlm.trace(inputs)


@pytest.mark.parametrize(
    "name, recorded, where",
    [
        ("interleaved-rope", BLOCKS, "visual.blocks.0.attn.q_rope"),
        ("no-window-attention", BLOCKS, "visual.cu_window_seqlens"),
        ("unpermuted-rope", BLOCKS, "visual.rope.cos"),
        ("unscaled-scores", BLOCKS, "visual.blocks.0.attn.context"),
        ("no-qkv-bias", BLOCKS, "visual.blocks.0.attn.qkv"),
        ("layer-norm", BLOCKS[1:], "visual.blocks.0.norm1"),
        ("no-inverse-permutation", ["visual.merger", "model.layers.0"], "visual"),
        ("swapped-mrope-hw", ["inputs_embeds", *LAYERS], "position_ids"),
        ("wrong-theta", ["position_ids", *LAYERS], "model.rope.cos"),
        ("key-heads-by-remainder", LAYERS[:1], "model.layers.0.self_attn.context"),
    ],
)
def test_the_mistake_between_two_tensors_is_named(right, name, recorded, where):
    vlm, inputs, trace = right
    with fault(name).inject():
        wrong = with_fresh_kernels(vlm).trace(inputs, keep=recorded)
    theirs = {tensor: np.array(wrong[tensor])[None] for tensor in recorded}  # with a batch axis, as most ports have
    if recorded[0].startswith("model"):
        theirs["inputs_embeds"] = trace["inputs_embeds"]
    found = compare(trace, theirs, model=vlm)
    assert found.first.causes and found.first.causes[0].name == fault(name).cause, f"\n{found}"
    assert f"at {where}: " in found.first.causes[0].sentence, f"\n{found}"
    assert found.first.causes[0].where == (where,)


def test_one_half_alone_may_be_wrong(right):
    """Only the last tensor is recorded; the tower is right and the decoder rotates neighbours."""
    vlm, inputs, trace = right
    with fault("interleaved-rope").inject():
        wrong = with_fresh_kernels(vlm).trace(inputs, keep="lm_head", edit={"inputs_embeds": trace["inputs_embeds"]})
    theirs = {"visual.blocks.2": trace["visual.blocks.2"], "lm_head": wrong["lm_head"]}
    found = compare(trace, theirs, model=vlm)
    assert found.first.causes[0].name == "interleaved RoPE", f"\n{found}"


def test_time_of_videos():
    """Inputs made by hand name the seconds of their videos nowhere but in their positions."""
    vlm = small_model("numpy")
    inputs = random_video_inputs(vlm.config, images=(), videos=((3, 4, 4),), seconds=(0.75,))
    with fault("truncated-seconds").inject():
        wrong = with_fresh_kernels(vlm).trace(inputs, keep="model.layers.0")
    trace = vlm.trace(inputs)
    found = compare(trace, {"visual": trace["visual"], "model.layers.0": wrong["model.layers.0"]}, model=vlm)
    assert found.first.causes[0].name == "truncated second_per_grid", f"\n{found}"


def test_what_no_mistake_gives_has_no_cause(right):
    vlm, _, trace = right
    theirs = {"model.layers.1": trace["model.layers.1"], "model.layers.2": trace["model.layers.2"][::-1] * 2}
    found = compare(trace, theirs, model=vlm)
    assert found.first.name == "model.layers.2" and found.first.causes == ()


@pytest.fixture
def runs(monkeypatch):
    """[[names of the tensors that a run made] of each run of the model]"""
    names, original = [], rerun.run

    def counted(stage, see, stop):
        names.append([])
        return original(stage, lambda name, tensor: names[-1].append(name) or see(name, tensor), stop)

    monkeypatch.setattr(rerun, "run", counted)
    return names


def test_equal_recordings_take_one_run(right, runs):
    vlm, _, trace = right
    assert compare(trace, dict(trace), model=vlm).ok and len(runs) == 1


def test_a_run_ends_at_the_last_recorded_tensor(right, runs):
    vlm, _, trace = right
    theirs = {name: trace[name] * np.float32(1.001) for name in BLOCKS}
    assert not compare(trace, theirs, model=vlm).ok
    assert len(runs) > 2 and all(names[-1].startswith(tuple(BLOCKS)) for names in runs)


def test_the_tower_is_not_run_for_mistakes_of_the_decoder(right, runs):
    vlm, inputs, trace = right
    with fault("swapped-mrope-hw").inject():
        wrong = with_fresh_kernels(vlm).trace(inputs, keep=LAYERS)
    comparison = compare(trace, {name: wrong[name] for name in LAYERS}, model=vlm)
    assert comparison.first.causes[0].name == "height and width swapped", f"\n{comparison}"
    with_tower = [names for names in runs if "visual.patch_embed" in names]
    assert len(with_tower) <= 5 < len(runs), "runs of the tower: one right, and one for each arithmetic"


@pytest.fixture
def unexplained(right):
    """Only the logits, of no known mistake."""
    trace = right[2]
    noise = np.random.default_rng(0).standard_normal(trace["lm_head"].shape, dtype=np.float32)
    return {"input_ids": trace["input_ids"], "lm_head": trace["lm_head"] + noise * np.abs(trace["lm_head"]).max() / 10}


def test_the_search_ends_and_says_what_was_not_tried(right, unexplained, runs):
    vlm, _, trace = right
    comparison = compare(trace, unexplained, model=vlm)
    judged = 3 + len(rerun.ARITHMETICS)
    tried = int(re.search(r"only (\d+) of [\d,]+ pairs were tried", str(comparison))[1])
    assert not comparison.first.causes and tried == replay.MOST_PAIRS and len(runs) <= 300 + tried + judged, len(runs)
    del runs[:]
    comparison = compare(trace, unexplained, model=vlm, runs=7)
    assert 7 <= len(runs) <= 7 + judged and "of 2" in str(comparison), len(runs)
    assert re.search(r"lm_head: \d+ of \d+ known mistakes before it were not tried", str(comparison)), f"\n{comparison}"
    with pytest.raises(Error, match="runs is -1"):
        compare(trace, unexplained, model=vlm, runs=-1)


def test_common_mistakes_are_tried_first(right, runs):
    vlm, inputs, trace = right
    with fault("no-qkv-bias").inject():
        wrong = with_fresh_kernels(vlm).trace(inputs, keep="lm_head")
    comparison = compare(trace, {"lm_head": wrong["lm_head"]}, model=vlm, runs=40)
    assert comparison.first.causes[0].name == "no bias", f"\n{comparison}"


def test_mistakes_that_change_nothing_take_no_run(right):
    """One square picture: rows and columns exchanged in its grid are the same grid; a video's time is not there."""
    vlm, _, _ = right
    inputs = small_inputs(vlm.config, grids=((1, 4, 4),), text=2)
    values = dict(vlm.trace(inputs))
    known, model = values.get, load_model(vlm)
    mistakes = replay.mistakes_of({"image_grid_thw": values["image_grid_thw"]}, known, model)
    swapped = [mistake for mistake in mistakes if mistake.name == "height and width swapped"]
    assert swapped and not any(mistake.is_felt for mistake in swapped)
    assert not any(replay.changes_something(mistake, values, known, model) for mistake in swapped)
