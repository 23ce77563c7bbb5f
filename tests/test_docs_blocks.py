"""The Python of the docs runs as it is printed: each page's blocks, one after the other, in a folder of its own."""

import re
from pathlib import Path

import numpy as np
import pytest

import minivl
from minivl.tiny import scene

DOCS = Path(__file__).parents[1] / "docs"
ELSEWHERE = {  # pages whose blocks need more than minivl, or are compared with what the page shows
    "compare.md": "tests/compare and tests/reference: a port, llama.cpp",
    "lab.md": "tests/lab",
    "recorders.md": "tests/record: torch, MLX, ONNX Runtime, OpenVINO",
}
PAGES = sorted(path for path in [*DOCS.glob("*.md"), *DOCS.glob("teaching/*.md")] if path.name not in ELSEWHERE)


def blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path)], ids=lambda path: path.stem)
def test_blocks_run(path, tmp_path, monkeypatch):
    """A page may use what the README has loaded: minivl, vlm, scene, np, scene.png; a.png and b.png are images."""
    if path.name == "dataset.md":
        pytest.importorskip("zarr")
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    for name, seed in (("scene.png", 5), ("a.png", 6), ("b.png", 7)):
        scene(seed).image.save(name)
    names = {"__name__": "page", "minivl": minivl, "scene": scene, "np": np, "vlm": minivl.load()}
    for number, block in enumerate(blocks(path), 1):
        exec(compile(block, f"{path.name}, block {number}", "exec"), names)


def test_the_pages_named_here_are_there():
    assert all((DOCS / name).is_file() for name in ELSEWHERE) and len(PAGES) > 15
