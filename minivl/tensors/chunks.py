"""Chunked prefill: concatenate the chunks in which a long prompt ran through the decoder.

concatenate({"model.norm": first, "chunks.1.model.norm": second, ...})  # {"model.norm": the rows of all chunks}
"""

import numpy as np

from minivl.errors import Error
from minivl.tensors.names import parse


def chunks_by_name(names):
    """{name: the names of its chunks, in order} of the tensors that were made in chunks."""
    chunks = {}
    for name in names:
        parsed = parse(name)
        if parsed.chunk:
            chunks.setdefault(parsed.own, [parsed.own]).append(name)
    return chunks


def concatenate(tensors):
    """The same tensors by name, chunks joined in place of the first; a tensor that lacks a chunk stays in chunks."""
    chunks = chunks_by_name(tensors)
    if not chunks:
        return dict(tensors)
    count = max(len(names) for names in chunks.values())
    complete = {own: names for own, names in chunks.items() if len(names) == count and own in tensors}
    absorbed = {name for names in complete.values() for name in names[1:]}
    return {
        name: _join([tensors[chunk] for chunk in complete[name]], name) if name in complete else tensor
        for name, tensor in tensors.items()
        if name not in absorbed
    }


def _join(tensors, name):
    """Rows below each other: [T, ...] along the first axis, [H, T, ...] along the second. Scores and probabilities cover the
    prompt up to the end of their own chunk: after that they are -inf and 0."""
    try:
        if name.endswith((".scores", ".probs")):
            longest, fill = tensors[-1].shape[-1], -np.inf if name.endswith(".scores") else 0
            tensors = [np.pad(x, ((0, 0), (0, 0), (0, longest - x.shape[-1])), constant_values=fill) for x in tensors]
        return np.concatenate(tensors, axis=int(tensors[0].ndim == 3))
    except (ValueError, IndexError):
        shapes = ", ".join(str(list(x.shape)) for x in tensors)
        raise Error(f"the chunks of {name} do not fit together: {shapes}. Record the run again.") from None


def split_evenly(length, most):
    """Slices of at most `most`, one after the other up to `length`, as even as can be: 9, 4 -> 0:3 3:6 6:9"""
    count = -(-length // most)
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]
