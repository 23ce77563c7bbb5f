"""The training that notebook 13 shows runs as it stands there, and gives a record like the one beside it."""

import ast
import json
from pathlib import Path

import numpy as np

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
QUESTIONS = 40  # about each checkpoint


def functions_of(path):
    """The imports, functions and the tokenizer of a notebook, without what it draws and prints."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names = {}
    for node in ast.parse(source).body:
        is_needed = isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))
        if "matplotlib" in ast.unparse(node) and not isinstance(node, ast.FunctionDef):
            continue
        if is_needed or ast.unparse(node).startswith("tokenizer ="):
            exec(compile(ast.Module([node], []), path.name, "exec"), names)
    return names


def test_training_runs_as_recorded():
    recorded = json.loads((NOTEBOOKS / "13_training.json").read_text(encoding="utf-8"))
    record = functions_of(NOTEBOOKS / "13_training_a_little.ipynb")["train"](2, look_every=2)
    assert record.keys() == recorded.keys() and record["later"].keys() == recorded["later"].keys()
    assert len(record["loss"]) == len(record["right"]) == 2 and np.isfinite(record["loss"]).all()
    assert [checkpoint["step"] for checkpoint in record["checkpoints"]] == [0, 2]
    for checkpoint in record["checkpoints"]:
        assert np.shape(checkpoint["atlas"]) == np.shape(recorded["checkpoints"][0]["atlas"])
        assert sum(checkpoint["scores"].values()) == QUESTIONS
    assert record["checkpoints"][0]["atlas"] != record["checkpoints"][1]["atlas"]
