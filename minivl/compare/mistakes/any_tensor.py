"""Mistakes in any tensor: axes exchanged, rows in another order, shifted, scaled, rounded."""

import itertools
import math

import numpy as np

from minivl.compare.measure import axis_orders, to_float64
from minivl.kernels.bfloat16 import from_float32, to_float32


def axes_exchanged(subject):
    x = subject.ours
    for order in axis_orders(subject.theirs.shape, x.shape):
        two = sum(new != old for new, old in enumerate(order)) == 2
        shapes = f"{format_shape(x.shape)} became {format_shape(subject.theirs.shape)}"
        text = f"its axes are ours in the order {list(order)}: {shapes}"
        other = x.transpose(order)
        yield "transposed" if x.ndim == 2 else "axes exchanged" if two else "axes in another order", text, other


def format_shape(shape):
    return f"[{', '.join(map(str, shape))}]"


def reshaped(subject):
    """The same numbers in another shape, in the same order or in that of another memory layout."""
    x, shape = subject.ours, subject.theirs.shape
    if x.size == subject.theirs.size and x.shape != shape:
        yield "another shape", f"the same numbers as {format_shape(shape)}: only the shape differs", x.reshape(shape)
        for order in all_axis_orders(x.ndim):
            text = f"axes in the order {list(order)}, and then the shape {format_shape(shape)}"
            yield "axes in another order", text, x.transpose(order).reshape(shape)
    elif x.shape == shape and x.ndim > 1:
        for order in all_axis_orders(x.ndim):
            y = x.transpose(order)
            text = f"it was reshaped where its axes should have been transposed ({list(order)})"
            yield "reshaped instead of transposed", text, np.ascontiguousarray(y).reshape(shape)
            yield "reshaped instead of transposed", text, x.reshape(y.shape).transpose(np.argsort(order))
    if len(shape) == x.ndim + 1 and shape[1:] == x.shape:
        yield "batch axis", f"it is a batch of {shape[0]}, all the same as ours", np.broadcast_to(x, shape)


def all_axis_orders(axes):
    return list(itertools.permutations(range(axes)))[1:] if 1 < axes <= 3 else []


def rows_reordered(subject):
    """Rows sorted by window, or back; whole units of 4 patches if each patch has a row."""
    index, x = subject.at("visual.window_index"), subject.ours
    for axis, size in enumerate(x.shape):
        unit = size // len(index)
        order = (index[:, None] * unit + np.arange(unit)).reshape(-1)
        if not size or size % len(index) or np.array_equal(order, np.arange(size)):
            continue
        back = np.argsort(order)
        if subject.short in RASTER:
            text = "its rows are in window order already, where they are still in the image processor's"
            yield "already in window order", text, x.take(order, axis)
        elif subject.short == "visual":
            text = "its rows are in window order, where they should be in raster order again"
            yield "window order not undone", text, x.take(order, axis)
            text = "its rows were indexed by window_index, where argsort(window_index) undoes it"
            yield "inverse of the window order", text, x.take(order[order], axis)
            yield "window order twice", "its rows were put back by argsort(window_index) twice", x.take(back, axis)
        else:
            text = "its rows are in the image processor's order: they were never sorted by windows"
            yield "not in window order", text, x.take(back, axis)
            text = "its rows were sorted by argsort(window_index), where window_index is meant"
            yield "inverse of the window order", text, x.take(back[back], axis)
            yield "window order twice", "its rows were sorted by windows twice", x.take(order, axis)


RASTER = ("visual.patch_embed", "visual.patch_positions", "pixel_values", "pixel_values_videos")


def flipped(subject):
    for axis, size in enumerate(subject.ours.shape):
        if size > 1:
            yield "flipped", f"axis {axis} runs backwards", np.flip(subject.ours, axis)


def shifted(subject):
    """Rows or columns shifted by one; the values that moved in from outside are taken from theirs."""
    x, y = subject.ours, subject.theirs
    if x.shape == y.shape:
        for axis in range(x.ndim):
            if x.shape[axis] < 3:
                continue
            for by, what in ((1, "late"), (-1, "early")):
                moved = np.roll(x, by, axis=axis)
                edge = [slice(None)] * x.ndim
                edge[axis] = slice(0, 1) if by > 0 else slice(-1, None)
                moved[tuple(edge)] = y[tuple(edge)]
                yield "off by one", f"all values come one index too {what} along axis {axis}", moved
    elif x.ndim and x.ndim == y.ndim and x.shape[1:] == y.shape[1:] and abs(len(x) - len(y)) < min(len(x), len(y)):
        yield from rows_missing_or_added(x, y)


