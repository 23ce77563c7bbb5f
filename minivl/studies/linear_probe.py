"""Linear probes: from which tensors of a store can a label be read, layer by layer?

    result = probe(store, "colour", kind="answer")
    print(result)                               # accuracy of each tensor, beside control labels and the commonest label
    plots.probes([result, ...])

A probe is a logistic regression (for numbers, a ridge regression) on standardised rows, fitted on some prompts and scored on
others: no prompt is on both sides. Control labels are the same labels dealt out to other prompts at random; what a probe
scores on them it has memorised, and what it scores above them is its selectivity (Hewitt and Liang, 2019). A label
that can be read is there; whether the model uses it, a probe cannot tell: ablate or patch for that.

Needs scikit-learn: pip install "minivl[dataset]".
"""

import warnings
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from minivl.errors import Error
from minivl.helpers import format_table

DRAWS, INTERVAL = 1000, (2.5, 97.5)  # of the bootstrap over prompts


@dataclass(frozen=True)
class Score:
    """Score of one tensor on held-out prompts: accuracy (R² for numbers), its 95 % interval, the score of control labels."""

    tensor: str
    score: float
    low: float
    high: float
    control: float

    @property
    def selectivity(self):
        return self.score - self.control


@dataclass(frozen=True)
class Probes:
    """Probes of one label.

    name      the label and which rows;  measure  "accuracy" or "R²"
    baseline  the score of always naming the commonest label, or the mean
    """

    name: str
    measure: str
    baseline: float
    rows: int
    prompts: int
    scores: tuple

    def __repr__(self):
        table = [("tensor", self.measure, "95 %", "control", "selectivity")]
        for s in self.scores:
            table.append(
                (s.tensor, f"{s.score:.3f}", f"{s.low:.3f}-{s.high:.3f}", f"{s.control:.3f}", f"{s.selectivity:+.3f}")
            )
        note = f"{self.name}: {self.rows:,} rows of {self.prompts:,} prompts; baseline {self.baseline:.3f}"
        return "\n".join([note, *format_table(table, right=(1, 2, 3, 4))])

    def best(self):
        """The `Score` with the highest score."""
        return max(self.scores, key=lambda score: score.score)


def probe(store, label, tensors=None, held_out=0.3, strength=1.0, seed=0, **where):
    """Fit and score a linear probe for each tensor of a store. -> `Probes`

    label     a label of the prompts, or else a column of the index, such as "x0" or "text". Numbers that are not integers, and
              columns of pixels and positions, are predicted as numbers
    tensors   which tensors; None: all whose index has such rows
    held_out  share of the prompts that probes are scored on
    strength  inverse of the regularisation: for rows of width D, C = strength / D, or alpha = D / strength for numbers
    where     which rows: kind="answer", kind=["box", "word"], ...
    """
    regression = load_sklearn()
    if not 0 < held_out < 1:
        raise Error(f"held_out={held_out!r}: give a share between 0 and 1.")
    chosen = list(store.tensors) if tensors is None else [tensors] if isinstance(tensors, str) else list(tensors)
    scores, facts = [], None
    for tensor in tqdm(chosen, desc="probing", unit="tensor", leave=False, delay=1, disable=None):
        lines = store.index(tensor)
        rows = np.flatnonzero(store.matching(lines, where))
        if not len(rows) and tensors is None:
            continue
        values, of_index = label_values(store, tensor, lines, label)
        values, prompts = values[rows], lines["prompt"][rows]
        known = np.array([value is not None for value in values])
        rows, values, prompts = rows[known], values[known], prompts[known]
        if len(np.unique(prompts)) < 10:
            raise Error(
                f"{len(np.unique(prompts))} prompts have rows of {tensor} with {label!r}; a probe needs 10 at least."
            )
        x = store[tensor][rows].reshape(len(rows), -1).astype(np.float32)
        is_number = of_index and label in ("x0", "y0", "x1", "y1", "t", "h", "w") or are_numbers(values)
        y = values.astype(np.float64) if is_number else values.astype(str)
        test = held_out_prompts(prompts, held_out, seed)
        if len(np.unique(y[~test])) < 2:
            raise Error(f"all rows of {tensor} have the same {label!r}: there is nothing to tell apart.")
        right = fit(regression, x, y, test, is_number, strength)
        control = fit(regression, x, deal_out(y, prompts, seed), test, is_number, strength)
        low, high = interval(right, prompts[test], seed, is_number)
        scores.append(Score(tensor, total(right, is_number), low, high, total(control, is_number)))
        facts = facts or (baseline(y, test, is_number), len(rows), len(np.unique(prompts)), is_number)
    if not scores:
        raise Error(f"no tensor of {store.path} has rows with {where}.")
    chosen_rows = ["/".join(map(str, np.atleast_1d(value))) for value in where.values()]
    name = ", ".join([label, *chosen_rows])
    return Probes(name, "R²" if facts[3] else "accuracy", *facts[:3], tuple(scores))


