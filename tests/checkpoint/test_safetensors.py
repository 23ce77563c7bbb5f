"""safetensors files as they are written: complete, aligned, and read by the safetensors package as well."""

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from minivl import Error
from minivl.checkpoint import safetensors
from minivl.checkpoint.safetensors import RESERVED, bytes_to_reserve, read_header, read_tensors, write_tensors

KINDS = st.sampled_from(["float32", "int64", "uint8", "bool", "float16", "int32", "float64"])
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def write(path, tensors, metadata, reserve=RESERVED):
    with write_tensors(path, reserve) as file:
        file.metadata = metadata
        for name, tensor in tensors.items():
            file.add(name, tensor)


def check_equal(a, b):
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert np.array_equal(a[name], b[name]), name


def check_file(path, tensors, metadata):
    """Read by minivl and by the safetensors package, which refuses gaps; each tensor aligned for its values."""
    found, said = read_tensors(path)
    check_equal(found, tensors)
    check_equal(load_file(path), tensors)
    header, start = read_header(path)
    for name, tensor in tensors.items():
        assert (start + header[name]["data_offsets"][0]) % tensor.itemsize == 0, name
    assert said == metadata


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(KINDS, SHAPES), max_size=12), st.integers(0, 3000))
def test_any_tensors_with_any_reserve(tmp_path_factory, kinds, reserve):
    path, metadata = tmp_path_factory.mktemp("files") / "a.safetensors", {"what": "x" * (reserve % 700)}
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.integers(0, 2, shape).astype(kind) for i, (kind, shape) in enumerate(kinds)}
    write(path, tensors, metadata, reserve)
    check_file(path, tensors, metadata)


@pytest.mark.parametrize("piece", [96, 1 << 24])
def test_metadata_about_as_long_as_what_is_reserved(tmp_path, monkeypatch, piece):
    """Every length around the limit: there, files were once written that could not be read."""
    monkeypatch.setattr(safetensors, "PIECE", piece)
    rng = np.random.default_rng(1)
    shapes = {"a": (3, 5), "ids": (4,), "b": (61,), "c": (2, 0), "d": (11,)}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["ids"] = np.arange(4)
    for length in range(1400, 2200, 2):
        metadata = {"prompt": "x" * length}
        write(tmp_path / "a.safetensors", tensors, metadata, 2048)
        check_file(tmp_path / "a.safetensors", tensors, metadata)
    metadata = {"prompt": "y" * RESERVED}
    write(tmp_path / "b.safetensors", tensors, metadata)
    check_file(tmp_path / "b.safetensors", tensors, metadata)


def test_the_reserve_that_is_computed_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors.TensorWriter, "_insert", None)
    tensors = {f"steps.{i}.lm_head": np.ones(3, dtype="int64" if i % 2 else "float32") for i in range(500)}
    metadata = {"prompt": "\u00e4" * 10000}
    write(tmp_path / "a.safetensors", tensors, metadata, bytes_to_reserve(tensors, metadata))
    check_file(tmp_path / "a.safetensors", tensors, metadata)


def test_what_a_file_cannot_hold(tmp_path, monkeypatch):
    with pytest.raises(Error, match="enough"), write_tensors(tmp_path / "a.safetensors") as file:
        file.add("a", np.zeros(3, dtype=np.float32))
        with pytest.raises(Error, match="a second tensor is called a"):
            file.add("a", np.zeros(3, dtype=np.float32))
        with pytest.raises(Error, match="complex64"):
            file.add("b", np.zeros(3, dtype=np.complex64))
        raise Error("enough")
    monkeypatch.setattr(safetensors, "LONGEST_HEADER", 1000)
    with pytest.raises(Error, match="names and metadata take 2.0[0-9] kB"):
        write(tmp_path / "a.safetensors", {}, {"prompt": "x" * 2050}, 0)
    with pytest.raises(Error, match="give the path of a file"), write_tensors(None):
        pass
    assert os.listdir(tmp_path) == []


def test_an_error_of_another_file_is_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError), write_tensors(tmp_path / "a.safetensors"):
        open(tmp_path / "no-such-file").close()


def test_what_is_not_a_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Error, match="a device or a pipe"):
        write(tmp_path / "pipe", {}, {})
    os.symlink(tmp_path / "real.safetensors", tmp_path / "link.safetensors")
    write(tmp_path / "link.safetensors", {}, {"a": "b"})
    assert os.path.islink(tmp_path / "link.safetensors") and read_tensors(tmp_path / "real.safetensors")[1] == {
        "a": "b"
    }


# ---- damaged ----


def raw(path, header, data=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header, words",
    [
        ({"a": entry(0, 40), "b": entry(32, 64)}, "a and b share 8 bytes"),
        ({"a": entry(0, 64), "b": entry(0, 64)}, "a and b share 64 bytes"),
        ({"a": entry(0, 16), "b": entry(32, 64)}, "16 bytes before b are in no tensor"),
        ({"a": entry(0, 32)}, "32 bytes after a are in no tensor"),
        ({"a": entry(0, 80)}, "ends in the middle of a: 16 bytes are missing"),
        ({"a": entry(0, 64, [1] * 64 + [16])}, "a has 65 axes"),
        ({"a": entry(0, 64, [-16])}, "entry for a is damaged"),
        ({"a": entry(0, 64, [True] * 16)}, "entry for a is damaged"),
        ({"a": entry(0, 64, [10**400])}, "64 bytes, which does not fit"),
        ({"a": entry(0, 64, [1 << 40, 1 << 40, 0])}, "64 bytes, which does not fit"),
        ({"a": entry(64, 64, [1 << 40, 1 << 40, 0]), "b": entry(0, 64)}, "a is too large"),
        ({"a": 1}, "entry for a is damaged"),
        ({"a": entry(0, 64, "16")}, "entry for a is damaged"),
        (b'{"a":' + b"[" * 100000, "does not start with a safetensors header"),
        (b'{"a": ' + b"9" * 5000 + b"}", "does not start with a safetensors header"),
        (b'{"a": "\xff"}', "does not start with a safetensors header"),
    ],
)
def test_damaged_headers(tmp_path, header, words):
    with pytest.raises(Error, match=words):
        read_tensors(raw(tmp_path / "a.safetensors", header))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(Error, match="it is not a file"):
            read_tensors(path)
