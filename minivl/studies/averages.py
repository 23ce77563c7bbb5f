"""Averages over many cases: the mean of each number that a study measures, with its 95 % interval.

    ablation = studies.ablate_heads(vlm, over=cases)        # -> Averages
    print(ablation)                                         # one sentence
    ablation.mean, ablation.low, ablation.high              # [layers, heads] each: the mean and its 95 % interval
    ablation["layer 1", "head 1"]                           # (mean, low, high)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.studies.cases import CaseRun, as_cases
from minivl.studies.teacher_forcing import progress_bar

CHANGE = "change of the logit difference"
ROUNDS = 1000  # of the bootstrap


@dataclass(frozen=True)
class Averages:
    """A study over many cases: a number for each case and each cell of a table.

    values     float32 [cases, *axes]; NaN where a case lacks such a cell (an image of one object has no other objects)
    axes       {name: labels} of the axes after the first
    study      the name of the study;  what  what a value is: `CHANGE`, or a share
    baseline   float32 [cases]: the logit difference without changes
    cases      the cases, a list
    """

    values: np.ndarray
    axes: dict
    study: str
    what: str
    baseline: np.ndarray
    cases: list

    @property
    def mean(self):
        """The mean over the cases, float64 [*axes]."""
        known = ~np.isnan(self.values)
        return divide(np.where(known, self.values, 0).sum(axis=0, dtype=np.float64), known.sum(axis=0))

    @property
    def low(self):
        """Lower end of the mean's 95 % interval, float64 [*axes] (bootstrap over the cases)."""
        return self.interval()[0]

    @property
    def high(self):
        return self.interval()[1]

    def interval(self):
        """The 95 % interval of the mean, [low, high]: bootstrap, from 1000 draws of the cases with replacement."""
        return self.ends

    @cached_property
    def ends(self):
        """What `interval` returns, computed once."""
        n = len(self.values)
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), ROUNDS).astype(np.float64)  # [rounds, n]
        flat = self.values.reshape(n, -1).astype(np.float64)
        known = ~np.isnan(flat)
        means, some = divide(draws @ np.where(known, flat, 0), draws @ known), known.any(axis=0)
        ends = np.full((2, flat.shape[1]), np.nan, dtype=np.float64)
        ends[:, some] = np.nanquantile(means[:, some], [0.025, 0.975], axis=0)
        return ends.reshape(2, *self.values.shape[1:])

    @property
    def right(self):
        """Share of the cases that are answered right with each change, [*axes]: the logit difference is above 0."""
        if self.what != CHANGE:
            raise Error(f"{self.study} measures the {self.what}, and not whether answers are right.")
        margins = self.baseline.reshape(-1, *[1] * len(self.axes)) + self.values
        return divide((margins > 0).sum(axis=0), (~np.isnan(margins)).sum(axis=0))

    @property
    def counts(self):
        """How many cases have a value, int64 [*axes]."""
        return (~np.isnan(self.values)).sum(axis=0)

    def __getitem__(self, labels):
        """(mean, low, high) of one cell, by its labels: averages["layer 1", "head 1"]."""
        labels = labels if isinstance(labels, tuple) else (labels,)
        if len(labels) != len(self.axes):
            raise Error(f"{list(labels)}: give one label for each axis ({', '.join(self.axes)}), not {len(labels)}.")
        cell = tuple(self.index(axis, label) for axis, label in zip(self.axes, labels))
        return float(self.mean[cell]), *(float(end[cell]) for end in self.interval())

    def index(self, axis, label):
        """The position of a label on an axis: averages.index("layer", "layer 1")."""
        if axis not in self.axes:
            raise Error(f"{self.study!r} has no axis {axis!r}, only {', '.join(self.axes)}. Give the result of another study.")
        known = list(self.axes[axis])
        if label not in known:
            names = ", ".join(map(str, known))
            raise Error(f"{self.study!r} has no {axis} {label!r}.{did_you_mean(label, known)} There are: {names}.")
        return known.index(label)

    def strongest(self, most=3):
        """[(labels, mean, low, high)] of the cells with the largest means, regardless of sign."""
        mean, (low, high) = self.mean, self.interval()
        order = np.argsort(-np.abs(np.nan_to_num(mean)), axis=None, kind="stable")[:most]
        cells = [np.unravel_index(at, mean.shape) for at in order]
        labels = list(self.axes.values())
        return [
            (tuple(names[i] for names, i in zip(labels, cell)), float(mean[cell]), float(low[cell]), float(high[cell]))
            for cell in cells
        ]

    def __str__(self):
        form = "+.3g" if self.what == CHANGE else ".3g"
        cells = [
            f"{' '.join(map(str, labels))} {value:{form}} ({low:{form}} to {high:{form}})"
            for labels, value, low, high in self.strongest()
        ]
        return (
            f"Over {len(self.values)} cases{self.without_changes()}, the {self.what} is largest with {', '.join(cells)} "
            "(mean, 95 % interval)."
        )

    def without_changes(self):
        """ " (198 answered right, logit difference 13.9)"; "" of a study that asks nothing."""
        known = self.baseline[~np.isnan(self.baseline)]
        if not len(known):
            return ""
        return f" ({int((known > 0).sum())} answered right, logit difference {float(known.mean()):.3g})"


def divide(sums, counts):
    """Means; NaN where nothing was counted."""
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=np.asarray(counts) > 0)


def average(vlm, over, study, axes, measure, what=CHANGE, **options):
    """Run `measure` of each `CaseRun` and stack what it returns. -> Averages

    One case is in memory at a time; a progress bar counts them.
    axes     {name: labels};  measure  function of a `CaseRun` -> numbers [*axes]; of logit differences if `what` is CHANGE
    """
    cases, shape = as_cases(over), tuple(map(len, axes.values()))
    values = np.full((len(cases), *shape), np.nan, dtype=np.float32)
    baseline = np.full(len(cases), np.nan, dtype=np.float32)
    with progress_bar(len(cases), study) as bar:
        for number, case in enumerate(cases):
            try:
                case_run = CaseRun(vlm, case, **options)
                baseline[number] = before = case_run.difference(case_run.unchanged)
                measured = np.asarray(measure(case_run), dtype=np.float64).reshape(shape)
            except Error as error:
                raise Error(f"over[{number}]: {error}") from None
            values[number] = measured - before if what == CHANGE else measured
            bar.update()
    return Averages(values, axes, study, what, baseline, cases)
