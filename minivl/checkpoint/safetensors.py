"""A safetensors file that is written tensor by tensor, while they are made: none has to be kept in memory.

    with TensorFile("run.safetensors") as file:
        file.add("visual", array)                # written now
        file.close({"format": "minivl-trace"})   # the file appears under its name: whole, or not at all
    tensors, metadata = read_tensors("run.safetensors")    # mapped: nothing is read yet

The format wants its header first, and says what only the end knows. So room is left in front, filled up with spaces, which the
format allows. Tensors of 8-byte values, which are small here, wait for the end and stand between header and the others, where
they are aligned; readers that map the file (torch) need that:

    8 bytes length | header, spaces | int64 tensors | the others, in the order in which they came | those of odd length

If the room is too small for the header, the first tensors move to the end and leave theirs.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minivl.checkpoint.weights import DTYPES, read_file, read_header
from minivl.errors import Error
from minivl.kernels.bfloat16 import to_float32

ROOM = 1 << 18  # bytes left for a header and the tensors of 8-byte values, unless somebody knows better
ALIGNED = 64
INTEGERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
KINDS = {**DTYPES, "F64": np.float64, **INTEGERS}
NAMES = {np.dtype(kind).name: name for name, kind in KINDS.items() if name != "BF16"}


class TensorFile:
    """Used in a `with`: left before `close`, it leaves nothing behind."""

    def __init__(self, path, room=ROOM):
        if not isinstance(path, (str, os.PathLike)):
            raise Error(f"cannot write {path!r}: give the path of a file, such as run.safetensors.")
        self.path, self.partial = Path(path), Path(f"{path}.partial")
        if not self.path.parent.is_dir() or self.path.is_dir():
            what = "it is a folder" if self.path.is_dir() else f"the folder {self.path.parent} does not exist"
            raise Error(f"cannot write {path}: {what}. Give a file in a folder that is there.")
        self._start = self._end = -(-room // ALIGNED) * ALIGNED  # of the tensors that are written as they come
        self._placed, self._waiting = {}, {}  # name: (dtype, shape, first byte in the file, bytes);  name: array
        with explained(self.path):
            self._file = open(self.partial, "wb+")  # noqa: SIM115, closed in close() or __exit__

    def __enter__(self):
        return self

    def __exit__(self, kind, error, where):
        self._file.close()
        self.partial.unlink(missing_ok=True)  # after `close` there is none

    @property
    def free(self):
        """Bytes that the disk has left."""
        return shutil.disk_usage(self.path.parent).free

    def add(self, name, array):
        """Write a tensor behind the others; a name only once."""
        if name in self._placed or name in self._waiting:
            raise Error(f"a second tensor is called {name}: a file holds each name once. Keep only one of them.")
        if array.dtype.name not in NAMES:
            raise Error(f"{name} is {array.dtype}; a trace holds {', '.join(NAMES)}.")
        if array.itemsize > 4 or array.nbytes % 4:
            self._waiting[name] = array
        else:
            self._append(name, array)

    def close(self, metadata):
        """Write the header and give the file its name. metadata: {str: str}"""
        front = {name: array for name, array in self._waiting.items() if array.itemsize > 4}
        size = sum(array.nbytes for array in front.values())
        with explained(self.path):
            longest = len(self._header(self._waiting, metadata, 0)) + 16 * len(
                self._placed
            )  # moved ones have longer offsets
            self._make_room(8 + longest + size)
            rest = [name for name in self._waiting if name not in front]
            for name in sorted(rest, key=lambda name: -self._waiting[name].itemsize):
                self._append(name, self._waiting[name])
            room = self._start - size - 8
            self._file.seek(0)
            self._file.write(room.to_bytes(8, "little") + self._header(front, metadata, room).ljust(room))
            for array in front.values():
                self._file.write(np.ascontiguousarray(array).data)
            self._file.close()
            os.replace(self.partial, self.path)

    def _append(self, name, array):
        with explained(self.path):
            self._write(np.ascontiguousarray(array).data)
        self._placed[name] = (NAMES[array.dtype.name], array.shape, self._end - array.nbytes, array.nbytes)

    def _write(self, data):
        """Behind all tensors."""
        self._file.seek(self._end)
        self._end += self._file.write(data)

    def _make_room(self, needed):
        """Move tensors from the front to the end, until the others start after `needed` bytes, aligned for 8-byte values."""
        if self._start == self._end:
            self._start = self._end = max(self._start, -(-needed // ALIGNED) * ALIGNED)
            self._placed = {name: (*kind, self._start, 0) for name, (*kind, _, _) in self._placed.items()}
        while self._start < needed or self._start % 8:
            name = next(iter(self._placed))
            dtype, shape, start, nbytes = self._placed.pop(name)
            self._file.seek(start)
            self._placed[name] = (dtype, shape, self._end, nbytes)
            self._write(self._file.read(nbytes))
            self._start = next(iter(self._placed.values()))[2]

    def _header(self, front, metadata, room):
        """JSON. Offsets count from behind the header, which ends `room` + 8 bytes into the file."""
        header, at = {"__metadata__": metadata}, 0
        for name, array in front.items():
            header[name] = entry(NAMES[array.dtype.name], array.shape, at, array.nbytes)
            at += array.nbytes
        for name, (dtype, shape, start, nbytes) in self._placed.items():
            header[name] = entry(dtype, shape, start - room - 8, nbytes)
        return json.dumps(header).encode()


@contextmanager
def explained(path):
    """What the system says against writing becomes an Error."""
    try:
        yield
    except OSError as cause:
        raise Error(f"cannot write {path}: {cause.strerror}. Is there room, and may it be written?") from None


def room_for(tensors, metadata):
    """Bytes that header and 8-byte values of such a file take at most."""
    header = 1000 + len(json.dumps(metadata)) + sum(len(json.dumps(name)) + 160 for name in tensors)
    return header + sum(array.nbytes for array in tensors.values() if array.itemsize > 4)


def entry(dtype, shape, start, nbytes):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + nbytes]}


class Tensors(Mapping):
    """The arrays of a file, read-only maps of it. Only bfloat16, which NumPy does not have, is upcast, when it is asked for."""

    def __init__(self, arrays, upcast):
        self._arrays, self._upcast = arrays, upcast

    def __getitem__(self, name):
        return to_float32(self._arrays[name]) if name in self._upcast else self._arrays[name]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self):
        return len(self._arrays)


def read_tensors(path):
    """(`Tensors`, metadata) of a safetensors file, in the order of its data."""
    header, _ = read_header(path)
    metadata = header.pop("__metadata__", {})
    arrays = read_file(path, KINDS)
    order = sorted(arrays, key=lambda name: header[name]["data_offsets"])
    upcast = {name for name in order if header[name]["dtype"] == "BF16"}
    return Tensors({name: arrays[name] for name in order}, upcast), metadata if isinstance(metadata, dict) else {}
