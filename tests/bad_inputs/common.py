"""What the tables of bad inputs are made of."""

import functools
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import minivl
from minivl.tiny import CHECKPOINT

CHECKPOINT = Path(CHECKPOINT)
WORDS = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json")


class Bad(NamedTuple):
    """A bad input.

    name   what is bad
    act    function of a folder that must raise a minivl.Error
    cause, fix  words of its message: what is wrong, and what to do
    prepare     function of the empty folder that writes what `act` reads
    """

    name: str
    act: object
    cause: str
    fix: str
    prepare: object = None


@functools.cache
def tiny():
    """The model that ships, with the plain kernels: nothing is compiled."""
    return minivl.load(backend="numpy")


def copy_checkpoint(folder, weights=True):
    """The files of the model that ships; its weights are a link."""
    for path in CHECKPOINT.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
        elif weights:
            (folder / path.name).symlink_to(path)


def write(folder, name, content):
    """Write text, bytes, or anything else as JSON."""
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def stored(name):
    return json.loads((CHECKPOINT / name).read_text(encoding="utf-8"))


def changed(name, changes):
    """The object in a file of the model that ships, with other fields; "vision_config.depth" is a field inside another."""
    whole = stored(name)
    for field, value in changes.items():
        *outer, last = field.split(".")
        inner = whole
        for part in outer:
            inner = inner[part]
        if value is REMOVED:
            inner.pop(last)
        else:
            inner[last] = value
    return whole


REMOVED = object()


def with_file(name, content):
    """A `prepare`: the checkpoint that ships with one file replaced, by the whole content or by changed fields."""

    def prepare(folder):
        copy_checkpoint(folder)
        write(folder, name, content() if callable(content) else content)

    return prepare


def load(folder):
    return minivl.load(folder, backend="numpy")
