"""Compare two recordings of one prompt, tensor by tensor in the order of the data flow: the first difference, and its cause.

    comparison = compare(trace, "port.npz")       # or trace.compare("port.npz"); files, Traces, dicts
    print(comparison)                             # the table, and the verdict
    comparison.first.name                         # "visual.blocks.0.attn.q_rope"
    comparison.first.causes                       # [Cause("interleaved RoPE", ...)]
    comparison.ok                                 # all that was compared agrees

Status of a row: OK; OK~, equal to within the recording's precision; DIFF, other values; INPUT, other values, but only because
its inputs differ; SHAPE, another shape; MISSING, recorded on one side only.

With a model, each tensor is also computed from THEIR inputs (local.py): a row is DIFF if theirs is further from that than
rounding explains, whatever came before, so every wrong stage is listed, and no tolerance is guessed for lower precision.

Tolerance. The error of a tensor is its largest difference over its largest value: an entry that is small because large terms
cancel keeps their absolute error. Two float32 programs differ by the order of summation, 1e-7 to 5e-6 (docs/parity.md); most
known mistakes give 1e-4 and more. TOLERANCE lies between; mistakes below it are searched separately (`add_faint_mistakes`).
Integers must be equal.

A recording in which most tensors hold bfloat16 (or float16) values only was computed in that type. Errors then grow from layer
to layer. Without a model, a row is OK~ as long as its root-mean-square error is within ROUNDED times the type's rounding, or
within GROWTH times the largest of any row before it, and never above WORST times the rounding (rows.py). Mistakes smaller than
the rounding cannot be seen in such a recording.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from tqdm import tqdm

from minivl.checkpoint.config import Config
from minivl.compare.diagnose import find_causes, find_faint_eps, is_right, of_the_layout, of_the_stage
from minivl.compare.local import Local, fit, judge_from_theirs
from minivl.compare.match_names import match_names, unmatched
from minivl.compare.measure import align, axis_orders
from minivl.compare.mistakes import Step
from minivl.compare.recordings import Recording, open_recording
from minivl.compare.render import html, text
from minivl.compare.rows import (
    CLOSE,
    DIFF,
    INPUT,
    MISSING,
    OK,
    ROUNDING,
    SHAPE,
    Row,
    compare_tensor,
    find_precision,
    rounding_limit,
    softmax_error,
)
from minivl.errors import Error
from minivl.helpers import did_you_mean, plain_number
from minivl.stream import value_of
from minivl.tensors import catalogue
from minivl.tensors.catalogue import in_data_flow
from minivl.tensors.names import parse

TOLERANCE = 2e-5
NOISE = 5e-7  # errors that no mistake is searched for
FAR = 100  # so many tolerances are no rounding
FEW, SHARE = 3, 0.1  # unmatched tensors of theirs, and their share, that still count as covered
LAYOUTS = ("transposed", "axes exchanged", "axes in another order", "another shape", "batch axis", "whole rows")


@dataclass(frozen=True)
class Comparison:
    """The rows in the order of the data flow; tensors that only theirs has come last.

    precision  of theirs, judged by its values;  informed  whether a config was known, and a model
    before     the last tensor before `first` that agrees;  between  our tensors between these two that theirs does not have
    unmatched  their tensors that mean none of ours;  required  ours that had to be compared and were not
    arithmetic how theirs computes, as far as a model could tell; None without one
    """

    rows: list
    labels: tuple = ("ours", "theirs")
    tolerance: float = TOLERANCE
    precision: str = "float32"
    informed: tuple = (True, True)
    unmatched: tuple = ()
    required: tuple = ()
    arithmetic: str | None = None

    @property
    def compared(self):
        return [row for row in self.rows if row.status != MISSING]

    @property
    def ok(self):
        """Whether something was compared, and all of it agrees."""
        return bool(self.compared) and all(row.status in (OK, CLOSE, INPUT) for row in self.compared)

    @property
    def covered(self):
        """Whether enough was compared for `ok` to mean something: all that is required, and most of theirs."""
        theirs = len([row for row in self.rows if row.their_name is not None])
        return not self.required and (len(self.unmatched) < FEW or len(self.unmatched) <= SHARE * theirs)

    @property
    def faults(self):
        """All rows that are wrong by themselves: DIFF, and SHAPE with other values."""
        return [row for row in self.compared if row.status in (DIFF, SHAPE) and not row.same_values]

    @property
    def first(self):
        """The first row whose values differ; if only shapes differ, the first of those; else None."""
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

    def replace_row(self, row, new):
        """The comparison with another row in the place of `row`."""
        return replace(self, rows=[new if old is row else old for old in self.rows])

    def __getitem__(self, name):
        return {row.name: row for row in self.rows}[name]

    def __len__(self):
        return len(self.rows)

    def __str__(self):
        return text(self)

    def _repr_html_(self):
        return html(self)


def compare(ours, theirs, names=None, tolerance=TOLERANCE, config=None, pictures=(), model=None, require=()):
    """Compare two recordings. -> Comparison

    ours, theirs  a Trace, a dict {name: array}, or the path of a .safetensors, .npz or .pt file. Ours has minivl's
                  names
    names      {theirs: ours}, or a JSON file with it, for names that minivl does not recognise (match_names.py)
    tolerance  largest error of an OK; see above
    config     a Config, a config.json or its contents, to find causes; by default the one in our file
    pictures   the images of the prompt, to find mistakes in resizing
    model      a VLM with the same weights: it judges each stage alone, and finds mistakes between two recorded tensors
    require    names or globs of our tensors that must be compared: "visual.*"; see `Comparison.covered`
    """
    tolerance = plain_number(tolerance)
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise Error(
            f"tolerance={tolerance!r}; it must be a number from 0 to below 1, relative to a tensor's largest value."
        )
    ours, theirs = open_recording(ours, "the first"), open_recording(theirs, "the second")
    config = model.config if config is None and model is not None else find_config(config, ours, theirs)
    matches = match_names(theirs, ours, names)
    if not matches:
        raise Error(nothing_in_common(ours, theirs))
    precision = max(find_precision(theirs, matches), find_precision(ours, {n: n for n in matches}), key=ROUNDING.get)
    theirs = merge_rope_rows(theirs, matches, config)
    rows = compare_rows(ours, theirs, matches, tolerance, precision)
    local = None if model is None else judge_from_theirs(model, ours, theirs, matches, precision)
    if local is not None:
        rows, local = with_local_errors(rows, local, tolerance)
    rows += [row_without_match(name, theirs, ours) for name in theirs if name not in matches.values()]
    comparison = Comparison(
        rows,
        (ours.label, theirs.label),
        tolerance,
        precision,
        informed=(config is not None, model is not None),
        unmatched=tuple(unmatched(theirs, ours, names)),
        required=not_compared(require, rows),
        arithmetic=None if local is None else local.arithmetic,
    )
    agreeing = {row.name for row in comparison.compared if row.status in (OK, CLOSE)}
    limit = max(tolerance, rounding_limit(precision, 0.0))
    evidence = Evidence(ours, theirs, matches, agreeing.__contains__, config, open_images(pictures), local, limit)
    for add_causes in PASSES:
        comparison = add_causes(comparison, evidence)
    return comparison


def compare_rows(ours, theirs, matches, tolerance, precision):
    """A Row for each tensor of ours."""
    rows, largest = [], 0.0
    for name in tqdm(in_data_flow(ours), desc="comparing", unit="tensor", leave=False, delay=1, disable=None):
        row = Row(name, MISSING, shape=ours[name].shape, note=f"not in {theirs.label}")
        if name in matches:
            rounded = max(tolerance, rounding_limit(precision, largest, name))
            row = compare_tensor(name, ours[name], matches[name], theirs[matches[name]], tolerance, rounded)
            if row.status == DIFF and max(row.error, row.rms) <= softmax_error(name, ours, rows):
                row = replace(row, status=CLOSE)
            if row.status == CLOSE and not name.endswith(".probs"):
                largest = max(largest, row.rms)
        rows.append(row)
    return rows


def merge_rope_rows(theirs, matches, config):
    """Their recording, with the cos and sin of transformers 4.x, [3, 1, T, K], merged into [T, K] by mrope_section."""
    merged = {}
    for name in [name for name in matches if parse(name).own in ("model.rope.cos", "model.rope.sin")]:
        tables = theirs[matches[name]]
        if tables.ndim in (3, 4) and len(tables) == 3 and tables.size and config is not None:
            tables = tables.reshape(3, *tables.shape[-2:])
            rows = np.tile(np.repeat(np.arange(3), config.text.rope.mrope_section), 2)
            if len(rows) == tables.shape[-1]:
                merged[matches[name]] = np.stack([tables[row, :, j] for j, row in enumerate(rows)], axis=1)
    return Recording({**theirs, **merged}, theirs.label, theirs.metadata) if merged else theirs


def with_local_errors(rows, local, tolerance):
    """(rows with statuses by their local errors, local); unchanged and None if it is ours that the model does not give."""
    judged = [judge(row, local, tolerance) for row in rows]
    wrong = [at for at, row in enumerate(judged) if row.status == DIFF]
    moved = [row for row in rows if row.status == DIFF and row.name in local.figures]
    if not wrong and local.arithmetic == "float32" and any(row.error > FAR * tolerance for row in moved):
        return rows, None
    first = wrong[0] if wrong else len(rows)
    return [replace(r, status=CLOSE) if r.status == INPUT and at < first else r for at, r in enumerate(judged)], local


def judge(row, local, tolerance):
    if row.status in (MISSING, SHAPE) or row.name not in local.figures:
        return row
    row = replace(row, local=local.figures[row.name]["error"])
    if local.is_fault(row.name, tolerance):
        return replace(row, status=DIFF)
    return replace(row, status=INPUT) if row.status == DIFF else row


def not_compared(require, rows):
    """Our tensors that match a required name or glob and were not compared. Raises an Error for one that matches none."""
    missing = []
    for pattern in [require] if isinstance(require, str) else require:
        matching = [row for row in rows if row.shape is not None and fnmatchcase(row.name, pattern)]
        if not matching:
            raise Error(f"require={pattern!r} matches none of our tensors. docs/tensors.md lists the names.")
        missing += [row.name for row in matching if row.status == MISSING]
    return tuple(dict.fromkeys(missing))


def nothing_in_common(ours, theirs):
    """The text of the Error for recordings without a common name."""
    if not len(theirs) or not len(ours):
        return (
            f"{(theirs if not len(theirs) else ours).label} has no tensors. Was it closed before anything was recorded?"
        )
    hints = ((name, did_you_mean(name, ours, 1, 0.6)) for name in theirs)
    name, hint = next((pair for pair in hints if pair[1]), (next(iter(theirs)), ""))
    return (
        f"no tensor of {theirs.label} has a name of {ours.label}: the first one there is {name!r}.{hint} docs/tensors.md "
        'lists the names; names={"theirs-{}": "model.layers.{}.mlp.act"} maps others.'
    )


def find_config(given, *recordings):
    """The Config that was given, or the first one in a recording; None if there is none."""
    if isinstance(given, Config):
        return given
    if given is not None:
        return Config.from_dict(given) if isinstance(given, Mapping) else Config.read(given)
    stored = next((recording.config for recording in recordings if recording.config is not None), None)
    return None if stored is None else Config.from_dict(stored)


def open_images(pictures):
    from minivl.processing.load_image import open_image

    pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    return [open_image(picture) for picture in pictures]


def row_without_match(name, theirs, ours):
    hint = did_you_mean(name, ours, 1, 0.6)
    note = f"only in {theirs.label}" + f".{hint}" * bool(hint)
    return Row(name, MISSING, their_name=name, their_shape=theirs[name].shape, note=note)


# ---- causes: passes over a comparison, each of which adds some ----


@dataclass(frozen=True)
class Evidence:
    """What causes are searched with.

    matches  {our name: their name};  agrees  function of a name: whether both have the same values
    local    the `Local` errors, if a model could give them;  limit  largest error that a cause may leave
    """

    ours: Recording
    theirs: Recording
    matches: dict
    agrees: Callable
    config: Config | None
    images: list
    local: Local | None
    limit: float

    def known(self, name):
        """The values that both agree about, or ours; None if it was not recorded."""
        if self.agrees(name):
            there = align(self.ours[name], self.theirs[self.matches[name]])[1]
            return there if there.shape == self.ours[name].shape else self.ours[name]
        return self.ours.get(name)

    def known_from_theirs(self, name):
        """What their stage had as its input: theirs, or ours computed from theirs."""
        return value_of(self.local.known[name]) if name in self.local.known else self.known(name)

    def limit_of(self, row):
        """Largest error that a cause of this row may leave."""
        limits = {} if self.local is None else self.local.limits
        return max(self.limit, limits[row.name][0]) if row.name in limits else self.limit

    def step(self, row, turned=False, order=None):
        """The Step of a row; turned: with the two sides exchanged; order: of theirs' axes."""
        if self.local is not None and row.name in self.local.figures and order is None and not turned:
            ours = self.local.computed[row.name]
            theirs = fit(self.local.theirs, row.name, ours.shape)
            return Step(row.name, ours, theirs, self.known_from_theirs, self.config, self.images)
        ours, theirs, _ = align(self.ours[row.name], self.theirs[row.their_name])
        theirs = theirs if order is None else theirs.transpose(order)
        pair = (theirs, ours) if turned else (ours, theirs)
        return Step(row.name, *pair, self.known, self.config, self.images)


