"""Recorded tensors, from wherever they come: a trace, a dict, a .safetensors or .npz file that any program wrote.

recording = opened("port.npz")
recording["visual.patch_embed"]          # NumPy, bfloat16 upcast to float32
recording.config                         # the model's config.json, if the file or the Trace says it
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minivl.errors import Error
from minivl.kernels.bfloat16 import to_float32
from minivl.parts import whole
from minivl.weights import read_file, read_header

INTEGERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, **INTEGERS}


class Recording(Mapping):
    """Named arrays, in the order in which they were written, and where they are from.

    stored  {name: the dtype it was stored in}, for what NumPy has no dtype of
    """

    def __init__(self, arrays, label, metadata=None, stored=None):
        self._arrays, self.label = arrays, label
        self.metadata, self.stored = metadata or {}, stored or {}

    def __getitem__(self, name):
        array = self._arrays[name]
        return to_float32(array) if self.stored.get(name) == "BF16" else array

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self):
        return len(self._arrays)

    @property
    def config(self):
        """The contents of the model's config.json, if the file says them; else None."""
        found = self.metadata.get("config")
        try:
            found = json.loads(found) if isinstance(found, str) else found
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


def opened(source, label="the second"):
    """A `Recording` of a path, or of a Mapping such as a Trace; an Error if that is no array, or no file of arrays."""
    if isinstance(source, Recording):
        return source
    if isinstance(source, Mapping):
        return checked(source, label, getattr(source, "info", None))
    if not isinstance(source, (str, os.PathLike)):
        raise Error(
            f"a {type(source).__name__} is not a recording. Give a Trace, a dict of arrays, or a .safetensors or .npz file."
        )
    path = Path(source)
    if not path.is_file():
        raise Error(f"{path} does not exist. Give a .safetensors or .npz file of named tensors.")
    return read_npz(path) if path.suffix == ".npz" else read_safetensors(path)


def checked(mapping, label, metadata=None):
    arrays = {}
    for name in mapping:
        array = np.asarray(mapping[name])
        if not isinstance(name, str) or array.dtype.kind not in "fiub":
            raise Error(
                f"{name!r} of {label} is {array.dtype}; it must be an array of numbers with a name. From torch: "
                "tensor.detach().float().cpu().numpy()."
            )
        arrays[name] = array
    return Recording(whole(arrays), label, metadata if isinstance(metadata, Mapping) else None)


def read_safetensors(path):
    header, _ = read_header(path)
    stored = {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__" and "dtype" in entry}
    metadata = header.get("__metadata__")
    arrays = in_order(read_file(path, DTYPES), metadata)
    return Recording(whole(arrays), str(path), metadata if isinstance(metadata, dict) else None, stored)


def in_order(arrays, metadata):
    """subtle: safetensors sorts tensors by dtype and name; a trace's file says in "names" how they followed each other."""
    try:
        order = {name: place for place, name in enumerate(json.loads(metadata["names"]))}
    except (KeyError, TypeError, ValueError):
        return arrays
    return {name: arrays[name] for name in sorted(arrays, key=lambda name: order.get(name, len(order)))}


def read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as cause:  # zipfile, zlib and NumPy raise their own kinds
        raise Error(f"cannot read {path}: {cause}. Write it with numpy.savez(path, **arrays).") from None
    return checked(arrays, str(path))
