"""Usual wrong submissions get the right sentence: each is a solution with one piece of its text changed."""

import math

import numpy as np
import pytest
from progress_fixture import fresh_progress  # noqa: F401  (a fixture that every test here uses)
from solutions import changed, solutions

from minivl import lab

WRONG = {  # family: (function, text of the solution, what a student wrote, name of the mistake)
    "pixels": (
        ("smart_resize", "round(height / 28) * 28, round(width / 28) * 28",
         "int(height / 28 + 0.5) * 28, int(width / 28 + 0.5) * 28", "halves rounded up"),
        ("smart_resize", "round(height / 28) * 28, round(width / 28) * 28", "height // 28 * 28, width // 28 * 28",
         "rounded down"),
        ("smart_resize", "math.sqrt(height * width / max_pixels)", "math.sqrt(H * W / max_pixels)", None),
        ("smart_resize", "max(28, math.floor(side / beta / 28) * 28)", "math.floor(side / beta / 28) * 28", "a side of 0"),
        ("smart_resize", "math.ceil(side * beta / 28)", "round(side * beta / 28)", "too small after growing"),
        ("smart_resize", "math.floor(side / beta / 28)", "round(side / beta / 28)", "too large after shrinking"),
        ("smart_resize", "return H, W", "return W, H", "height and width swapped"),
        ("patchify", "transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)", "transpose(0, 3, 4, 6, 7, 2, 1, 5, 8)",
         "raster order of patches"),
        ("patchify", "transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)", "transpose(0, 3, 6, 4, 7, 1, 2, 5, 8)",
         "columns in another order"),
        ("patchify", "transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)", "transpose(0, 3, 6, 4, 7, 5, 8, 1, 2)",
         "columns in another order"),
        ("patchify", "transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)", "transpose(0, 6, 3, 7, 4, 2, 1, 5, 8)",
         "height and width swapped"),
        ("locate", "first + token", "token", "first row left out"),
        ("locate", "first + token", "first + patch", "rows of patches"),
        ("locate", "4 * token + 2 * (y // 14 % 2) + x // 14 % 2", "y // 14 * 2 * columns + x // 14",
         "raster order of patches"),
        ("locate", "2 * (y // 14 % 2) + x // 14 % 2", "2 * (x // 14 % 2) + y // 14 % 2", "height and width swapped"),
        ("locate", "y // 28 * columns + x // 28", "x // 28 * columns + y // 28", None),
        ("locate", "y // 28 * columns + x // 28", "y // 28 * 2 * columns + x // 28", "units for patches"),
    ),
    "windows": (
        ("window_index", "order.append(start + window)", "order.append(window)", "windows without offset"),
        ("window_index", "lengths.append(4 * len(window))", "lengths.append(len(window))", "units for patches"),
        ("window_index", "np.cumsum([0, *lengths])", "np.array(lengths)", "lengths for boundaries"),
        ("window_index", "np.cumsum([0, *lengths])", "np.cumsum(lengths)", "no first boundary"),
        ("window_index", "np.concatenate(order)", "np.argsort(np.concatenate(order))", "inverse of the window order"),
        ("window_index", "np.concatenate(order)", "np.arange(start)", "no window order"),
        ("window_index", "R, S = h // 2, w // 2", "R, S = w // 2, h // 2", "height and width swapped"),
        ("window_index", "window = units[top : top + 4, left : left + 4].reshape(-1)",
         "window = units[top : top + 4, left : left + 4].T.reshape(-1)", "columns before rows"),
        ("window_index", "start += R * S", "pass\n        start += frames * R * S", "windows without offset"),
        ("window_index", "start += R * S", "pass\n        start += R * S", "windows without offset"),
        ("to_raster_order", "raster[window_index] = x", "raster = x[window_index]", "inverse of the window order"),
        ("to_raster_order", "raster[window_index] = x", "raster = x", "nothing done"),
        ("reached", "blocks > min(vision.fullatt_block_indexes)", "blocks >= min(vision.fullatt_block_indexes)",
         "off by one"),
        ("reached", "same_frame & same_window", "same_frame", "no window attention"),
        ("reached", "return np.flatnonzero(same_frame)", "return np.flatnonzero(same_frame & (places[:, 2] < 0))", None),
        ("reached", "in enumerate(grid_thw)", "in enumerate([grid_thw[0] * [9, 1, 1]])", "first grid for all"),
        ("attention_cost", "return int(windowed), int(full)",
         "N = int(grid_thw.prod(axis=1).sum()); return 64 * N, N * N", "partial windows taken for whole"),
        ("attention_cost", "(min(8, h - top) * min(8, w - left)) ** 2", "64**2", None),
        ("attention_cost", "full += frames * (h * w) ** 2", "full += (frames * h * w) ** 2", "frames not apart"),
        ("attention_cost", "return int(windowed), int(full)", "return int(full), int(windowed)", "exchanged"),
    ),
    "merger": (
        ("patch_merger", "h = h / 2 * (1 + erf(h / np.float32(math.sqrt(2))))", "h = np.maximum(h, 0)", "ReLU for GELU"),
        ("patch_merger", "h = h / 2 * (1 + erf(h / np.float32(math.sqrt(2))))",
         "h = h / 2 * (1 + np.tanh(0.7978845608 * (h + 0.044715 * h**3)))", "tanh GELU"),
        ("patch_merger", "h = h / 2 * (1 + erf(h / np.float32(math.sqrt(2))))", "h = h / (1 + np.exp(-h))",
         "SiLU for GELU"),
        ("patch_merger", "h = h / 2 * (1 + erf(h / np.float32(math.sqrt(2))))", "h = h / (1 + np.exp(-1.702 * h))",
         "quick GELU"),
        ("patch_merger", "    h = h / 2 * (1 + erf(h / np.float32(math.sqrt(2))))", "", "no activation"),
        ("patch_merger", " * ln_q", "", "no weight"),
        ("patch_merger", "h = h @ w0.T + b0", "h = h @ w0 + b0", "not transposed"),
        ("patch_merger", "np.mean(x * x, axis=1, keepdims=True)", "np.sum(x * x, axis=1, keepdims=True)", "sum for mean"),
        ("patch_merger", "h = h @ w0.T + b0", "h = h @ w0.T", "no bias"),
        ("patch_merger", "return h @ w2.T + b2", "return h @ w2.T", "no bias"),
        ("patch_merger", "h.reshape(N // 4, 4 * D)", "h.reshape(4, N // 4, D).swapaxes(0, 1).reshape(N // 4, 4 * D)",
         "patches of four units"),
        ("patch_merger", "    h = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(1e-6)) * ln_q",
         "    h = x", "no norm"),
        ("put_in", "x[where] = features", "x[where] += features", "added instead of put in"),
        ("put_in", "x[where] = features", "x[where] = features[0]", "always the first row"),
        ("put_in", "x[where] = features", "x[where] = features[::-1]", "images in another order"),
        ("put_in", "x[where] = features", "a = where.argmax(); x[a : a + len(features)] = features", "one block"),
    ),
    "positions": (
        ("vision_rope", "[row, column, row, column]", "[row, row, column, column]", "halves laid out wrong"),
        ("vision_rope", "[row, column, row, column]", "[column, row, column, row]", "height and width swapped"),
        ("vision_rope", "m = head_dim // 2", "m = head_dim", None),
        ("vision_rope", "return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)",
         "return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)", "exchanged"),
        ("rotate_both", "rotate(k, cos, sin)", "k", "keys not rotated"),
        ("rotate_both", "places + shift", "places", "shift ignored"),
        ("rotate_both", "return rotate(q, cos, sin), rotate(k, cos, sin)", "return rotate(q, cos, -sin), rotate(k, cos, -sin)",
         "rotated backwards"),
        ("mrope", "[0, 1, 2]", "[0, 2, 1]", "height and width swapped"),
        ("mrope", "np.tile(position_ids[axis].T * f, 2)", "np.repeat(position_ids[axis].T * f, 2, axis=1)",
         "interleaved RoPE"),
        ("mrope", "np.repeat([0, 1, 2], rope.mrope_section)", "np.arange(head_dim // 2) % 3", "wrong mrope sections"),
        ("mrope", "rope.rope_theta", "10000.0", "wrong theta"),
        ("mrope", "np.tile(position_ids[axis].T * f, 2)",
         "np.tile(position_ids[axis].T * np.concatenate([f[:n] for n in rope.mrope_section]), 2)",
         "frequencies of each section"),
        ("image_positions", "return prompt_positions(input_ids, config, image_grid_thw, [], [])",
         "return np.tile(np.arange(len(input_ids)), (3, 1)), np.array([0])", "1-D positions"),
        ("prompt_positions", "(t, h // 2, w // 2)", "(t, w // 2, h // 2)", "height and width swapped"),
        ("prompt_positions", "next(seconds)", "int(next(seconds))", "truncated second_per_grid"),
        ("prompt_positions", "next(seconds) * config.vision.tokens_per_second",
         "int(next(seconds) * config.vision.tokens_per_second)", "step cut"),
        ("prompt_positions", "next(seconds) * config.vision.tokens_per_second", "1.0", "time in frames"),
        ("prompt_positions", "np.array([start - len(input_ids)])", "np.array([start])", "wrong rope delta"),
        ("prompt_positions", "np.array([start - len(input_ids)])", "np.array([0])", "wrong rope delta"),
        ("prompt_positions", "columns[-1].max() + 1", "columns[-1][1:].max() + 1", "another rule after a video"),
    ),
    "decoding": (
        ("causal_attention", "np.repeat(x, H // KV, axis=0)", "np.tile(x, (H // KV, 1, 1))", "key heads dealt out wrong"),
        ("causal_attention", "np.tri(T, S, S - T, dtype=bool)", "np.ones((T, S), dtype=bool)", "no causal mask"),
        ("causal_attention", "np.tri(T, S, S - T, dtype=bool)", "np.tri(T, S, dtype=bool)", "cache not counted"),
        ("causal_attention", " / np.sqrt(np.float32(K))", "", "unscaled scores"),
        ("causal_attention", "np.sqrt(np.float32(K))", "np.float32(K)", "scores scaled twice"),
        ("causal_attention", ".swapaxes(0, 1).reshape(T, H * K)", ".reshape(T, H * K)", "heads not put side by side"),
        ("causal_attention", "np.tri(T, S, S - T, dtype=bool)", "np.tri(T, S, S - T + 1, dtype=bool)", "mask off by one"),
        ("keep_top_p", "- probs  # of those that are likelier", "", "crossing token dropped"),
        ("causal_attention", ".swapaxes(0, 1).reshape(T, H * K)", "", "heads not put side by side"),
        ("causal_attention", "np.tri(T, S, S - T, dtype=bool)", "np.tri(T, S, S - T - 1, dtype=bool)", "mask off by one"),
        ("keep_top_p", "= -np.inf", "= 0", "zeros for -inf"),
        ("keep_top_p", "np.argsort(-logits", "np.argsort(logits", "least likely kept"),
        ("penalize_repetition", "np.where(logits[ids] < 0, logits[ids] * penalty, logits[ids] / penalty)",
         "logits[ids] / penalty", "always divided"),
        ("penalize_repetition", "logits[ids] < 0", "logits[ids] > 0", "signs exchanged"),
        ("penalize_repetition", "np.unique(seen)", "np.arange(len(logits))", "all tokens"),
        ("kv_cache_bytes", "num_key_value_heads", "num_attention_heads", "query heads for key heads"),
        ("kv_cache_bytes", "2 * text", "text", "keys alone"),
    ),
    "blocks": (
        ("rms_norm", "np.mean(x * x, axis=-1, keepdims=True)", "np.sum(x * x, axis=-1, keepdims=True)", "sum for mean"),
        ("rms_norm", "np.float32(eps)", "np.float32(1e-5)", "wrong eps"),
        ("rms_norm", "x / np.sqrt(", "(x - x.mean(axis=-1, keepdims=True)) / np.sqrt(", None),
        ("rms_norm", " * weight", "", "no weight"),
        ("rms_norm", "x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))",
         "x / np.mean(x * x, axis=-1, keepdims=True)", "root left out"),
        ("swiglu", "gate / (1 + np.exp(-gate)) * up", "gate / (1 + np.exp(gate)) * up", "sign of the exponent"),
        ("swiglu", "gate / (1 + np.exp(-gate)) * up", "1 / (1 + np.exp(-gate)) * up", "sigmoid for SiLU"),
        ("swiglu", "gate / (1 + np.exp(-gate)) * up", "up / (1 + np.exp(-up)) * gate", "gate and up exchanged"),
        ("swiglu", "gate / (1 + np.exp(-gate)) * up", "np.maximum(gate, 0) * up", "ReLU for SiLU"),
        ("segment_attention", "zip(bounds[:-1], bounds[1:])", "[(0, N)]",
         "no window attention and attention across images"),
        ("segment_attention", " / np.sqrt(np.float32(K))", "", "unscaled scores"),
        ("segment_attention", ".swapaxes(0, 1).reshape(N, H * K)", ".reshape(N, H * K)", "heads not put side by side"),
        ("vision_block", "x = x + linear(segment", "x = linear(segment", "no residual"),
        ("vision_block", "return x + linear(swiglu", "return h + linear(swiglu", "post-norm residual"),
        ("vision_block", "x = x + linear(segment", "x = h + linear(segment", "post-norm residual"),
        ("vision_block", 'weights["norm2.weight"]', 'weights["norm1.weight"]', "norm1 twice"),
        ("vision_block", "[-high, low]", "[high, -low]", "rotated backwards"),
        ("vision_block", "rotate(q), rotate(k), v", "q, k, v", "no rotation"),
        ("vision_block", 'swiglu(linear(h, "mlp.gate_proj"), linear(h, "mlp.up_proj"))',
         'swiglu(linear(h, "mlp.up_proj"), linear(h, "mlp.gate_proj"))', "gate and up exchanged"),
    ),
    "kernels": (
        ("online_softmax", "total = total * factor", "total = total", "weights not rescaled"),
        ("online_softmax", "out = out * factor", "out = out", "values not rescaled"),
        ("online_softmax", "return out / total", "return out", "not divided"),
        ("online_softmax", "factor, weights = np.exp(np.float32(top - new)), np.exp(scores - new)",
         "factor, weights = 1, np.exp(scores - new)", "not rescaled"),
        ("to_bfloat16", "(0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)", "0", "cut off"),
        ("to_bfloat16", "(0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)", "np.uint32(0x8000)", "ties away from zero"),
        ("to_bfloat16", "(0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)", "np.uint32(0x7FFF)", "ties towards zero"),
        ("to_bfloat16", "np.where(np.isnan(x), bits | 0x400000, rounded)", "rounded", "NaN lost"),
        ("roofline", "max(arithmetic, memory)", "arithmetic + memory", "added"),
        ("roofline", "max(arithmetic, memory)", "min(arithmetic, memory)", "faster one"),
        ("roofline", "2 * inner * columns + 4", "4 * inner * columns + 4", "float32 weights"),
        ("product", "for rest in range(k, K)", "for rest in range(K, K)", "remainder lost"),
    ),
}  # fmt: skip
ROWS = [(family, *row) for family, rows in WRONG.items() for row in rows]


