"""The examples of docs/recorders.md run as they are printed, each where its framework is installed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from record_graphs import chain

import minivl
from minivl.compare.match_names import read_map
from minivl.make import make_checkpoint

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "recorders.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with ours.safetensors."""
    folder = make_checkpoint(tmp_path_factory.mktemp("docs") / "random-vl", blocks=8, layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(next(block for block in BLOCKS if "vlm.trace" in block), {})
    return folder


@pytest.mark.parametrize("framework", ["mlx_vlm", "onnxruntime", "openvino"])
def test_the_examples_run(framework, folder, monkeypatch):
    pytest.importorskip(framework)
    monkeypatch.chdir(folder)
    ours = minivl.Trace.load("ours.safetensors")
    Path("tower.onnx").write_bytes(chain("pixel_values", ours["pixel_values"].shape))
    block = next(block for block in BLOCKS if f"minivl.record.{framework.removesuffix('_vlm')}(" in block)
    exec(block, {})
    port = minivl.Trace.load("port.safetensors")
    if framework == "mlx_vlm":
        found = ours.compare("port.safetensors", model=minivl.load("."))
        assert found.ok and found.covered and found["steps.2.lm_head"].status == "OK", f"\n{found}"
    else:
        assert np.allclose(port["visual.merger.mlp.0"], -port["visual.blocks.0"], atol=1e-5)


def test_every_recorder_has_an_example():
    assert all(sum(f"minivl.record.{name}(" in block for block in BLOCKS) == 1 for name in minivl.record.__all__)


def test_the_names_of_llama_cpp():
    """Each is one of ours, and those of the decoder are the ones of compare.md, which a test runs."""
    names = json.loads((DOCS / "llama.cpp" / "names.json").read_text())
    known = minivl.tensors.catalogue.by_name()
    assert all(ours.replace("{}", "{i}") in known for ours in names.values()) and read_map(names)
    shown = re.search(r"```json\n(.*?)```", (DOCS / "compare.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert {theirs: ours for theirs, ours in names.items() if not theirs.startswith("tower.")} == json.loads(shown)
