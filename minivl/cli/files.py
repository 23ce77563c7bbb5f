"""Check where a command may write its result."""

import os
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import check_writable


def check_output(option, path, inputs, model=None):
    """Check that a result can be written to `path` and overwrites nothing that this command reads, before minutes are spent.

    option  its name for messages;  inputs  files that are read;  model  the --model, a file or a folder
    """
    if path is None:
        return
    check_writable(path)
    target = Path(path)
    if any(is_same_file(target, Path(name)) for name in inputs):
        raise Error(f"{option} {path} would overwrite a file that is read. Give another file.")
    if model is not None and target.exists() and is_part_of(target, Path(model)):
        raise Error(f"{option} {path} would overwrite a file of the model. Give another file.")


def check_safetensors_name(path):
    """Raise an Error for an -o without the suffix by which `minivl compare` knows what the file is."""
    if path is not None and not path.endswith(".safetensors"):
        raise Error(f"-o {path}: tensors are written as safetensors. Give a name that ends in .safetensors.")


def check_outputs(options, names, inputs):
    """`check_output` for several options; two of them may not name one file."""
    taken = {}
    for name in names:
        option, path = f"--{name.replace('_', '-')}", getattr(options, name)
        check_output(option, path, inputs, getattr(options, "model", None))
        if path is not None:
            other = taken.setdefault(os.path.realpath(path), option)
            if other != option:
                raise Error(f"{other} and {option} are both {path}. Give each its own file.")


def is_same_file(a, b):
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False


def is_part_of(path, model):
    """Whether a path is the model's file, or lies in its folder."""
    return is_same_file(path, model) or (model.is_dir() and path.resolve().is_relative_to(model.resolve()))
