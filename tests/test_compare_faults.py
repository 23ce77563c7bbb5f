"""The real engine with one bug, compared with the right one: the first tensor that differs, and why, must be named.

The bugs are put into the engine's own functions here, written anew and not taken from minivl/causes.
"""

import math

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model

import minivl
from minivl import chat, decoder, image, model, positions, vision, windows
from minivl.compare import compare
from minivl.kernels import attention, rope
from minivl.tiny import scene


@pytest.fixture(scope="module")
def right():
    vlm = small_model("numpy")
    return vlm, small_inputs(vlm.config), vlm.trace(small_inputs(vlm.config), max_new_tokens=2)


@pytest.fixture(scope="module")
def right_video():
    vlm = small_model("numpy")
    inputs = random_video_inputs(vlm.config, seconds=(0.75, 2.6))
    return vlm, inputs, vlm.trace(inputs)


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


def tanh_gelu(x):
    return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))).astype(np.float32)


def no_inverse(patch):
    patch.setattr(vision, "to_raster_order", lambda x, index: x)


def inverse_by_index(patch):
    patch.setattr(vision, "to_raster_order", lambda x, index: x[index])


def one_dimensional(patch):
    patch.setattr(model, "prompt_positions", lambda ids, *_: (np.tile(np.arange(len(ids)), (3, 1)), len(ids)))


def spoilt_positions(change):
    def fault(patch):
        original = model.prompt_positions
        patch.setattr(model, "prompt_positions", lambda *args: change(*original(*args), *args))

    return fault


def counted_by_tokens(patch):
    """Text after a picture goes on where it would without M-RoPE."""

    def change(ids, following, input_ids, config, *_):
        out = np.tile(np.arange(len(input_ids)), (3, 1))
        shown = np.flatnonzero(input_ids == config.image_token_id)
        for run in np.split(shown, np.flatnonzero(np.diff(shown) > 1) + 1):
            out[:, run] = ids[:, run] - ids[:, run].min() + run[0]
        return out, len(input_ids)

    spoilt_positions(change)(patch)


def no_window_attention(patch):
    patch.setattr(vision, "window_index", lambda grid, config: (
        windows.window_index(grid, config)[0], windows.frame_segments(grid)))  # fmt: skip


def full_attention_in_windowed_blocks(patch):
    """Boundaries are right and not heeded: every block gets those of the frames."""
    original = vision.vision_block

    def block(x, weights, rope, segments, heads, kernels):
        return original(x, weights, rope, np.array([0, 140, 164]), heads, kernels)

    patch.setattr(vision, "vision_block", block)


def no_bias(name):
    def fault(patch):
        from minivl.weights import Weights

        original = Weights.linear
        patch.setattr(Weights, "linear", lambda self, one: (
            original(self, one)[0], None if one == name else original(self, one)[1]))  # fmt: skip

    return fault


def unscaled(patch):
    """1 / sqrt(K) left out where the tower makes scores; the fused path is theirs too, through probs."""
    patch.setattr(
        attention,
        "segment_scores",
        spoilt(attention.segment_scores, lambda s, q: s * np.float32(math.sqrt(q.shape[2]))),
    )


def spoilt(function, change):
    return lambda q, *rest: change(function(q, *rest), q)


