"""Compare two recordings of one prompt, tensor by tensor in the order of the data flow: where they part first, and why.

    found = compare(trace, "port.npz")            # or trace.compare("port.npz"); files, Traces, dicts
    print(found)                                  # the table, and the verdict
    found.first.name, found.first.causes          # "visual.blocks.0.attn.q_rope", [Cause("interleaved RoPE", ...)]
    found.ok                                      # all that was compared agrees

Status of a row: OK; OK~, equal as far as the recording's precision allows; DIFF, other values; SHAPE, another shape; MISSING,
recorded on one side only.

Tolerance. The error of a tensor is its largest difference over its largest value: an entry that is small because large terms
cancel keeps their absolute error. Two float32 programs differ by the order of summation, 1e-7 to 5e-6 (docs/parity.md); most
known mistakes give 1e-4 and more. TOLERANCE lies between; those that give less are looked for besides (`faint`). Integers
must be equal.

A recording in which most tensors hold bfloat16 (or float16) values only was computed so. Errors then grow from layer to
layer: a row is OK~ as long as its root-mean-square error is within ROUNDED times the type's rounding, or within GROWTH times
the largest of any row before it (rows.py). Mistakes smaller than the rounding cannot be seen in such a recording.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tqdm import tqdm

from minivl.checkpoint.config import Config
from minivl.compare.mistakes import EVERYTHING, Step, causes, drowned, is_right, layouts, stages
from minivl.compare.mistakes.any_tensor import orders
from minivl.compare.recordings import opened
from minivl.compare.render import CLOSE, DIFF, MISSING, OK, SHAPE, html, text
from minivl.compare.rows import ROUNDING, Row, aligned, allowed, compared, precision_of, sharpened
from minivl.errors import Error
from minivl.tensors import catalogue
from minivl.tensors.catalogue import in_data_flow
from minivl.tensors.names import close, matched

TOLERANCE = 2e-5


@dataclass(frozen=True)
class Comparison:
    """The rows in the order of the data flow, ours; what only theirs has follows at the end.

    precision  what theirs was computed in, judged by its values;  informed  whether a config was known, and a model
    before     the last tensor before `first` that agrees;  between  ours that lie between these two and were not recorded there
    """

    rows: list
    labels: tuple = ("ours", "theirs")
    tolerance: float = TOLERANCE
    precision: str = "float32"
    informed: tuple = (True, True)

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
        raise Error(
            f"tolerance={tolerance!r}; it must be a number from 0 to below 1, relative to a tensor's largest value."
        )
    ours, theirs = opened(ours, "the first"), opened(theirs, "the second")
    config = model.config if config is None and model is not None else config_of(config, ours, theirs)
    called = matched(theirs, ours, names)
    both = precision_of(theirs, called), precision_of(ours, {name: name for name in called})
    precision = max(both, key=ROUNDING.get)
    rows, reach = [], 0.0
    for name in tqdm(in_data_flow(ours), desc="comparing", unit="tensor", leave=False, delay=1, disable=None):
        mine = Row(name, MISSING, shape=ours[name].shape, note=f"not in {theirs.label}")
        if name in called:
            excused = max(tolerance, allowed(precision, reach, name))
            mine = compared(name, ours[name], called[name], theirs[called[name]], tolerance, excused)
            if mine.status == DIFF and max(mine.error, mine.rms) <= sharpened(name, ours, rows):
                mine = replace(mine, status=CLOSE)
            if mine.status == CLOSE and not name.endswith(".probs"):
                reach = max(reach, mine.rms)
        rows.append(mine)
    rows += [unmatched(name, theirs, ours) for name in theirs if name not in called.values()]
    if not called:
        raise Error(nothing_in_common(ours, theirs))
    found = Comparison(rows, (ours.label, theirs.label), tolerance, precision)
    return explained(found, ours, theirs, called, config, opened_pictures(pictures), model)


def nothing_in_common(ours, theirs):
    if not len(theirs) or not len(ours):
        return f"{(theirs if not len(theirs) else ours).label} holds no tensors. Was it closed before anything was recorded?"
    name, hint = next(((n, close(n, list(ours))) for n in theirs if close(n, list(ours))), (next(iter(theirs)), None))
    meant = f" (did you mean {hint}?)" if hint else ""
    return (
        f"no tensor of {theirs.label} has a name of {ours.label}: the first one there is {name!r}{meant}. docs/tensors.md "
        'lists the names; names={"theirs-{}": "model.layers.{}.mlp.act"} (--names map.json) maps others.'
    )


def config_of(given, *recordings):
    """A Config, or None if nobody says which."""
    if isinstance(given, Config):
        return given
    if given is not None:
        return Config.from_dict(given) if isinstance(given, Mapping) else Config.read(given)
    stored = next((r.config for r in recordings if r.config is not None), None)
    return None if stored is None else Config.from_dict(stored)


def opened_pictures(pictures):
    from minivl.processing.load_image import open_image

    pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    return [open_image(picture) for picture in pictures]


def unmatched(name, theirs, ours):
    mine = close(name, list(ours))
    note = f"only in {theirs.label}" + (f"; did you mean {mine}?" if mine else "")
    return Row(name, MISSING, their_name=name, their_shape=theirs[name].shape, note=note)


def explained(found, ours, theirs, called, config, pictures, model):
    """The same comparison, with the causes of what differs first and of every other shape."""
    agreeing = {row.name for row in found.compared if row.status in (OK, CLOSE)}

    def known(name):
        if name in agreeing:
            there = aligned(ours[name], theirs[called[name]])[1]
            return there if there.shape == ours[name].shape else ours[name]
        return ours.get(name)

    limit = max(found.tolerance, allowed(found.precision, 0.0))

    def step_of(row):
        mine, there, _ = aligned(ours[row.name], theirs[row.their_name])
        return Step(row.name, mine, there, known, config, pictures)

    def with_causes(row, ask=EVERYTHING):
        step = step_of(row)
        mine, there, why, whose = step.ours, step.theirs, causes(step, limit, ask), "theirs"
        if len(only := orders(mine.shape, there.shape)) == 1 and ask is EVERYTHING and not why:
            why = causes(Step(row.name, mine, there.transpose(only[0]), known, config), limit)  # besides another layout
        if not why and ask is EVERYTHING and is_right(step, limit):
            why, whose = causes(Step(row.name, there, mine, known, config, pictures), limit), "ours"
        return replace(row, causes=tuple(replace(cause, whose=whose) for cause in why), same_values=same(row, why))

    rows = [with_causes(row, (layouts,)) if row.status == SHAPE else row for row in found.rows]
    found = replace(found, rows=faint(rows, with_causes, step_of), informed=(config is not None, model is not None))
    if found.first is not None and not found.first.causes:
        found = exchanged(found, with_causes(found.first))
    if model is not None and found.first is not None and not found.first.causes and found.between:
        from minivl.compare.mistakes.replay import replayed

        why = replayed(found, ours, theirs[found.first.their_name], model, limit)
        found = exchanged(found, replace(found.first, causes=tuple(why)))
    return found


def exchanged(found, row):
    """The same comparison with another first row."""
    return replace(found, rows=[row if old is found.first else old for old in found.rows])


def faint(rows, with_causes, step_of):
    """Up to the first divergence, mistakes smaller than the tolerance: another eps may change a norm by 5e-6 of its values.

    What rounding does is different in every value: if a known mistake leaves less than a tenth of a difference, it was none.
    An eps that changes values by less than rounding does shows in all rows together.
    """
    for i, row in enumerate(rows):
        if row.status in (DIFF, SHAPE) and not row.same_values:
            break
        if row.status != OK or not row.error or not is_made_by(row.name, "norm", "gelu"):
            continue
        why = with_causes(row, (stages,)).causes if row.error > NOISE else ()
        why = why or (drowned(step_of(row)) if is_made_by(row.name, "norm") else ())
        if why:
            return [*rows[:i], replace(row, status=DIFF, causes=tuple(why)), *rows[i + 1 :]]
    return rows


def is_made_by(name, *operations):
    tensor = catalogue.of(name)
    return tensor is not None and tensor.made_by in operations


NOISE = 5e-7
LAYOUTS = ("transposed", "axes exchanged", "axes in another order", "another shape", "batch axis", "whole rows")


def same(row, why):
    """Whether the two hold the same values, in another layout."""
    return row.status == SHAPE and bool(why) and why[0].exact and why[0].name in LAYOUTS
