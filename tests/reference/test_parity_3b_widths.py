"""The real widths of Qwen2.5-VL-3B, vocabulary included, cut to 3 blocks and 3 layers: what small nets cannot show.

Sums of 11,008 products, 80-wide heads, odd panel sizes (3,420), real token ids, the published flat config.json. Takes 1.3 GB of
disk and 5 GB of memory.
"""

import shutil

import numpy as np
import pytest
from make_checkpoint import write_checkpoint
from oracle import load_reference, run_reference, unknown_to_reference
from parity import assert_parity
from random_models import random_inputs

import minivl

GRIDS = [(1, 22, 14), (1, 10, 18)]  # 77 and 45 tokens; windows of 112 pixels are 8 x 8 patches: partial ones in both


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """(folder, inputs, reference tensors); the folder is deleted afterwards."""
    folder = write_checkpoint(tmp_path_factory.mktemp("3b") / "checkpoint", blocks=3, layers=3, full=[1])
    reference = load_reference(folder)
    inputs = random_inputs(reference.config, GRIDS, text=12)
    yield folder, inputs, run_reference(reference, **vars(inputs))
    shutil.rmtree(folder)


@pytest.mark.parametrize("backend, weights", [("numba", "bfloat16"), ("numpy", "bfloat16"), ("numba", "float32")])
def test_every_tensor(setting, backend, weights):
    folder, inputs, expected = setting
    trace = minivl.load(folder, weights, backend).trace(inputs, max_new_tokens=1)
    assert_parity(expected, trace, unknown_to_reference(inputs))
    assert np.any(expected["visual.cu_window_seqlens"][1:] - expected["visual.cu_window_seqlens"][:-1] < 64)