def with_causes(row, causes, whose="theirs"):
    layout = row.status == SHAPE and bool(causes) and causes[0].exact and causes[0].name in LAYOUTS
    return replace(row, causes=tuple(replace(cause, whose=whose) for cause in causes), same_values=layout)


def add_layouts(comparison, evidence):
    """The same values in another layout, of every SHAPE row."""
    for row in [row for row in comparison.rows if row.status == SHAPE]:
        causes = find_causes(evidence.step(row), evidence.limit, (of_the_layout,))
        comparison = comparison.replace_row(row, with_causes(row, causes))
    return comparison


def add_faint_mistakes(comparison, evidence):
    """Mistakes smaller than the tolerance, up to the first difference: another eps may change a norm by 5e-6 of its values.

    Rounding is different in every value: a known mistake that leaves less than a tenth of a difference is no accident.
    An eps that changes values by less than rounding is found in all rows together.
    """
    for row in comparison.rows:
        if row.status in (DIFF, SHAPE) and not row.same_values:
            break
        if row.status != OK or not row.error or not is_made_by(row.name, "norm", "gelu"):
            continue
        step = evidence.step(row)
        causes = find_causes(step, evidence.limit, (of_the_stage,)) if row.error > NOISE else []
        causes = causes or (find_faint_eps(step) if is_made_by(row.name, "norm") else [])
        if causes:
            return comparison.replace_row(row, with_causes(replace(row, status=DIFF), causes))
    return comparison