@pytest.mark.parametrize("family, name, old, new, mistake", ROWS, ids=[f"{row[1]}-{i}" for i, row in enumerate(ROWS)])
def test_wrong_submission_is_named(family, name, old, new, mistake):
    result = lab.check(name, changed(family, name, old, new))
    assert not result and result.mistake == (mistake or ""), result
    assert bool(result.explanation) == bool(mistake)


# ---- functions that students wrote, which no change of one piece of a solution gives ----


def resize_by_two_ifs(height, width, min_pixels, max_pixels):
    H, W = 28 * round(height / 28), 28 * round(width / 28)
    if H * W > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        H, W = 28 * math.floor(height / beta / 28), 28 * math.floor(width / beta / 28)
    if H * W < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        H, W = 28 * math.ceil(height * beta / 28), 28 * math.ceil(width * beta / 28)
    return max(28, H), max(28, W)


def positions_after(following):
    def positions(ids, config, image_grid_thw):
        made, start, at, grids = [], 0, 0, iter(image_grid_thw)
        while at < len(ids):
            if ids[at] == config.image_token_id:
                _, h, w = next(grids)
                places = [(start, start + r, start + c) for r in range(h // 2) for c in range(w // 2)]
                made, start, at = made + places, start + following(h // 2, w // 2), at + len(places)
            else:
                made, start, at = [*made, (start, start, start)], start + 1, at + 1
        return np.array(made).T, np.array([start - len(ids)])

    return positions


def cut_what_exceeds(logits, p):
    probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-probs)
    kept = logits.copy()
    kept[order[np.cumsum(probs[order]) > p]] = -np.inf
    return kept


def block_with_mlp_beside_attention(x, weights, cos, sin, bounds, heads):
    names = solutions("blocks")
    zero = {name: w * 0 if "mlp.down_proj" in name else w for name, w in weights.items()}
    attended = names["vision_block"](x, zero, cos, sin, bounds, heads)
    h = names["rms_norm"](x, weights["norm2.weight"], 1e-6)
    gate, up = (h @ weights[f"mlp.{n}_proj.weight"].T + weights[f"mlp.{n}_proj.bias"] for n in ("gate", "up"))
    return attended + names["swiglu"](gate, up) @ weights["mlp.down_proj.weight"].T + weights["mlp.down_proj.bias"]


STUDENTS = (
    ("smart_resize", resize_by_two_ifs, "a side of 0"),
    ("image_positions", positions_after(max), None),
    ("image_positions", positions_after(lambda R, S: R), "rows alone"),
    ("image_positions", positions_after(lambda R, S: S), "columns alone"),
    ("keep_top_p", cut_what_exceeds, "crossing token dropped"),
    ("vision_block", block_with_mlp_beside_attention, "MLP beside attention"),
)


@pytest.mark.parametrize("name, function, mistake", STUDENTS, ids=[f"{row[0]}-{i}" for i, row in enumerate(STUDENTS)])
def test_students_function_is_named(name, function, mistake):
    result = lab.check(name, function)
    assert bool(result) == (mistake is None) and result.mistake == (mistake or ""), result


def test_another_dtype_is_no_other_mistake():
    """Values with tanh GELU are those of the exact one, but for what float64 has to spare."""

    def in_float64(*arguments):
        return solutions("merger")["patch_merger"](*arguments).astype(np.float64)

    result = lab.check("patch_merger", in_float64)
    assert "right numbers in float64" in result.sentence and not result.mistake


def test_no_grid_where_all_rows_are_wrong():
    result = lab.check(
        "segment_attention", lambda q, k, v, bounds: np.zeros((q.shape[1], q[:, 0].size), dtype=np.float32)
    )
    assert not result and result.grid is None and "are wrong" in result.sentence


def test_legend_of_the_grid_is_about_what_is_drawn():
    result = lab.check("window_index", changed("windows", "window_index", "start + window", "window"))
    assert "X the first wrong one: row 0, column 0; x wrong, . right" in str(result)
    assert "framed: the first wrong one, row 0, column 0; orange wrong, green right" in result._repr_html_()


def test_limits_of_a_size_are_told():
    result = lab.check("smart_resize", lambda height, width, min_pixels, max_pixels: (28, 28))
    assert "pixels, where 3136 to 1003520 are allowed" in str(result).replace("\n", " ")


def test_ten_for_each_family():
    assert all(sum(mistake is not None for *_, mistake in rows) >= 10 for rows in WRONG.values())
    assert all(name in solutions(family) for family, rows in WRONG.items() for name, *_ in rows)
