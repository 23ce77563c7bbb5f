"""The JSON files of a checkpoint: reading one, and checking what kinds of values it holds."""

import json

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
