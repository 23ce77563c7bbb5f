"""Record the tensors of a run, change some, stop early.

    trace = vlm.trace("How many circles?", images=img, keep="visual.blocks.*.attn.probs")
    trace["visual.blocks.3.attn.probs"]         # float32 [H, N, L], read-only
    trace.select("visual.blocks.*")             # a dict, in the order of the data flow
    trace.save("run.safetensors")

    vlm.trace(..., edit={"model.layers.3.self_attn.context": lambda x: x * 0}, stop="model.layers.5")

A trace is one consumer of the stream (stream.py): the model does not know of it, and gives the same bits with and
without. Edits live as long as the run.
"""

import difflib
import math
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from minivl.compare import compare
from minivl.errors import Error
from minivl.stream import read_only, run, value_of


class Trace(Mapping):
    """Named tensors of one run, in the order in which they were made.

    names   every name that passed, kept or not
    result  what the run returned; None if it was stopped
    """

    def __init__(self):
        self.names, self.result, self._tensors = [], None, {}

    def __getitem__(self, name):
        if name in self._tensors:
            return self._tensors[name]
        if name in self.names:
            raise KeyError(f"{name} was made but not kept: add it to keep=")
        raise KeyError(f"no tensor {name}{_did_you_mean(name, self.names)}")

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)

    def __repr__(self):
        size = sum(t.nbytes for t in self._tensors.values())
        return f"<Trace: {len(self)} of {len(self.names)} tensors kept, {size / 1e6:.1f} MB>"

    def select(self, pattern):
        """The kept tensors whose names match a glob such as "model.layers.*.mlp.act", as a dict."""
        return {name: tensor for name, tensor in self.items() if fnmatchcase(name, pattern)}

    def compare(self, other, **options):
        """This trace beside another recording of the same prompt: where they part first, and why. -> compare.Comparison"""
        return compare(self, other, **options)

    def save(self, path):
        """Write the kept tensors to a safetensors file: complete or not at all."""
        from safetensors.numpy import save_file

        partial = Path(f"{path}.partial")
        if not partial.parent.is_dir():
            raise Error(f"cannot write {path}: the folder {partial.parent} does not exist. Make it before.")
        save_file({name: np.ascontiguousarray(t) for name, t in self.items()}, partial, {"format": "minivl-trace"})
        os.replace(partial, path)


def record(stage, keep="*", edit=None, stop=None, limit=4e9):
    """Run a stage and return its `Trace`.

    keep  glob, or several, of the names to keep; "*" keeps all, attention scores and probabilities included
    edit  {glob: array or function of the tensor}: what to put in the tensor's place, same shape and dtype
    stop  glob: end after the first tensor that matches
    limit  most bytes to keep

    A pattern that nothing matched is an Error, raised at the end; its attribute `trace` holds what was recorded.
    """
    keep = [keep] if isinstance(keep, str) else list(keep)
    edit, trace = dict(edit or {}), Trace()
    asked = {*keep, *edit, *([stop] if stop else [])}

    def see(name, tensor):
        trace.names.append(name)
        asked.difference_update([pattern for pattern in asked if fnmatchcase(name, pattern)])
        for pattern, change in edit.items():
            if fnmatchcase(name, pattern):
                tensor = _edited(name, tensor, change)
        if any(fnmatchcase(name, pattern) for pattern in keep):
            held = sum(t.nbytes for t in trace._tensors.values())
            if held + math.prod(tensor.shape) * tensor.dtype.itemsize > limit:
                raise Error(
                    f"what is kept up to {name} takes more than {limit / 1e9:.1f} GB. Name fewer tensors in keep= (attention "
                    "scores and probs are the large ones), or raise limit=."
                )
            trace._tensors[name] = read_only(value_of(tensor))
        return tensor

    trace.result = run(stage, see, None if stop is None else lambda name: fnmatchcase(name, stop))
    asked.discard("*")
    if asked:
        pattern = sorted(asked)[0]
        error = Error(f"no tensor of this run is called {pattern!r}{_did_you_mean(pattern, trace.names)}")
        error.trace = trace
        raise error
    return trace


def _edited(name, tensor, change):
    if not callable(change):
        return np.asarray(change)
    changed = change(value_of(tensor))
    if changed is None:
        raise Error(f"the edit of {name} returned None. Return the array that should take its place.")
    return np.array(changed)


def _did_you_mean(name, names):
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f". Close ones: {', '.join(close)}" if close else ". `trace.names` of a full run lists them all."
