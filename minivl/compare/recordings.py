"""Open a recording: a trace, a dict of arrays or torch tensors, a .safetensors, .npz or .pt file written by any program.

recording = open_recording("port.npz")
recording["visual.patch_embed"]          # NumPy, bfloat16 upcast to float32
recording.config                         # the model's config.json, if the file or the Trace has it
"""

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minivl.checkpoint.safetensors import read_tensors
from minivl.errors import Error
from minivl.kernels.bfloat16 import to_float32
from minivl.tensors.chunks import chunks_by_name, concatenate


class Recording(Mapping):
    """Named arrays in the order in which they were written.

    label  the file, or a phrase such as "our recording";  metadata  of the file
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


def open_recording(source, label="the recording"):
    """The `Recording` in a file, or of a Mapping such as a Trace. Raises Error for anything but arrays of numbers."""
    if isinstance(source, Recording):
        return source
    if isinstance(source, Mapping):
        return record_mapping(source, label, getattr(source, "info", None))
    if not isinstance(source, (str, os.PathLike)):
        raise Error(
            f"a {type(source).__name__} is not a recording. "
            "Give a Trace, a dict of arrays, or a .safetensors, .npz or .pt file."
        )
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise Error(f"{path} {what}. Give a .safetensors, .npz or .pt file of named tensors.")
    readers = {".npz": read_npz, ".safetensors": read_safetensors, ".pt": read_pt, ".pth": read_pt}
    if path.suffix not in readers:
        raise Error(
            f"{path} is no .safetensors, .npz or .pt file. Write one: numpy.savez(path, **arrays), a name for each array."
        )
    return readers[path.suffix](path)


def record_mapping(mapping, label, metadata=None):
    arrays = {}
    for name in mapping:
        try:
            array = to_array(mapping[name])
        except (ValueError, TypeError, RuntimeError) as cause:
            raise Error(f"{name!r} of {label} is no array: {cause}. Give arrays of numbers.") from None
        if not isinstance(name, str) or array.dtype.kind not in "fiub":
            raise Error(f"{name!r} of {label} is {array.dtype}; it must be an array of numbers with a name.")
        arrays[name] = array
    return Recording(concatenate(arrays), label, metadata if isinstance(metadata, Mapping) else None)


def to_array(value):
    """NumPy array of an array or tensor of any library, or of the first one in a tuple, as modules return them.

    bfloat16 becomes float32: of torch, of JAX (ml_dtypes), and the 2-byte void that it becomes in an .npz file.
    """
    if isinstance(value, tuple) and value and hasattr(value[0], "shape"):
        return to_array(value[0])
    if hasattr(value, "detach"):  # torch: on any device, with gradients or without
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
        return value.numpy()
    array = np.asarray(value)
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == 2:
        return to_float32(np.ascontiguousarray(array).view(np.uint16))
    return array


def read_safetensors(path):
    tensors, metadata = read_tensors(path)
    names = recorded_order(tensors, metadata)
    if not chunks_by_name(names):
        return Recording(tensors, str(path), metadata, names)
    return Recording(concatenate({name: tensors[name] for name in names}), str(path), metadata)


def recorded_order(names, metadata):
    """The names in the order of the run.

    subtle: safetensors sorts tensors by dtype and name; the metadata "names" of a trace's file has the order of the run.
    """
    try:
        order = {name: i for i, name in enumerate(json.loads(metadata["names"]))}
    except (KeyError, TypeError, ValueError):
        return names
    return sorted(names, key=lambda name: order.get(name, len(order)))


def read_npz(path):
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip file")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as cause:  # zipfile, zlib and NumPy raise exceptions of their own
        raise Error(f"cannot read {path}: {cause}. Write it with numpy.savez(path, **arrays).") from None
    return record_mapping(arrays, str(path))


# ---- .pt files, without torch ----

STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "BFloat16Storage": np.uint16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


def read_pt(path):
    """A dict of tensors as torch.save writes it. No code in it is run: only tensors, numbers and containers are read."""
    try:
        with zipfile.ZipFile(path) as file:
            if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
                raise ValueError("its data is compressed, which torch.save never does")
            pickled = next((name for name in file.namelist() if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise ValueError("it has no data.pkl")
            with file.open(pickled) as stream:
                contents = TensorUnpickler(stream, file, pickled.removesuffix("data.pkl")).load()
    except Exception as cause:  # damaged zip files and pickles raise all kinds
        raise Error(f"cannot read {path}: {cause}. Write it with torch.save({{name: tensor, ...}}, path).") from None
    if not isinstance(contents, Mapping):
        raise Error(f"{path} is a {type(contents).__name__}. Write it with torch.save({{name: tensor, ...}}, path).")
    return record_mapping(contents, str(path))


class TensorUnpickler(pickle.Unpickler):
    """Read torch tensors as NumPy arrays and refuse every other class."""

    def __init__(self, stream, file, folder):
        super().__init__(stream)
        self.file, self.folder = file, folder

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, requires_grad, hooks: data
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"it has a {module}.{name}, not tensors alone")

    def persistent_load(self, pid):
        _, storage, key, _, _ = pid
        return np.frombuffer(self.file.read(f"{self.folder}data/{key}"), dtype=STORAGES[storage]), storage


def rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, flags=None):
    """The array of a tensor. Raises ValueError if it reaches beyond its storage, or if its values are to be changed."""
    if flags:
        raise ValueError(
            f"a tensor is stored as it is not ({', '.join(flags)}): save its .resolve_neg().resolve_conj()"
        )
    values, kind = storage
    end = offset + sum((n - 1) * step for n, step in zip(shape, strides)) + 1
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and end > len(values)):
        raise ValueError("a tensor is larger than its data")
    if 0 in shape:
        values, offset, strides = values[:0], 0, [0] * len(shape)
    steps = [step * values.itemsize for step in strides]
    array = np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()
    return to_float32(array) if kind == "BFloat16Storage" else array
