"""The vision tower: patches in, one vector for each 2x2 patches out.

    pixel_values [N, 1176] -> patch_embed [N, D] -> window order -> blocks -> merger [N/4, D_text] -> raster order

Everything between `window_index` and the end of the merger is in window order (see windows.py).
Axes: N patches of all images and videos, U = N/4 units, D width of the tower, H heads, K = D/H, L the longest segment.
Source: arXiv:2502.13923, section 2.1; names are the checkpoint's, below `visual.`.
"""

from minivl.kernels import attention
from minivl.model.layers import mlp, softmax_of
from minivl.model.positions import patch_positions, vision_rope
from minivl.model.windows import check_order, frame_segments, to_raster_order, to_window_order, window_index
from minivl.stream import Lazy, under

EPS = 1e-6  # subtle: fixed in the reference, never taken from config.json


def vision_tower(pixel_values, grid_thw, weights, config, kernels):
    """Image features, float32 [U, out_hidden_size], in raster order, images first, then videos.

    pixel_values  float32 [N, C*T*P*P], rows in the image processor's order (unit by unit)
    grid_thw      int [images + videos, 3]: frames, patch rows, patch columns
    weights       those below `visual.`;  config  the VisionConfig
    """
    index, windows = window_index(grid_thw, config)
    index = yield "window_index", index
    windows = yield "cu_window_seqlens", windows
    frames = yield "cu_seqlens", frame_segments(grid_thw)
    check_order(len(pixel_values), index, windows, frames)  # the kernels trust them
    places = yield "patch_positions", patch_positions(grid_thw, config.spatial_merge_size)

    x = yield "patch_embed", patch_embed(pixel_values, weights, kernels)
    x = yield "window_order", to_window_order(x, index, config.merge_unit)
    places = to_window_order(places, index, config.merge_unit)
    cos, sin = vision_rope(places, config.head_dim, config.rope_theta)
    cos = yield "rope.cos", cos
    sin = yield "rope.sin", sin

    for i in range(config.depth):
        segments = frames if i in config.fullatt_block_indexes else windows
        block = vision_block(x, weights.at(f"blocks.{i}"), (cos, sin), segments, config.num_heads, kernels)
        del x  # the block holds the only reference, and drops it as soon as it can
        x = yield f"blocks.{i}", (yield from under(f"blocks.{i}", block))

    merged = yield "merger", (yield from under("merger", patch_merger(x, weights.at("merger"), config, kernels)))
    return to_raster_order(merged, index)


def patch_embed(pixel_values, weights, kernels):
    """A Conv3d whose stride is its size is a matrix product: [N, C*T*P*P] -> [N, D]. No bias."""
    weight = weights["patch_embed.proj.weight"]  # [D, C, T, P, P], its columns in the order of a patch's pixels
    return kernels.linear(pixel_values, weight.reshape(len(weight), -1))


def vision_block(x, weights, rope, segments, heads, kernels):
    """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)). [N, D] -> [N, D]"""
    h = yield "norm1", kernels.rms_norm(x, weights["norm1.weight"], EPS)
    a = yield from under("attn", vision_attention(h, weights.at("attn"), rope, segments, heads, kernels))
    x = yield "attn_residual", x + a
    del a
    h = yield "norm2", kernels.rms_norm(x, weights["norm2.weight"], EPS)
    m = yield from under("mlp", mlp(h, weights.at("mlp"), kernels))
    return x + m


def vision_attention(x, weights, rope, segments, heads, kernels):
    """Attention within segments, both directions. [N, D] -> [N, D]"""
    context = yield from vision_context(x, weights, rope, segments, heads, kernels)
    return (yield "proj", kernels.linear(context, *weights.linear("proj")))


def vision_context(x, weights, rope, segments, heads, kernels):
    """Attention before its output projection; on return q, k and v are freed (2 GB of the largest image). [N, D] -> [N, D]"""
    N, D = x.shape
    qkv = yield "qkv", kernels.linear(x, *weights.linear("qkv"))
    q, k, v = qkv.reshape(N, 3, heads, D // heads).swapaxes(0, 1)  # [N, 3D] -> three of [N, H, K]
    q = yield "q_rope", kernels.rotate(q, *rope)  # [N, H, K] -> [H, N, K]
    k = yield "k_rope", kernels.rotate(k, *rope)
    v = v.swapaxes(0, 1)

    shape = heads, N, int((segments[1:] - segments[:-1]).max())
    scores = yield "scores", Lazy(shape, lambda: attention.segment_scores(q, k, segments))
    probs = yield "probs", softmax_of(scores)
    if isinstance(probs, Lazy):
        context = kernels.segment_attention(q, k, v, segments)
    else:
        context = attention.segment_context(probs, v, segments)
    return (yield "context", context)


def patch_merger(x, weights, config, kernels):
    """Four patches become one token: norm each, lay them side by side, two linears. [N, D] -> [U, 4D] -> [U, D_text]"""
    N, D = x.shape
    h = yield "ln_q", kernels.rms_norm(x, weights["ln_q.weight"], EPS)
    h = h.reshape(N // config.merge_unit, config.merge_unit * D)  # "(u p) d -> u (p d)"
    h = yield "mlp.0", kernels.linear(h, *weights.linear("mlp.0"))
    h = yield "mlp.1", kernels.gelu(h)
    return (yield "mlp.2", kernels.linear(h, *weights.linear("mlp.2")))
