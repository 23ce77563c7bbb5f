"""A coarse recording and the model: the mistake lies between two recorded tensors, and runs with each are compared."""

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model

from minivl.compare import local
from minivl.compare.comparison import compare
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
    names, original = [], local.run

    def counted(stage, see, stop):
        names.append([])
        return original(stage, lambda name, tensor: names[-1].append(name) or see(name, tensor), stop)

    monkeypatch.setattr(local, "run", counted)
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
