"""Every tensor of one prompt on the shipped model, beside values that Hugging Face transformers gave: parity without torch.

tests/reference/record_values.py wrote them (transformers 5.23.0, torch 2.13.0, float32).
"""

import json
from pathlib import Path

import numpy as np
import pytest

import minivl

QUESTION = "How many shapes are there?"
VALUES = Path(__file__).with_name("reference_values.json")
CLOSE = 2e-5  # of a tensor's largest value: TOLERANCE of compare.py


def picture():
    """[140, 196, 3] uint8, of integers alone: no Pillow has drawn it, none resizes it. Windows of every size."""
    y, x = np.mgrid[:140, :196]
    return np.stack([(3 * x + y) % 256, (x * y // 7) % 256, (5 * y + 255 - x) % 256], axis=-1).astype(np.uint8)


def places(size):
    """Up to 6 indices, spread over a flat tensor."""
    return np.unique(np.linspace(0, size - 1, 8).astype(np.int64)[1:-1])


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_every_tensor_is_as_in_transformers(backend):
    trace = minivl.load(backend=backend).trace(QUESTION, images=picture())
    recorded = json.loads(VALUES.read_text())
    assert set(recorded) == set(trace.names) and len(recorded) > 150
    for name, one in recorded.items():
        flat = np.where(np.isfinite(trace[name]), trace[name], 0).reshape(-1)
        found = flat[places(flat.size)]
        assert list(trace[name].shape) == one["shape"], name
        assert np.abs(found - one["values"]).max() <= CLOSE * one["largest"], name
