"""A row of a comparison: one tensor of both recordings, its status, and the error that rounding explains."""

import math
from dataclasses import dataclass

import numpy as np

from minivl.compare.measure import align, count_nans, find_usual_rows, measure

OK, CLOSE, DIFF, INPUT, SHAPE, MISSING = "OK", "OK~", "DIFF", "INPUT", "SHAPE", "MISSING"

ROUNDED, GROWTH, WORST = 5, 4, 64  # see comparison.py
MOST_OF_SOFTMAX = 0.05  # of an error that softmax may make; see `softmax_error`
FEW_VALUES = 64  # fewer values may fit into a narrower type by chance
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # largest rounding, relative


@dataclass(frozen=True)
class Row:
    """One tensor of a comparison.

    error   largest difference over our largest value; inf if a value is infinite or NaN on one side only
    rms     root mean square of the differences over that of our values;  cosine  of the angle between the two
    worst   index of the largest difference;  nans  their number in theirs
    shape, their_shape  None where it was not recorded;  their_name  its name in the other recording
    note    how the two were aligned;  hint  the name that an unknown one resembles
    causes  of the first difference and of every SHAPE, the likeliest first
    same_values  the same values in another layout
    local   the local error: that of theirs against ours computed from their inputs
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
    hint: str = ""
    causes: tuple = ()
    same_values: bool = False
    local: float = math.nan


def rounding_limit(precision, largest, name=""):
    """Largest root-mean-square error of an OK~ after rows with at most `largest`. Softmax multiplies rounding."""
    usual = max(ROUNDED * ROUNDING[precision], GROWTH * largest if ROUNDING[precision] else 0.0)
    usual = GROWTH * usual if name.endswith(".probs") else usual
    return min(usual, WORST * ROUNDING[precision])


def softmax_error(name, ours, before):
    """Largest error that softmax makes of the errors of q, k and scores, or of the row before if these were not recorded.

    subtle: e^x turns the absolute error of a score into the relative error of its probability. Scores of 60 that agree to
    5e-6 of the largest give probabilities with a relative error of 3e-4, and no float32 program does better.
    """
    prefix, _, word = name.rpartition(".")
    scores = ours.get(f"{prefix}.scores") if word in ("probs", "context", "proj", "o_proj") else None
    agreeing = [row for row in before if row.status in (OK, CLOSE) and math.isfinite(row.error)]
    near = [row.error for row in agreeing if row.name in [f"{prefix}.{w}" for w in ("q_rope", "k_rope", "scores")]]
    near = near or [row.error for row in agreeing[-1:]]
    if scores is None or not near:
        return 0.0
    return min(2 * max(near) * float(np.abs(scores[np.isfinite(scores)]).max()), MOST_OF_SOFTMAX)


def after_softmax(sharpened, tolerance):
    """Largest error of what is computed from a tensor that is off by `sharpened` because of a softmax.

    subtle: never much above the tolerance, since the least mistakes give 1e-3: one of those must not hide behind a softmax.
    """
    return min(GROWTH * sharpened, ROUNDED * tolerance)


def says_type(name):
    """Whether the type of this tensor tells that of the arithmetic: not images, nor tables of angles."""
    return not name.startswith(("image.", "video.", "pixel_values")) and not name.endswith(("rope.cos", "rope.sin"))


def find_precision(recording, matches):
    """The type that most floating-point tensors were rounded to: "float32", "float16" or "bfloat16"."""
    types = []
    for mine, name in matches.items():
        if not says_type(mine):
            continue
        array = recording[name]
        if array.dtype.kind == "f" and array.size >= FEW_VALUES:
            types.append(narrowest_type(array))
    return next((kind for kind in ("bfloat16", "float16") if types.count(kind) > len(types) / 2), "float32")


def narrowest_type(array):
    """The least precise type that holds all values of an array."""
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


def compare_tensor(name, ours, their_name, theirs, tolerance, rounded):
    """The `Row` of one tensor; `rounded` is the largest root-mean-square error that rounding explains."""
    shapes = dict(shape=ours.shape, their_shape=theirs.shape)
    ours, there, note = align(ours, theirs, name)
    common = dict(name=name, their_name=their_name, note=note) | shapes
    if there.shape != ours.shape:
        return Row(status=SHAPE, nans=count_nans(there), **common)
    figures = measure(ours, there)
    if ours.dtype.kind in "iub":
        status = OK if np.array_equal(ours, there) else DIFF
        wrong = int(np.sum(ours != there))
        note = f"{there.item()} instead of {ours.item()}" if ours.size == 1 else f"{wrong} of {ours.size} differ"
        return Row(status=status, **common | figures | ({"note": note} if wrong else {}))
    parts = [figures]
    if (usual := find_usual_rows(ours)) is not None:
        parts.append(measure(ours[usual], there[usual]))
    rms, worse = (max(part[key] for part in parts for key in keys) for keys in (("rms",), ("error", "rms")))
    status = OK if worse <= tolerance else CLOSE if rms <= rounded and math.isfinite(worse) else DIFF
    if status == CLOSE and rounded <= tolerance:
        status = DIFF
    if status != OK and len(parts) > 1:
        count = int(np.sum(~usual))
        large = f"{parts[1]['error']:.1e} without the {f'{count} largest rows' if count > 1 else 'largest row'}"
        common["note"] = "; ".join(filter(None, (note, large)))
    return Row(status=status, **common | figures)
