"""`minivl walk --step`: a walk driven by commands, one a line, from a terminal or from stdin.

walk_by_commands(vlm.walk(...))
"""

import sys
import textwrap
from collections import namedtuple

import numpy as np

from minivl.errors import Error
from minivl.helpers import did_you_mean, format_table
from minivl.tensors.catalogue import LEVELS
from minivl.walk.changes import CHANGES, change, format_usage
from minivl.walk.walk import format_step

Command = namedtuple("Command", "run argument meaning")


def walk_by_commands(walk, lines=None):
    """Run the commands in `lines` (default: stdin) until they end. -> the `Answer`, or None if it was not reached"""
    lines = read_commands() if lines is None else iter(lines)
    print("Enter continues, e explains, ? lists all commands.", flush=True)
    show(next(walk, None))
    for entered in lines:
        if entered.strip() == "q":
            return None
        try:
            run_command(walk, *entered.strip().split(maxsplit=1))
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


def run_command(walk, name="", argument=""):
    """Run one command; an Error if there is none of that name, or it does not take this argument."""
    if name in CHANGES:
        show(walk.replace(change(walk.here(), name, argument)))
        return
    if name not in COMMANDS:
        names = [*filter(None, COMMANDS), *CHANGES]
        hint = did_you_mean(name, CHANGES)
        raise Error(f"there is no command {name}.{hint} There are: Enter {' '.join(names)}; ? explains them.")
    command = COMMANDS[name]
    if argument and not command.argument:
        raise Error(f"{name} takes no argument; {argument} followed it.")
    command.run(walk, *filter(None, [argument]))


# ---- commands: functions of a walk and, where the table says so, of one argument ----


def go_on(walk):
    show(next(walk, None))


def next_stage(walk):
    show(walk.next_stage())


def until(walk, name=None):
    if name is None:
        raise Error("which tensor? Give its name, such as: u visual.merger")
    show(walk.until(name))


def back(walk, name=None):
    show(walk.back(name))


def finish(walk):
    walk.finish()


def set_level(walk, name=""):
    walk.level = name


def explain(walk):
    print(textwrap.indent(textwrap.fill(walk.here().explain(), 96), "  "), flush=True)


def show_value(walk):
    print(textwrap.indent(describe(walk.here()), "  "), flush=True)


def print_help(walk):
    rows = [(f"{name or 'Enter'} {command.argument}", command.meaning) for name, command in COMMANDS.items()]
    changes = [(format_usage(name), CHANGES[name].meaning) for name in CHANGES]
    print("\n".join(format_table([*rows, ("", ""), ("Changes", "of the tensor at this stop"), *changes])), flush=True)


COMMANDS = {
    "": Command(go_on, "", "continue to the next stop"),
    "s": Command(next_stage, "", "skip to the next stage"),
    "u": Command(until, "NAME", "continue until this tensor or glob"),
    "b": Command(back, "[NAME]", "back to the last stop, or to one"),
    "f": Command(finish, "", "finish: continue to the answer"),
    "e": Command(explain, "", "explain: formula, shapes, why"),
    "v": Command(show_value, "", "value: statistics and some numbers"),
    "l": Command(set_level, "LEVEL", f"where to stop: {', '.join(LEVELS)}"),
    "z": Command(lambda walk: run_command(walk, "zero"), "", "the same as zero"),
    "?": Command(print_help, "", "this list"),
    "q": Command(None, "", "quit"),
}


def show(step):
    if step is not None:
        print(format_step(step) + "  (replaced)" * step.replaced, flush=True)


def describe(step):
    """Statistics of a tensor and its first numbers."""
    stats = step.stats()
    values = {name: getattr(stats, name) for name in ("min", "max", "mean", "rms")}
    numbers = " ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
    odd = f", {stats.nan} NaN, {stats.inf} infinite" if stats.nan or stats.inf else ""
    array = np.array2string(step.value, precision=3, threshold=60, edgeitems=3, max_line_width=96)
    return f"{step!r}{' built now' * step.lazy}: {numbers}{odd}\n{array}"
