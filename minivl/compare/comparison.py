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

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from minivl.checkpoint.config import Config
from minivl.compare.answers import Answers, read_answers
from minivl.compare.coverage import not_compared, nothing_in_common, row_without_match
from minivl.compare.judge import check_is_model_of_ours, find_model, with_settings_of
from minivl.compare.layouts import find_processor_rows, merge_rope_rows, replace_arrays
from minivl.compare.local import judge_from_theirs, with_local_errors
from minivl.compare.match_names import choose_matches, idle_entries, meanings, outvoted, read_map, unmatched
from minivl.compare.match_values import match_values
from minivl.compare.recordings import open_recording
from minivl.compare.render import html, text
from minivl.compare.rerun import inputs_or_none
from minivl.compare.rows import (
    CLOSE,
    DIFF,
    FEW_VALUES,
    INPUT,
    MISSING,
    OK,
    ROUNDING,
    SHAPE,
    Row,
    after_softmax,
    compare_tensor,
    find_precision,
    rounding_limit,
    says_type,
    softmax_error,
)
from minivl.compare.runs import RunBudget, check_runs
from minivl.compare.search import Evidence, add_all_causes
from minivl.errors import Error
from minivl.helpers import did_you_mean, plain_number
from minivl.tensors.catalogue import in_data_flow

TOLERANCE = 2e-5
FEW, SHARE = 3, 0.1  # this many unmatched tensors of theirs, and more than this share of them, are too many


class NoRow(Error, KeyError):
    """The KeyError of a `Comparison`, whose text is not put in quotes."""

    __str__ = Exception.__str__


@dataclass(frozen=True)
class Comparison:
    """The rows in the order of the data flow; tensors that only theirs has come last.

    precision  the lower one of both recordings, judged by their values
    has_config  whether a config was known
    before     the last tensor before `first` that agrees;  between  our tensors between these two that theirs does not have
    unmatched  their tensors that mean none of ours;  required  ours that had to be compared and were not
    arithmetic how theirs computes, as far as a model could tell; None without one
    names      {theirs: ours} that were found by their values;  notes  sentences on how theirs was read
    answers    the answer of each recording, as token ids; None if one has none
    own_weights  whether theirs was judged with its own weights: then INPUT counts as right, before the first difference too
    """

    rows: list
    labels: tuple = ("ours", "theirs")
    tolerance: float = TOLERANCE
    precision: str = "float32"
    has_config: bool = True
    unmatched: tuple = ()
    required: tuple = ()
    arithmetic: str | None = None
    names: dict = field(default_factory=dict)
    notes: tuple = ()
    answers: Answers | None = None
    own_weights: bool = False

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
    def judged(self):
        """Whether a model judged each stage."""
        return self.arithmetic is not None

    @property
    def wrong_rows(self):
        """Rows with other values: DIFF, and SHAPE whose values differ.

        With a model, those that are wrong by their local error; without one also all that follow from them.
        """
        return [row for row in self.compared if row.status in (DIFF, SHAPE) and not row.same_values]

    @property
    def first(self):
        """The first row whose values differ; if only shapes differ, the first of those; else None."""
        wrong = [row for row in self.compared if row.status in (DIFF, SHAPE)]
        return next((row for row in wrong if not row.same_values), wrong[0] if wrong else None)

    @property
    def before(self):
        right = (OK, CLOSE, INPUT) if self.own_weights else (OK, CLOSE)
        agreeing = [row for row in self._ahead() if row.status in right]
        return agreeing[-1] if agreeing else None

    @property
    def between(self):
        ahead, before = self._ahead(), self.before
        ahead = ahead[ahead.index(before) + 1 :] if before is not None else ahead
        return [row.name for row in ahead if row.status == MISSING]

    def _ahead(self):
        return self.rows[: self.rows.index(self.first)] if self.first is not None else []

    def replace_row(self, row, new):
        """The comparison with another row in place of `row`."""
        return replace(self, rows=[new if old is row else old for old in self.rows])

    def __getitem__(self, name):
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            raise NoRow(f"no row {name!r}.{did_you_mean(name, rows)} Rows have the names of our tensors: docs/tensors.md.")
        return rows[name]

    def __len__(self):
        return len(self.rows)

    def __str__(self):
        return text(self)

    def _repr_html_(self):
        return html(self)