def no_causal_mask(patch):
    def scores(q, k, window=None):
        H, T, K = q.shape
        return (q @ np.repeat(k, H // len(k), axis=0).swapaxes(1, 2)) * np.float32(1 / math.sqrt(K))

    patch.setattr(attention, "causal_scores", scores)


def key_heads_by_remainder(patch):
    original = attention.causal_scores

    def scores(q, k, window=None):
        return original(q, np.tile(k, (len(q) // len(k), 1, 1)), window)

    patch.setattr(attention, "causal_scores", scores)


def swapped_patch_positions(patch):
    patch.setattr(vision, "patch_positions", lambda *a: np.ascontiguousarray(positions.patch_positions(*a)[:, ::-1]))


def raster_patch_positions(patch):
    def places(grid_thw, merge):
        return np.concatenate([[divmod(n, w) for _ in range(t) for n in range(h * w)] for t, h, w in grid_thw])

    patch.setattr(vision, "patch_positions", places)


def swapped_positions(patch):
    spoilt_positions(lambda ids, following, *_: (np.ascontiguousarray(ids[[0, 2, 1]]), following))(patch)


def rope_not_permuted(patch):
    original = vision.vision_rope
    patch.setattr(
        vision, "vision_rope", lambda places, K: original(positions.patch_positions([(1, 10, 14), (1, 6, 4)], 2), K)
    )


def sections_as_in_qwen3(patch):
    """t h w t h w ..., as Qwen3-VL does."""

    def mrope(ids, rope_config, K):
        f = 1 / rope_config.rope_theta ** (np.arange(0, K, 2) / K)
        angles = np.stack([ids[j % 3] * f[j] for j in range(K // 2)], axis=1)
        angles = np.concatenate([angles, angles], axis=1).astype(np.float32)
        return np.cos(angles), np.sin(angles)

    patch.setattr(decoder, "mrope", mrope)


def sections_exchanged(patch):
    from dataclasses import replace

    patch.setattr(decoder, "mrope", lambda ids, r, K: positions.mrope(ids, replace(r, mrope_section=(2, 1, 1)), K))


def tower_eps(patch):
    patch.setattr(vision, "EPS", 1e-5)


def post_norm(patch):
    """norm1's output instead of its input goes on beside attention."""

    def block(x, weights, rope, segments, heads, kernels):
        h = yield "norm1", kernels.rms_norm(x, weights["norm1.weight"], 1e-6)
        a = yield from vision.under(
            "attn", vision.vision_attention(h, weights.at("attn"), rope, segments, heads, kernels)
        )
        x = yield "attn_residual", h + a
        h = yield "norm2", kernels.rms_norm(x, weights["norm2.weight"], 1e-6)
        return x + (yield from vision.under("mlp", vision.swiglu(h, weights.at("mlp"), kernels)))

    patch.setattr(vision, "vision_block", block)


def no_features(patch):
    patch.setattr(model, "scatter", lambda x, *_: x)


FAULTS = {
    no_inverse: ("visual", "window order not undone"),
    inverse_by_index: ("visual", "inverse of the window order"),
    one_dimensional: ("position_ids", "1-D positions"),
    counted_by_tokens: ("position_ids", "text goes on by tokens"),
    swapped_positions: ("position_ids", "height and width swapped"),
    spoilt_positions(lambda ids, following, input_ids, *_: (ids, len(input_ids))): ("rope_delta", "wrong rope delta"),
    no_window_attention: ("visual.cu_window_seqlens", "no window attention"),
    full_attention_in_windowed_blocks: ("visual.blocks.0.attn.scores", "no window attention"),
    no_bias("qkv"): ("visual.blocks.0.attn.qkv", "no bias"),
    no_bias("q_proj"): ("model.layers.0.self_attn.q_proj", "no bias"),
    no_bias("mlp.2"): ("visual.merger.mlp.2", "no bias"),
    unscaled: ("visual.blocks.0.attn.scores", "unscaled scores"),
    no_causal_mask: ("model.layers.0.self_attn.scores", "no causal mask"),
    key_heads_by_remainder: ("model.layers.0.self_attn.scores", "key heads dealt out wrong"),
    swapped_patch_positions: ("visual.patch_positions", "height and width swapped"),
    raster_patch_positions: ("visual.patch_positions", "raster order of patches"),
    rope_not_permuted: ("visual.rope.cos", "positions not in window order"),
    sections_as_in_qwen3: ("model.rope.cos", "wrong mrope sections"),
    sections_exchanged: ("model.rope.cos", "wrong mrope sections"),
    tower_eps: ("visual.blocks.0.norm1", "wrong eps"),
    post_norm: ("visual.blocks.0.attn_residual", "post-norm residual"),
    no_features: ("inputs_embeds", "pictures not put in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bug_in_a_stage(right, fault, monkeypatch):
    vlm, inputs, trace = right
    fault(monkeypatch)
    found = compare(trace, vlm.trace(inputs, max_new_tokens=2), config=vlm.config)
    assert (found.first.name, found.first.causes[0].name) == FAULTS[fault], f"\n{found}"
    assert found.first.causes[0].exact and not found.ok


def layer_norm(x, weight, eps):
    return ((x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + eps) * weight).astype(
        np.float32
    )


def without_weight(x, weight, eps):
    return (x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)).astype(np.float32)


def exchanged(gate, up):
    return up / (1 + np.exp(-up)) * gate


def unrotated(x, cos, sin):
    return np.ascontiguousarray(x.swapaxes(0, 1))


KERNELS = {
    "interleaved": (dict(rotate=neighbours), "visual.blocks.0.attn.q_rope", "interleaved RoPE"),
    "not rotated": (dict(rotate=unrotated), "visual.blocks.0.attn.q_rope", "no rotation"),
    "backwards": (dict(rotate=lambda x, c, s: rope.rotate_numpy(x, c, -s)), "visual.blocks.0.attn.q_rope", "rotated backwards"),
    "tanh": (dict(gelu=tanh_gelu), "visual.merger.mlp.1", "tanh GELU"),
    "silu": (dict(gelu=lambda x: x / (1 + np.exp(-x))), "visual.merger.mlp.1", "SiLU for GELU"),
    "gelu": (dict(silu_multiply=lambda g, u: tanh_gelu(g) * u), "visual.blocks.0.mlp.act", "GELU for SiLU"),
    "exchanged": (dict(silu_multiply=exchanged), "visual.blocks.0.mlp.act", "gate and up exchanged"),
    "layer norm": (dict(rms_norm=layer_norm), "visual.blocks.0.norm1", "LayerNorm"),
    "no weight": (dict(rms_norm=without_weight), "visual.blocks.0.norm1", "no weight"),
    "no gelu": (dict(gelu=lambda x: x), "visual.merger.mlp.1", "no activation"),
}  # fmt: skip


@pytest.mark.parametrize("case", KERNELS)
def test_a_bug_in_the_arithmetic(right, case):
    vlm, inputs, trace = right
    changes, name, cause = KERNELS[case]
    found = compare(trace, with_kernels(vlm, **changes).trace(inputs, max_new_tokens=2), config=vlm.config)
    assert (found.first.name, found.first.causes[0].name) == (name, cause), f"\n{found}"


def test_the_decoder_alone_is_interleaved(right):
    vlm, inputs, trace = right

    def rotate(x, cos, sin):
        return (neighbours if x.shape[2] == vlm.config.text.head_dim and x.shape[1] != 4 else rope.rotate_numpy)(
            x, cos, sin
        )

    found = compare(trace, with_kernels(vlm, rotate=rotate).trace(inputs, max_new_tokens=2), config=vlm.config)
    assert found.first.name == "model.layers.0.self_attn.q_rope"
    assert found.first.causes[0].name == "interleaved RoPE", f"\n{found}"


def truncated_seconds(patch):
    original = model.prompt_positions

    def prompt_positions(ids, config, images, videos, seconds, rule):
        return original(ids, config, images, videos, seconds.astype(np.int64), rule)

    patch.setattr(model, "prompt_positions", prompt_positions)


def one_second(patch):
    original = model.prompt_positions
    patch.setattr(model, "prompt_positions", lambda i, c, g, v, s, rule: original(i, c, g, v, np.ones_like(s), rule))


def frames_see_each_other(patch):
    patch.setattr(vision, "frame_segments", lambda grid: np.concatenate([[0], np.cumsum(np.prod(grid, axis=1))]))


@pytest.mark.parametrize(
    "fault, name, cause",
    [
        (truncated_seconds, "position_ids", "truncated second_per_grid"),
        (one_second, "position_ids", "no second_per_grid"),
        (frames_see_each_other, "visual.cu_seqlens", "frames not apart"),
    ],
)
def test_a_bug_with_videos(right_video, fault, name, cause, monkeypatch):
    vlm, inputs, trace = right_video
    fault(monkeypatch)
    found = compare(trace, vlm.trace(inputs), config=vlm.config)
    assert (found.first.name, found.first.causes[0].name) == (name, cause), f"\n{found}"


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


@pytest.fixture(scope="module")
def shipped():
    vlm = minivl.load(backend="numpy")
    drawn = scene(5, size=(251, 187))
    return vlm, drawn, vlm.trace("How many shapes are there?", images=drawn.image)


def no_system_prompt(patch):
    original = chat.render
    patch.setattr(chat, "render", lambda *a, **k: original(*a, **k).partition("<|im_end|>\n")[2])


def bilinear(patch):
    def resized(self, picture, **sizes):
        height, width = self.size(picture.height, picture.width, **sizes)
        return np.asarray(picture.resize((width, height), 2))

    patch.setattr(image.ImageProcessor, "resized", resized)


def always_down(patch):
    def size(height, width, factor=28, *_):
        return height // factor * factor, width // factor * factor

    patch.setattr(image, "smart_resize", size)


def bgr(patch):
    original = image.ImageProcessor.resized
    patch.setattr(image.ImageProcessor, "resized", lambda *a, **k: np.ascontiguousarray(original(*a, **k)[..., ::-1]))


def normalised(change):
    def fault(patch):
        patch.setattr(image.ImageProcessor, "normalize", lambda self, pixels: (
            np.ascontiguousarray(change(pixels.astype(np.float32)).transpose(2, 0, 1), dtype=np.float32)))  # fmt: skip

    return fault


def plain_patches(patch):
    def patchify(self, frames):
        frames = np.repeat(frames, 2, axis=0)
        T, C, H, W = frames.shape
        x = frames.reshape(1, T, C, H // 14, 14, W // 14, 14).transpose(0, 3, 5, 2, 1, 4, 6)
        return np.ascontiguousarray(x).reshape(-1, C * T * 14 * 14), (1, H // 14, W // 14)

    patch.setattr(image.ImageProcessor, "patchify", patchify)


@pytest.mark.parametrize(
    "fault, name, cause, exact",
    [
        (no_system_prompt, "input_ids", "no system prompt", True),
        (bilinear, "image.0.resized", "wrong resize", False),
        (always_down, "image.0.resized", "wrong resize", False),
        (bgr, "image.0.resized", "BGR", True),
        (normalised(lambda x: x / 255), "image.0.normalized", "not normalised", True),
        (normalised(lambda x: x), "image.0.normalized", "not rescaled", True),
        (normalised(lambda x: x / 127.5 - 1), "image.0.normalized", "other mean and deviation", True),
        (plain_patches, "image.0.patches", "raster order of patches", True),
    ],
)
def test_a_bug_in_the_preparation(shipped, fault, name, cause, exact, monkeypatch):
    vlm, drawn, trace = shipped
    fault(monkeypatch)
    found = compare(trace, vlm.trace("How many shapes are there?", images=drawn.image), config=vlm.config)
    assert (found.first.name, found.first.causes[0].name) == (name, cause), f"\n{found}"
    assert found.first.causes[0].exact == exact


@pytest.mark.parametrize("fault, words", [(bilinear, "bilinear"), (always_down, "rounded down to multiples of 28")])
def test_with_the_picture_the_resize_is_found(shipped, fault, words, monkeypatch):
    vlm, drawn, trace = shipped
    fault(monkeypatch)
    theirs = vlm.trace("How many shapes are there?", images=drawn.image)
    found = compare(trace, theirs, config=vlm.config, pictures=[drawn.image])
    assert found.first.causes[0].exact and words in found.first.causes[0].sentence, f"\n{found}"


@pytest.mark.parametrize("fault", [no_inverse, one_dimensional, unscaled, swapped_patch_positions, post_norm])
def test_the_other_way_round(right, fault, monkeypatch):
    """The right one may be given second: what goes in says which of the two is right."""
    vlm, inputs, trace = right
    fault(monkeypatch)
    found = compare(vlm.trace(inputs, max_new_tokens=2), trace, config=vlm.config)
    assert (found.first.name, found.first.causes[0].name) == FAULTS[fault], f"\n{found}"
    assert found.first.causes[0].whose == "ours" and "in the first recording" in str(found)
