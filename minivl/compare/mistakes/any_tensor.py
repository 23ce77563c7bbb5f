"""What can happen to any tensor: axes exchanged, rows in another order, shifted, scaled, rounded.

Also the measure of all comparisons, `distance`, and the axes that a recording may have besides ours, `without_ones`.
"""

import itertools
import math

import numpy as np

from minivl.kernels.bfloat16 import from_float32, to_float32

LOWEST = -1e30  # ports mask scores with the lowest number of their type instead of -inf


def distance(ours, theirs):
    """Largest difference over the largest of our values; infinite where shapes differ, or where one is not finite."""
    if ours.shape != theirs.shape:
        return math.inf
    if not ours.size:
        return 0.0
    if ours.dtype.kind in "iub" and theirs.dtype.kind in "iub":
        return float(np.mean(ours != theirs))
    a, b = masked(ours), masked(theirs)
    finite = np.isfinite(a)
    if np.isnan(a).any() or not np.array_equal(finite, np.isfinite(b)):
        return math.inf
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max()) / (float(np.abs(a).max()) or 1.0)


def masked(array):
    """float64, with -inf for whatever a port writes in its place."""
    values = np.asarray(array, dtype=np.float64)
    lowest = float(np.finfo(array.dtype).min) if array.dtype == np.float16 else LOWEST
    low = values <= lowest
    return np.where(low, -np.inf, values) if low.any() else values


def without_ones(array, shape):
    """The same array without as many axes of 1 as it has more than `shape`; None if that is not what it is."""
    more = array.ndim - len(shape)
    ones = [axis for axis, size in enumerate(array.shape) if size == 1]
    for drop in itertools.combinations(ones, more) if more > 0 else ():
        if array.squeeze(drop).shape == shape:
            return array.squeeze(drop)
    return None


def orders(shape, axes):
    """Orders of axes, other than the given one, by which an array of `axes` has `shape`."""
    if sorted(shape) != sorted(axes) or len(shape) > 5:
        return []
    same = tuple(range(len(shape)))
    return [o for o in itertools.permutations(same) if o != same and tuple(axes[i] for i in o) == shape]


def axes_exchanged(step):
    x = step.ours
    for order in orders(step.theirs.shape, x.shape):
        two = sum(place != axis for place, axis in enumerate(order)) == 2
        text = f"its axes are ours in the order {list(order)}: {shown(x.shape)} became {shown(step.theirs.shape)}"
        yield (
            "transposed" if x.ndim == 2 else "axes exchanged" if two else "axes in another order",
            text,
            x.transpose(order),
        )


def shown(shape):
    return f"[{', '.join(map(str, shape))}]"


def laid_out(step):
    """The same numbers in the same order, or in the order that another memory layout gives them, in another shape."""
    x, shape = step.ours, step.theirs.shape
    if x.size == step.theirs.size and x.shape != shape:
        yield "another shape", f"the same numbers as {shown(shape)}: only the shape differs", x.reshape(shape)
        for order in orders_of(x.ndim):
            text = f"axes in the order {list(order)}, and then the shape {shown(shape)}"
            yield "axes in another order", text, x.transpose(order).reshape(shape)
    elif x.shape == shape and x.ndim > 1:
        for order in orders_of(x.ndim):
            y = x.transpose(order)
            text = f"it was reshaped where its axes should have been transposed ({list(order)})"
            yield "reshaped instead of transposed", text, np.ascontiguousarray(y).reshape(shape)
            yield "reshaped instead of transposed", text, x.reshape(y.shape).transpose(np.argsort(order))
    if len(shape) == x.ndim + 1 and shape[1:] == x.shape:
        yield "batch axis", f"it is a batch of {shape[0]}, all the same as ours", np.broadcast_to(x, shape)


def orders_of(axes):
    return list(itertools.permutations(range(axes)))[1:] if 1 < axes <= 3 else []


def rows_reordered(step):
    """By the window order, or back: whole units of 4 patches where there is a row for each patch."""
    index, x = step.at("visual.window_index"), step.ours
    for axis, size in enumerate(x.shape):
        unit = size // len(index)
        order = (index[:, None] * unit + np.arange(unit)).reshape(-1)
        if not size or size % len(index) or np.array_equal(order, np.arange(size)):
            continue
        back = np.argsort(order)
        if step.short in RASTER:
            text = "its rows are in window order already, where they are still in the image processor's"
            yield "already in window order", text, x.take(order, axis)
        elif step.short == "visual":
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


def flipped(step):
    for axis, size in enumerate(step.ours.shape):
        if size > 1:
            yield "flipped", f"axis {axis} runs backwards", np.flip(step.ours, axis)


def shifted(step):
    """One place further, or one too early: compared where the two overlap."""
    x, y = step.ours, step.theirs
    if x.shape == y.shape:
        for axis in range(x.ndim):
            if x.shape[axis] < 3:
                continue
            for by, what in ((1, "late"), (-1, "early")):
                moved = np.roll(x, by, axis=axis)
                edge = [slice(None)] * x.ndim
                edge[axis] = slice(0, 1) if by > 0 else slice(-1, None)
                moved[tuple(edge)] = y[tuple(edge)]  # whatever stands in the place that nothing moved to
                yield "off by one", f"everything stands one place too {what} along axis {axis}", moved
    elif x.ndim and x.ndim == y.ndim and x.shape[1:] == y.shape[1:] and abs(len(x) - len(y)) < min(len(x), len(y)):
        yield from lengthened(x, y)


