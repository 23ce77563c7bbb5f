"""safetensors files: memory-mapped to read, written tensor by tensor.

    tensors, metadata = read_tensors("run.safetensors")     # mapped: nothing is read yet
    with write_tensors("run.safetensors") as file:
        file.add("visual", array)                           # written now, so no tensor has to be kept in memory
        file.metadata = {"format": "minivl-trace"}

The format: 8 bytes length | JSON header {name: {dtype, shape, data_offsets}} | data, without gaps; offsets count from the
end of the header. It is not read with the safetensors package, which copies what it reads for NumPy and does not map it.

subtle: the header comes first, but its length is known last. `write_tensors` reserves space for it and pads it with spaces,
which the format allows. Readers that map the file (torch) need aligned values, so tensors of 8-byte values wait in memory
until the end (a trace has few of them, all small) and stand before the others:

    8 bytes length | header, spaces | 8-byte values | the others, in the order they came | those of odd length
"""

import json
import math
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minivl.errors import Error
from minivl.helpers import format_bytes, write_whole
from minivl.kernels.bfloat16 import to_float32

LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
MOST_AXES = 64  # NumPy's limit
DTYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}  # of weights; bfloat16 as its bits
INTEGERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
UNSIGNED = {"U64": np.uint64, "U32": np.uint32}  # token ids of MLX, for one
ALL_DTYPES = {**DTYPES, "F64": np.float64, **INTEGERS, **UNSIGNED}  # of traces and recordings
CODES = {np.dtype(dtype).name: code for code, dtype in ALL_DTYPES.items() if code != "BF16"}
RESERVED = 1 << 18  # bytes reserved for the header and the tensors of 8-byte values
ALIGNMENT = 64
PIECE = 1 << 24  # bytes copied at a time


# ---- reading ----


def read_tensors(path):
    """(`Tensors`, metadata) of a safetensors file, in the order of its data. Nothing is read before it is used."""
    header, _ = read_header(path)
    metadata = header.pop("__metadata__", {})
    arrays = read_file(path, ALL_DTYPES)
    upcast = {name for name in arrays if header[name]["dtype"] == "BF16"}
    return Tensors(arrays, upcast), metadata if isinstance(metadata, dict) else {}


class Tensors(Mapping):
    """The arrays of a file, read-only and mapped; bfloat16, which NumPy lacks, is upcast when it is indexed."""

    def __init__(self, arrays, upcast):
        self._arrays, self._upcast = arrays, upcast

    def __getitem__(self, name):
        return to_float32(self._arrays[name]) if name in self._upcast else self._arrays[name]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self):
        return len(self._arrays)


def read_file(path, dtypes=DTYPES):
    """{name: array} of a safetensors file, in the order of its data: read-only maps of the file, nothing is read yet.

    dtypes  {dtype in the header: NumPy's} that are accepted
    """
    header, start = read_header(path)
    header.pop("__metadata__", None)
    size = os.path.getsize(path) - start
    entries = {name: parse_entry(path, name, entry, dtypes) for name, entry in header.items()}
    ordered = sorted(entries.items(), key=lambda item: item[1][2:])
    check_no_gaps(path, ordered, size)
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=start) if size else np.zeros(0, dtype=np.uint8)
    arrays = {}
    for name, (dtype, shape, begin, _) in ordered:
        try:
            arrays[name] = np.ndarray(shape, dtype, buffer=data, offset=begin)
        except (ValueError, OverflowError):  # an empty tensor whose other axes are beyond what NumPy counts
            raise Error(f"{path}: {name} is too large, {list(shape)}. Download the file again.") from None
        arrays[name].flags.writeable = False
    return arrays


