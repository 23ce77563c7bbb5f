"""Inject known mistakes of ports into the real engine, for the duration of a run.

    with fault("no-window-attention").inject():
        vlm.ask(...)                    # of a model loaded in here, or given fresh kernels (what_if.py)

    processing.py    faults in text, resizing, colours, patches
    vision.py        faults in windows, positions of patches, and the arithmetic that tower and decoder share
    decoder.py       faults in positions of tokens, masks, heads
    inject.py        put a fault into the engine and take it out again
    what_if.py       run a prompt with and without a fault; render.py: the result as text and HTML
    score.py         how well a model answers about many scenes, with each fault

Each fault is a function that replaces functions, methods or constants of the engine. Independent of compare/mistakes on
purpose, so that each can test the other.
"""

import importlib
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from minivl.errors import Error
from minivl.faults.inject import patch
from minivl.helpers import did_you_mean


@dataclass(frozen=True)
class Fault:
    """A mistake to inject into the engine.

    name      "no-window-attention"
    sentence  what the engine does differently;  origin  how the mistake gets into a port;  bites  the prompts that it affects
    cause     its name in `compare`
    shows     "image" or "video": what a prompt must have for it to matter
    insert    function of `swap`, which it calls with (where, make): see `inject.patch`
    """

    name: str
    sentence: str
    origin: str
    bites: str
    cause: str
    shows: str
    insert: Callable

    @contextmanager
    def inject(self):
        """A context in which the engine has this fault. It is undone on exit, after an error too.

        subtle: a loaded model holds its kernels, which are not reached: see `what_if.with_fresh_kernels`.
        """
        with ExitStack() as stack:
            self.insert(lambda where, make: stack.enter_context(patch(where, make)))
            yield self


FAULTS = {}


def fault(name):
    """The `Fault` of this name. Raises an Error that names similar ones if there is none."""
    faults = all_faults()
    if isinstance(name, Fault):
        return name
    if name not in faults:
        raise Error(
            f"there is no fault {name!r}.{did_you_mean(name, faults, cutoff=0.4)} They are: {', '.join(faults)}."
        )
    return faults[name]


def all_faults():
    """{name: Fault}, in the order of the data flow."""
    for file in ("processing", "vision", "decoder"):
        importlib.import_module(f"minivl.faults.{file}")
    return FAULTS


def register(name, sentence, origin, bites, cause, shows="image"):
    """Decorator: register a function that injects a mistake; it is called with `swap`, see `Fault.insert`."""

    def add(insert):
        FAULTS[name] = Fault(name, sentence, origin, bites, cause, shows, insert)
        return insert

    return add
