"""Search for mistakes between two recorded tensors: run the model with each known one, made in every layer as a port would.

A port that records its blocks only shows the first wrong block, not the tensor in it that went wrong. With the model at hand
each mistake replaces that tensor in the stream (stream.py), and the run continues to the recorded one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from minivl.compare.diagnose import explains, functions_for, likeliest
from minivl.compare.measure import distance
from minivl.compare.mistakes import RIGHT, Cause, Subject, Unknown
from minivl.compare.mistakes.attention import IN_BOTH, Computed
from minivl.compare.mistakes.layers import bias
from minivl.compare.rerun import fit, run_from_theirs
from minivl.errors import Error
from minivl.stream import value_of
from minivl.tensors.names import parse

SKIPPED = (".scores", ".probs")  # mistakes in them show in the context
COMMON = (  # mistakes that ports make most often, a judgement: where not all can be tried, these are tried first
    "interleaved RoPE", "no window attention", "window order not undone", "height and width swapped", "1-D positions",
    "wrong mrope sections", "no bias", "wrong eps", "wrong theta", "GELU for SiLU", "quick GELU", "tanh GELU",
    "gate and up exchanged", "no causal mask", "key heads dealt out wrong", "unscaled scores", "wrong rope delta", "LayerNorm",
    "attention across images", "other mean and deviation", "BGR", "columns in another order", "inverse of the window order",
)  # fmt: skip
UNCHANGED = 5e-7  # a mistake that changes a tensor by less, relative to its largest value, changes nothing
MOST_PAIRS = 60  # of mistakes that are tried together
SAMPLE = 4096  # values of a tensor from which the effect of pairs is predicted


def causes_between(wanted, names, local, limit, ours, budget, likely=()):
    """[Cause] of the tensor `wanted`, among mistakes in `names`: the tensors before it that theirs does not have.

    For a tensor of the decoder, mistakes of the tower, each of which takes a run of it, are tried only if none of the
    decoder explains it. If no mistake alone does, two are tried together. Mistakes that change nothing in this prompt take
    no run.

    budget  the `RunBudget` of the search
    likely  names of mistakes that were found elsewhere: they are tried first
    """
    values = {name: value_of(local.known[name]) for name in names if name in local.known and not name.endswith(SKIPPED)}
    known = lambda name: value_of(local.known[name]) if name in local.known else ours.get(name)  # noqa: E731
    mistakes = mistakes_of(values, known, local.model)
    mistakes = [m for m in mistakes if m.is_felt or changes_something(m, values, known, local.model)]
    mistakes = in_order(mistakes, likely)
    tried, untried = mistakes[: budget.left], mistakes[budget.left :]
    slow = [mistake for mistake in tried if wanted not in local.tower and needs_tower({mistake.where}, local)]
    trial = Trial(wanted, set(values), local, limit, budget)
    with tqdm(total=len(tried), desc="trying mistakes", unit="run", leave=False, delay=1, disable=None) as bar:
        for group in ([mistake for mistake in tried if mistake not in slow], slow):
            if causes := trial.causes_of([(mistake,) for mistake in group], bar):
                return causes
        pairs, most = trial.pairs(), min(MOST_PAIRS, budget.left)
        bar.reset(min(most, len(pairs)))
        causes = trial.causes_of(pairs[:most], bar)
    if not causes:
        budget.untried[wanted] = [mistake.name for mistake in untried], len(tried), min(most, len(pairs)), len(pairs)
    return causes


def in_order(mistakes, likely):
    """Mistakes, the likeliest first: those found elsewhere, the common ones; of each name its first sentence before others."""
    counts, keys = {}, {}
    for mistake in mistakes:
        kind = mistake.name, mistake.make
        nth = counts[kind] = counts.get(kind, -1) + 1
        keys[mistake] = mistake.name not in likely, nth, mistake.name not in COMMON
    return sorted(mistakes, key=keys.get)


def changes_something(mistake, values, known, model):
    """Whether a mistake changes any of the tensors {name: array} that it may be made in.

    If it leaves the first one as it is, the second has right inputs, too, and so on.
    """
    for name, value in values.items():
        if mistake.may_be_in(name):
            try:
                wrong = mistake.wrong(Subject(name, value, value, known, model.config, weights=model.weights))
            except (Error, Unknown, ValueError, IndexError, ArithmeticError):
                return True
            if wrong is not None and is_changed(wrong, value):
                return True
    return False


def is_changed(wrong, value):
    """Whether an array differs by more than rounding; a function, whose array takes long to compute, counts as changed."""
    return callable(wrong) or wrong.shape != value.shape or distance(value, wrong) > UNCHANGED


class Trial:
    """Runs with mistakes in the tensors `names`, each compared with their tensor `wanted`.

    changes  {mistake: what it alone changes in a sample of the values}
    """

    def __init__(self, wanted, names, local, limit, budget):
        self.wanted, self.names, self.local, self.limit, self.budget = wanted, names, local, limit, budget
        self.right = local.computed[wanted]
        self.theirs = fit(local.theirs, wanted, self.right.shape)
        self.before, self.rounding = distance(self.right, self.theirs), local.rounding(wanted)
        size = self.right.size
        self.sample = np.random.default_rng(0).choice(size, SAMPLE, replace=False) if size > SAMPLE else slice(None)
        self.changes = {}

    def causes_of(self, sets, bar):
        """The likeliest [Cause] among these sets of mistakes."""
        causes = []
        for made in sets:
            left = self.error_with(made)
            bar.update()
            if explains(left, self.before, self.limit, self.rounding):
                sentence = "; and ".join(f"at {mistake.where}: {mistake.shown or mistake.sentence}" for mistake in made)
                name, where = dict.fromkeys(mistake.name for mistake in made), tuple(mistake.where for mistake in made)
                causes.append(Cause(" and ".join(name), sentence, left, where=where))
            if left <= self.limit / 20:  # nothing can explain it better
                break
        return likeliest(sorted(causes, key=lambda cause: cause.error))

    def error_with(self, made):
        self.budget.left -= 1
        tensor = run_with(made, self.local, self.names, self.wanted)
        if tensor is None:
            return np.inf
        if len(made) == 1 and tensor.shape == self.right.shape:
            self.changes[made[0]] = self.change(tensor)
        return distance(tensor, self.theirs)

    def change(self, tensor):
        return tensor.reshape(-1)[self.sample].astype(np.float64) - self.right.reshape(-1)[self.sample]

    def pairs(self):
        """[(mistake, other)], the likeliest first: the sum of what both change alone is closest to what theirs changes."""
        wanted = self.change(self.theirs)
        mistakes = [mistake for mistake, change in self.changes.items() if np.isfinite(change).all() and change.any()]
        if not mistakes or not np.isfinite(wanted).all():
            return []
        changes = np.stack([self.changes[mistake] for mistake in mistakes])
        products, towards = changes @ changes.T, changes @ wanted
        squares = np.diag(products) - 2 * towards  # |change - wanted|^2 - |wanted|^2
        left = squares[:, None] + squares + 2 * products
        pairs = [
            (left[i, j], i, j) for i in range(len(mistakes)) for j in range(i) if mistakes[i].name != mistakes[j].name
        ]
        return [(mistakes[j], mistakes[i]) for _, i, j in sorted(pairs)]


@dataclass(frozen=True)
class Mistake:
    """A mistake to run the model with: what the function `make` yields under this name and sentence, in all its tensors.

    where     the first of these tensors
    in_tower  True or False: made in the tower only, or in the decoder only
    layers    of a missing bias: the linear layers that miss it, without the number of their block
    shown     another sentence to show
    is_felt   whether it changes the first of these tensors
    """

    make: Callable
    name: str
    sentence: str
    where: str
    in_tower: bool | None = None
    layers: tuple = ()
    shown: str = ""
    is_felt: bool = True

    def may_be_in(self, name):
        """Whether a tensor can have the mistake, and is one of those in which it is made."""
        if self.make not in functions_to_run(name) or self.in_tower not in (None, parse(name).own.startswith("visual")):
            return False
        return self.make is not bias or without_number(name) in self.layers

    def wrong(self, subject):
        """The tensor with the mistake, or a function that computes it; None if its inputs do not allow it."""
        for name, sentence, array in self.make(subject):
            if (name, sentence) == (self.name, self.sentence):
                return array
        return None


def mistakes_of(tensors, known, model):
    """[Mistake] of these {name: array}, each once, in the order of the data flow.

    A mistake that tower and decoder can have is tried in both, and in each alone: they are often written by different people.
    """
    mistakes, asked = {}, set()
    for name, array in tensors.items():
        subject = Subject(name, array, array, known, model.config, weights=model.weights)
        for make in functions_to_run(name):
            kind = make, subject.in_tower, without_number(name) if make is bias else subject.word
            if kind in asked:
                continue
            asked.add(kind)
            for mistake, sentence, wrong in computed_mistakes(make, subject):
                # the same mistake in the tables and in the tensors that are rotated by them counts once
                key = mistake, sentence.removeprefix(IN_BOTH), without_number(name) if make is bias else ""
                felt = is_changed(wrong, array)
                run = Mistake(make, mistake, sentence, name, layers=key[2:], is_felt=felt)
                mistakes.setdefault(key, {}).setdefault(subject.in_tower, run)
    runs = []
    for halves in mistakes.values():
        runs += [next(iter(halves.values()))] if len(halves) > 1 else []
        runs += [replace(mistake, in_tower=half) for half, mistake in halves.items()]
    whole_biases = [mistake for mistake in runs if mistake.make is bias and "only" not in mistake.sentence]
    return runs + several_biases(whole_biases)


def several_biases(mistakes):
    """[Mistake]: all these biases missing at once; and those of attention, and of the MLP."""
    groups = [mistakes]
    groups += [[m for m in mistakes if word in m.where] for word in ("attn.", "mlp.")]
    groups.append([m for m in mistakes if m.where.endswith(("q_proj", "k_proj", "v_proj"))])
    runs = {}
    for group in groups:
        layers = tuple(mistake.layers[0] for mistake in group)
        if len(group) > 1 and layers not in runs:
            text = f"the biases of {', '.join(layer.rpartition('.')[2] for layer in layers)} are not added"
            runs[layers] = replace(group[0], layers=layers, shown=text)
    return list(runs.values())


def computed_mistakes(make, subject):
    """(name, sentence, tensor) of all mistakes that a function yields, up to the first that needs an unknown tensor."""
    try:
        for name, sentence, wrong in make(subject):
            if name != RIGHT:
                yield name, sentence, wrong
    except Unknown:
        return


def run_with(mistakes, local, names, wanted):
    """The tensor `wanted` computed from their inputs with mistakes in the tensors `names`; None if it cannot be run."""
    names = {name for name in names if any(mistake.may_be_in(name) for mistake in mistakes)}

    def change(name, subject):
        made = (mistake.wrong(subject) for mistake in mistakes if mistake.may_be_in(name))
        return together([wrong for wrong in made if wrong is not None])

    return run_with_change(change, names, wanted, local)


def together(made):
    """The tensor with these mistakes; with the first, where they cannot be combined; None without any."""
    wrong = made[0] if made else None
    for other in made[1:]:
        if isinstance(wrong, Computed) and isinstance(other, Computed):
            wrong = wrong.together(other) or wrong
    return np.asarray(wrong() if callable(wrong) else wrong) if made else None


def run_with_change(changed, names, wanted, local):
    """The tensor `wanted` with changed(name, subject) in place of each of `names`."""
    tower = None if wanted in local.tower or needs_tower(names, local) else local.tower

    def change(name, tensor, known):
        if name not in names or name.endswith(SKIPPED):
            return None
        value = value_of(tensor)
        wrong = changed(name, Subject(name, value, value, known, local.model.config, weights=local.model.weights))
        return None if wrong is None else pad_bounds(wrong, tensor.shape)

    try:
        return run_from_theirs(local.model, local.inputs, local.theirs, None, change, wanted, tower)[0].get(wanted)
    except (Error, Unknown, ValueError, IndexError, ArithmeticError):  # the rest cannot run on such a tensor
        return None


def needs_tower(names, local):
    """Whether the tower must be run to change these tensors: not if they are its output or come after it."""
    return bool(names & (local.tower.keys() - {"visual"}))


@functools.cache
def functions_to_run(name):
    """The functions that compute mistakes of a tensor that a run builds."""
    return () if name.endswith(SKIPPED) else tuple(functions_for(parse(name).own))


def pad_bounds(array, shape):
    """Fewer segment bounds, padded by empty segments: a replaced tensor must keep its shape."""
    if array.ndim == 1 and array.shape < shape:
        return np.pad(array, (0, shape[0] - len(array)), mode="edge")
    return array


def without_number(name):
    """A name without the number of its layer."""
    return parse(name).general.replace(".blocks.{i}", "").replace(".layers.{i}", "")
