"""Causes that lie between two recorded tensors: the model is run with each known mistake, in every layer, as the port would.

A port that records its blocks only, or the end of the tower, shows the first wrong one, but not the tensor that went wrong.
With the model at hand each mistake is sent back into the stream in that tensor's place (stream.py), and the run goes on to
the recorded one.
"""

import functools
import itertools
import re

import numpy as np
from tqdm import tqdm

from minivl.causes import RIGHT, Cause, Step, Unknown, particular
from minivl.causes.arrays import distance
from minivl.causes.layers import bias
from minivl.errors import Error
from minivl.inputs import Inputs
from minivl.names import STEP
from minivl.stream import run, value_of

SKIPPED = (".scores", ".probs")  # what is wrong in them is found in the context


def replayed(found, ours, theirs, model, limit):
    """[Cause] of `found.first` by running the model with the mistakes of the tensors in `found.between`."""
    first = found.first
    try:
        inputs = inputs_of(ours)
    except KeyError:
        return []
    tried, causes = trials(found.between, ours, model), []
    for make, k, name, sentence, where in tqdm(tried, desc="trying", unit="run", leave=False, delay=1, disable=None):
        made = with_mistake(model, inputs, make, k, where, first.name)
        left = np.inf if made is None else distance(made, theirs)
        if left <= min(limit, first.error / 10):
            causes.append(Cause(name, f"at {where}: {sentence}", left))
    return sorted(causes, key=lambda cause: cause.error)


def inputs_of(ours):
    """`Inputs` from a recording; KeyError if something is missing."""
    found = {name: ours[name] for name in ("input_ids", "pixel_values", "image_grid_thw") if name in ours}
    if "video_grid_thw" in ours:
        count = len(ours["video_grid_thw"])
        seconds = np.array([ours[f"video.{i}.second_per_grid_t"][0] for i in range(count)], dtype=np.float32)
        found |= {name: ours[name] for name in ("pixel_values_videos", "video_grid_thw")} | {
            "second_per_grid_ts": seconds
        }
    empty = {
        "pixel_values": np.zeros((0, found.get("pixel_values_videos", np.zeros((0, 0))).shape[1]), dtype=np.float32)
    }
    empty["image_grid_thw"] = np.zeros((0, 3), dtype=np.int64)
    return Inputs(**{"input_ids": ours["input_ids"]} | empty | found)


@functools.cache
def makers_of(name):
    """Mistakes of a tensor that are worth a run."""
    if name.endswith(SKIPPED):
        return []
    return list(particular(name))


def trials(names, ours, model):
    """(function, which of its mistakes, name, sentence, tensor) for the first tensor of each kind."""
    found = {}
    for name in names:
        step = Step(name, ours[name], ours[name], ours.get, model.config, weights=model.weights)
        for make in makers_of(step.short):
            key = make, *(words(name) if make is bias else [step.word])
            if key not in found:
                try:
                    found[key] = [
                        (make, k, mistake, sentence, name)
                        for k, (mistake, sentence, _) in enumerate(make(step))
                        if mistake != RIGHT
                    ]
                except (Unknown, ValueError, IndexError):
                    found[key] = []
    return list(itertools.chain(*found.values()))


def with_mistake(model, inputs, make, k, where, wanted):
    """The tensor `wanted` of a run in which every tensor that `make` knows has its k-th mistake; None if that cannot run.

    where  a tensor of the kind; a bias is left out in that linear layer of every block alone
    """
    seen = {}

    def known(name):
        return None if name not in seen else value_of(seen[name])

    def see(name, tensor):
        seen[name] = tensor
        short = STEP.sub(r"\2", name)
        if make not in makers_of(short) or (make is bias and words(short) != words(where)):
            return tensor
        value = value_of(tensor)
        step = Step(name, value, value, known, model.config, weights=model.weights)
        wrong = np.asarray(nth(make(step), k))
        seen[name] = wrong.astype(tensor.dtype)
        return seen[name]

    try:
        run(model.answer(inputs, max_new_tokens=tokens_up_to(wanted)), see, lambda name: name == wanted)
    except (Error, Unknown, ValueError, IndexError, ArithmeticError):  # of tensors that the rest cannot go on from
        return None
    return known(wanted)


def nth(mistakes, k):
    """The array of the k-th; those after it are not computed."""
    for number, (_, _, array) in enumerate(mistakes):
        if number == k:
            return array
    raise Unknown(f"mistake {k}")


def words(name):
    """A name without the number of its layer."""
    return re.sub(r"(blocks|layers)\.\d+\.", "", STEP.sub(r"\2", name)).split(".")


def tokens_up_to(name):
    found = STEP.fullmatch(name)
    return int(found[1]) + 1 if found else 1