def compare(
    ours,
    theirs,
    names=None,
    tolerance=TOLERANCE,
    config=None,
    images=(),
    model=None,
    require=(),
    runs=None,
    their_weights=(),
):
    """Compare two recordings. -> Comparison

    ours, theirs  a Trace, a dict {name: array}, or the path of a .safetensors, .npz or .pt file. Ours has minivl's
                  names
    names      {theirs: ours}, or a JSON file with it, for names that minivl does not recognise (match_names.py)
    tolerance  largest error of an OK; see above
    config     a Config, a config.json or its contents, to find causes; by default the one in our file
    images     the images of the prompt, to find mistakes in resizing
    model      a VLM with the same weights, or a folder or hub id of one: it judges each stage alone, and finds mistakes
               between two recorded tensors. Default: the model that ships, if ours is a run of it; False for none
    require    names or globs of our tensors that must be compared: "visual.*"; see `Comparison.covered`
    runs       most runs of the model to search for causes, and for tensors without a name. Default: by the size of a run
    their_weights  .gguf files, .safetensors files or folders of dequantised weights: those that theirs computed with. Each
               stage is judged with these; what quantisation did to them is not counted as an error then
    """
    runs = check_runs(runs)
    tolerance = plain_number(tolerance)
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise Error(
            f"tolerance={tolerance!r}; it must be a number from 0 to below 1, relative to a tensor's largest value."
        )
    ours, theirs = open_recording(ours, "our recording"), open_recording(theirs, "their recording")
    model, notes = find_model(model, ours)
    model = None if model is None else with_settings_of(ours, model)
    if their_weights:
        model, notes = use_port_weights(model, notes, their_weights)
    config = model.config if config is None and model is not None else find_config(config, ours, theirs)
    names = read_map(names)
    meant = meanings(theirs, ours, names)
    matches, left = choose_matches(meant), unmatched(meant)
    theirs = merge_rope_rows(theirs, matches, config)
    theirs, by_values = read_by_values(ours, theirs, left, matches, model, runs)
    matches |= {mine: name for mine, (name, _) in by_values.layouts.items()}
    if not matches:
        raise Error(nothing_in_common(ours, theirs))
    precision = max(find_precision(theirs, matches), find_precision(ours, {n: n for n in matches}), key=ROUNDING.get)
    rows = compare_rows(ours, theirs, matches, tolerance, precision, by_values.layouts)
    local = None if model is None else judge_from_theirs(model, ours, theirs, matches, precision)
    if local is not None:
        check_is_model_of_ours(rows, local, ours)
        rows, local = with_local_errors(rows, local, tolerance, same_weights=not their_weights)
    if model is not None and local is None:
        notes = (*notes, f"the model judged nothing: {why_not_judged(ours, model, their_weights)}")
    idle = idle_entries(theirs, names) if left else []
    if idle:  # perhaps a typing error in the map, next to names without a tensor of ours
        more = f", and {len(idle) - 1} more such entries" if len(idle) > 1 else ""
        notes = (*notes, f"the name map's {idle[0]!r} fits none of their names{more}")
    halves = {half: find_precision(theirs, named) for half, named in split_halves(theirs, matches).items() if named}
    if len({*halves.values()}) > 1:
        types = ", ".join(f"{kind} in the {half}" for half, kind in halves.items())
        notes = (*notes, f"theirs holds {types}; all is judged as {precision}. Compare recordings of each half alone")
    lost = outvoted(theirs, meant)
    if lost:
        name, other = next(iter(lost.items()))
        more = f", and {len(lost) - 1} more such names" if len(lost) > 1 else ""
        notes = (*notes, f"{name} means the same tensor as {other} and holds other values: it was not compared{more}")
    explained = {*matches.values(), *by_values.equal}
    rows += [row_without_match(name, theirs, ours) for name in theirs if name not in explained]
    comparison = Comparison(
        rows,
        (ours.label, theirs.label),
        tolerance,
        precision,
        has_config=config is not None,
        unmatched=tuple(name for name in left if name not in explained),
        required=not_compared(require, rows),
        arithmetic=None if local is None else local.arithmetic,
        names={name: mine for mine, (name, _) in by_values.layouts.items()},
        notes=(*notes, *by_values.notes),
        answers=read_answers(ours, theirs, matches, model),
        own_weights=bool(their_weights),
    )
    agreeing = {row.name for row in comparison.compared if row.status in (OK, CLOSE)}
    limit = max(tolerance, rounding_limit(precision, 0.0))
    budget = RunBudget.of(runs, 0 if local is None else local.size)
    evidence = Evidence(ours, theirs, matches, agreeing.__contains__, config, open_images(images), local, limit, budget)
    return add_all_causes(comparison, evidence)


