"""Find mistakes between two recorded tensors: run the model with each known mistake, made in every layer as a port would.

A port that records its blocks only shows the first wrong block, not the tensor in it that went wrong. With the model at hand
each mistake replaces that tensor in the stream (stream.py), and the run goes on to the recorded one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from minivl.compare.diagnose import functions_for
from minivl.compare.measure import align, distance
from minivl.compare.mistakes import RIGHT, Cause, Step, Unknown
from minivl.compare.mistakes.attention import IN_BOTH
from minivl.compare.mistakes.layers import bias
from minivl.compare.mistakes.text_positions import seconds_per_grid
from minivl.errors import Error
from minivl.processing.inputs import Inputs
from minivl.stream import run, value_of
from minivl.tensors.names import parse

SKIPPED = (".scores", ".probs")  # mistakes in them are found in the context


def causes_between(comparison, ours, theirs, model, limit):
    """[Cause] of `comparison.first`, among the mistakes of the tensors in `comparison.between`."""
    first = comparison.first
    try:
        inputs = inputs_of(ours, model.config)
    except (KeyError, Unknown):
        return []
    rows = [row.name for row in comparison.rows]
    right = set(rows[: rows.index(comparison.before.name) + 1]) if comparison.before is not None else set()
    mistakes, causes = mistakes_of(comparison.between, ours, model), []
    for mistake in tqdm(mistakes, desc="trying", unit="run", leave=False, delay=1, disable=None):
        wrong = run_with(mistake, model, inputs, first.name, right)
        left = np.inf if wrong is None else distance(*align(wrong, theirs)[:2])
        if left <= min(limit, first.error / 10):
            causes.append(Cause(mistake.name, f"at {mistake.where}: {mistake.sentence}", left))
        if left <= limit / 20:  # nothing can explain it better
            break
    return sorted(causes, key=lambda cause: cause.error)


@dataclass(frozen=True)
class Mistake:
    """A mistake to run the model with: what the function `make` yields under this name and sentence, in all its tensors.

    where     the first of these tensors
    in_tower  True or False: made in the tower only, or in the decoder only
    """

    make: Callable
    name: str
    sentence: str
    where: str
    in_tower: bool | None = None

    def wrong(self, step):
        """The tensor with the mistake; None if it cannot have it."""
        if self.in_tower not in (None, step.in_tower):
            return None
        if self.make is bias and without_number(step.name) != without_number(self.where):
            return None
        for name, sentence, array in self.make(step):
            if (name, sentence) == (self.name, self.sentence):
                return np.asarray(array() if callable(array) else array)
        return None


def inputs_of(ours, config):
    """The `Inputs` of a recording. Raises KeyError or Unknown if a tensor is missing."""
    patches, grids = np.zeros((0, config.vision.patch_dim), dtype=np.float32), np.zeros((0, 3), dtype=np.int64)
    ids, videos = ours["input_ids"], ours.get("video_grid_thw", grids)
    step = Step("position_ids", ours.get("position_ids"), None, ours.get, config)
    return Inputs(
        ids, ours.get("pixel_values", patches), ours.get("image_grid_thw", grids), ours.get("pixel_values_videos", patches),
        videos, np.array(seconds_per_grid(step, ids, videos), dtype=np.float32),
    )  # fmt: skip


def mistakes_of(names, ours, model):
    """[Mistake] of these tensors, each once, in the order of the data flow.

    A mistake that tower and decoder can have is tried in both, and in each alone: they are often written by different people.
    """
    mistakes, asked = {}, set()
    for name in names:
        step = Step(name, ours[name], ours[name], ours.get, model.config, weights=model.weights)
        for make in functions_to_run(name):
            kind = make, step.in_tower, without_number(name) if make is bias else step.word
            if kind in asked:
                continue
            asked.add(kind)
            for mistake, sentence in names_and_sentences(make, step):
                # the same mistake in the tables and in the tensors that are rotated by them counts once
                key = mistake, sentence.removeprefix(IN_BOTH), without_number(name) if make is bias else ""
                mistakes.setdefault(key, {}).setdefault(step.in_tower, Mistake(make, mistake, sentence, name))
    runs = []
    for halves in mistakes.values():
        runs.append(next(iter(halves.values())))
        runs += [replace(mistake, in_tower=half) for half, mistake in halves.items() if len(halves) > 1]
    return runs


def names_and_sentences(make, step):
    """(name, sentence) of all mistakes that a function yields, up to the first that needs an unknown tensor."""
    pairs = []
    try:
        for name, sentence, _ in make(step):
            pairs += [(name, sentence)] if name != RIGHT else []
    except Unknown:
        pass
    return pairs


def run_with(mistake, model, inputs, wanted, right=()):
    """The tensor `wanted` of a run with a mistake in all but the tensors `right`; None if it cannot be run."""
    seen = {}

    def known(name):
        return None if name not in seen else value_of(seen[name])

    def see(name, tensor):
        seen[name] = tensor
        if name in right or mistake.make not in functions_to_run(name):
            return tensor
        value = value_of(tensor)
        wrong = mistake.wrong(Step(name, value, value, known, model.config, weights=model.weights))
        if wrong is not None:
            seen[name] = pad_bounds(wrong.astype(tensor.dtype), tensor.shape)
        return seen[name]

    try:
        with np.errstate(all="ignore"):  # a mistake may make anything of the rest
            run(model.answer(inputs, max_new_tokens=tokens_up_to(wanted)), see, lambda name: name == wanted)
    except (Error, Unknown, ValueError, IndexError, ArithmeticError):  # the rest cannot run on such a tensor
        return None
    return known(wanted)


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


def tokens_up_to(name):
    return parse(name).step + 1
