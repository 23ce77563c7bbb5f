"""The real engine with one bug, compared with the right one: the first tensor that differs, and why, must be named.

The bugs are put into the engine's own functions here, written independently of minivl/compare/mistakes; those of minivl/faults
are compared in test_what_if.py, and single tensors gone wrong in test_causes.py.
"""

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model

import minivl
from minivl.compare.comparison import compare
from minivl.faults import fault
from minivl.faults.inject import patch
from minivl.faults.what_if import with_fresh_kernels
from minivl.kernels import rope
from minivl.model import decoder, engine, positions, vision
from minivl.model.layers import mlp
from minivl.tiny import scene


@pytest.fixture(scope="module")
def right():
    vlm = small_model("numpy")
    return vlm, small_inputs(vlm.config), vlm.trace(small_inputs(vlm.config), max_new_tokens=2)


def with_kernels(vlm, **changes):
    """The same model with other arithmetic."""
    from dataclasses import replace

    return minivl.VLM(vlm.config, vlm.weights, replace(vlm.kernels, **changes))


def neighbours(x, cos, sin):
    """[N, H, K]: rotation of pairs (2j, 2j + 1), written with complex numbers."""
    half = x.shape[-1] // 2
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos[:, None, :half] + 1j * sin[:, None, :half])
    out = np.empty(x.shape, dtype=np.float32)
    out[..., 0::2], out[..., 1::2] = turned.real, turned.imag
    return out.swapaxes(0, 1)


def no_inverse(patch):
    patch.setattr(vision, "to_raster_order", lambda x, index: x)


def inverse_by_index(patch):
    patch.setattr(vision, "to_raster_order", lambda x, index: x[index])


def spoilt_positions(change):
    def fault(patch):
        original = engine.prompt_positions
        patch.setattr(engine, "prompt_positions", lambda *args: change(*original(*args), *args))

    return fault


def counted_by_tokens(patch):
    """Text after a picture continues where it would without M-RoPE."""

    def change(ids, following, input_ids, config, *_):
        out = np.tile(np.arange(len(input_ids)), (3, 1))
        shown = np.flatnonzero(input_ids == config.image_token_id)
        for run in np.split(shown, np.flatnonzero(np.diff(shown) > 1) + 1):
            out[:, run] = ids[:, run] - ids[:, run].min() + run[0]
        return out, len(input_ids)

    spoilt_positions(change)(patch)


def full_attention_in_windowed_blocks(patch):
    """Boundaries are right and not heeded: every block gets those of the frames."""
    original = vision.vision_block

    def block(x, weights, rope, segments, heads, kernels):
        return original(x, weights, rope, np.array([0, 140, 164]), heads, kernels)

    patch.setattr(vision, "vision_block", block)


def no_bias(name):
    def fault(patch):
        from minivl.checkpoint.weights import Weights

        original = Weights.linear
        patch.setattr(Weights, "linear", lambda self, one: (
            original(self, one)[0], None if one == name else original(self, one)[1]))  # fmt: skip

    return fault


def raster_patch_positions(patch):
    def places(grid_thw, merge):
        return np.concatenate([[divmod(n, w) for _ in range(t) for n in range(h * w)] for t, h, w in grid_thw])

    patch.setattr(vision, "patch_positions", places)


def sections_exchanged(patch):
    from dataclasses import replace

    patch.setattr(decoder, "mrope", lambda ids, r, K: positions.mrope(ids, replace(r, mrope_section=(2, 1, 1)), K))


def tower_eps(patch):
    patch.setattr(vision, "EPS", 1e-5)


def post_norm(patch):
    """The residual around attention is norm1's output instead of its input."""

    def block(x, weights, rope, segments, heads, kernels):
        h = yield "norm1", kernels.rms_norm(x, weights["norm1.weight"], 1e-6)
        a = yield from vision.under(
            "attn", vision.vision_attention(h, weights.at("attn"), rope, segments, heads, kernels)
        )
        x = yield "attn_residual", h + a
        h = yield "norm2", kernels.rms_norm(x, weights["norm2.weight"], 1e-6)
        return x + (yield from vision.under("mlp", mlp(h, weights.at("mlp"), kernels)))

    patch.setattr(vision, "vision_block", block)


def no_features(patch):
    patch.setattr(engine, "scatter", lambda x, *_: x)


