"""Compare two recordings of one prompt, tensor by tensor in the order of the data flow: where they part first, and why.

    found = compare(trace, "port.npz")            # or trace.compare("port.npz"); files, Traces, dicts
    print(found)                                  # the table, and the verdict
    found.first.name, found.first.causes          # "visual.blocks.0.attn.q_rope", [Cause("interleaved RoPE", ...)]
    found.ok                                      # whether all that was compared agrees

Status of a row:  OK; OK~, equal as far as the precision of the recording allows; DIFF, other values; SHAPE, another shape; MISSING,
recorded on one side only.

Tolerance. The error of a tensor is its largest difference over its largest value: an entry that is small because large terms
cancel keeps their absolute error. Two float32 programs differ by the order of summation, 1e-7 to 5e-6 (docs/parity.md); the
smallest known mistakes, another eps or GELU by tanh, give 1e-4 and less: TOLERANCE lies between. Integers must be equal.
A recording in which most tensors hold bfloat16 (or float16) values only was computed so: errors then grow from layer to layer, and
a row is OK~ as long as its root-mean-square error is within ROUNDED times the type's rounding, or grew no more than GROWTH times
over the largest of any row before it. Mistakes smaller than the rounding cannot be seen in such a recording.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from minivl.causes import Step, causes
from minivl.causes.arrays import masked, orders, without_ones
from minivl.config import Config
from minivl.errors import Error
from minivl.names import close, in_data_flow, matched
from minivl.sources import opened
from minivl.verdict import CLOSE, DIFF, MISSING, OK, SHAPE, html, text

TOLERANCE = 2e-5
ROUNDED, GROWTH = 10, 4
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


@dataclass(frozen=True)
class Comparison:
    """The rows in the order of the data flow, ours; what only theirs has follows at the end.

    precision  what theirs was computed in, judged by its values
    before     the last tensor before `first` that agrees;  between  ours that lie between these two and were not recorded there
    """

    rows: list
    labels: tuple = ("ours", "theirs")
    tolerance: float = TOLERANCE
    precision: str = "float32"

    @property
    def compared(self):
        return [row for row in self.rows if row.status != MISSING]

    @property
    def ok(self):
        """Whether something was compared, and all of it agrees."""
        return bool(self.compared) and all(row.status in (OK, CLOSE) for row in self.compared)

    @property
    def first(self):
        """The first row whose values differ; if only shapes do, the first of those; else None."""
        wrong = [row for row in self.compared if row.status in (DIFF, SHAPE)]
        return next((row for row in wrong if not row.same_values), wrong[0] if wrong else None)

    @property
    def before(self):
        agreeing = [row for row in self._ahead() if row.status in (OK, CLOSE)]
        return agreeing[-1] if agreeing else None

    @property
    def between(self):
        ahead, before = self._ahead(), self.before
        ahead = ahead[ahead.index(before) + 1 :] if before is not None else ahead
        return [row.name for row in ahead if row.status == MISSING]

    def _ahead(self):
        return self.rows[: self.rows.index(self.first)] if self.first is not None else []

    def __getitem__(self, name):
        return {row.name: row for row in self.rows}[name]

    def __len__(self):
        return len(self.rows)

    def __str__(self):
        return text(self)

    def _repr_html_(self):
        return html(self)


def compare(ours, theirs, names=None, tolerance=TOLERANCE, config=None, pictures=(), model=None):
    """Compare two recordings. -> Comparison

    ours, theirs  a Trace, a dict {name: array}, or the path of a .safetensors or .npz file. Ours has minivl's names
    names      {theirs: ours}, or a JSON file of it, for names that minivl does not recognise by itself (names.py)
    tolerance  largest error of an OK; see above
    config     a Config, a config.json or its contents, for the causes; without it, what our file says
    pictures   the pictures of the prompt, so that a wrong resize can be told from another
    model      a VLM of the same weights: mistakes between two recorded tensors are then found by running it with each
    """
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise Error(f"tolerance={tolerance!r}; it must be a number from 0 to below 1, relative to a tensor's largest value.")
    ours, theirs = opened(ours, "the first"), opened(theirs, "the second")
    config = model.config if config is None and model is not None else config_of(config, ours, theirs)
    called = matched(theirs, ours, names)
    precision = precision_of(theirs, called)
    rows, reach = [], 0.0
    for name in tqdm(in_data_flow(ours), desc="comparing", unit="tensor", leave=False, delay=1, disable=None):
        mine = Row(name, MISSING, shape=ours[name].shape, note=f"not in {theirs.label}")
        if name in called:
            mine = row(name, ours[name], called[name], theirs[called[name]], tolerance, max(tolerance, allowed(precision, reach)))
            reach = max(reach, mine.rms if mine.status == CLOSE else 0.0)
        rows.append(mine)
    rows += [unmatched(name, theirs, ours) for name in theirs if name not in called.values()]
    if not called:
        hint = next((row.note for row in rows if "mean" in row.note), "")
        raise Error(
            f"no tensor of {theirs.label} has a name of {ours.label}{hint and ': ' + hint}. docs/tensors.md lists the names; "
            'names={"theirs-{}": "model.layers.{}.mlp.act"} (--names map.json) maps others.'
        )
    found = Comparison(rows, (ours.label, theirs.label), tolerance, precision)
    return explained(found, ours, theirs, called, config, opened_pictures(pictures), model)


def allowed(precision, reach):
    """Largest root-mean-square error of an OK~."""
    return max(ROUNDED / 2 * ROUNDING[precision], GROWTH * reach)


def config_of(given, *recordings):
    """A Config, or None if nobody says which."""
    if isinstance(given, Config):
        return given
    if given is not None:
        return Config.from_dict(given) if isinstance(given, Mapping) else Config.read(given)
    stored = next((r.config for r in recordings if r.config is not None), None)
    return None if stored is None else Config.from_dict(stored)


def opened_pictures(pictures):
    from minivl.image import open_image

    pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    return [open_image(picture) for picture in pictures]


def precision_of(recording, called):
    """The type that most floating-point tensors were rounded to: "float32", "float16" or "bfloat16"."""
    found = []
    for mine, name in called.items():
        if mine.startswith(("image.", "video.", "pixel_values")) or mine.endswith(("rope.cos", "rope.sin")):
            continue
        stored = recording.stored.get(name)
        array = recording[name]
        if array.dtype.kind == "f":
            known = {"BF16": "bfloat16", "F16": "float16"}.get(stored)
            found.append(known or held(array))
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


def aligned(name, ours, theirs):
    """Theirs in our shape if only axes of 1, or rows before the last, are more; and a note of what was done."""
    if theirs.shape == ours.shape:
        return theirs, ""
    found = without_ones(theirs, ours.shape)
    if found is not None:
        return found, "batch axis"
    if name.endswith("lm_head") and ours.ndim == 2 and theirs.ndim > 1 and theirs.shape[-1] == ours.shape[1]:
        rows = theirs.reshape(-1, theirs.shape[-1])
        if math.prod(theirs.shape[:-2]) == 1:
            return rows[-1:], f"last of {len(rows)} rows"
    return theirs, ""


def row(name, ours, their_name, theirs, tolerance, rounded):
    """The comparison of one tensor; `rounded` is the largest root-mean-square error that rounding excuses."""
    there, note = aligned(name, ours, theirs)
    common = dict(name=name, their_name=their_name, shape=ours.shape, their_shape=theirs.shape, note=note)
    if there.shape != ours.shape:
        return Row(status=SHAPE, nans=nans(there), **common)
    figures = measured(ours, there)
    if ours.dtype.kind in "iub":
        status = OK if np.array_equal(ours, there) else DIFF
        wrong = int(np.sum(ours != there))
        return Row(status=status, **common | figures | ({"note": f"{wrong} of {ours.size} differ"} if wrong else {}))
    worse = max(figures["error"], figures["rms"])
    status = OK if worse <= tolerance else CLOSE if figures["rms"] <= rounded and math.isfinite(worse) else DIFF
    if status == CLOSE and rounded <= tolerance:
        status = DIFF
    return Row(status=status, **common | figures)


def nans(array):
    return int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0


def measured(ours, theirs):
    """error, rms, cosine, worst and nans of two arrays of one shape."""
    a, b = masked(ours), masked(theirs)
    finite = np.isfinite(a) & np.isfinite(b)
    off = np.where(finite, np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)), np.where(a == b, 0, np.inf))
    worst = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape)) if off.size else ()
    a, b = a[finite], b[finite]
    size, size_b, error = (math.sqrt(float(v @ v)) for v in (a, b, a - b))
    infinite = bool(off.size) and not np.isfinite(off.max())
    return {
        "error": math.inf if infinite else (float(off.max()) / (float(np.abs(a).max()) or 1.0)) if a.size else 0.0,
        "rms": math.inf if infinite else error / (size or 1.0),
        "cosine": float(a @ b) / (size * size_b) if size * size_b else float(size == size_b),
        "worst": worst,
        "nans": nans(theirs),
    }


def unmatched(name, theirs, ours):
    mine = close(name, list(ours))
    note = f"only in {theirs.label}" + (f"; did you mean {mine}?" if mine else "")
    return Row(name, MISSING, their_name=name, their_shape=theirs[name].shape, note=note)


def explained(found, ours, theirs, called, config, pictures, model):
    """The same comparison, with the causes of what differs first and of every other shape."""
    agreeing = {row.name for row in found.compared if row.status in (OK, CLOSE)}

    def known(name):
        if name in agreeing:
            return aligned(name, ours[name], theirs[called[name]])[0]
        return ours.get(name)

    limit = max(found.tolerance, allowed(found.precision, 0.0))

    def with_causes(row):
        there, _ = aligned(row.name, ours[row.name], theirs[row.their_name])
        transposed = {order for order in orders(ours[row.name].shape, there.shape)}
        sides = [("theirs", ours[row.name], there), ("ours", there, ours[row.name])]
        if len(transposed) == 1:  # it can only be that; then other mistakes may be looked for besides
            order = transposed.pop()
            sides.insert(1, ("theirs", ours[row.name], there.transpose(order)))
        for whose, mine, other in sides:
            why = causes(Step(row.name, mine, other, known, config, pictures), limit)
            if why and (why[0].exact or whose == "ours"):
                break
        return replace(row, causes=tuple(replace(cause, whose=whose) for cause in why), same_values=same(row, why))

    rows = [with_causes(row) if row.status == SHAPE else row for row in found.rows]
    found = replace(found, rows=rows)
    if found.first is not None and not found.first.causes:
        why = with_causes(found.first)
        rows = [why if row is found.first else row for row in rows]
        found = replace(found, rows=rows)
    if model is not None and found.first is not None and not found.first.causes and found.between:
        from minivl.causes.replay import replayed

        why = replayed(found, ours, theirs[found.first.their_name], model, limit)
        rows = [replace(row, causes=tuple(why)) if row is found.first else row for row in found.rows]
        found = replace(found, rows=rows)
    return found


LAYOUTS = ("transposed", "axes exchanged", "axes in another order", "another shape", "batch axis", "whole rows")


def same(row, why):
    """Whether the two hold the same values, in another layout."""
    return row.status == SHAPE and bool(why) and why[0].exact and why[0].name in LAYOUTS
