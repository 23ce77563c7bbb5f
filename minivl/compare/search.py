"""Search for causes: passes over a comparison, each of which adds causes to its rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from minivl.checkpoint.config import Config
from minivl.compare.diagnose import (
    EXPLAINED,
    FAINT,
    LEAST,
    MOST,
    VISIBLE,
    find_causes,
    find_faint,
    find_faint_eps,
    fit_mistake,
    is_right,
    layout_mistakes,
    stage_mistakes,
)
from minivl.compare.local import Local
from minivl.compare.measure import align, axis_orders, distance
from minivl.compare.mistakes import Cause, Subject
from minivl.compare.mistakes.layers import CERTAIN
from minivl.compare.recordings import Recording
from minivl.compare.rerun import ARITHMETICS, fit
from minivl.compare.rows import CLOSE, DIFF, INPUT, MISSING, OK, SHAPE
from minivl.compare.runs import RunBudget
from minivl.stream import value_of
from minivl.tensors import catalogue
from minivl.tensors.names import parse

SAME = 1e-3  # largest error of equal values in another layout: whether they are wrong, too, is judged separately
NOISE = 5e-7  # errors for which no mistake is searched
LAYOUTS = ("transposed", "axes exchanged", "axes in another order", "another shape", "batch axis", "whole rows")


@dataclass(frozen=True)
class Evidence:
    """The data on which the search for causes works.

    matches  {our name: their name};  agrees  function of a name: whether both have the same values
    local    the `Local` errors, if a model could give them;  limit  largest error that a cause may leave
    budget   the `RunBudget` of the search
    """

    ours: Recording
    theirs: Recording
    matches: dict
    agrees: Callable
    config: Config | None
    images: list
    local: Local | None
    limit: float
    budget: RunBudget

    def known(self, name):
        """The values that both agree about, or ours; None if it was not recorded."""
        if self.agrees(name):
            there = align(self.ours[name], self.theirs[self.matches[name]], name)[1]
            return there if there.shape == self.ours[name].shape else self.ours[name]
        return self.ours.get(name)

    def known_from_theirs(self, name):
        """A tensor as their stage received it: theirs, or ours computed from theirs."""
        return value_of(self.local.known[name]) if name in self.local.known else self.known(name)

    def limit_of(self, row):
        """Largest error that a cause of this row may leave."""
        limits = {} if self.local is None else self.local.limits
        return max(self.limit, limits[row.name][0]) if row.name in limits else self.limit

    def causes_of(self, row):
        if self.local is None or self.local.arithmetic == "float32":
            return find_causes(self.subject(row), self.limit_of(row))
        subject = self.subject(row)
        causes = find_causes(subject, self.limit_of(row), rounding=self.local.rounding(row.name))
        return causes or find_faint(subject, "; fitted to all values, since rounding hides it in each", 0.5, wrong=True)

    def subject(self, row, turned=False, order=None):
        """The Subject of a row; turned: with the two sides exchanged; order: of theirs' axes."""
        if self.local is not None and row.name in self.local.figures and order is None and not turned:
            ours = self.local.computed[row.name]
            theirs = fit(self.local.theirs, row.name, ours.shape)
            weights, known = self.local.model.weights, self.known_from_theirs
            if row.name in self.local.last_rows:  # mistakes of that row alone
                known = lambda name: keep_last_row(self.known_from_theirs(name), len(ours))  # noqa: E731
                return Subject(row.name, ours[-1:], theirs[-1:], known, self.config, self.images, weights)
            return Subject(row.name, ours, theirs, known, self.config, self.images, weights)
        return self.subject_as_recorded(row, turned, order)

    def subject_as_recorded(self, row, turned=False, order=None):
        ours, theirs, _ = align(self.ours[row.name], self.theirs[row.their_name], row.name)
        theirs = theirs if order is None else theirs.transpose(order)
        pair = (theirs, ours) if turned else (ours, theirs)
        return Subject(row.name, *pair, self.known, self.config, self.images)


