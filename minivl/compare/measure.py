"""How far two arrays are apart, and how they are brought to one shape."""

import itertools
import math

import numpy as np

from minivl.tensors import catalogue

MASKED = -5e3  # where ours is -inf: others add -10000, -65504 or -1e9 to a score
MASSIVE = 16  # times the largest value of the median row: rows above that hide the others in a figure of all
LOWEST = -1e30  # ports mask scores with the lowest number of their type instead of -inf


def to_float64(array):
    """float64, with -inf for the lowest numbers, which ports write in its place."""
    values = np.asarray(array, dtype=np.float64)
    lowest = float(np.finfo(array.dtype).min) if array.dtype == np.float16 else LOWEST
    low = values <= lowest
    return np.where(low, -np.inf, values) if low.any() else values


def are_equal(a, b):
    """Whether two arrays hold the same values in the same order, in whatever shape: with a batch axis or without."""
    a, b = a.reshape(-1), b.reshape(-1)
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f" == b.dtype.kind)


def distance(ours, theirs):
    """Largest difference over our largest value; infinite if shapes differ, or if a value is finite on one side only.

    For integers: the share of values that differ.
    """
    if ours.shape != theirs.shape:
        return math.inf
    if not ours.size:
        return 0.0
    if ours.dtype.kind in "iub" and theirs.dtype.kind in "iub":
        return float(np.mean(ours != theirs))
    a, b = to_float64(ours), to_float64(theirs)
    b = np.where(np.isneginf(a) & (b <= MASKED), a, b)
    finite = np.isfinite(a)
    if np.isnan(a).any() or not np.array_equal(finite, np.isfinite(b)):
        return math.inf
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max()) / (float(np.abs(a).max()) or 1.0)


def measure(ours, theirs):
    """{"error", "rms", "cosine", "worst", "nans"} of two arrays of one shape; see `rows.Row`."""
    if np.array_equal(ours, theirs):
        return {"error": 0.0, "rms": 0.0, "cosine": 1.0, "worst": (0,) * ours.ndim if ours.size else (), "nans": 0}
    a, b = to_float64(ours), to_float64(theirs)
    b = np.where(np.isneginf(a) & (b <= MASKED), a, b)
    with np.errstate(invalid="ignore"):
        off = np.abs(a - b)
    finite = np.isfinite(off)
    if not finite.all():
        off = np.where(finite, off, np.where(a == b, 0, np.inf))
        a, b = a[finite], b[finite]
    worst = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
    infinite = not np.isfinite(off[worst])
    size, size_b, error = (math.sqrt(dot(v, v)) for v in (a, b, off[finite]))
    return {
        "error": math.inf if infinite else (float(off[worst]) / (float(np.abs(a).max()) or 1.0)) if a.size else 0.0,
        "rms": math.inf if infinite else error / (size or 1.0),
        "cosine": dot(a, b) / (size * size_b) if size * size_b else float(size == size_b),
        "worst": worst,
        "nans": count_nans(theirs),
    }


def find_usual_rows(array):
    """bool [rows] without those that are MASSIVE times larger than the median row; None if there are none, or no rows."""
    if array.dtype.kind != "f" or array.ndim != 2 or len(array) < 3:
        return None
    largest = np.abs(np.where(np.isfinite(array), array, 0)).max(axis=1)
    usual = largest <= MASSIVE * np.median(largest)
    return None if usual.all() else usual


def dot(a, b):
    """Sum of all products. Without BLAS: waking its threads takes longer than a sum that memory bounds."""
    return float(np.einsum("i,i->", a.reshape(-1), b.reshape(-1)))


def count_nans(array):
    return int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0


def align(ours, theirs, name):
    """(ours, theirs, note) of a tensor in one shape: without a batch axis, or with one that theirs leaves out; of tensors of
    the decoder the last row of both if one side has only that."""
    if theirs.shape == ours.shape:
        return ours, theirs, ""
    if theirs.ndim < ours.ndim and theirs.shape == tuple(size for size in ours.shape if size != 1):
        return ours, theirs.reshape(ours.shape), "batch axis"
    squeezed = squeeze_to(theirs, ours.shape)
    if squeezed is not None:
        return ours, squeezed, "batch axis"
    single = without_repeated_heads(theirs, ours.shape, name)
    if single is not None:
        return ours, single, "each key head once"
    rows = theirs.reshape(theirs.shape[-2:]) if theirs.ndim > 1 and math.prod(theirs.shape[:-2]) == 1 else theirs
    if (
        has_rows_of_prompt(name)
        and rows.ndim == ours.ndim == 2
        and rows.shape[1] == ours.shape[1]
        and 1 in (len(rows), len(ours))
    ):
        return ours[-1:], rows[-1:], f"last of {max(len(rows), len(ours))} rows"
    return ours, theirs, ""


def without_repeated_heads(theirs, shape, name):
    """The key heads [KV, T, K] of theirs if it has each of them once for each query head of its group, as one copy after the
    other; else None."""
    if not name.endswith("self_attn.k_rope") or theirs.dtype.kind != "f":
        return None
    heads = theirs.reshape(theirs.shape[1:]) if theirs.ndim == 4 and len(theirs) == 1 else theirs
    if heads.ndim != 3 or not len(heads) or heads.shape[1:] != shape[1:] or len(heads) % shape[0]:
        return None
    grouped = heads.reshape(shape[0], -1, *shape[1:])
    return grouped[:, 0] if np.array_equal(grouped, np.broadcast_to(grouped[:, :1], grouped.shape)) else None


def has_rows_of_prompt(name):
    tensor = catalogue.of(name)
    return tensor is not None and (tensor.rows == "prompt" or tensor.name == "lm_head")


def squeeze_to(array, shape):
    """The array without the axes of 1 that `shape` lacks; None if the shapes differ in other ways."""
    more = array.ndim - len(shape)
    ones = [axis for axis, size in enumerate(array.shape) if size == 1]
    for drop in itertools.combinations(ones, more) if more > 0 else ():
        if array.squeeze(drop).shape == shape:
            return array.squeeze(drop)
    return None


def axis_orders(shape, axes):
    """Orders of axes, other than the given one, by which an array of shape `axes` has `shape`."""
    if sorted(shape) != sorted(axes) or len(shape) > 5:
        return []
    same = tuple(range(len(shape)))
    return [o for o in itertools.permutations(same) if o != same and tuple(axes[i] for i in o) == shape]
