"""Open a recording: a trace, a dict of arrays, a .safetensors or .npz file written by any program.

recording = open_recording("port.npz")
recording["visual.patch_embed"]          # NumPy, bfloat16 upcast to float32
recording.config                         # the model's config.json, if the file or the Trace has it
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minivl.checkpoint.safetensors import read_tensors
from minivl.errors import Error
from minivl.tensors.chunks import chunks_by_name, concatenate


class Recording(Mapping):
    """Named arrays in the order in which they were written.

    label  the file, or "the first";  metadata  of the file
    """

    def __init__(self, arrays, label, metadata=None, names=None):
        self._arrays, self._names, self.label = arrays, list(arrays if names is None else names), label
        self.metadata = metadata or {}

    def __getitem__(self, name):
        return self._arrays[name]

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._arrays)

    @property
    def config(self):
        """The contents of the model's config.json, if the file has them; else None."""
        config = self.metadata.get("config")
        try:
            config = json.loads(config) if isinstance(config, str) else config
        except ValueError:
            return None
        return config if isinstance(config, dict) else None


def open_recording(source, label="the second"):
    """The `Recording` in a file, or of a Mapping such as a Trace. Raises Error for anything but arrays of numbers."""
    if isinstance(source, Recording):
        return source
    if isinstance(source, Mapping):
        return record_mapping(source, label, getattr(source, "info", None))
    if not isinstance(source, (str, os.PathLike)):
        raise Error(
            f"a {type(source).__name__} is not a recording. Give a Trace, a dict of arrays, or a .safetensors or .npz file."
        )
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise Error(f"{path} {what}. Give a .safetensors or .npz file of named tensors.")
    if path.suffix not in (".npz", ".safetensors"):
        raise Error(
            f"{path} is no .safetensors or .npz file. Write one: numpy.savez(path, **arrays), a name for each array."
        )
    return read_npz(path) if path.suffix == ".npz" else read_safetensors(path)


def record_mapping(mapping, label, metadata=None):
    arrays = {}
    for name in mapping:
        try:
            array = np.asarray(mapping[name])
        except ValueError as cause:
            raise Error(f"{name!r} of {label} is no array: {cause}. Give arrays of numbers.") from None
        if not isinstance(name, str) or array.dtype.kind not in "fiub":
            raise Error(
                f"{name!r} of {label} is {array.dtype}; it must be an array of numbers with a name. From torch: "
                "tensor.detach().float().cpu().numpy()."
            )
        arrays[name] = array
    return Recording(concatenate(arrays), label, metadata if isinstance(metadata, Mapping) else None)


def read_safetensors(path):
    tensors, metadata = read_tensors(path)
    names = recorded_order(tensors, metadata)
    if not chunks_by_name(names):
        return Recording(tensors, str(path), metadata, names)
    return Recording(concatenate({name: tensors[name] for name in names}), str(path), metadata)


def recorded_order(names, metadata):
    """subtle: safetensors sorts tensors by dtype and name; the metadata "names" of a trace's file has the order of the run."""
    try:
        order = {name: i for i, name in enumerate(json.loads(metadata["names"]))}
    except (KeyError, TypeError, ValueError):
        return names
    return sorted(names, key=lambda name: order.get(name, len(order)))


def read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as cause:  # zipfile, zlib and NumPy raise exceptions of their own
        raise Error(f"cannot read {path}: {cause}. Write it with numpy.savez(path, **arrays).") from None
    return record_mapping(arrays, str(path))