def keep_last_row(array, rows):
    """The last row of an array with this many rows; other arrays as they are."""
    return array[-1:] if array is not None and array.ndim > 1 and len(array) == rows else array


def with_causes(row, causes, whose="theirs"):
    layout = row.status == SHAPE and bool(causes) and causes[0].exact and causes[0].name in LAYOUTS
    return replace(row, causes=tuple(replace(cause, whose=whose) for cause in causes), same_values=layout)


def add_layouts(comparison, evidence):
    """The same values in another layout, of every SHAPE row."""
    for row in [row for row in comparison.rows if row.status == SHAPE]:
        causes = find_causes(evidence.subject_as_recorded(row), max(evidence.limit, SAME), (layout_mistakes,))
        new = with_causes(row, causes)
        if new.same_values and evidence.local is not None and row.name in evidence.local.figures:
            new = replace(new, same_values=not evidence.local.is_wrong(row.name, comparison.tolerance))
        comparison = comparison.replace_row(row, new)
    return comparison


def add_faint_mistakes(comparison, evidence):
    """Mistakes smaller than the tolerance, up to the first difference: another eps may change a norm by 5e-6 of its values.

    Rounding is different in every value: a known mistake that leaves less than a tenth of a difference is no accident.
    An eps that changes values by less than rounding shows only in all rows together.
    """
    for row in comparison.rows:
        if row.status in (DIFF, SHAPE) and not row.same_values:
            break
        if row.status not in (OK, CLOSE) or not row.error or not is_made_by(row.name, "norm", "gelu"):
            continue
        subject, causes = evidence.subject(row), []
        if row.status == OK and row.error > NOISE:
            causes = find_causes(subject, evidence.limit, (stage_mistakes,))
        if is_made_by(row.name, "norm"):
            causes = causes or (find_faint_eps(subject) if row.status == OK else [])
        if not causes and row.status == CLOSE and evidence.local is not None and evidence.local.arithmetic != "float32":
            causes = find_faint(subject, FAINT)
        if causes:
            return comparison.replace_row(row, with_causes(replace(row, status=DIFF), causes))
    return comparison


