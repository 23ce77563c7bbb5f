"""Causes that lie between two recorded tensors: the model is run with each known mistake, in every layer, as the port would.

A port that records its blocks only, or the end of the tower, shows the first wrong one, but not the tensor that went wrong.
With the model at hand each mistake is sent back into the stream in that tensor's place (stream.py), and the run goes on to
the recorded one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from minivl.compare.mistakes import RIGHT, Cause, Step, Unknown, particular
from minivl.compare.mistakes.any_tensor import distance
from minivl.compare.mistakes.attention import IN_BOTH
from minivl.compare.mistakes.layers import bias
from minivl.compare.mistakes.text_positions import seconds_of
from minivl.compare.rows import aligned
from minivl.errors import Error
from minivl.processing.inputs import Inputs
from minivl.stream import run, value_of
from minivl.tensors.names import parse

SKIPPED = (".scores", ".probs")  # what is wrong in them is found in the context


def replayed(found, ours, theirs, model, limit):
    """[Cause] of `found.first` by running the model with the mistakes of the tensors in `found.between`."""
    first = found.first
    try:
        inputs = inputs_of(ours, model.config)
    except (KeyError, Unknown):
        return []
    rows = [row.name for row in found.rows]
    right = set(rows[: rows.index(found.before.name) + 1]) if found.before is not None else set()
    tried, causes = trials(found.between, ours, model), []
    for trial in tqdm(tried, desc="trying", unit="run", leave=False, delay=1, disable=None):
        made = with_mistake(model, inputs, trial, first.name, right)
        left = np.inf if made is None else distance(*aligned(made, theirs)[:2])
        if left <= min(limit, first.error / 10):
            causes.append(Cause(trial.name, f"at {trial.where}: {trial.sentence}", left))
        if left <= limit / 20:  # nothing can explain it better
            break
    return sorted(causes, key=lambda cause: cause.error)


@dataclass(frozen=True)
class Trial:
    """A mistake that is worth a run: what the function `make` yields under this name and sentence, in every tensor that it
    knows: where is the first of them. in_tower: True or False if the other half of the model is right."""

    make: Callable
    name: str
    sentence: str
    where: str
    in_tower: bool | None = None

    def wrong(self, step):
        """The tensor with the mistake; None if it has no such mistake."""
        if self.in_tower not in (None, step.in_tower) or (self.make is bias and words(step.name) != words(self.where)):
            return None
        for name, sentence, made in self.make(step):
            if (name, sentence) == (self.name, self.sentence):
                return np.asarray(made() if callable(made) else made)
        return None


def inputs_of(ours, config):
    """`Inputs` from a recording; KeyError or Unknown if something is missing."""
    patches, grids = np.zeros((0, config.vision.patch_dim), dtype=np.float32), np.zeros((0, 3), dtype=np.int64)
    ids, videos = ours["input_ids"], ours.get("video_grid_thw", grids)
    step = Step("position_ids", ours.get("position_ids"), None, ours.get, config)
    return Inputs(
        ids, ours.get("pixel_values", patches), ours.get("image_grid_thw", grids), ours.get("pixel_values_videos", patches),
        videos, np.array(seconds_of(step, ids, videos), dtype=np.float32),
    )  # fmt: skip


def trials(names, ours, model):
    """Every mistake of these tensors once, in the order of the data flow. What both halves may have is tried in both, and in
    each alone: a port's two halves often come from different hands."""
    found, asked = {}, set()
    for name in names:
        step = Step(name, ours[name], ours[name], ours.get, model.config, weights=model.weights)
        for make in makers_of(name):
            kind = make, step.in_tower, words(name) if make is bias else step.word
            if kind in asked:
                continue
            asked.add(kind)
            for mistake, sentence in mistakes(make, step):
                # the same mistake in the tables and in what is rotated by them is one
                key = mistake, sentence.removeprefix(IN_BOTH), words(name) if make is bias else ""
                found.setdefault(key, {}).setdefault(step.in_tower, Trial(make, mistake, sentence, name))
    tried = []
    for halves in found.values():
        tried.append(next(iter(halves.values())))
        tried += [replace(trial, in_tower=half) for half, trial in halves.items() if len(halves) > 1]
    return tried


def mistakes(make, step):
    """(name, sentence) of what this function yields, as far as it can."""
    found = []
    try:
        for name, sentence, _ in make(step):
            found += [(name, sentence)] if name != RIGHT else []
    except (Unknown, ValueError, IndexError):
        pass
    return found


def with_mistake(model, inputs, trial, wanted, right=()):
    """The tensor `wanted` of a run with a mistake, but not in the tensors `right`; None if that cannot run."""
    seen = {}

    def known(name):
        return None if name not in seen else value_of(seen[name])

    def see(name, tensor):
        seen[name] = tensor
        if name in right or trial.make not in makers_of(name):
            return tensor
        value = value_of(tensor)
        wrong = trial.wrong(Step(name, value, value, known, model.config, weights=model.weights))
        if wrong is not None:
            seen[name] = as_long(wrong.astype(tensor.dtype), tensor.shape)
        return seen[name]

    try:
        with np.errstate(all="ignore"):  # what a mistake makes of the rest may be anything
            run(model.answer(inputs, max_new_tokens=tokens_up_to(wanted)), see, lambda name: name == wanted)
    except (Error, Unknown, ValueError, IndexError, ArithmeticError):  # of tensors that the rest cannot go on from
        return None
    return known(wanted)


@functools.cache
def makers_of(name):
    """The functions that know mistakes of a tensor; none of those that are never built."""
    return () if name.endswith(SKIPPED) else tuple(particular(parse(name).own))


def as_long(array, shape):
    """Fewer boundaries of segments, with empty segments at the end: a tensor that is sent back must have its shape."""
    if array.ndim == 1 and array.shape < shape:
        return np.pad(array, (0, shape[0] - len(array)), mode="edge")
    return array


def words(name):
    """A name without the number of its layer."""
    return parse(name).general.replace(".blocks.{i}", "").replace(".layers.{i}", "")


def tokens_up_to(name):
    return parse(name).step + 1