def read_header(path):
    """(JSON header, byte at which the data starts) of a safetensors file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Error(f"cannot read {path}: it is not a file. Give a checkpoint folder or a .safetensors file.")
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start = file.read(length if length <= min(size - 8, LONGEST_HEADER) else 40)
    except OSError as cause:
        raise Error(f"cannot read {path}: {cause.strerror}. Give a checkpoint folder or a .safetensors file.") from None
    if start[:1] != b"{" and b"git-lfs" in length.to_bytes(8, "little") + start[:40]:
        raise Error(f"{path} is a git-lfs pointer, not the weights. Run `git lfs pull` in its folder.")
    if size < 8 or (start[:1] == b"{" and length > size - 8):
        raise Error(f"{path} has {size} bytes and is not a complete safetensors file. Download it again.")
    try:
        header = json.loads(start)
    except (ValueError, RecursionError):  # subtle: brackets that are nested deeply end Python's JSON reader
        header = None
    if not isinstance(header, dict):
        raise Error(
            f"{path} does not start with a safetensors header. Is it another format, such as .bin, .gguf or .json? Give the "
            "checkpoint's folder, or its .safetensors file; if it is one, download it again."
        )
    return header, 8 + length


def parse_entry(path, name, entry, dtypes):
    """(NumPy dtype, shape, first byte, last byte + 1) of a tensor, from its entry in the header."""
    try:
        code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = isinstance(code, str) and all(type(n) is int and n >= 0 for n in [*shape, start, end])
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise Error(f"{path}: the header's entry for {name} is damaged. Download the file again.")
    if code not in dtypes:
        raise Error(
            f"{path}: {name} is stored as {code}; minivl reads {', '.join(dtypes)}, no quantised weights. Turn them back into "
            "one of these first."
        )
    if len(shape) > MOST_AXES:
        raise Error(f"{path}: {name} has {len(shape)} axes; NumPy has at most {MOST_AXES}. Download the file again.")
    dtype = np.dtype(dtypes[code])
    if end - start != math.prod(shape) * dtype.itemsize:
        stored = f"{code} {str(list(shape)):.80}"
        raise Error(f"{path}: {name} has {end - start} bytes, which does not fit {stored}. Download the file again.")
    return dtype, shape, start, end


def check_no_gaps(path, ordered, size):
    """Check that tensors follow one another: each byte of the data is in exactly one, as the format demands."""
    before, at = "the header", 0
    for name, (_, _, start, end) in ordered:
        if start < at:
            raise Error(f"{path}: {before} and {name} share {at - start} bytes. It is damaged: download it again.")
        if end > size:
            raise Error(f"{path} ends in the middle of {name}: {end - size} bytes are missing. Download it again.")
        if start > at:
            raise Error(f"{path}: {start - at} bytes before {name} are in no tensor. Download the file again.")
        before, at = name, end
    if at < size:
        raise Error(f"{path}: {size - at} bytes after {before} are in no tensor. Download the file again.")


# ---- writing ----


@contextmanager
def write_tensors(path, reserve=RESERVED):
    """Write a safetensors file, complete or not at all (`helpers.write_whole`): yields a `TensorWriter`.

    reserve  bytes for header and 8-byte values, see `bytes_to_reserve`; where they are too few, the data is moved at the end
    """
    if not isinstance(path, (str, os.PathLike)):
        raise Error(f"cannot write {path!r}: give the path of a file, such as run.safetensors.")
    with write_whole(path) as partial, open(partial, "rb+") as file:
        writer = TensorWriter(Path(path), file, reserve)
        yield writer
        writer._finish()


def bytes_to_reserve(tensors, metadata):
    """Bytes that the header and the 8-byte values of such a file take at most."""
    header = 1000 + len(json.dumps(metadata)) + sum(len(json.dumps(name)) + 160 for name in tensors)
    return header + sum(array.nbytes for array in tensors.values() if array.itemsize > 4)


class TensorWriter:
    """An open file of `write_tensors`.

    metadata  {str: str} of the header; set it before the block ends
    """

    def __init__(self, path, file, reserve):
        self.path, self.metadata = path, {}
        self._file, self._start = file, align(reserve)  # where the tensors start that are written at once
        self._written, self._waiting = {}, {}  # name: (dtype, shape);  name: array
        file.seek(self._start)

    @property
    def free_bytes(self):
        """Free bytes of the disk."""
        return shutil.disk_usage(self.path.parent).free

    def add(self, name, array):
        """Write a tensor after the others; each name once."""
        if name in self._written or name in self._waiting:
            raise Error(f"a second tensor is called {name}: a file holds each name once. Keep only one of them.")
        if array.dtype.name not in CODES:
            raise Error(f"{name} is {array.dtype}; a file of tensors holds {', '.join(CODES)}.")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)  # as the format has it
        if array.itemsize <= 4 and array.nbytes % 4 == 0:
            self._write(name, array)
        else:
            self._waiting[name] = array

    def _write(self, name, array):
        self._file.write(np.ascontiguousarray(array).data)
        self._written[name] = CODES[array.dtype.name], array.shape

    def _finish(self):
        """Write the tensors that waited, then the header."""
        wide = {name: array for name, array in self._waiting.items() if array.itemsize == 8}
        odd = {name: array for name, array in self._waiting.items() if name not in wide}
        for name in sorted(odd, key=lambda name: -odd[name].itemsize):
            self._write(name, odd[name])
        entries = {name: (CODES[array.dtype.name], array.shape) for name, array in wide.items()} | self._written
        nbytes = sum(array.nbytes for array in wide.values())
        missing = len(encode_header(entries, self.metadata)) + nbytes - self._start
        if missing > 0:
            self._insert(align(missing))
        self._file.seek(0)
        self._file.write(encode_header(entries, self.metadata, self._start - nbytes))
        for array in wide.values():
            self._file.write(np.ascontiguousarray(array).data)

    def _insert(self, count):
        """Move the data towards the end by `count` bytes, its last piece first."""
        end = self._file.seek(0, os.SEEK_END)
        for at in reversed(range(self._start, end, PIECE)):
            self._file.seek(at)
            piece = self._file.read(PIECE)
            self._file.seek(at + count)
            self._file.write(piece)
        self._start += count


def encode_header(entries, metadata, length=None):
    """The bytes before the data of a safetensors file: 8 bytes length and the padded JSON.

    entries  {name: (dtype of the format, shape)}, in the order of the data;  length  of the result; None: the shortest
    """
    header, end = {"__metadata__": metadata}, 0
    for name, (code, shape) in entries.items():
        start, end = end, end + math.prod(shape) * np.dtype(ALL_DTYPES[code]).itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    padded = align(len(text) + 8, 8) - 8 if length is None else length - 8
    if padded > LONGEST_HEADER:
        raise Error(
            f"names and metadata take {format_bytes(len(text))}; the header of a safetensors file has at most "
            f"{format_bytes(LONGEST_HEADER)}. Keep fewer tensors."
        )
    return padded.to_bytes(8, "little") + text.ljust(padded)


def align(count, step=ALIGNMENT):
    """`count` rounded up to a multiple of `step`."""
    return -(-count // step) * step
