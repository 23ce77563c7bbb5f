"""Judge each stage alone: compare every recorded tensor with ours, computed from the port's own inputs (rerun.py).

How much error rounding explains is measured, not guessed: the same run is done once more with every tensor rounded to the type
of their values, or with the inputs of all products rounded to it (ARITHMETICS). A float32 port whose tensors were rounded only
when they were recorded did not compute from what the recording holds: so values of a lower type are also moved by half a unit
(`shift_by_half_unit`), and the run is done with those. The largest error that any of this makes, times SLACK, is what a stage
may have. Where some rows are much larger than the rest, the rest is judged on its own, too.
Chance may spare what matters most in these runs, twice:

* one value is much larger than all others and is hardly rounded: so each may be off by ROUNDINGS of them at their worst;
* a softmax depends on two scores that were moved the same way: so an error of less than NEAR limits is judged by MORE runs,
  with other signs.

A stage may also be off by less than these runs can tell, and all stages together by much more: what no stage shows alone must
not be further from our recording than DRIFT times what a run in their arithmetic is.
"""

import functools
import math
from dataclasses import replace

import numpy as np

from minivl.compare.measure import find_usual_rows, measure
from minivl.compare.rerun import (
    ARITHMETICS,
    NOISE,
    fit,
    fit_last_row,
    inputs_or_none,
    last_of,
    run_from_theirs,
    shift_by_half_unit,
)
from minivl.compare.rows import CLOSE, DIFF, INPUT, MISSING, OK, ROUNDING, SHAPE
from minivl.errors import Error
from minivl.stream import value_of
from minivl.tensors import catalogue
from minivl.tensors.catalogue import in_data_flow
from minivl.tensors.names import parse

SLACK = 5  # rounded twice, or in another order: a few times the error of the simulated rounding
ROUNDINGS = 2  # one of what goes into a stage and one of the result
NEAR, MORE = 10, 3
DRIFT = 10  # right ports of the small model: 1.5 at most; four mistakes, made in blocks: 45 and more
USUAL = 2  # of the SLACK times simulated rounding: what usually remains once the cause is found
TINY = 1e-30  # instead of 0, to divide by
FAR = 100  # errors of this many tolerances are no rounding
LIKE = 3  # errors within this factor of those of an arithmetic, of all products, are of its size
FEWEST_PRODUCTS, SHARE_OF_PRODUCTS = 8, 0.8


