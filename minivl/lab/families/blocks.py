"""Notebook 07: a vision block by hand."""

from dataclasses import replace

import numpy as np

from minivl.checkpoint.config import Config
from minivl.compare.mistakes.attention import rotate_neighbours
from minivl.kernels.activations import silu_multiply_numpy
from minivl.kernels.attention import merge_heads, segment_attention_numpy
from minivl.kernels.norms import rms_norm_numpy
from minivl.kernels.rope import rotate_numpy
from minivl.lab.exercise import Case, Exercise, Mistake
from minivl.model.positions import patch_positions, vision_rope
from minivl.model.windows import frame_segments, window_index
from minivl.trace.grids import Grids

CONFIG = Config.named("3B")
EPS = 1e-6

# ---- 07.1 RMSNorm ----


def norm_cases():
    """Rows of very different magnitudes, so that eps matters."""
    rng = np.random.default_rng(10)
    last = f"model.layers.{CONFIG.text.num_hidden_layers - 1}"
    for eps, label in ((1e-6, "rows from 0.001 to 10, eps 1e-6"), (1e-5, "rows from 0.001 to 10, eps 1e-5")):
        x = (rng.standard_normal((6, 16)) + 0.5) * 10.0 ** np.array([[-3], [-2.5], [-2], [-1], [0], [1]])
        x, weight = x.astype(np.float32), 1 + rng.standard_normal(16).astype(np.float32) / 3
        config = replace(CONFIG, text=replace(CONFIG.text, rms_norm_eps=eps))
        yield Case({"x": x, "weight": weight, "eps": eps}, label, known={last: x}, config=config)


RMS_NORM = Exercise(
    "07.1", "rms_norm", "RMSNorm",
    "Scale each row to root mean square 1, then by the weight.", 5, 1,
    "rms_norm(x, weight, eps) -> float32 [N, D]        x float32 [N, D], weight float32 [D]",
    "Divide each row by the root of (the mean of its squares, plus eps), and multiply by weight. No mean is subtracted.",
    ("Over the last axis, and keepdims=True so that rows are divided as rows.",
     "eps is added under the root.", "x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight"),
    rms_norm_numpy, norm_cases, ("rows",),
    (
        Mistake("eps outside the root", "eps is added to the root; it belongs under it",
                lambda x, w, eps: x / (np.sqrt(np.mean(x * x, axis=1, keepdims=True)) + eps) * w),
        Mistake("norm of everything", "all rows are divided by one number; each row has its own",
                lambda x, w, eps: x / np.sqrt(np.mean(x * x) + eps) * w),
        Mistake("norm of columns", "each column is scaled; rows are meant: the last axis",
                lambda x, w, eps: x / np.sqrt(np.mean(x * x, axis=0) + eps) * w),
        Mistake("root left out", "it is divided by the mean square, not by its root",
                lambda x, w, eps: x / (np.mean(x * x, axis=1, keepdims=True) + eps) * w),
        Mistake("root left out", "it is divided by the mean square, not by its root, and eps is missing",
                lambda x, w, eps: x / np.mean(x * x, axis=1, keepdims=True) * w),
        Mistake("divided by the weight", "it is divided by the weight",
                lambda x, w, eps: x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps) / w),
    ),
    ("model.norm",), part="rms_norm",
)  # fmt: skip

# ---- 07.2 SwiGLU ----


def gate_cases():
    rng = np.random.default_rng(11)
    gate, up = (3 * rng.standard_normal((2, 7, 12))).astype(np.float32)
    gate[0, :3] = -100, 1e-3, 100
    known = {"visual.blocks.0.mlp.gate_proj": gate, "visual.blocks.0.mlp.up_proj": up}
    yield Case({"gate": gate, "up": up}, "7 rows, values to -100 and 100 among them", known=known, config=CONFIG)


SWIGLU = Exercise(
    "07.2", "swiglu", "SwiGLU",
    "Gate one projection with the SiLU of the other.", 5, 1,
    "swiglu(gate, up) -> float32 [N, I]",
    "silu(gate) * up, where silu(x) = x / (1 + e^-x).",
    ("SiLU is on gate alone.", "silu(x) is x times the sigmoid of x, not the sigmoid.", "gate / (1 + np.exp(-gate)) * up"),
    silu_multiply_numpy, gate_cases, ("act",),
    (
        Mistake("sign of the exponent", "it is x / (1 + e^x): the exponent is -x", lambda gate, up: gate / (1 + np.exp(gate)) * up),
    ),
    tensors=("visual.blocks.0.mlp.act",), part="swiglu",
)  # fmt: skip

# ---- 07.3 attention in segments ----


