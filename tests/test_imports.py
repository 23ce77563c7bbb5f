"""Which folder may import which: the table of docs/architecture.md, over every file of the package.

Imports inside functions count. A folder may import the ones of its row and GROUND; the row of a folder lists all that it
imports directly.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import minivl

PACKAGE = Path(minivl.__file__).parent
GROUND = {"errors", "helpers", "palette", "stream"}
MAY_IMPORT = {
    "errors": "",
    "helpers": "",
    "palette": "",
    "stream": "",
    "tensors": "",
    "kernels": "",
    "checkpoint": "kernels tensors",
    "processing": "",
    "model": "kernels processing tensors",
    "answer": "processing",
    "tiny": "answer model tensors",
    "compare": "checkpoint kernels model processing tensors tiny",
    "plan": "checkpoint kernels model processing tiny",
    "trace": "answer checkpoint model plan tensors",
    "walk": "processing studies tensors trace",
    "studies": "checkpoint kernels processing tensors tiny trace",
    "faults": "compare kernels model processing tensors tiny trace",
    "vlm": "answer checkpoint faults kernels model plan processing report tiny trace walk",
    "plots": "kernels processing studies tensors tiny",
    "report": "kernels model processing studies tensors tiny trace walk",
    "record": "checkpoint tensors",
    "make": "tiny",
    "reference": "checkpoint processing record tensors",
    "dataset": "checkpoint kernels plan processing tensors trace vlm",
    "bench": "checkpoint kernels model plan processing tiny vlm",
    "lab": "checkpoint compare faults kernels model processing studies tiny trace vlm",
    "cli": "answer bench compare dataset faults kernels lab make plan processing reference report tensors tiny vlm walk",
    "__main__": "cli",
    "__init__": "",
}
EXCEPTIONS = {
    ("compare/judge.py", "minivl"),  # loads models as a user does
    ("trace/trace.py", "compare"),  # Trace.compare, imported inside the method: a face on a low floor
    ("tiny/evaluate.py", "minivl"),  # likewise
    ("studies/over_training.py", "minivl"),  # likewise
    ("studies/findings/__main__.py", "minivl"),  # likewise
    ("studies/findings/__main__.py", "plots"),  # likewise: it draws
    ("studies/findings/measure.py", "plots"),  # what it draws
    ("studies/findings/sureness.py", "plots"),  # likewise
}
LIBRARIES = {  # the only folders that may import these
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "torch": {"record", "reference", "tiny/training", "bench"},
    "transformers": {"reference", "tiny/training", "bench"},
    "matplotlib": {"plots", "bench"},
    "mlx": {"record"},
    "anywidget": {"walk"},
    "zarr": {"dataset"},
    "pyarrow": {"dataset"},
    "dask": {"dataset"},
    "sklearn": {"studies"},
    "onnxruntime": {"record"},
    "openvino": {"record"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def station(path):
    """ "vlm" of minivl/vlm.py, "trace" of minivl/trace/edits.py"""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(path):
    """Dotted names of all modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"minivl.{alias.name}" for alias in node.names) if node.module == "minivl" else [node.module]


def stations_imported(path):
    """Stations of minivl that a file imports, its own and the ground left out."""
    names = [name.split(".") for name in imports(path)]
    own = {"minivl" if len(name) == 1 else name[1] for name in names if name[0] == "minivl"}
    return own - {station(path), *GROUND, "__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_folders_import_downwards(path):
    own, relative = station(path), path.relative_to(PACKAGE).as_posix()
    allowed = {*MAY_IMPORT[own].split(), *(other for file, other in EXCEPTIONS if file == relative)}
    assert stations_imported(path) <= allowed


def test_table_has_no_idle_entry():
    """Each entry of the table and each exception is used, each folder has a row."""
    used = {(station(path), other) for path in FILES for other in stations_imported(path)}
    listed = {(own, other) for own, row in MAY_IMPORT.items() for other in row.split()}
    excepted = {(file.split("/")[0], other) for file, other in EXCEPTIONS}
    assert not (listed | excepted) - used and not used - (listed | excepted)
    assert {station(path) for path in FILES} == set(MAY_IMPORT)


def test_table_has_no_circle():
    below = {own: set(row.split()) for own, row in MAY_IMPORT.items()}
    while below:
        floor = {own for own, row in below.items() if not row}
        assert floor, f"these import each other in a circle: {sorted(below)}"
        below = {own: row - floor for own, row in below.items() if own not in floor}


def module_of(path):
    parts = ["minivl", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_circle_between_files():
    """Over the imports at the top of the files: those inside functions may close a circle, as they wait for the call."""
    modules = {module_of(path): path for path in FILES}
    below = {}
    for name, path in modules.items():
        wanted = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= (inner & set(modules)) or {node.module}
        below[name] = (wanted & set(modules)) - {name}
    while below:
        floor = {name for name, row in below.items() if not row}
        assert floor, f"these import each other in a circle: {sorted(below)}"
        below = {name: row - floor for name, row in below.items() if name not in floor}


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_folders(library):
    for path in FILES:
        if library in {name.split(".")[0] for name in imports(path)}:
            folder = path.parent.relative_to(PACKAGE).as_posix()
            assert folder in LIBRARIES[library], path


@pytest.mark.parametrize(
    "imported, absent", [("minivl.trace", "minivl.compare numba"), ("minivl", "numpy numba torch PIL")]
)
def test_imports_stay_light(imported, absent):
    script = f"import sys, {imported}; print([m for m in {absent.split()!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "folder", sorted({station(path) for path in FILES if path.name == "__init__.py"} - {"__init__"})
)
def test_public_names_are_not_hidden_by_modules(folder):
    """A name that a package resolves when it is first used must not be the name of one of its modules."""
    package = importlib.import_module(f"minivl.{folder}")
    modules = {path.stem for path in (PACKAGE / folder).glob("*.py")}
    if hasattr(package, "__getattr__"):
        assert not modules & set(package.__all__)
