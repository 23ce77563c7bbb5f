"""Mistakes in norms, MLPs, residuals and biases."""

import math

import numpy as np

from minivl.compare.mistakes import RIGHT, Unknown
from minivl.kernels.activations import gelu_numpy

EPS = (1e-6, 1e-5, 0.0, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3, 1e-2)
CERTAIN = 12  # standard errors
ENOUGH_ROWS = 16


def norm_input(subject):
    if subject.word in ("norm1", "input_layernorm"):
        return subject.block_input()
    if subject.word in ("norm2", "post_attention_layernorm"):
        return subject.near("attn_residual")
    prefix, count = ("visual.blocks", "depth") if subject.in_tower else ("model.layers", "num_hidden_layers")
    config = subject.config.vision if subject.in_tower else subject.config.text
    return subject.at(f"{prefix}.{getattr(config, count) - 1}")


def norm(subject):
    x, ours = norm_input(subject).astype(np.float64), subject.ours.astype(np.float64)
    eps = 1e-6 if subject.in_tower else subject.config.text.rms_norm_eps
    square, mean = (x * x).mean(axis=1, keepdims=True), x.mean(axis=1, keepdims=True)
    root = np.sqrt(square + eps)
    for other in (*EPS, fit_eps(square, eps, ours, subject.theirs)):
        if other != eps:
            text = f"eps of the norm is {other:.3g} instead of {eps:.3g}"
            yield "wrong eps", text, ours * root / np.sqrt(square + other)
    normal = x / root
    with np.errstate(invalid="ignore"):  # columns of zeros
        weight = (ours * normal).sum(axis=0) / (normal * normal).sum(axis=0)
    text = "LayerNorm: the mean is subtracted, which RMSNorm does not do"
    yield "LayerNorm", text, (x - mean) / np.sqrt(square - mean**2 + eps) * weight
    yield "no weight", "the norm is not multiplied by its weight", normal
    yield "weight plus 1", "the norm is multiplied by 1 + weight, as in Gemma, instead of weight", normal * (1 + weight)
    yield "no norm", "it is what goes into the norm, multiplied by the weight: not divided by its size", x * weight
    yield "no norm", "it is what goes into the norm: nothing is done", x
    norm_of = np.sqrt((x * x).sum(axis=1, keepdims=True) + eps)
    yield "sum for mean", "it is divided by the root of the sum of squares instead of their mean", x / norm_of * weight


def fit_eps(square, eps, ours, theirs):
    """The eps that gives theirs, to two digits, from the row where it matters most."""
    n = int(square.argmin())
    size = float((ours[n] * ours[n]).sum())
    ratio = float((ours[n] * theirs[n]).sum()) / size if size and theirs.shape == ours.shape else 0.0
    other = (float(square[n, 0]) + eps) / ratio**2 - float(square[n, 0]) if ratio else 0.0
    return float(f"{other:.1e}") if other > 0 and math.isfinite(other) else eps


def faint_eps(subject):
    """Sentence for another eps that changes each value by less than rounding does, but all rows together by more; or None.

    eps + d makes row n smaller by d / (2 mean(x_n^2)). Fitted to all rows by least squares, with and without a constant
    factor, d must be many standard errors away from 0.
    """
    x, ours, theirs = (array.astype(np.float64) for array in (norm_input(subject), subject.ours, subject.theirs))
    if len(x) < ENOUGH_ROWS or x.shape != ours.shape or ours.shape != theirs.shape:
        return None
    eps = 1e-6 if subject.in_tower else subject.config.text.rms_norm_eps
    slope = -1 / (2 * ((x * x).mean(axis=1) + eps))
    gain = (ours * theirs).sum(axis=1) / (ours * ours).sum(axis=1) - 1
    d, alone = fit_slope(gain, slope[:, None])
    beside, both = fit_slope(gain, np.stack([slope, np.ones_like(slope)], axis=1))
    if alone < CERTAIN or both < CERTAIN / 2 or d * beside < 0 or eps + d < 0:
        return None
    if abs(d) < eps / 2:  # a reciprocal root that is a bit off, such as MLX's on CPUs, not another eps
        return None
    power = 10.0 ** round(math.log10(max(eps + d, 1e-12)))
    return (
        f"eps of the norm is about {power:.0e} instead of {eps:.0e}: each value differs by less than rounding does, but over "
        f"all {len(x)} rows it is {alone:.0f} times what chance would make"
    )


def fit_slope(values, columns):
    """(factor of the first column, how many standard errors it is away from 0), by least squares."""
    if np.linalg.cond(columns) > 1e12:
        return 0.0, 0.0
    factors = np.linalg.lstsq(columns, values, rcond=None)[0]
    left = values - columns @ factors
    variance = np.linalg.inv(columns.T @ columns)[0, 0] * (left @ left) / (len(values) - len(factors))
    return float(factors[0]), abs(float(factors[0])) / math.sqrt(variance) if variance > 0 else 0.0


def act(subject):
    gate, up = subject.near("gate_proj").astype(np.float64), subject.near("up_proj").astype(np.float64)
    silu = sigmoid_times(gate)
    yield RIGHT, "", silu * up
    text = "the activation is on up_proj instead of gate_proj: gate * silu(up)"
    yield "gate and up exchanged", text, gate * sigmoid_times(up)
    yield "GELU for SiLU", "gelu(gate) * up instead of silu(gate) * up", lambda: gelu_numpy(gate) * up
    yield "GELU for SiLU", "gelu(gate) * up, GELU by tanh, instead of silu(gate) * up", lambda: gelu_tanh(gate) * up
    text = "quick GELU, gate * sigmoid(1.702 gate), instead of silu(gate), times up"
    yield "quick GELU", text, lambda: sigmoid_times(gate, 1.702) * up
    yield "ReLU for SiLU", "relu(gate) * up instead of silu(gate) * up", np.maximum(gate, 0) * up
    yield "no activation", "gate * up: SiLU is missing", gate * up
    yield "sigmoid for SiLU", "sigmoid(gate) * up: silu(x) is x * sigmoid(x)", silu / np.where(gate == 0, 1, gate) * up
    yield "no gate", "it is silu(gate): not multiplied by up_proj", silu
    yield "no gate", "it is up_proj: the gate is missing", up


