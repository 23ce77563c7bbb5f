"""The functions of transformers that `compare` names: each is there, every tensor has one, and no mistake is misspelt."""

import ast
import importlib.metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from minivl.compare.reference_functions import TABLE, VERSION, find_functions, function
from minivl.tensors.catalogue import CATALOGUE

pytest.importorskip("transformers")
ROOT = Path(find_spec("transformers").origin).parent


def definitions(file):
    """ "function" and "Class.method" of all that a file defines; parsed, since some import what may not be installed."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        yield getattr(node, "name", "")
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))


@pytest.mark.skipif(
    not importlib.metadata.version("transformers").startswith(VERSION),
    reason=f"they are those of transformers {VERSION}",
)
def test_transformers_has_every_function():
    functions = {function(name) for _, _, name in TABLE}
    missing = [f"{one.file}: {one.name}" for one in functions if one.name not in set(definitions(one.file))]
    assert not missing, missing


def test_every_tensor_has_a_function():
    assert all(len(find_functions(tensor.name.replace("{i}", "0"))) == 1 for tensor in CATALOGUE)
