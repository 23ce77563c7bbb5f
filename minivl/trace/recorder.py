"""Record a stage into a `Trace`, in memory or on disk; refuse in advance what will not fit.

    trace = record(vlm.prefill(inputs, cache), keep="model.layers.*.mlp.act")

`VLM.trace` adds what needs the model: a forecast of all later tensors, made as soon as the prompt is known and before the tower
runs, and metadata about the run.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from fnmatch import fnmatchcase

import numpy as np

from minivl.checkpoint.memory import available_memory
from minivl.checkpoint.safetensors import write_tensors
from minivl.errors import Error
from minivl.helpers import format_bytes, parse_bytes
from minivl.plan.meta_model import TensorShape
from minivl.stream import read_only, run, value_of
from minivl.tensors import catalogue
from minivl.trace.maps import MAPPED
from minivl.trace.trace import Trace, close_names, to_metadata

UNKNOWN_MEMORY = 4e9  # bytes: upper limit where the system does not tell how much memory is free


def record(stage, keep="*", edit=None, stop=None, limit=None, spill=None, forecast=None, about=None, config=None):
    """Run a stage and return its `Trace`.

    keep   which tensors to keep: a glob of names, several globs, or a function of (name, shape). "*" keeps all, attention
           scores and probabilities included
    edit   {glob: array or function of the tensor}: replaces the tensor, same shape and dtype
    stop   glob: end after the first tensor that matches
    limit  upper limit on the bytes kept, or "2GB". None: half of the free memory; with spill=, the free space of the disk
    spill  a safetensors file to write them to during the run; in the trace they are memory-mapped. It appears under its name
           when it is complete: an error or an interrupt leaves nothing
    forecast  function of the prompt's tensors, {name: tensor} -> `TensorShape`s of all later tensors
    about     function of the finished trace -> more `info`
    config    of the model that runs, for `Trace.maps`

    What will not fit is refused before the run, and so is a keep=, edit= or stop= that cannot match any tensor. A pattern that
    matched nothing, because the answer ended before, is an Error at the end; its attribute `trace` has what was recorded.
    """
    if stop is not None and not isinstance(stop, str):
        raise Error(f'stop={stop!r}: give a name or a glob, such as "model.layers.5".')
    with write_tensors(spill) if spill is not None else nullcontext() as file:
        recorder = Recorder(keep, edit, stop, limit, file, forecast, config)
        trace = recorder.trace
        trace.result = run(stage, recorder.see, None if stop is None else lambda name: fnmatchcase(name, stop))
        trace.info |= {} if about is None else about(trace)
        if file is not None:
            file.metadata = to_metadata(trace)
    if file is not None:
        trace = Trace.load(spill)
        trace.result, trace.config = recorder.trace.result, config
    check_matched({*recorder.patterns, *recorder.changes}, trace.names, trace)
    return trace


def check_matched(patterns, names, trace=None):
    """Raise an Error for a glob that matches no name; its `trace` is what was recorded."""
    unmatched = sorted(one for one in patterns if one != "*" and not any(fnmatchcase(name, one) for name in names))
    if unmatched:
        error = Error(f"no tensor of this run is called {unmatched[0]!r}{close_names(unmatched[0], names)}")
        error.trace = trace
        raise error


def parse_keep(keep):
    """keep= as (function of a name and a shape, the globs it was made from)."""
    if callable(keep):
        return keep, []
    patterns = [keep] if isinstance(keep, str) or not isinstance(keep, Iterable) else list(keep)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise Error(
            f'keep={keep!r}: give a glob such as "visual.blocks.*", a list of globs, or a function of (name, shape).'
        )
    return (lambda name, shape: any(fnmatchcase(name, pattern) for pattern in patterns)), patterns


class Recorder:
    """Observer of a stage that keeps some of its tensors in `trace`, or in `file`."""

    def __init__(self, keep, edit, stop, limit, file, forecast, config):
        self.keep, self.patterns = parse_keep(keep)
        self.edit, self.file, self.forecast = validate_edits(edit), file, forecast
        self.changes = [*self.edit, *([stop] if stop is not None else [])]
        self.limit = default_limit(file) if limit is None else parse_bytes(limit, "limit")
        self.trace = Trace(info={"generated_ids": [], "edited": []}, config=config)
        self.prompt, self.used = {}, 0

    def see(self, name, tensor):
        """Observe a tensor; returns it, or what the edits put in its place."""
        self.trace.names.append(name)
        for pattern, change in self.edit.items():
            if fnmatchcase(name, pattern):
                tensor = apply_edit(name, tensor, change)
                self.trace.info["edited"].append(name)
        if self.forecast is not None:
            self._check_forecast(name, tensor)
        self._note(name, tensor)
        if self.keep(name, tensor.shape):
            self._take(name, tensor)
        return tensor

    def _check_forecast(self, name, tensor):
        row = catalogue.of(name)
        if row is not None and row.section == "prompt":
            self.prompt[name] = tensor
        elif row is None or row.section not in ("image", "video"):
            coming = list(self.forecast(self.prompt))
            wanted = [one for one in coming if self.keep(one.name, one.shape)]
            self.prompt = self.forecast = None
            check_matched({*self.patterns, *self.changes}, [*self.trace.names, *(one.name for one in coming)])
            self._check(wanted)

    def _note(self, name, tensor):
        """Note in `info` what a trace needs whether the tensor is kept or not."""
        if name in MAPPED:
            self.trace.info[name] = tensor.tolist()
        elif name.endswith("next_token"):
            self.trace.info["generated_ids"] += tensor.tolist()

    def _take(self, name, tensor):
        self._check([TensorShape(name, tuple(tensor.shape), tensor.dtype)])
        array = read_only(value_of(tensor))
        if self.file is None:
            self.trace._tensors[name] = array
        else:
            self.file.add(name, array)
        self.used += array.nbytes

    def _check(self, wanted):
        """Raise an Error unless these tensors fit within the limit, in addition to those kept so far."""
        total = self.used + sum(one.nbytes for one in wanted)
        if total <= self.limit:
            return
        largest, number = max(wanted, key=lambda one: one.nbytes), len(wanted) + len(self.trace._tensors)
        where = "memory" if self.file is None else f"{self.file.path}"
        spill = " write them to disk with spill=," if self.file is None else ""
        raise Error(
            f"keeping this takes {format_bytes(total)}: up to {number:,} tensors, the largest of them {largest.name}, "
            f"{format_bytes(largest.nbytes)}; {where} may take {format_bytes(self.limit)}. Name fewer in keep= "
            f"(attention scores and probs are the large ones), lower max_new_tokens,{spill} or raise limit=."
        )


def default_limit(file):
    """Bytes that may be kept when limit= is not given."""
    if file is not None:
        return file.free_bytes
    free = available_memory()
    return UNKNOWN_MEMORY if free is None else free // 2


def validate_edits(edit):
    """edit= as a dict; an Error if it is something else."""
    if edit is None:
        return {}
    if not isinstance(edit, Mapping) or not all(isinstance(pattern, str) for pattern in edit):
        raise Error(f'edit={edit!r}: give a dict such as {{"model.layers.5": array or function of the tensor}}.')
    return dict(edit)


def apply_edit(name, tensor, change):
    """The array that an edit puts in a tensor's place."""
    if not callable(change):
        return np.asarray(change)
    try:
        changed = change(value_of(tensor))
    except ValueError as cause:
        if "read-only" not in str(cause):
            raise
        raise Error(
            f"the edit of {name} writes into the tensor, which is read-only ({cause}). Change a copy, x = x.copy(), and return "
            "it."
        ) from cause
    if changed is None:
        raise Error(f"the edit of {name} returned None. Return the array that should take its place.")
    return np.array(changed)