def segment_cases():
    rng = np.random.default_rng(12)
    for grid, full, label in (
        ([[1, 6, 12]], False, "a windowed block, windows of 48 and 24 patches"),
        ([[1, 6, 12], [1, 4, 4]], True, "a full block, two images"),
        ([[2, 4, 20]], False, "a windowed block, two frames of a video"),
    ):
        grid = np.array(grid, dtype=np.int64)
        index, windows = window_index(grid, CONFIG.vision)
        bounds = frame_segments(grid) if full else windows
        H, N, K = 2, int(bounds[-1]), 8
        vision = replace(CONFIG.vision, num_heads=H, hidden_size=H * K, fullatt_block_indexes=(0,) if full else ())
        q, k, v = rng.standard_normal((3, H, N, K)).astype(np.float32)
        at = "visual.blocks.0.attn."
        qkv = np.concatenate([merge_heads(part) for part in (q, k, v)], axis=1)
        known = {f"{at}q_rope": q, f"{at}k_rope": k, f"{at}qkv": qkv, "visual.cu_seqlens": frame_segments(grid),
                 "visual.cu_window_seqlens": windows}  # fmt: skip
        places = Grids(CONFIG, grid).places[(4 * index[:, None] + np.arange(4)).reshape(-1)]
        config = replace(CONFIG, vision=vision)
        yield Case({"q": q, "k": k, "v": v, "bounds": bounds}, label, places, known=known, config=config)


def split_evenly(q, k, v, bounds):
    """Attention in segments as long as the first."""
    step = int(bounds[1])
    return segment_attention_numpy(q, k, v, np.array([*range(0, q.shape[1], step), q.shape[1]]))


def last_segment_lost(q, k, v, bounds):
    context = segment_attention_numpy(q, k, v, bounds)
    context[bounds[-2] :] = 0
    return context


SEGMENTS = Exercise(
    "07.3", "segment_attention", "Attention inside windows",
    "Let each patch attend to the patches of its own segment, in both directions.", 20, 2,
    "segment_attention(q, k, v, bounds) -> float32 [N, H*K]        q, k, v float32 [H, N, K], bounds int64 [segments + 1]",
    """Segment s holds the rows bounds[s] to bounds[s + 1]. Within it softmax(q k.T / sqrt(K)) v for each head; then the heads side
by side: [H, N, K] -> [N, H*K].""",
    ("A loop over zip(bounds[:-1], bounds[1:]) and a slice of q, k and v each time.",
     "softmax over the keys, the last axis; subtract the largest score first.",
     "context[:, a:b] = probs @ v[:, a:b]; at the end context.swapaxes(0, 1).reshape(N, H * K)"),
    segment_attention_numpy, segment_cases, ("context",),
    (
        Mistake("windows of one size", "all segments are as long as the first one", split_evenly),
        Mistake("last segment lost", "the last segment is not computed: zip(bounds[:-1], bounds[1:]) gives all",
                last_segment_lost),
    ),
    ("visual.blocks.0.attn.context",), part="segment_attention",
)  # fmt: skip

