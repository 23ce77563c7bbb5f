"""The consumer of the stream that makes a `Trace`: what is kept, where, and whether there is room for it.

    trace = record(vlm.prefill(inputs, cache), keep="model.layers.*.mlp.act")

`VLM.trace` adds what needs the model: a forecast of all that is still to come, made as soon as the prompt is known and before
the tower runs, and what a trace says about where it comes from.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from fnmatch import fnmatchcase

import numpy as np

from minivl.checkpoint.memory import available_memory
from minivl.checkpoint.safetensors import write_tensors
from minivl.errors import Error
from minivl.helpers import format_bytes, parse_bytes
from minivl.plan.forecast import Foreseen
from minivl.stream import read_only, run, value_of
from minivl.tensors import catalogue
from minivl.trace.maps import MAPPED
from minivl.trace.trace import Trace, did_you_mean, metadata_of

UNKNOWN_MEMORY = 4e9  # bytes that are kept at most where the system does not say what it has


def record(stage, keep="*", edit=None, stop=None, limit=None, spill=None, forecast=None, about=None, config=None):
    """Run a stage and return its `Trace`.

    keep   what to keep: a glob of names, several, or a function of (name, shape). "*" keeps all, attention scores and
           probabilities included
    edit   {glob: array or function of the tensor}: what to put in the tensor's place, same shape and dtype
    stop   glob: end after the first tensor that matches
    limit  most bytes to keep, or "2GB". Without it: half of the memory that can be had; with spill=, what the disk has left
    spill  a safetensors file to write them to while the run goes on; in the trace they are maps of it. It appears under
           its name when it is whole: an error or an interrupt leaves nothing
    forecast  function of the prompt's tensors, {name: tensor}: what is still to come, `Foreseen`s
    about     function of the trace when the run is over: more `info`
    config    of the model that runs, for `Trace.maps`

    What does not fit is refused before it is made, and so is an edit= or stop= that will match nothing. A pattern that
    nothing matched is an Error, raised at the end; its attribute `trace` holds what was recorded.
    """
    if stop is not None and not isinstance(stop, str):
        raise Error(f'stop={stop!r}: give a name or a glob, such as "model.layers.5".')
    with write_tensors(spill) if spill is not None else nullcontext() as file:
        recorder = Recorder(keep, edit, stop, limit, file, forecast, config)
        trace = recorder.trace
        trace.result = run(stage, recorder.see, None if stop is None else lambda name: fnmatchcase(name, stop))
        trace.info |= {} if about is None else about(trace)
        if file is not None:
            file.metadata = metadata_of(trace)
    if file is not None:
        trace = Trace.load(spill)
        trace.result, trace.config = recorder.trace.result, config
    check_matched({*recorder.patterns, *recorder.changes}, trace.names, trace)
    return trace


def check_matched(patterns, names, trace=None):
    """That each glob matches a name; the Error has a `trace`, of what was recorded."""
    unmatched = sorted(one for one in patterns if one != "*" and not any(fnmatchcase(name, one) for name in names))
    if unmatched:
        error = Error(f"no tensor of this run is called {unmatched[0]!r}{did_you_mean(unmatched[0], names)}")
        error.trace = trace
        raise error


def chosen(keep):
    """(function of a name and a shape, the globs it is made of)"""
    if callable(keep):
        return keep, []
    patterns = [keep] if isinstance(keep, str) or not isinstance(keep, Iterable) else list(keep)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise Error(
            f'keep={keep!r}: give a glob such as "visual.blocks.*", a list of them, or a function of (name, shape).'
        )
    return (lambda name, shape: any(fnmatchcase(name, pattern) for pattern in patterns)), patterns


class Recorder:
    """Shown every tensor, keeps some of them in `trace`, or in `file`."""

    def __init__(self, keep, edit, stop, limit, file, forecast, config):
        self.keep, self.patterns = chosen(keep)
        self.edit, self.file, self.forecast = checked_edits(edit), file, forecast
        self.changes = [*self.edit, *([stop] if stop is not None else [])]
        self.limit = room(file) if limit is None else parse_bytes(limit, "limit")
        self.trace = Trace(info={"generated_ids": [], "edited": []}, config=config)
        self.prompt, self.used = {}, 0

    def see(self, name, tensor):
        """What `stream.run` calls: returns what goes into the tensor's place."""
        self.trace.names.append(name)
        for pattern, change in self.edit.items():
            if fnmatchcase(name, pattern):
                tensor = edited(name, tensor, change)
                self.trace.info["edited"].append(name)
        if self.forecast is not None:
            self._foresee(name, tensor)
        self._note(name, tensor)
        if self.keep(name, tensor.shape):
            self._take(name, tensor)
        return tensor

    def _foresee(self, name, tensor):
        row = catalogue.of(name)
        if row is not None and row.section == "prompt":
            self.prompt[name] = tensor
        elif row is None or row.section not in ("image", "video"):
            still = list(self.forecast(self.prompt))
            wanted = [one for one in still if self.keep(one.name, one.shape)]
            self.prompt = self.forecast = None
            if self.changes:
                check_matched(self.changes, [*self.trace.names, *(one.name for one in still)])
            self._check(wanted)

    def _note(self, name, tensor):
        """What a trace knows whether the tensor is kept or not."""
        if name in MAPPED:
            self.trace.info[name] = tensor.tolist()
        elif name.endswith("next_token"):
            self.trace.info["generated_ids"] += tensor.tolist()

    def _take(self, name, tensor):
        self._check([Foreseen(name, tuple(tensor.shape), tensor.dtype)])
        array = read_only(value_of(tensor))
        if self.file is None:
            self.trace._tensors[name] = array
        else:
            self.file.add(name, array)
        self.used += array.nbytes

    def _check(self, wanted):
        """That there is room for these too."""
        total = self.used + sum(one.nbytes for one in wanted)
        if total <= self.limit:
            return
        largest, number = max(wanted, key=lambda one: one.nbytes), len(wanted) + len(self.trace._tensors)
        where = "memory" if self.file is None else f"{self.file.path}"
        spill = " write them to disk with spill=," if self.file is None else ""
        raise Error(
            f"to keep this takes {format_bytes(total)}: up to {number:,} tensors, the largest of them {largest.name}, "
            f"{format_bytes(largest.nbytes)}; {where} may take {format_bytes(self.limit)}. Name fewer in keep= "
            f"(attention scores and probs are "
            f"the large ones), lower max_new_tokens,{spill} or raise limit=."
        )


def room(file):
    """Bytes that may be kept, unless somebody says."""
    if file is not None:
        return file.free_bytes
    room = available_memory()
    return UNKNOWN_MEMORY if room is None else room // 2


def checked_edits(edit):
    """edit= as a dict."""
    if edit is None:
        return {}
    if not isinstance(edit, Mapping) or not all(isinstance(pattern, str) for pattern in edit):
        raise Error(f'edit={edit!r}: give a dict such as {{"model.layers.5": array or function of the tensor}}.')
    return dict(edit)


def edited(name, tensor, change):
    """What an edit puts in a tensor's place."""
    if not callable(change):
        return np.asarray(change)
    changed = change(value_of(tensor))
    if changed is None:
        raise Error(f"the edit of {name} returned None. Return the array that should take its place.")
    return np.array(changed)