def is_made_by(name, *operations):
    tensor = catalogue.of(name)
    return tensor is not None and tensor.made_by in operations


def add_causes_of_first(comparison, evidence):
    """Mistakes of the first difference's own stage."""
    return search(comparison, lambda row: find_causes(evidence.step(row), evidence.limit_of(row)))


def add_causes_in_another_layout(comparison, evidence):
    """The same, if the first difference has its axes in another order too."""

    def causes(row):
        step = evidence.step(row)
        orders = axis_orders(step.ours.shape, step.theirs.shape)
        return find_causes(evidence.step(row, order=orders[0]), evidence.limit) if len(orders) == 1 else []

    return search(comparison, causes)


def add_causes_of_ours(comparison, evidence):
    """The same with the sides exchanged, if theirs is right."""

    def causes(row):
        right = is_right(evidence.step(row), evidence.limit)
        return find_causes(evidence.step(row, turned=True), evidence.limit) if right else []

    return search(comparison, causes, "ours")


def add_causes_between(comparison, evidence):
    """Mistakes of tensors between the last that agrees and the first difference, if there is a model to run."""
    if evidence.local is None:
        return comparison
    return search(comparison, lambda row: search_between(comparison, row, evidence))


def search_between(comparison, row, evidence):
    """[Cause] among the tensors that theirs does not have, between the row before and this one."""
    from minivl.compare.mistakes.replay import causes_between

    ahead = comparison.rows[: comparison.rows.index(row)]
    compared = [at for at, other in enumerate(ahead) if other.status != MISSING]
    near = ahead[compared[-1] + 1 :] if compared else ahead
    shared = [other for other in ahead if other not in near and is_shared(other.name, row.name)]
    names = [other.name for other in [*shared, *near] if other.status == MISSING]
    if row.name not in evidence.local.figures or not names:
        return []
    return causes_between(row.name, names, evidence.local, evidence.limit_of(row), evidence.ours)


