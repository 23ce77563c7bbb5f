"""The whole of Qwen2.5-VL-3B, with random weights: memory, and the first logits against transformers in float32.

    MINIVL_REAL_SIZE=1 pytest tests/reference/test_real_size.py

Opt-in: it writes 7.5 GB (into pytest's temporary folder, --basetemp to choose) and deletes them, and transformers takes
16 GB of memory. minivl runs first and in a process of its own, so the two never share the memory.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import write_checkpoint
from oracle import arguments, load_reference
from parity import LOGITS, largest_error
from random_models import torch

HERE = Path(__file__).parent
PEAK = 9e9  # bytes: 7.5 GB of mapped weights count as resident, the rest is the interpreter and activations

pytestmark = pytest.mark.skipif(
    os.environ.get("MINIVL_REAL_SIZE") != "1", reason="set MINIVL_REAL_SIZE=1: 7.5 GB, minutes"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "checkpoint"
    try:
        yield write_checkpoint(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def ours(folder, tmp_path_factory):
    """What run_photo.py found."""
    result = tmp_path_factory.mktemp("result") / "photo.npz"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, HERE / "run_photo.py", folder, result], check=True, env=environment)
    found = dict(np.load(result))
    print(f"peak {found['peak'] / 1e9:.2f} GB, {found['seconds']:.1f} s from load to first logits")
    return found


def test_memory(ours):
    assert ours["peak"] < PEAK, f"{ours['peak'] / 1e9:.2f} GB"


def test_first_logits(ours, folder):
    model = load_reference(folder, attention="sdpa")
    inputs = {name: ours[name] for name in ("input_ids", "pixel_values", "image_grid_thw")}
    with torch.no_grad():
        expected = model(**arguments(model.config, **inputs), logits_to_keep=1, use_cache=False).logits[0].numpy()
    error, scale, place = largest_error(expected, ours["logits"])
    print(f"first logits: error {error:.1e} of the largest, {scale:.3g}")
    assert error <= LOGITS, (error, scale, place)  # measured: 1.1e-6, no more than in small nets
    assert np.argmax(expected) == np.argmax(ours["logits"])
