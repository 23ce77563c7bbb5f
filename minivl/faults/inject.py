"""Replace a function, method or constant of the engine for a while, by monkey-patching every alias.

The faults that use it are in processing.py, vision.py and decoder.py.

    with patch("minivl.model.positions.mrope", lambda original: wrong_mrope):
        ...

A patch holds for the whole process: other threads get it too.
"""

import importlib
import sys
from contextlib import contextmanager

PRIVATE = ("minivl.faults",)  # its own modules keep the originals


@contextmanager
def patch(where, make):
    """Put make(original) in place of `where`, a dotted path, and put the original back afterwards.

    A function that other modules of minivl have imported by name is replaced there too. Modules that are imported meanwhile
    get the replacement, so on exit every module is searched again.
    """
    owner, name = find_owner(where)
    original = vars(owner)[name]
    replacement = make(original)
    if isinstance(owner, type) or not callable(original):
        setattr(owner, name, replacement)
        try:
            yield
        finally:
            setattr(owner, name, original)
        return
    replace_everywhere(original, replacement)
    try:
        yield
    finally:
        replace_everywhere(replacement, original)


def find_owner(where):
    """(module or class, name in it) of "minivl.processing.image_processor.ImageProcessor.normalize"."""
    path, _, name = where.rpartition(".")
    try:
        return importlib.import_module(path), name
    except ModuleNotFoundError:
        owner, within = find_owner(path)
        return getattr(owner, within), name


def replace_everywhere(old, new):
    """Replace `old` by `new` in every module of minivl, under every name."""
    for module_name, module in list(sys.modules.items()):
        if module is None or not f"{module_name}.".startswith("minivl.") or module_name.startswith(PRIVATE):
            continue
        for name in [name for name, value in vars(module).items() if value is old]:
            setattr(module, name, new)