def load_sklearn():
    try:
        from sklearn import linear_model
    except ImportError as cause:
        raise Error(f'probes need scikit-learn ({cause}): pip install "minivl[dataset]".') from None
    return linear_model


def label_values(store, tensor, lines, label):
    """(the label of each row, object [rows]; whether it is a column of the index, and none of its prompt)"""
    if label in lines and not any(label in labels for labels in store.prompts["labels"]):
        return lines[label].astype(object), True
    return store.labels(tensor, label), False


def are_numbers(values):
    """Whether labels measure something: numbers, not all integers. Integers are classes, such as digits."""
    kinds = {type(value) for value in values}
    return float in kinds and kinds <= {int, float}


def held_out_prompts(prompts, share, seed):
    """bool [rows]: whether a row's prompt is one of the held-out ones."""
    names = np.unique(prompts)
    chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(share * len(names)))]
    return np.isin(prompts, chosen)


def deal_out(y, prompts, seed):
    """The labels of other prompts: each prompt's first label goes to another prompt, for all of its rows."""
    names, first, of_row = np.unique(prompts, return_index=True, return_inverse=True)
    return y[first][np.random.default_rng(seed + 1).permutation(len(names))][of_row]


def fit(regression, x, y, test, is_number, strength):
    """Parts of the score of each held-out row: [rows, 2], (1 if right, 1), or (squared error, squared distance to the mean)."""
    mean, scale = x[~test].mean(axis=0), x[~test].std(axis=0)
    x = (x - mean) / np.where(scale > 0, scale, 1)
    if is_number:
        model = regression.Ridge(alpha=x.shape[1] / strength).fit(x[~test], y[~test])
        return np.stack([(y[test] - model.predict(x[test])) ** 2, (y[test] - y[~test].mean()) ** 2], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimum was not reached: the score is that of what was fitted
        model = regression.LogisticRegression(C=strength / x.shape[1], max_iter=300).fit(x[~test], y[~test])
    right = (model.predict(x[test]) == y[test]).astype(np.float64)
    return np.stack([right, np.ones(len(right))], axis=1)


def total(parts, is_number):
    """Accuracy; for numbers R² = 1 - squared errors over squared distances to the mean."""
    ratio = parts[:, 0].sum() / max(parts[:, 1].sum(), 1e-30)
    return float(1 - ratio if is_number else ratio)


def interval(parts, prompts, seed, is_number):
    """95 % interval of the score by bootstrap over the held-out prompts: rows of one prompt stay together."""
    names, of_row = np.unique(prompts, return_inverse=True)
    sums = np.zeros((len(names), 2))
    np.add.at(sums, of_row, parts)
    draws = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    drawn = sums[draws].sum(axis=1)
    ratios = drawn[:, 0] / np.maximum(drawn[:, 1], 1e-30)
    return tuple(float(v) for v in np.percentile(1 - ratios if is_number else ratios, INTERVAL))


def baseline(y, test, is_number):
    """The score of always naming the commonest label of the other rows; 0 for numbers, where it is the mean."""
    if is_number:
        return 0.0
    names, counts = np.unique(y[~test], return_counts=True)
    return float(np.mean(y[test] == names[counts.argmax()]))