BUGS = {
    inverse_by_index: ("visual", "inverse of the window order"),
    counted_by_tokens: ("position_ids", "text continues by tokens"),
    full_attention_in_windowed_blocks: ("visual.blocks.0.attn.scores", "no window attention"),
    no_bias("q_proj"): ("model.layers.0.self_attn.q_proj", "no bias"),
    no_bias("mlp.2"): ("visual.merger.mlp.2", "no bias"),
    raster_patch_positions: ("visual.patch_positions", "raster order of patches"),
    sections_exchanged: ("model.rope.cos", "wrong mrope sections"),
    tower_eps: ("visual.blocks.0.norm1", "wrong eps"),
    post_norm: ("visual.blocks.0.attn_residual", "post-norm residual"),
    no_features: ("inputs_embeds", "images not put in"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_a_stage(right, bug, monkeypatch):
    vlm, inputs, trace = right
    bug(monkeypatch)
    found = compare(trace, vlm.trace(inputs, max_new_tokens=2), config=vlm.config)
    assert (found.first.name, found.first.causes[0].name) == BUGS[bug], f"\n{found}"
    assert found.first.causes[0].exact and not found.ok


def test_the_decoder_alone_is_interleaved(right):
    vlm, inputs, trace = right

    def rotate(x, cos, sin):
        return (neighbours if x.shape[2] == vlm.config.text.head_dim and x.shape[1] != 4 else rope.rotate_numpy)(
            x, cos, sin
        )

    found = compare(trace, with_kernels(vlm, rotate=rotate).trace(inputs, max_new_tokens=2), config=vlm.config)
    assert found.first.name == "model.layers.0.self_attn.q_rope"
    assert found.first.causes[0].name == "interleaved RoPE", f"\n{found}"


@pytest.mark.parametrize(
    "name, moves", [("truncated-seconds", "position_ids"), ("frames-not-apart", "visual.cu_seqlens")]
)
def test_a_bug_with_videos(name, moves):
    vlm = small_model("numpy")
    inputs = random_video_inputs(vlm.config, seconds=(0.75, 2.6))
    trace = vlm.trace(inputs)
    with fault(name).inject():
        wrong = with_fresh_kernels(vlm).trace(inputs, stop=moves)
    found = compare(trace, wrong, config=vlm.config)
    assert (found.first.name, found.first.causes[0].name) == (moves, fault(name).cause), f"\n{found}"


def test_the_delta_alone_in_the_second_token(right):
    """A port that records neither rope_delta nor the prompt's positions."""
    vlm, inputs, trace = right
    wrong = vlm.trace(inputs, max_new_tokens=2, edit={"rope_delta": lambda x: x * 0})
    theirs = {name: wrong[name] for name in wrong if name.startswith("steps.1.") or name == "lm_head"}
    found = compare(trace, theirs, config=vlm.config)
    assert found.first.name == "steps.1.position_ids" and found.first.causes[0].name == "wrong rope delta", f"\n{found}"
    del theirs["steps.1.position_ids"], theirs["steps.1.model.rope.cos"], theirs["steps.1.model.rope.sin"]
    found = compare(trace, theirs, config=vlm.config)
    assert found.first.name == "steps.1.model.layers.0.self_attn.q_rope"
    assert found.first.causes[0].name == "wrong rope delta", f"\n{found}"


# ---- the shipped model, from the picture on ----


def always_down(original):
    return lambda height, width, factor=28, *_: (height // factor * factor, width // factor * factor)


@pytest.mark.parametrize("change", ["filter", "size"])
def test_without_the_picture_a_resize_is_concluded(change):
    """With it, it is computed: tests/mistakes.py."""
    vlm, drawn = minivl.load(backend="numpy"), scene(5, size=(251, 187))
    ask = dict(question="How many shapes are there?", images=drawn.image, stop="image.0.resized")
    trace = vlm.trace(**ask)
    bug = (
        fault("bilinear-resize").inject()
        if change == "filter"
        else patch("minivl.processing.image_processor.smart_resize", always_down)
    )
    with bug:
        wrong = vlm.trace(**ask)
    found = compare(trace, wrong, config=vlm.config)
    assert (found.first.name, found.first.causes[0].name) == ("image.0.resized", "wrong resize"), f"\n{found}"
    assert not found.first.causes[0].exact


@pytest.mark.parametrize("name", ["no-inverse-permutation", "one-d-positions", "unscaled-scores", "swapped-hw"])
def test_the_other_way_round(right, name):
    """The right one may be given second: what goes in says which of the two is right."""
    vlm, inputs, trace = right
    with fault(name).inject():
        wrong = with_fresh_kernels(vlm).trace(inputs, max_new_tokens=2)
    found = compare(wrong, trace, config=vlm.config)
    assert found.first.causes[0].name == fault(name).cause, f"\n{found}"
    assert found.first.causes[0].whose == "ours" and "in our recording" in str(found)
