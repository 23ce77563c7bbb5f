"""A long prompt that went through the decoder in parts: whose tensor is whose, and the parts put together.

part_of("chunks.2.model.norm")      # (2, "model.norm"); of any other name (0, name)
whole({"model.norm": first, "chunks.1.model.norm": second, ...})        # {"model.norm": their rows below each other}
"""

import re

import numpy as np

PART = re.compile(r"chunks\.(\d+)\.")


def part_of(name):
    """(which part of the prompt a tensor belongs to, its name without it)"""
    found = PART.match(name)
    return (int(found[1]), name[found.end() :]) if found else (0, name)


def names_of_parts(names):
    """{name: all of its parts, in order} of the tensors that were made in parts."""
    parts = {}
    for name in names:
        number, own = part_of(name)
        if number:
            parts.setdefault(own, [own]).append(name)
    return parts


def whole(tensors):
    """The same tensors by name; those that all parts have are put together, in the place of the first. Others stay parts."""
    parts = names_of_parts(tensors)
    if not parts:
        return dict(tensors)
    count = max(len(names) for names in parts.values())
    complete = {own: names for own, names in parts.items() if len(names) == count and own in tensors}
    gone = {name for names in complete.values() for name in names[1:]}
    found = {}
    for name, tensor in tensors.items():
        if name not in gone:
            found[name] = joined([tensors[part] for part in complete[name]], name) if name in complete else tensor
    return found


def joined(tensors, name):
    """Rows of all parts: [T, ...] below each other, [H, T, ...] head by head. Scores and probabilities look back on the prompt
    up to the end of their own part: -inf and 0 stand behind it."""
    if name.endswith((".scores", ".probs")):
        longest, fill = tensors[-1].shape[-1], -np.inf if name.endswith(".scores") else 0
        tensors = [np.pad(one, ((0, 0), (0, 0), (0, longest - one.shape[-1])), constant_values=fill) for one in tensors]
    return np.concatenate(tensors, axis=int(tensors[0].ndim == 3))


def split_evenly(length, most):
    """Slices of at most `most`, one after the other up to `length`, as even as can be: 9, 4 -> 0:3 3:6 6:9"""
    count = -(-length // most)
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]