def rows_missing_or_added(x, y):
    n = abs(len(x) - len(y))
    if len(y) < len(x):
        rows = "row of ours is missing" if n == 1 else f"{n} rows of ours are missing"
        yield "rows missing", f"the first {rows}", x[n:]
        yield "rows missing", f"the last {rows}", x[:-n]
    else:
        rows = "1 row" if n == 1 else f"{n} rows"
        yield "rows added", f"it has {rows} more in front", np.concatenate([y[:n], x])
        yield "rows added", f"it has {rows} more at the end", np.concatenate([x, y[-n:]])


def rounded(subject):
    if subject.ours.dtype == np.float32:
        low = to_float32(from_float32(subject.ours))
        yield "bfloat16 rounding", "it is ours, rounded to bfloat16", low
        with np.errstate(over="ignore"):
            yield "float16 rounding", "it is ours, rounded to float16", subject.ours.astype(np.float16).astype(np.float32)


def scaled(subject):
    """Multiplied by a constant, plus a constant, or both."""
    x, y = subject.ours.astype(np.float64), subject.theirs.astype(np.float64)
    if x.shape != y.shape or x.size < 3 or subject.ours.dtype.kind != "f":
        return
    seen = (to_float64(subject.ours) > -np.inf) & (to_float64(subject.theirs) > -np.inf)  # a mask's -inf stays
    if not seen.any() or not (np.isfinite(x[seen]).all() and np.isfinite(y[seen]).all()):
        return
    p, q = x[seen], y[seen]
    a, b = fit_line(p, q)
    factor, shift = float((p * q).sum() / ((p * p).sum() or 1.0)), float((q - p).mean())
    if abs(factor) > 1e-6:
        yield "constant scale", f"it is ours times {factor:.6g}{meaning(factor, subject)}", np.where(seen, x * factor, x)
    yield "constant shift", f"it is ours plus {shift:.6g}", np.where(seen, x + shift, x)
    if abs(a) > 1e-6:
        yield "scale and shift", f"it is ours times {a:.6g}, plus {b:.6g}", np.where(seen, a * x + b, x)


def fit_line(x, y):
    """(a, b) of the least-squares fit a x + b to y."""
    spread = x - x.mean()
    a = float((spread * (y - y.mean())).sum() / ((spread**2).sum() or 1.0))
    return a, float(y.mean() - a * x.mean())


def meaning(factor, subject):
    """Text such as " = the square root of its width 128" if the factor is a known size; else ""."""
    width = subject.ours.shape[-1] if subject.ours.ndim else 1
    sizes = {"2": 2.0, "255": 255.0, "-1": -1.0, f"the square root of its width {width}": math.sqrt(width)}
    sizes[f"its width {width}"] = float(width)
    for name, size in sizes.items():
        for text, value in ((name, size), (f"1 / {name}", 1 / size)):
            if value != 1 and math.isclose(factor, value, rel_tol=1e-5):
                return f" = {text}"
    return ""


def same_in_every_row(subject):
    """The same vector added to every row, or multiplied by every row: another bias, another weight of a norm."""
    x, y = subject.ours, subject.theirs
    if x.shape != y.shape or x.ndim < 2 or len(x) < 3 or x.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        text = "it is ours plus the same vector in every row: a bias left out, or another one"
        yield "constant vector", text, x + (y - x).mean(axis=0, dtype=np.float64)
        ratio = (x.astype(np.float64) * y).sum(axis=0) / (x.astype(np.float64) ** 2).sum(axis=0)
        yield "constant factors", "each column is ours times a number of its own: another weight of a norm", x * ratio


def heads_reordered(subject):
    """Columns of a linear layer: heads interleaved, or permuted for rotation of neighbouring pairs (GGUF files of Llama)."""
    x = subject.ours
    if x.ndim != 2 or subject.word not in ("q_proj", "k_proj", "v_proj", "qkv", "context"):
        return
    config = subject.config.vision if subject.in_tower else subject.config.text
    K = config.head_dim
    N, D = x.shape
    groups = x.reshape(N, D // K, K)
    text = "its columns are (within the head, head), where ours are (head, within the head)"
    yield "heads interleaved", text, groups.swapaxes(1, 2).reshape(N, D)
    text = "each head's columns are paired (0, K/2), (1, K/2 + 1), ...: weights permuted for rotation of neighbours"
    yield "permuted for interleaved RoPE", text, groups.reshape(N, D // K, 2, K // 2).swapaxes(2, 3).reshape(N, D)
    if subject.word == "qkv":
        text = "each head's q, k and v stand side by side: (head, q/k/v), where ours are (q/k/v, head)"
        yield "q, k, v head by head", text, x.reshape(N, 3, D // 3 // K, K).swapaxes(1, 2).reshape(N, D)


def zero(subject):
    if subject.ours.dtype.kind == "f":
        yield "all zero", "it is zero everywhere: never computed", np.zeros_like(subject.ours)


LAYOUTS = (axes_exchanged, reshaped)
MISTAKES = (
    axes_exchanged, reshaped, rows_reordered, heads_reordered, zero, flipped, rounded, scaled, same_in_every_row, shifted,
)  # fmt: skip
