"""Find mistakes between two recorded tensors: run the model with each known mistake, made in every layer as a port would.

A port that records its blocks only shows the first wrong block, not the tensor in it that went wrong. With the model at hand
each mistake replaces that tensor in the stream (stream.py), and the run goes on to the recorded one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from minivl.compare.diagnose import explains, functions_for, likeliest
from minivl.compare.local import fit, run_from_theirs
from minivl.compare.measure import distance
from minivl.compare.mistakes import RIGHT, Cause, Step, Unknown
from minivl.compare.mistakes.attention import IN_BOTH, Computed
from minivl.compare.mistakes.layers import bias
from minivl.errors import Error
from minivl.stream import value_of
from minivl.tensors.names import parse

SKIPPED = (".scores", ".probs")  # mistakes in them show in the context
MOST_FIRST = 3  # mistakes that alone come closest, each tried together with every other


def causes_between(wanted, names, local, limit, ours, likely=()):
    """[Cause] of the tensor `wanted`, among mistakes in `names`: the tensors before it that theirs does not have.

    For a tensor of the decoder, mistakes of the tower, each of which takes a run of it, are tried only if none of the
    decoder explains it. If no mistake alone does, two are tried together.

    likely  names of mistakes that were found elsewhere: they are tried first
    """
    theirs = fit(local.theirs, wanted, local.computed[wanted].shape)
    before, rounding = distance(local.computed[wanted], theirs), local.rounding(wanted)
    values = {name: value_of(local.known[name]) for name in names if name in local.known and not name.endswith(SKIPPED)}
    known = lambda name: value_of(local.known[name]) if name in local.known else ours.get(name)  # noqa: E731
    mistakes = sorted(mistakes_of(values, known, local.model), key=lambda mistake: mistake.name not in likely)

    def error_with(*made):
        tensor = run_with(made, local, set(values), wanted)
        return np.inf if tensor is None else distance(tensor, theirs)

    def try_each(sets):
        causes, errors = [], {}
        for made in tqdm(sets, desc="trying", unit="run", leave=False, delay=1, disable=None):
            errors[made] = left = error_with(*made)
            if explains(left, before, limit, rounding):
                sentence = "; and ".join(f"at {mistake.where}: {mistake.shown or mistake.sentence}" for mistake in made)
                name, where = dict.fromkeys(mistake.name for mistake in made), tuple(mistake.where for mistake in made)
                causes.append(Cause(" and ".join(name), sentence, left, where=where))
            if left <= limit / 20:  # nothing can explain it better
                break
        return likeliest(sorted(causes, key=lambda cause: cause.error)), errors

    slow = [mistake for mistake in mistakes if wanted not in local.tower and needs_tower({mistake.where}, local)]
    errors = {}
    for group in ([mistake for mistake in mistakes if mistake not in slow], slow):
        causes, more = try_each([(mistake,) for mistake in group])
        if causes:
            return causes
        errors |= more
    closest = sorted((made for made in errors if errors[made] < before), key=errors.get)[:MOST_FIRST]
    return try_each([(first, other) for (first,) in closest for other in mistakes if other.name != first.name])[0]


@dataclass(frozen=True)
class Mistake:
    """A mistake to run the model with: what the function `make` yields under this name and sentence, in all its tensors.

    where     the first of these tensors
    in_tower  True or False: made in the tower only, or in the decoder only
    layers    of a missing bias: the linear layers that miss it, without the number of their block
    shown     another sentence to show
    """

    make: Callable
    name: str
    sentence: str
    where: str
    in_tower: bool | None = None
    layers: tuple = ()
    shown: str = ""

    def may_be_in(self, name):
        """Whether a tensor is one that can have the mistake, and that it is made in."""
        if self.make not in functions_to_run(name) or self.in_tower not in (None, parse(name).own.startswith("visual")):
            return False
        return self.make is not bias or without_number(name) in self.layers

    def wrong(self, step):
        """The tensor with the mistake, or a function that computes it; None if its inputs do not allow it."""
        for name, sentence, array in self.make(step):
            if (name, sentence) == (self.name, self.sentence):
                return array
        return None


def mistakes_of(tensors, known, model):
    """[Mistake] of these {name: array}, each once, in the order of the data flow.

    A mistake that tower and decoder can have is tried in both, and in each alone: they are often written by different people.
    """
    mistakes, asked = {}, set()
    for name, array in tensors.items():
        step = Step(name, array, array, known, model.config, weights=model.weights)
        for make in functions_to_run(name):
            kind = make, step.in_tower, without_number(name) if make is bias else step.word
            if kind in asked:
                continue
            asked.add(kind)
            for mistake, sentence in names_and_sentences(make, step):
                # the same mistake in the tables and in the tensors that are rotated by them counts once
                key = mistake, sentence.removeprefix(IN_BOTH), without_number(name) if make is bias else ""
                run = Mistake(make, mistake, sentence, name, layers=key[2:])
                mistakes.setdefault(key, {}).setdefault(step.in_tower, run)
    runs = []
    for halves in mistakes.values():
        runs.append(next(iter(halves.values())))
        runs += [replace(mistake, in_tower=half) for half, mistake in halves.items() if len(halves) > 1]
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


def names_and_sentences(make, step):
    """(name, sentence) of all mistakes that a function yields, up to the first that needs an unknown tensor."""
    pairs = []
    try:
        for name, sentence, _ in make(step):
            pairs += [(name, sentence)] if name != RIGHT else []
    except Unknown:
        pass
    return pairs


def run_with(mistakes, local, names, wanted):
    """The tensor `wanted` computed from their inputs with mistakes in the tensors `names`; None if it cannot be run."""
    names = {name for name in names if any(mistake.may_be_in(name) for mistake in mistakes)}

    def change(name, step):
        made = (mistake.wrong(step) for mistake in mistakes if mistake.may_be_in(name))
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
    """The tensor `wanted` with changed(name, step) in the place of each of `names`."""
    tower = None if wanted in local.tower or needs_tower(names, local) else local.tower

    def change(name, tensor, known):
        if name not in names or name.endswith(SKIPPED):
            return None
        value = value_of(tensor)
        wrong = changed(name, Step(name, value, value, known, local.model.config, weights=local.model.weights))
        return None if wrong is None else pad_bounds(wrong, tensor.shape)

    try:
        return run_from_theirs(local.model, local.inputs, local.theirs, None, change, wanted, tower)[0].get(wanted)
    except (Error, Unknown, ValueError, IndexError, ArithmeticError):  # the rest cannot run on such a tensor
        return None


def needs_tower(names, local):
    """Whether the tower must be run to change these tensors: its output alone can be changed without."""
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
