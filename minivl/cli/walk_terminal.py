"""`minivl walk --step`: a walk driven by commands, one a line, from a terminal or from stdin.

walk_by_commands(vlm.walk(..., level="block"))
"""

import sys
import textwrap

import numpy as np

from minivl.errors import Error
from minivl.tensors.catalogue import LEVELS, level
from minivl.walk.walk import format_step

HELP = """\
Enter    go on to the next stop            e        explain: formula, shapes, why
s        skip to the next stage            v        value: statistics and some numbers
u NAME   go on until this tensor or glob   z        replace the tensor by zeros
b [NAME] back to the last stop, or to one  l LEVEL  stop at every stage, block or tensor
f        finish: go on to the answer       q        quit"""


def walk_by_commands(walk, lines=None):
    """Run the commands in `lines` (default: stdin) until they end. -> the `Answer`, or None if it was not reached"""
    lines = read_commands() if lines is None else iter(lines)
    print("Enter goes on, e explains, ? lists all commands.", flush=True)
    show(next(walk, None))
    for entered in lines:
        command, _, argument = entered.strip().partition(" ")
        if command == "q":
            return None
        try:
            run_command(walk, command, argument.strip())
        except Error as error:
            print(f"  {error}", flush=True)
        if walk.answer is not None:
            return walk.answer
    return None


def read_commands():
    """Yield lines from stdin, with a prompt on a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        entered = sys.stdin.readline()
        if not entered:
            return
        yield entered


def run_command(walk, command, argument):
    if command == "":
        show(next(walk, None))
    elif command == "s":
        show(next_stage(walk))
    elif command == "u":
        if not argument:
            raise Error("which tensor? Give its name, such as: u visual.merger")
        show(walk.until(argument))
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
        print(textwrap.indent(describe(walk.here()), "  "), flush=True)
    elif command == "z":
        show(walk.replace(np.zeros(walk.here().shape, dtype=walk.here().dtype)))
    else:
        print(HELP, flush=True)


def next_stage(walk):
    for step in walk:
        if level(step.name) == "stage":
            return step
    return None


def show(step):
    if step is not None:
        print(format_step(step) + "  (replaced)" * step.replaced, flush=True)


def describe(step):
    """Statistics of a tensor and its first numbers."""
    stats = step.stats()
    numbers = " ".join(
        f"{name} {value:.4g}" for name in ("min", "max", "mean", "rms") if (value := getattr(stats, name)) is not None
    )
    odd = f", {stats.nan} NaN, {stats.inf} infinite" if stats.nan or stats.inf else ""
    array = np.array2string(step.value, precision=3, threshold=60, edgeitems=3, max_line_width=96)
    return f"{step!r}{' built now' * step.lazy}: {numbers}{odd}\n{array}"