def is_shared(name, user):
    """Whether a tensor is one of the indices and angles that all blocks of a half use."""
    tensor, other = catalogue.of(name), catalogue.of(user)
    return is_made_by(name, "", "angles") and other is not None and tensor.section == other.section


def add_causes_of_other_faults(comparison, evidence):
    """The same for every other stage that is wrong by itself, in the first block or layer of its kind."""
    if evidence.local is None or comparison.first is None:
        return comparison
    seen = {parse(comparison.first.name).general}
    for row in comparison.faults:
        general = parse(row.name).general
        if general in seen or row.name not in evidence.local.figures:
            continue
        seen.add(general)
        causes = find_causes(evidence.step(row), evidence.limit_of(row)) or search_between(comparison, row, evidence)
        comparison = comparison.replace_row(row, with_causes(row, causes))
    return comparison


def search(comparison, causes, whose="theirs"):
    """The comparison with causes(first row), if that has none yet."""
    row = comparison.first
    if row is None or row.causes:
        return comparison
    return comparison.replace_row(row, with_causes(row, causes(row), whose))


PASSES = (
    add_layouts,
    add_faint_mistakes,
    add_causes_of_first,
    add_causes_in_another_layout,
    add_causes_of_ours,
    add_causes_between,
    add_causes_of_other_faults,
)