class Local:
    """The local errors of a comparison.

    computed    {name: ours from their inputs}
    known       {name: tensor that the run continued with: theirs where recorded, else ours}
    last_rows   {name: ours with their last row}, where they have only that
    figures     {name: `measure` of theirs and that}
    arithmetic  the one of ARITHMETICS that their values come from
    usual_rows  {name: bool [rows]}, where some rows have much larger values than the others
    limits      {name: (error, rms) that rounding explains, of all rows and of the usual ones}; computed when first used
    """

    def __init__(self, model, inputs, theirs, precision):
        self.model, self.inputs = model, inputs
        self.computed, self.known = run_from_theirs(model, inputs, theirs, None)
        whole = {name: fit_last_row(theirs, name, ours) for name, ours in self.computed.items()}
        self.last_rows = {name: array for name, array in whole.items() if array is not None}
        self.theirs = theirs | self.last_rows
        self.figures, self.runs = {}, {}
        self.usual_rows = {name: find_usual_rows(ours) for name, ours in self.computed.items() if name not in self.last_rows}
        for name, ours in self.computed.items():
            there = fit(self.theirs, name, ours.shape)
            if there is not None:
                self.figures[name] = self.measure(name, ours, there)
        self.skip_tensors_after_nan()
        self.precision, self.arithmetic = precision, self.find_arithmetic(precision)

    @property
    def size(self):
        """How many values a run makes."""
        return sum(math.prod(tensor.shape) for tensor in self.known.values())

    @functools.cached_property
    def tower(self):
        """{name: tensor} up to the tower's output, which decoder runs begin with; {} if there is no image, or no need of it."""
        names = list(self.known)
        return {name: self.known[name] for name in names[: names.index("visual") + 1]} if "visual" in names else {}

    @functools.cached_property
    def shifted(self):
        """`run_from_theirs` with their values moved by half a unit of the type that they were rounded to."""
        return (self.computed, self.known) if self.precision == "float32" else self.run_shifted(0)

    @functools.cached_property
    def more_shifted(self):
        """[{name: tensor}] of MORE such runs, with other signs."""
        return [self.run_shifted(number)[0] for number in range(1, 1 + MORE)]

    def run_shifted(self, number):
        arrays = enumerate(self.theirs.items(), number * len(self.theirs))
        shifted = {name: shift_by_half_unit(array, self.precision, seed) for seed, (name, array) in arrays}
        tower = None if self.tower.keys() & self.theirs.keys() else self.tower
        return run_from_theirs(self.model, self.inputs, shifted, None, tower=tower)

    @functools.cached_property
    def limits(self):
        rounded, (shifted, _) = self.run_in(self.arithmetic), self.shifted
        return {name: self.limit(name, rounded[name], shifted[name]) for name in self.figures}

    def rounding(self, name):
        """The largest error that rounding usually makes of a tensor."""
        return USUAL / SLACK * self.limits[name][0] if name in self.limits else 0.0

    def skip_tensors_after_nan(self):
        """Do not judge a tensor with NaN or inf if one before it has them."""
        broken = False
        for name in in_data_flow(list(self.figures)):
            is_float = self.computed[name].dtype.kind == "f"
            there = fit(self.theirs, name, self.computed[name].shape)
            has = is_float and not np.isfinite(there[np.isfinite(self.computed[name])]).all()
            if has and broken:
                self.figures[name] = measure(self.computed[name], self.computed[name])
            broken = has or broken and not (is_float and catalogue.of(name).level == "block")  # a finite block ends it

    def measure(self, name, ours, other):
        """`measure` of two arrays; of the last rows alone where theirs has no others. "usual": that of the usual rows."""
        if name in self.last_rows:
            return measure(ours[-1:], other[-1:])
        figures, rows = measure(ours, other), self.usual_rows.get(name)
        return figures if rows is None else {**figures, "usual": measure(ours[rows], other[rows])}

    def limit(self, name, *others):
        """(error, rms) that rounding explains, of all rows and of the usual ones, from the tensor as other runs computed it."""
        ours = self.computed[name]
        figures = [self.measure(name, ours, other) for other in others]
        limits = limits_of(figures, ours[-1:] if name in self.last_rows else ours, self.precision)
        rows = self.usual_rows.get(name)
        return limits if rows is None else limits + limits_of([f["usual"] for f in figures], ours[rows], self.precision)

    def find_arithmetic(self, precision):
        """The arithmetic in which a run comes closest to their tensors, by the median of the distances."""
        plain = self.median(self.computed)
        if precision != "float32" or plain <= NOISE:
            return precision
        names = [name for name in ARITHMETICS if name.startswith("float32")]
        left = {name: self.median(self.run_in(name)) for name in names}
        best = min(left, key=left.get)
        if left[best] >= plain / 4:
            best = next((name for name in names[1:] if self.has_errors_like(self.run_in(name))), names[0])
        return best

    def run_in(self, arithmetic):
        """{name: tensor} from their inputs in an arithmetic; run once."""
        if arithmetic not in self.runs:
            self.runs[arithmetic] = run_from_theirs(self.model, self.inputs, self.theirs, arithmetic)[0]
        return self.runs[arithmetic]

    def has_errors_like(self, run):
        """Whether the errors of most recorded products are of the size that this run makes of the same inputs."""
        names = self.products
        made = [
            (self.figures[name]["rms"], self.measure(name, self.computed[name], run[name])["rms"]) for name in names
        ]
        ratios = np.array([theirs / ours for theirs, ours in made if ours and theirs > NOISE])
        flat = np.mean((1 / LIKE <= ratios) & (ratios <= LIKE)) if len(ratios) else 0.0
        return len(ratios) >= FEWEST_PRODUCTS and flat >= SHARE_OF_PRODUCTS

    @property
    def products(self):
        """Names of the recorded products."""
        return [name for name in self.figures if (tensor := catalogue.of(name)) and tensor.made_by == "linear"]

    def median(self, run):
        """The median root mean square error of products; if there are few, of all tensors that are not equal."""
        unequal = [name for name, figures in self.figures.items() if figures["rms"] > 0]
        names = self.products if len(self.products) >= FEWEST_PRODUCTS else unequal
        errors = [self.measure(name, run[name], fit(self.theirs, name, run[name].shape))["rms"] for name in names]
        return float(np.median(errors)) if errors else 0.0

    def is_wrong(self, name, tolerance):
        """Whether theirs is further from ours than rounding explains."""
        figures = self.figures[name]
        if self.computed[name].dtype.kind in "iub":
            return bool(figures["error"]) and not self.is_tie(name)
        worst = max(part[key] for part in (figures, figures.get("usual", figures)) for key in ("error", "rms"))
        if self.arithmetic == "float32" and worst <= tolerance:
            return False
        beyond = self.beyond(name, tolerance)
        if self.precision != "float32" and 1 < beyond < NEAR:
            wider = self.limit(name, *(run[name] for run in self.more_shifted))
            self.limits[name] = tuple(map(max, self.limits[name], wider))
            beyond = self.beyond(name, tolerance)
        return beyond > 1

    def beyond(self, name, tolerance):
        """How many times the limits their distance from ours is."""
        limits, figures = self.limits[name], self.figures[name]
        parts = [(figures, *limits[:2]), *([(figures["usual"], *limits[2:])] if "usual" in figures else [])]
        return max(max(f["rms"] / max(rms, NOISE), f["error"] / max(error, tolerance, TINY)) for f, error, rms in parts)

    @functools.cached_property
    def drift(self):
        """{name: root mean square error that a run in their arithmetic has on its own} of the prompt's tensors."""
        stop = last_of([name for name in self.theirs if not parse(name).step])
        ours, theirs = (run_from_theirs(self.model, self.inputs, {}, kind, stop=stop)[1] for kind in (None, self.arithmetic))
        names = [name for name in self.figures if name in ours and not callable(ours[name])]
        return {name: self.measure(name, ours[name], theirs[name])["rms"] for name in names}

    def has_drifted(self, row):
        """Whether a tensor is further from ours than their arithmetic explains, over all stages before it."""
        if self.arithmetic == "float32" or row.name not in self.drift:
            return False
        return row.rms > DRIFT * max(self.drift[row.name], ROUNDING[self.precision], NOISE)

    def is_tie(self, name):
        """Whether their token and ours have equal logits, as far as the rounding of their logits can tell."""
        logits = f"{parse(name).prefix}lm_head"
        if parse(name).own != "next_token" or logits not in self.known:
            return False
        values, shifted = (value_of(known[logits])[-1] for known in (self.known, self.shifted[1]))
        theirs, ours = int(self.theirs[name].reshape(-1)[-1]), int(self.computed[name][-1])
        reach = 2 * np.abs(values - shifted).max()
        return 0 <= theirs < len(values) and bool(abs(values[theirs] - values[ours]) <= reach)


