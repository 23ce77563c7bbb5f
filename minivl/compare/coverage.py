"""How much of two recordings was compared, and which tensors were not."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from minivl.compare.rows import MISSING, Row
from minivl.errors import Error
from minivl.helpers import did_you_mean


def not_compared(require, rows):
    """Our tensors that match a required name or glob and were not compared. Raises an Error for one that matches none."""
    missing = []
    patterns = [require] if isinstance(require, str) else list(require) if isinstance(require, Iterable) else [None]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise Error(f"require={require!r}: give a name or glob, or a list of them.")
    for pattern in patterns:
        matching = [row for row in rows if row.shape is not None and fnmatchcase(row.name, pattern)]
        if not matching:
            raise Error(f"require={pattern!r} matches none of our tensors. docs/tensors.md lists the names.")
        missing += [row.name for row in matching if row.status == MISSING]
    return tuple(dict.fromkeys(missing))


def nothing_in_common(ours, theirs):
    """Text of the Error for recordings that have no name in common."""
    empty = next((side for side in (theirs, ours) if not len(side)), None)
    if empty is not None:
        return f"{empty.label} has no tensors. Was it closed before anything was recorded?"
    hints = ((name, did_you_mean(name, ours, 1, 0.6)) for name in theirs)
    name, hint = next((pair for pair in hints if pair[1]), (next(iter(theirs)), ""))
    return (
        f"no tensor of {theirs.label} has a name of {ours.label}. One there is {name!r}.{hint} docs/tensors.md "
        'lists the names; names={"theirs-{}": "model.layers.{}.mlp.act"} maps others.'
    )


def row_without_match(name, theirs, ours):
    hint = did_you_mean(name, ours, 1, 0.6).strip()
    note = f"only in {theirs.label}"
    return Row(name, MISSING, their_name=name, their_shape=theirs[name].shape, note=note, hint=hint)
