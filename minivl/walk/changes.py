"""Changes of the tensor at which a walk has stopped, given as text.

    walk.replace(change(step, "scale", "0.5"))
    walk.replace(change(step, "swap", "3 5"))

Rows are those of the tensor's own order (docs/tensors.md); of [heads, rows, ...] row 3 is that row of every head.
"""

import math
from collections import namedtuple
from pathlib import Path

import numpy as np

from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.trace.edits import row_index
from minivl.trace.trace import Trace

Change = namedtuple("Change", "make arguments meaning")


def change(step, name, text=""):
    """The tensor of a `Step` after the change of this name. -> array of the same shape and dtype

    text  its arguments, as listed in CHANGES[name].arguments
    """
    if name not in CHANGES:
        raise Error(f"there is no change {name!r}.{did_you_mean(name, CHANGES)} There are: {', '.join(CHANGES)}.")
    make, arguments, _ = CHANGES[name]
    words = [text.strip()] if arguments == ("FILE",) and text.strip() else text.split()
    if len(words) != len(arguments):
        raise Error(
            f"{name} takes {len(arguments) or 'no'} argument{'s' * (len(arguments) != 1)}: {format_usage(name)}."
        )
    return make(step, *words)


def format_usage(name):
    """ "scale X": the change with its arguments."""
    return " ".join((name, *CHANGES[name].arguments))


def zero(step):
    return np.zeros_like(step.value)


def scale(step, factor):
    check_float(step, "scale")
    return step.value * np.float32(parse_number(factor, "scale X"))


def set_row(step, row, value):
    tensor, value = step.value.copy(), parse_number(value, "row N X")
    if tensor.dtype.kind != "f":
        limits = np.iinfo(tensor.dtype)
        if value != int(value) or not limits.min <= value <= limits.max:
            raise Error(
                f"row N X: {step.name} holds integers from {limits.min} to {limits.max}; {value:g} is none."
            )
    tensor[row_index(step.name, tensor, parse_index(row, "row N X"))] = value
    return tensor


def add_noise(step, deviation, seed):
    check_float(step, "noise")
    deviation, seed = parse_number(deviation, "noise X SEED"), parse_index(seed, "noise X SEED")
    noise = np.random.default_rng(seed).standard_normal(step.shape, dtype=np.float32)
    return step.value + np.float32(deviation) * noise


def swap(step, first, second):
    tensor = step.value.copy()
    a, b = (row_index(step.name, tensor, parse_index(row, "swap N M")) for row in (first, second))
    tensor[a], tensor[b] = step.value[b], step.value[a]
    return tensor


def load(step, path):
    """The array of a .npy file, or the tensor of this name in a .safetensors file."""
    try:
        file = Path(path).expanduser()
    except RuntimeError as cause:
        raise Error(f"cannot read {path}: {cause}") from None
    if file.suffix == ".safetensors":
        trace = Trace.load(file)
        if step.name not in trace:
            raise Error(f"{path} holds no {step.name}. Record it with keep={step.name!r}.")
        return np.array(trace[step.name])
    if file.suffix != ".npy":
        raise Error(f"load takes a .npy file (numpy.save) or a .safetensors file (minivl trace); {path} is neither.")
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
        raise Error(f"cannot read {path}: {reason}. Write it with numpy.save(path, array).") from None


def check_float(step, name):
    if step.dtype.kind != "f":
        raise Error(f"{name} is for tensors of float32; {step.name} is {step.dtype}. Use row, swap, zero or load.")


def parse_number(text, form):
    """A finite number; `form` stands in the error."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise Error(f"{form}: {text!r} is not a finite number.")
    return value


def parse_index(text, form):
    """An integer from 0; `form` stands in the error."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise Error(f"{form}: {text!r} is not an integer from 0.")
    return int(text)


CHANGES = {
    "zero": Change(zero, (), "zeros"),
    "scale": Change(scale, ("X",), "every number times X"),
    "row": Change(set_row, ("N", "X"), "every number of row N becomes X"),
    "noise": Change(add_noise, ("X", "SEED"), "add normal noise with standard deviation X, drawn with this seed"),
    "swap": Change(swap, ("N", "M"), "exchange rows N and M"),
    "load": Change(load, ("FILE",), "the array of a .npy file, or this tensor of a .safetensors file"),
}