# ---- 07.4 the whole block ----


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def block(
    x, weights, cos, sin, bounds, heads, norm=rms_norm_numpy, rotate=rotate_numpy, swiglu=silu_multiply_numpy,
    first=1, second=1, post=(False, False), parallel=False, same_norm=False, order=(0, 1, 2), turn_values=False,
):  # fmt: skip
    """A block of the tower with replaceable parts: [N, D] -> [N, D]"""
    N, D = x.shape
    h = norm(x, weights["norm1.weight"], EPS)
    qkv = linear(h, weights, "attn.qkv").reshape(N, 3, heads, D // heads).swapaxes(0, 1)
    q, k, v = (qkv[i] for i in order)
    v = rotate(v, cos, sin) if turn_values else v.swapaxes(0, 1)
    context = segment_attention_numpy(rotate(q, cos, sin), rotate(k, cos, sin), v, bounds)
    x, before = first * (h if post[0] else x) + linear(context, weights, "attn.proj"), x
    h = norm(before if parallel else x, weights["norm1.weight" if same_norm else "norm2.weight"], EPS)
    act = swiglu(linear(h, weights, "mlp.gate_proj"), linear(h, weights, "mlp.up_proj"))
    return (second * (h if post[1] else x) + linear(act, weights, "mlp.down_proj")).astype(np.float32)


def block_cases():
    rng = np.random.default_rng(13)
    D, inner, heads = 16, 24, 2
    for grid, label in (([[1, 6, 12]], "an image of two windows"), ([[1, 4, 8], [1, 4, 4]], "two images")):
        grid = np.array(grid, dtype=np.int64)
        index, bounds = window_index(grid, CONFIG.vision)
        order = (4 * index[:, None] + np.arange(4)).reshape(-1)
        cos, sin = vision_rope(patch_positions(grid, 2)[order], D // heads, 10000.0)
        shapes = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.gate_proj": (inner, D), "mlp.up_proj": (inner, D),
                  "mlp.down_proj": (D, inner)}  # fmt: skip
        weights = {f"{name}.weight": normal(rng, *shape) / np.float32(2) for name, shape in shapes.items()}
        weights |= {f"{name}.bias": normal(rng, shape[0]) for name, shape in shapes.items()}
        weights |= {f"norm{i}.weight": 1 + normal(rng, D) / np.float32(3) for i in (1, 2)}
        arguments = {"x": normal(rng, len(order), D), "weights": weights, "cos": cos, "sin": sin, "bounds": bounds}
        yield Case({**arguments, "heads": heads}, label, Grids(CONFIG, grid).places[order])


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def building(**how):
    return lambda *arguments: block(*arguments, **how)


def without_biases(x, weights, *rest):
    return block(x, {name: w * 0 if name.endswith("bias") else w for name, w in weights.items()}, *rest)


BLOCK = Exercise(
    "07.4", "vision_block", "A whole vision block",
    "Put norm, attention and MLP together, with both residuals.", 35, 3,
    "vision_block(x, weights, cos, sin, bounds, heads) -> float32 [N, D]        weights: {name: float32 array}",
    """x = x + attn(norm1(x)), then x + mlp(norm2(x)). norm1.weight and norm2.weight are RMSNorm's, eps 1e-6. attn: linear attn.qkv
(its 3D columns are q, k, v, each head by head), q and k rotated by cos and sin [N, K] (pairs j and j + K/2), attention inside
the segments of bounds, linear attn.proj. mlp: down_proj(swiglu(gate_proj, up_proj)), names mlp.gate_proj and so on. All
linears have .weight [out, in] and .bias. Use your functions of 07.1 to 07.3.""",
    ("Write linear(x, name) and rotate(x) first; the block is then eight lines.",
     "qkv.reshape(N, 3, heads, K).swapaxes(0, 1) gives q, k, v as [N, heads, K]; attention takes [heads, N, K].",
     "Pre-norm: the norm's output goes into attention and MLP; what is added to their output is the x before the norm."),
    block, block_cases, ("x",),
    (
        Mistake("no residual", "the input is not added to attention's output", building(first=0)),
        Mistake("no residual", "the input of the MLP is not added to its output", building(second=0)),
        Mistake("no residual", "nothing is added to the outputs of attention and MLP", building(first=0, second=0)),
        Mistake("post-norm residual", "the normed input is added to the outputs, instead of the input itself",
                building(post=(True, True))),
        Mistake("post-norm residual", "attention's output is added to the normed input, instead of the input itself",
                building(post=(True, False))),
        Mistake("post-norm residual", "the MLP's output is added to its normed input, instead of the input itself",
                building(post=(False, True))),
        Mistake("MLP beside attention", "the MLP reads the block's input; it reads what attention has been added to",
                building(parallel=True)),
        Mistake("norm1 twice", "norm1.weight is used in both norms", building(same_norm=True)),
        Mistake("LayerNorm", "LayerNorm: the mean is subtracted, which RMSNorm does not do",
                building(norm=lambda x, w, eps: rms_norm_numpy(x - x.mean(axis=1, keepdims=True), w, eps))),
        Mistake("no norm", "nothing is normed", building(norm=lambda x, w, eps: x * w)),
        Mistake("interleaved RoPE", "pairs are neighbours (2i, 2i + 1), instead of half a head apart (i, i + K/2)",
                building(rotate=rotate_neighbours)),
        Mistake("rotated backwards", "it turns by minus the angle: the sign of sin is wrong",
                building(rotate=lambda x, c, s: rotate_numpy(x, c, -s))),
        Mistake("no rotation", "queries and keys are not rotated", building(rotate=lambda x, c, s: x.swapaxes(0, 1))),
        Mistake("values rotated", "values are rotated, too: only queries and keys are", building(turn_values=True)),
        Mistake("q and k exchanged", "queries and keys are exchanged", building(order=(1, 0, 2))),
        Mistake("no window attention", "patches see everything: bounds are not used",
                lambda x, w, c, s, b, heads: block(x, w, c, s, b[[0, -1]], heads)),
        Mistake("gate and up exchanged", "SiLU is on up_proj instead of gate_proj",
                building(swiglu=lambda gate, up: silu_multiply_numpy(up, gate))),
        Mistake("no bias", "no bias is added: in the tower all linears have one", without_biases),
    ),
    tolerance=1e-4, part="vision_block",
)  # fmt: skip

EXERCISES = (RMS_NORM, SWIGLU, SEGMENTS, BLOCK)
