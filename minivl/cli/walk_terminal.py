"""`minivl walk --step`: a walk in a terminal, a key at a time. Without a terminal, commands are read line by line.

stepped(vlm.walk(..., level="block"))
"""

import sys
import textwrap

import numpy as np

from minivl.errors import Error
from minivl.tensors.catalogue import LEVELS, level
from minivl.walk.walk import format_step

HELP = """\
Enter    on to the next stop               e        explain: formula, shapes, why
s        skip to the next stage            v        value: statistics and some numbers
u NAME   on until this tensor, or a glob   z        zero: put zeros in its place
b [NAME] back to the last stop, or to one  l LEVEL  stop at every stage, block or tensor
f        finish: on to the answer          q        quit"""


def stepped(walk, lines=None):
    """Walk as the lines say, until they end or the answer is there. Returns the `Answer`, or None if it was not reached."""
    lines = typed() if lines is None else iter(lines)
    print("Enter goes on, e explains, ? lists all commands.", flush=True)
    show(next(walk, None))
    for entered in lines:
        command, _, argument = entered.strip().partition(" ")
        if command == "q":
            return None
        try:
            obey(walk, command, argument.strip())
        except Error as error:
            print(f"  {error}", flush=True)
        if walk.answer is not None:
            return walk.answer
    return None


def typed():
    """Lines from stdin, with a prompt if somebody sits there."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        entered = sys.stdin.readline()
        if not entered:
            return
        yield entered


def obey(walk, command, argument):
    if command == "":
        show(next(walk, None))
    elif command == "s":
        show(next_stage(walk))
    elif command == "u":
        show(walk.until(needed(argument, "u visual.merger")))
    elif command == "b":
        show(walk.back(argument or None))
    elif command == "f":
        walk.finish()
    elif command == "l":
        if argument not in LEVELS:
            raise Error(f"l {argument}: choose one of {', '.join(LEVELS)}, such as l tensor.")
        walk.level = argument
    elif command == "e":
        print(textwrap.indent(textwrap.fill(walk.here().explain(), 96), "  "), flush=True)
    elif command == "v":
        print(textwrap.indent(described(walk.here()), "  "), flush=True)
    elif command == "z":
        show(walk.replace(np.zeros(walk.here().shape, dtype=walk.here().dtype)))
    else:
        print(HELP, flush=True)


def needed(argument, example):
    if not argument:
        raise Error(f"which tensor? Give its name, such as: {example}")
    return argument


def next_stage(walk):
    for step in walk:
        if level(step.name) == "stage":
            return step
    return None


def show(step):
    if step is not None:
        print(format_step(step) + "  (replaced)" * step.replaced, flush=True)


def described(step):
    """A tensor's statistics and its first numbers."""
    found = step.stats()
    numbers = " ".join(
        f"{name} {value:.4g}" for name in ("min", "max", "mean", "rms") if (value := getattr(found, name)) is not None
    )
    odd = f", {found.nan} NaN, {found.inf} infinite" if found.nan or found.inf else ""
    array = np.array2string(step.value, precision=3, threshold=60, edgeitems=3, max_line_width=96)
    return f"{step!r}{' built now' * step.lazy}: {numbers}{odd}\n{array}"
