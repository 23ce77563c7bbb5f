"""The real engine with one known bug, for the time of a run: the mistakes that ports of Qwen2.5-VL make.

    with fault("no-window-attention").put_in():
        vlm.ask(...)                    # of a model loaded, or renewed (what_if.py), in here

Each is a function that swaps one function, method or constant of the engine for another, made from the right one. The rooms, in
the order of the data flow:

    processing.py    text, resizing, colours, patches
    vision.py        windows, places of patches, and the arithmetic that both halves share
    decoder.py       positions of tokens, masks, heads

They are written anew, and not taken from causes/, which computes from tensors alone what such mistakes would give: so `compare`
can be tested with them. A swap holds for the whole process: other threads get it too.
"""

import importlib
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from minivl.errors import Error
from minivl.helpers import did_you_mean

PRIVATE = ("minivl.faults",)  # its own modules keep what they have


@dataclass(frozen=True)
class Fault:
    """One bug.

    name      "no-window-attention"
    sentence  what is done otherwise;  origin  how that gets into a port;  bites  which prompts notice
    cause     what `compare` calls it
    shows     "picture" or "video": what a prompt must have for it to matter
    insert    function of `swap`, which it calls with (where, make): see `swapped`
    """

    name: str
    sentence: str
    origin: str
    bites: str
    cause: str
    shows: str
    insert: Callable

    @contextmanager
    def put_in(self):
        """The engine has this bug inside the `with`, and has not after it, whatever happens in between.

        Functions that a loaded model holds already, its kernels, are not reached: see `what_if.renewed`.
        """
        with ExitStack() as stack:
            self.insert(lambda where, make: stack.enter_context(swapped(where, make)))
            yield self


FAULTS = {}


def fault(name):
    """The `Fault` of this name; an Error that names the nearest ones if there is none."""
    faults = all_faults()
    if isinstance(name, Fault):
        return name
    if name not in faults:
        hint = did_you_mean(name, faults, cutoff=0.4)
        raise Error(f"there is no fault {name!r}.{hint} `minivl what-if` lists them: {', '.join(faults)}.")
    return faults[name]


def all_faults():
    """{name: Fault}, in the order of the data flow."""
    for room in ("processing", "vision", "decoder"):
        importlib.import_module(f"minivl.faults.{room}")
    return FAULTS


def bug(name, sentence, origin, bites, cause, shows="picture"):
    """Make the decorated function of `swap` a fault."""

    def register(insert):
        FAULTS[name] = Fault(name, sentence, origin, bites, cause, shows, insert)
        return insert

    return register


@contextmanager
def swapped(where, make):
    """Put make(what is there) in the place of `where`, a dotted path, and put back what was there.

    A function that other modules of minivl have imported by name is swapped there too. Modules that are imported meanwhile get
    the other one, so on the way out it is looked for everywhere.
    """
    owner, name = owner_of(where)
    original = vars(owner)[name]
    other = make(original)
    if isinstance(owner, type) or not callable(original):
        setattr(owner, name, other)
        try:
            yield
        finally:
            setattr(owner, name, original)
        return
    exchange(original, other)
    try:
        yield
    finally:
        exchange(other, original)


def owner_of(where):
    """(module or class, name in it) of "minivl.processing.image_processor.ImageProcessor.normalize"."""
    path, _, name = where.rpartition(".")
    try:
        return importlib.import_module(path), name
    except ModuleNotFoundError:
        owner, within = owner_of(path)
        return getattr(owner, within), name


def exchange(old, new):
    """In every module of minivl, whatever name it has there."""
    for room, module in list(sys.modules.items()):
        if module is None or not f"{room}.".startswith("minivl.") or room.startswith(PRIVATE):
            continue
        for name in [name for name, value in vars(module).items() if value is old]:
            setattr(module, name, new)