def split_halves(theirs, matches):
    """{"tower" or "decoder": its part of `matches`, without what says nothing about a type}"""
    told = {mine: name for mine, name in matches.items() if theirs[name].dtype.kind == "f" and theirs[name].size >= FEW_VALUES}
    told = {mine: name for mine, name in told.items() if says_type(mine)}
    tower = {mine: name for mine, name in told.items() if mine.startswith("visual")}
    return {"tower": tower, "decoder": {mine: name for mine, name in told.items() if mine not in tower}}


def use_port_weights(model, notes, weights):
    """(model with their weights, notes)."""
    from minivl.compare.port_weights import with_port_weights

    if model is None:
        raise Error(
            "their_weights= take the place of a model's, and there is none. Give model=, the checkpoint that was converted."
        )
    model, note = with_port_weights(model, weights if isinstance(weights, (list, tuple)) else [weights])
    return model, (*notes, note)


def why_not_judged(ours, model, their_weights):
    """Why no stage could be computed from theirs. Raises an Error if their weights were given for it."""
    if inputs_or_none(ours, model.config) is None:
        why = "our recording lacks input_ids, and of a video position_ids: record ours with its inputs"
    else:
        why = "it gives theirs and not ours, or cannot run on these tensors: was our recording made with it?"
    if their_weights:
        raise Error(f"their_weights= could not be used: {why}.")
    return why


def read_by_values(ours, theirs, left, matches, model, runs=None):
    """(their recording in our layouts, `ValueMatches` of their tensors `left`)."""
    rows = find_processor_rows(ours, theirs, matches, left)
    inputs = None if model is None else inputs_or_none(ours, model.config)
    matched = match_values(
        ours, theirs, left, matches, rows is not None, model if inputs is not None else None, inputs, runs
    )
    layouts = {**(rows or {}), **matched.layouts}
    if rows is not None:
        matched.notes.append(
            "theirs keeps the tower's rows in the image processor's order: they are compared in window order"
        )
    return replace_arrays(theirs, {name: layout.apply(theirs[name]) for name, layout in layouts.values()}), matched


def compare_rows(ours, theirs, matches, tolerance, precision, layouts=()):
    """A Row for each tensor of ours; layouts: of those that were found by their values."""
    rows, largest, sharpened = [], 0.0, 0.0
    for name in tqdm(in_data_flow(ours), desc="comparing", unit="tensor", leave=False, delay=1, disable=None):
        row = Row(name, MISSING, shape=ours[name].shape, note=f"not in {theirs.label}")
        if name in matches:
            rounded = max(tolerance, rounding_limit(precision, largest, name))
            row = compare_tensor(name, ours[name], matches[name], theirs[matches[name]], tolerance, rounded)
            if row.status == DIFF and precision == "float32":  # for other types, `rounded` already allows for softmax
                worse = max(row.error, row.rms)
                if worse <= softmax_error(name, ours, rows):
                    row = replace(row, status=CLOSE)
                    sharpened = max(sharpened, 0.0 if name.endswith(".probs") else worse)
                elif worse <= after_softmax(sharpened, tolerance) and ours[name].dtype.kind == "f":
                    row = replace(row, status=CLOSE)
            if name in layouts:
                remarks = filter(None, ["found by its values", layouts[name][1].text, row.note])
                row = replace(row, note="; ".join(remarks))
            if row.status == CLOSE and not name.endswith(".probs"):
                largest = max(largest, row.rms)
        rows.append(row)
    return rows


def find_config(given, *recordings):
    """The Config that was given, or the first one in a recording; None if there is none."""
    if isinstance(given, Config):
        return given
    if given is not None:
        if not isinstance(given, (Mapping, str, os.PathLike)):
            raise Error(f"config={given!r}: give a Config, a config.json or what it holds.")
        return Config.from_dict(given) if isinstance(given, Mapping) else Config.read(given)
    ours, *others = (recording.config for recording in recordings)
    if ours is not None:
        return Config.from_dict(ours)
    for stored in others:  # of another program, perhaps in another form
        with contextlib.suppress(Error):
            return None if stored is None else Config.from_dict(stored)
    return None


def open_images(images):
    from minivl.processing.load_image import open_image

    images = images if isinstance(images, (list, tuple)) else [images]
    return [open_image(image) for image in images]
