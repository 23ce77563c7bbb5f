"""JSON files: reading one of a checkpoint, checking what kinds of values it holds, and writing one whole or not at all."""

import importlib
import json
import os
from pathlib import Path

from minivl.errors import Error


def read_json(path):
    """The object in a checkpoint's JSON file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as cause:
        raise Error(f"{path} is not valid JSON ({cause}). Download it again.") from None
    if not isinstance(stored, dict):
        raise Error(f"{path} holds a {type(stored).__name__}, not an object. Download it again.")
    return stored


def object_in(stored, field):
    """An object inside another; {} where it is missing or null."""
    found = stored.get(field)
    if not isinstance(found, (dict, type(None))):
        raise Error(f"{field} is {found!r}; it must be an object. Use the file that came with the weights.")
    return found or {}


def check_kind(field, values, kind, what, least=None):
    """subtle: JSON true is a Python int, so bool is asked for by name."""
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise Error(f"{field} is {value!r}; it must be {what}.")
        if least is not None and not value >= least:
            raise Error(f"{field} is {value!r}; it must be {what}, at least {least}.")


def write_json(value, path):
    """Plain values as JSON: complete or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(partial, path)
    except OSError as cause:
        partial.unlink(missing_ok=True)
        raise Error(f"cannot write {path}: {cause.strerror}. Give a file in a folder that can be written.") from None


def lazy_names(package, **homes):
    """(__getattr__, __dir__, __all__) of a package whose public names are imported when they are first used.

    homes  public name -> the module inside the package that defines it
    """

    def __getattr__(name):
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    def __dir__():
        return sorted(homes)

    return __getattr__, __dir__, list(homes)