FLIPPED = 0.001  # share of the values of a table that may be rounded the other way


def merger_act(subject):
    x = subject.near("0").astype(np.float64)
    yield RIGHT, "", gelu_numpy(x)
    yield "tanh GELU", "GELU by its approximation with tanh, instead of the exact one with erf", gelu_tanh(x)
    text = "GELU by its approximation with tanh, from a table for numbers of float16, as ggml's is, up to 10"
    yield "tanh GELU", text, gelu_of_a_table(x, subject.theirs)
    text = "x * sigmoid(1.702 x), as in CLIP and Qwen2-VL's tower, instead of exact GELU"
    yield "quick GELU", text, sigmoid_times(x, 1.702)
    yield "SiLU for GELU", "silu instead of GELU", sigmoid_times(x)
    yield "ReLU for GELU", "relu instead of GELU", np.maximum(x, 0)
    yield "no activation", "it is the first linear: GELU is missing", x


def sigmoid_times(x, slope=1.0):
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-slope * x))


def gelu_tanh(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def gelu_of_a_table(x, theirs):
    """GELU by tanh of x in float16, itself in float16; 0 from -10 down, and x from 10 up.

    Which of two neighbours a value is rounded to may depend on the last bit of tanh: for a share FLIPPED theirs is taken.
    """
    inside = np.clip(x, -10, 10).astype(np.float16).astype(np.float64)
    table = gelu_tanh(inside).astype(np.float16)
    made = np.where(np.abs(x) < 10, table, np.maximum(x, 0))
    if theirs.shape != made.shape:
        return made
    off = np.abs(made - theirs)
    flipped = (off > 0) & (off <= np.abs(np.spacing(table)).astype(np.float64))
    return np.where(flipped, theirs, made) if flipped.mean() <= FLIPPED else made


def attn_residual(subject):
    x = subject.block_input()
    part = subject.near("attn.proj" if subject.in_tower else "self_attn.o_proj")
    normed = subject.near("norm1" if subject.in_tower else "input_layernorm")
    yield from residual(x, part, normed, "attention")


def block(subject):
    x = subject.at(f"{subject.short}.attn_residual")
    part = subject.at(f"{subject.short}.mlp.down_proj")
    normed = subject.at(f"{subject.short}.norm2" if subject.in_tower else f"{subject.short}.post_attention_layernorm")
    text = "the input of the whole block is added to the MLP's output, instead of attn_residual: attention is lost"
    yield from residual(x, part, normed, "the MLP")
    yield "wrong residual", text, subject.block_input() + part


def residual(x, part, normed, what):
    yield RIGHT, "", x + part
    yield "no residual", f"it is the output of {what}: what went in is not added", part
    yield "no residual", f"it is what went in: the output of {what} is not added", x
    text = f"the normed input is added to the output of {what}, instead of the input itself"
    yield "post-norm residual", text, normed + part
    yield "wrong residual", f"what went in is added to the output of {what} twice", x + x + part
    yield "wrong residual", f"the output of {what} is subtracted", x - part


def bias(subject):
    """A bias that is not added. subtle: theirs = ours - bias, whatever the bias: the difference is the same in every row."""
    x = subject.ours
    if subject.weights is not None:
        vector = subject.weights[f"{subject.short}.bias"]
        yield "no bias", "the bias is not added", x - vector
        D = len(vector) // 3
        for i, part in enumerate("qkv" if subject.word == "qkv" else ""):
            without = np.where(np.arange(3 * D) // D == i, vector, 0)
            yield "no bias", f"the bias is not added (only that of {part})", x - without
        return
    if x.ndim != 2 or len(x) < 3 or subject.theirs.shape != x.shape:
        raise Unknown("rows")
    difference = (subject.theirs.astype(np.float64) - x).mean(axis=0)
    size = float(np.abs(difference).max()) or 1.0
    parts = {"": slice(None)}
    if subject.word == "qkv":
        D = x.shape[1] // 3
        parts = {f" of {name}": slice(i * D, (i + 1) * D) for i, name in enumerate("qkv")}
    touched = [name for name, part in parts.items() if np.abs(difference[part]).max() > 1e-6 * size]
    where = "" if len(touched) in (0, len(parts)) else " (only that" + " and that".join(touched) + ")"
    yield "no bias", f"it is ours minus the same vector in every row: the bias is not added{where}", x + difference


MISTAKES = (
    ("*norm1", norm), ("*norm2", norm), ("*layernorm", norm), ("visual.merger.ln_q", norm), ("model.norm", norm),
    ("*.mlp.act", act), ("visual.merger.mlp.1", merger_act),
    ("*.attn_residual", attn_residual), ("visual.blocks.?", block), ("visual.blocks.??", block),
    ("model.layers.?", block), ("model.layers.??", block),
    ("*.qkv", bias), ("*.[qkv]_proj", bias), ("*.attn.proj", bias), ("visual.blocks.*.mlp.*_proj", bias),
    ("visual.merger.mlp.[02]", bias),
)  # fmt: skip
