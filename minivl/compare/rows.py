"""One row of a comparison: two tensors side by side, how far apart they are, and what their precision excuses."""

import math
from dataclasses import dataclass

import numpy as np

from minivl.compare.mistakes.any_tensor import masked, without_ones
from minivl.compare.render import CLOSE, DIFF, OK, SHAPE

ROUNDED, GROWTH = 5, 4  # see compare.py
FEW = 64  # values that say nothing about a type: they may fit into it by chance
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # largest rounding, relative


@dataclass(frozen=True)
class Row:
    """One tensor of the comparison.

    error   largest difference over our largest value, inf if an infinity or NaN stands on one side only
    rms     root mean square of the differences over that of our values;  cosine  of the angle between the two
    worst   index of the largest difference;  nans  how many in theirs
    shape, their_shape  None where there is none;  their_name  what it is called there
    note    what was done to compare it;  causes  of the first divergence, and of every SHAPE, the likeliest first
    """

    name: str
    status: str
    their_name: str | None = None
    shape: tuple | None = None
    their_shape: tuple | None = None
    error: float = math.nan
    rms: float = math.nan
    cosine: float = math.nan
    worst: tuple = ()
    nans: int = 0
    note: str = ""
    causes: tuple = ()
    same_values: bool = False


def allowed(precision, reach, name=""):
    """Largest root-mean-square error of an OK~, after rows with at most `reach`. Softmax multiplies what rounding did."""
    usual = max(ROUNDED * ROUNDING[precision], GROWTH * reach if ROUNDING[precision] else 0.0)
    return GROWTH * usual if name.endswith(".probs") else usual


def sharpened(name, ours, before):
    """Largest error that attention's softmax makes of those that q, k and scores have, or whatever row came before it.

    subtle: e^x turns what a score is off absolutely into what its probability is off relatively. Scores of 60 that agree to
    5e-6 of the largest give probabilities that are 3e-4 of themselves off, and no float32 program does better.
    """
    room, _, word = name.rpartition(".")
    scores = ours.get(f"{room}.scores") if word in ("probs", "context", "proj", "o_proj") else None
    agreeing = [row for row in before if row.status in (OK, CLOSE) and math.isfinite(row.error)]
    near = [row.error for row in agreeing if row.name in [f"{room}.{w}" for w in ("q_rope", "k_rope", "scores")]]
    near = near or [row.error for row in agreeing[-1:]]
    if scores is None or not near:
        return 0.0
    return 2 * max(near) * float(np.abs(scores[np.isfinite(scores)]).max())


def precision_of(recording, called):
    """The type that most floating-point tensors were rounded to: "float32", "float16" or "bfloat16"."""
    found = []
    for mine, name in called.items():
        if mine.startswith(("image.", "video.", "pixel_values")) or mine.endswith(("rope.cos", "rope.sin")):
            continue
        array = recording[name]
        if array.dtype.kind == "f" and array.size >= FEW:
            found.append(held(array))
    return next((kind for kind in ("bfloat16", "float16") if found.count(kind) > len(found) / 2), "float32")


def held(array):
    """The least precise type that all values of an array fit into."""
    if array.dtype == np.float16:
        return "float16"
    values = np.ascontiguousarray(array, dtype=np.float32)
    values = values[np.isfinite(values)]
    if not values.any():
        return "float32"
    if not np.any(values.view(np.uint32) & np.uint32(0xFFFF)):
        return "bfloat16"
    with np.errstate(over="ignore"):
        return "float16" if np.array_equal(values.astype(np.float16).astype(np.float32), values) else "float32"


def aligned(ours, theirs):
    """(ours, theirs, note) as they are compared: without a batch axis, or the last row if one side has only that."""
    if theirs.shape == ours.shape:
        return ours, theirs, ""
    found = without_ones(theirs, ours.shape)
    if found is not None:
        return ours, found, "batch axis"
    rows = theirs.reshape(theirs.shape[-2:]) if theirs.ndim > 1 and math.prod(theirs.shape[:-2]) == 1 else theirs
    if rows.ndim == ours.ndim == 2 and rows.shape[1] == ours.shape[1] and 1 in (len(rows), len(ours)):
        return ours[-1:], rows[-1:], f"last of {max(len(rows), len(ours))} rows"
    return ours, theirs, ""


def compared(name, ours, their_name, theirs, tolerance, rounded):
    """The comparison of one tensor; `rounded` is the largest root-mean-square error that rounding excuses."""
    shapes = dict(shape=ours.shape, their_shape=theirs.shape)
    ours, there, note = aligned(ours, theirs)
    common = dict(name=name, their_name=their_name, note=note) | shapes
    if there.shape != ours.shape:
        return Row(status=SHAPE, nans=nans(there), **common)
    figures = measured(ours, there)
    if ours.dtype.kind in "iub":
        status = OK if np.array_equal(ours, there) else DIFF
        wrong = int(np.sum(ours != there))
        said = f"{there.item()} instead of {ours.item()}" if ours.size == 1 else f"{wrong} of {ours.size} differ"
        return Row(status=status, **common | figures | ({"note": said} if wrong else {}))
    worse = max(figures["error"], figures["rms"])
    status = OK if worse <= tolerance else CLOSE if figures["rms"] <= rounded and math.isfinite(worse) else DIFF
    if status == CLOSE and rounded <= tolerance:
        status = DIFF
    return Row(status=status, **common | figures)


def nans(array):
    return int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0


def measured(ours, theirs):
    """error, rms, cosine, worst and nans of two arrays of one shape."""
    if np.array_equal(ours, theirs):
        return {"error": 0.0, "rms": 0.0, "cosine": 1.0, "worst": (0,) * ours.ndim if ours.size else (), "nans": 0}
    a, b = masked(ours), masked(theirs)
    with np.errstate(invalid="ignore"):
        off = np.abs(a - b)
    finite = np.isfinite(off)
    if not finite.all():
        off = np.where(finite, off, np.where(a == b, 0, np.inf))
        a, b = a[finite], b[finite]
    worst = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
    infinite = not np.isfinite(off[worst])
    size, size_b, error = (math.sqrt(product(v, v)) for v in (a, b, off[finite]))
    return {
        "error": math.inf if infinite else (float(off[worst]) / (float(np.abs(a).max()) or 1.0)) if a.size else 0.0,
        "rms": math.inf if infinite else error / (size or 1.0),
        "cosine": product(a, b) / (size * size_b) if size * size_b else float(size == size_b),
        "worst": worst,
        "nans": nans(theirs),
    }


def product(a, b):
    """Of all values. Without BLAS, whose threads wake up for it: they take longer than a sum that memory bounds."""
    return float(np.einsum("i,i->", a.reshape(-1), b.reshape(-1)))