def limits_of(figures, ours, precision):
    """(error, rms) that rounding explains, from the figures of other runs and our tensor."""
    finite = [figure for figure in figures if math.isfinite(figure["error"])]
    error, rms = (SLACK * max((figure[key] for figure in finite), default=0.0) for key in ("error", "rms"))
    least = ROUNDINGS * ROUNDING[precision]  # of the largest value
    return max(error, least), max(rms, least * share_of_largest(ours))


def share_of_largest(array):
    """How much of an array's root of the sum of squares its largest value alone makes: 0..1."""
    values = np.abs(array[np.isfinite(array)], dtype=np.float64) if array.dtype.kind == "f" else np.zeros(0)
    return float(values.max() / np.sqrt(np.sum(values * values))) if values.any() else 0.0


def judge_from_theirs(model, ours, theirs, matches, precision):
    """The `Local` errors of a recording, or None if ours lacks the inputs of a run."""
    inputs = inputs_or_none(ours, model.config)
    if inputs is None:
        return None
    arrays = {mine: theirs[name] for mine, name in matches.items()}
    numbers = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    for tensors in (arrays, numbers):  # subtle: a run cannot continue from every wrong index
        try:
            return Local(model, inputs, tensors, precision)
        except (Error, ValueError, IndexError, ArithmeticError):
            continue
    return None


def with_local_errors(rows, local, tolerance, same_weights=True):
    """(rows with statuses by their local errors, local); (rows unchanged, None) if the model does not reproduce ours.

    same_weights   whether ours was computed with the model's weights
    """
    judged = [judge(row, local, tolerance) for row in rows]
    wrong = [at for at, row in enumerate(judged) if row.status == DIFF]
    moved = [row for row in rows if row.status == DIFF and row.name in local.figures]
    if (
        same_weights
        and not wrong
        and local.arithmetic == "float32"
        and any(row.error > FAR * tolerance for row in moved)
    ):
        return rows, None
    if not same_weights:  # what differs before the first wrong row differs by the weights
        return judged, local
    first = wrong[0] if wrong else len(rows)
    close = [at for at, row in enumerate(judged) if row.status == INPUT and at < first]
    far = next((at for at in close if not parse(judged[at].name).step and local.has_drifted(judged[at])), None)
    for at in close:
        judged[at] = replace(judged[at], status=CLOSE)
    if far is not None:
        note = f"further from ours than {local.arithmetic} explains, and no stage before it shows it alone"
        judged[far] = replace(judged[far], status=DIFF, note=". ".join(filter(None, (judged[far].note, note))))
    return judged, local


def judge(row, local, tolerance):
    if row.status in (MISSING, SHAPE) or row.name not in local.figures:
        return row
    row = replace(row, local=local.figures[row.name]["error"])
    if row.status == OK and local.computed[row.name].dtype.kind == "f":
        return row  # subtle: so they computed it from another tensor than they recorded, such as a norm before its weight
    if local.is_wrong(row.name, tolerance):
        return replace(row, status=DIFF)
    return replace(row, status=INPUT) if row.status == DIFF else row