# (rows, of which the first recorded one is judged; tensors before it; their mistakes; whether they show in float32 too)
FAINT_BETWEEN = (
    (("visual.merger.mlp.2", "visual.merger", "visual"), ("visual.merger.mlp.1",), ("tanh GELU", "quick GELU"), True),
    (("visual.blocks.0",), ("visual.blocks.0.norm1", "visual.blocks.0.norm2"), ("wrong eps",), False),
    (("model.layers.0",), ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"), ("wrong eps",), False),
)  # fmt: skip


def add_faint_mistakes_between(comparison, evidence):
    """Mistakes smaller than rounding in tensors that were not recorded, seen in the first recorded one after them."""
    local = evidence.local
    for names, tensors, mistakes, in_float32 in FAINT_BETWEEN if local is not None else ():
        row = next((row for row in comparison.rows if row.name in names and row.name in local.figures), None)
        if row is None or row.status not in (OK, CLOSE, INPUT) or row.local <= NOISE:
            continue
        if in_float32 or local.arithmetic != "float32":
            if causes := find_faint_between(row, tensors, mistakes, evidence):
                comparison = comparison.replace_row(row, with_causes(replace(row, status=DIFF), causes))
    return comparison


def find_faint_between(row, tensors, names, evidence):
    """[Cause], the likeliest of these mistakes in tensors that theirs does not have; [] if none is certain."""
    from minivl.compare.mistakes.replay import mistakes_of, run_with

    local, subject, best = evidence.local, evidence.subject(row), (CERTAIN, [])
    missing = [name for name in tensors if name in local.known and name not in local.figures]
    missing = {name: value_of(local.known[name]) for name in missing}
    for mistake in mistakes_of(missing, evidence.known_from_theirs, local.model):
        if mistake.name in names and (wrong := run_with((mistake,), local, set(missing), row.name)) is not None:
            share, errors, over_rows = fit_mistake(subject.ours, subject.theirs, wrong)
            # subtle: of many an eps, one has the size of whatever makes small rows a bit smaller
            enough = VISIBLE * (2 if mistake.name == "wrong eps" else 1)
            if LEAST < share < MOST and errors > best[0] and over_rows * enough <= 1:
                text = f"at {mistake.where}: {mistake.sentence}{FAINT}"
                left = distance(wrong, subject.theirs)
                best = errors, [Cause(mistake.name, text, left, exact=False, where=(mistake.where,))]
    return best[1]


def add_rounded_products(comparison, evidence):
    """Products whose inputs alone were rounded, where theirs computes in float32 otherwise."""
    local = evidence.local
    for row in comparison.wrong_rows if local is not None else ():
        if row.name not in local.figures or not is_made_by(row.name, "linear"):
            continue
        theirs = fit(local.theirs, row.name, local.computed[row.name].shape)
        before = distance(local.computed[row.name], theirs)
        for arithmetic, (products, kind) in ARITHMETICS.items():
            if products and (left := distance(local.run_in(arithmetic)[row.name], theirs)) <= before / EXPLAINED:
                cause = Cause("rounded inputs", f"what goes into this product is rounded to {kind}", left)
                comparison = comparison.replace_row(row, with_causes(row, [cause]))
                break
    return comparison


def is_made_by(name, *operations):
    tensor = catalogue.of(name)
    return tensor is not None and tensor.made_by in operations


def add_causes_of_first(comparison, evidence):
    """Mistakes of the first difference's own stage."""
    return search(comparison, evidence.causes_of)


def add_causes_in_another_layout(comparison, evidence):
    """Mistakes of the first difference's own stage, with theirs transposed first."""

    def causes(row):
        subject = evidence.subject(row)
        orders = axis_orders(subject.ours.shape, subject.theirs.shape)
        return find_causes(evidence.subject(row, order=orders[0]), evidence.limit) if len(orders) == 1 else []

    return search(comparison, causes)


def add_causes_of_ours(comparison, evidence):
    """Mistakes that ours has, where theirs is what the stage should give."""

    def causes(row):
        right = is_right(evidence.subject(row), evidence.limit)
        return find_causes(evidence.subject(row, turned=True), evidence.limit) if right else []

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
    causes = [cause.name for other in comparison.rows for cause in other.causes]
    likely = {name for cause in causes for name in (cause, *cause.split(" and "))}
    return causes_between(row.name, names, evidence.local, evidence.limit_of(row), evidence.ours, evidence.budget, likely)


BEGIN = {  # what the residuals of a section begin with
    "tower": ("pixel_values", "pixel_values_videos", "visual.patch_embed"),
    "decoder": ("inputs_embeds",),
}


def is_shared(name, user):
    """Whether a tensor is one of the indices and angles that all blocks of a half use, or what the residuals begin with."""
    tensor, other = catalogue.of(name), catalogue.of(user)
    if tensor is None or other is None:
        return False
    is_used_by_all = tensor.section == other.section and tensor.made_by in ("", "angles")
    return is_used_by_all or name in BEGIN.get(other.section, ())


def add_causes_of_other_wrong_rows(comparison, evidence):
    """Mistakes of every other stage that is wrong by its local error, searched in the first block or layer of its kind."""
    if evidence.local is None or comparison.first is None:
        return comparison
    seen = {parse(comparison.first.name).general}
    for row in comparison.wrong_rows:
        general = parse(row.name).general
        if general in seen or row.name not in evidence.local.figures:
            continue
        seen.add(general)
        causes = evidence.causes_of(row) or search_between(comparison, row, evidence)
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
    add_faint_mistakes_between,
    add_rounded_products,
    add_causes_of_first,
    add_causes_in_another_layout,
    add_causes_of_ours,
    add_causes_between,
    add_causes_of_other_wrong_rows,
)


def add_all_causes(comparison, evidence):
    for add_causes in PASSES:
        comparison = add_causes(comparison, evidence)
    return replace(comparison, notes=(*comparison.notes, *evidence.budget.notes()))