def lengthened(x, y):
    n = abs(len(x) - len(y))
    if len(y) < len(x):
        rows = "row of ours is missing" if n == 1 else f"{n} rows of ours are missing"
        yield "rows missing", f"the first {rows}", x[n:]
        yield "rows missing", f"the last {rows}", x[:-n]
    else:
        rows = "1 row" if n == 1 else f"{n} rows"
        yield "rows added", f"it has {rows} more in front", np.concatenate([y[:n], x])
        yield "rows added", f"it has {rows} more at the end", np.concatenate([x, y[-n:]])


def rounded(step):
    if step.ours.dtype == np.float32:
        low = to_float32(from_float32(step.ours))
        yield "bfloat16 rounding", "it is ours, rounded to bfloat16", low
        with np.errstate(over="ignore"):
            yield "float16 rounding", "it is ours, rounded to float16", step.ours.astype(np.float16).astype(np.float32)


def scaled(step):
    """Times a constant, plus a constant, or both: of the whole tensor, or of each channel of colour."""
    x, y = step.ours.astype(np.float64), step.theirs.astype(np.float64)
    if x.shape != y.shape or x.size < 3 or step.ours.dtype.kind != "f":
        return
    seen = (masked(step.ours) > -np.inf) & (masked(step.theirs) > -np.inf)
    if not seen.any():
        return
    p, q = x[seen], y[seen]
    a, b = fitted(p, q)
    factor, shift = float((p * q).sum() / ((p * p).sum() or 1.0)), float((q - p).mean())
    if abs(factor) > 1e-6:
        yield "constant scale", f"it is ours times {factor:.6g}{meaning(factor, step)}", np.where(seen, x * factor, x)
    yield "constant shift", f"it is ours plus {shift:.6g}", np.where(seen, x + shift, x)
    if abs(a) > 1e-6:
        yield "scale and shift", f"it is ours times {a:.6g}, plus {b:.6g}", np.where(seen, a * x + b, x)


def fitted(x, y):
    """a and b for which a x + b is nearest to y."""
    spread = x - x.mean()
    a = float((spread * (y - y.mean())).sum() / ((spread**2).sum() or 1.0))
    return a, float(y.mean() - a * x.mean())


def meaning(factor, step):
    """What a factor is, if it is one of those that occur in the model: " (sqrt of the width 128)"."""
    width = step.ours.shape[-1] if step.ours.ndim else 1
    sizes = {"2": 2.0, "255": 255.0, "-1": -1.0, f"the square root of its width {width}": math.sqrt(width)}
    sizes[f"its width {width}"] = float(width)
    for name, size in sizes.items():
        for text, value in ((name, size), (f"1 / {name}", 1 / size)):
            if value != 1 and math.isclose(factor, value, rel_tol=1e-5):
                return f" = {text}"
    return ""


def rows_alike(step):
    """The same vector added to every row, or every row multiplied by it: a bias, a weight of a norm."""
    x, y = step.ours, step.theirs
    if x.shape != y.shape or x.ndim < 2 or len(x) < 3 or x.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        yield "constant vector", "it is ours plus the same vector in every row: a bias left out, or another one", (
            x + (y - x).mean(axis=0, dtype=np.float64)
        )  # fmt: skip
        ratio = (x.astype(np.float64) * y).sum(axis=0) / (x.astype(np.float64) ** 2).sum(axis=0)
        yield "constant factors", "each column is ours times a number of its own: another weight of a norm", x * ratio


def heads_reordered(step):
    """Columns of a linear layer: heads interleaved, or permuted for rotation in neighbouring pairs (GGUF files of Llama)."""
    x = step.ours
    if x.ndim != 2 or step.word not in ("q_proj", "k_proj", "v_proj", "qkv", "context"):
        return
    config = step.config.vision if step.in_tower else step.config.text
    K = config.head_dim
    N, D = x.shape
    groups = x.reshape(N, D // K, K)
    yield "heads interleaved", "its columns are (within the head, head), where ours are (head, within the head)", (
        groups.swapaxes(1, 2).reshape(N, D)
    )  # fmt: skip
    text = "each head's columns are paired (0, K/2), (1, K/2 + 1), ...: weights permuted for rotation of neighbours"
    yield "permuted for interleaved RoPE", text, groups.reshape(N, D // K, 2, K // 2).swapaxes(2, 3).reshape(N, D)
    if step.word == "qkv":
        text = "each head's q, k and v stand side by side: (head, q/k/v), where ours are (q/k/v, head)"
        yield "q, k, v head by head", text, x.reshape(N, 3, D // 3 // K, K).swapaxes(1, 2).reshape(N, D)


def zero(step):
    if step.ours.dtype.kind == "f":
        yield "all zero", "it is zero everywhere: never computed", np.zeros_like(step.ours)


LAYOUTS = (axes_exchanged, laid_out)
MISTAKES = (
    axes_exchanged, laid_out, rows_reordered, heads_reordered, zero, flipped, rounded, scaled, rows_alike, shifted,
)  # fmt: skip
