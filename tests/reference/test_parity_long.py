"""A prompt longer than YaRN's original context, in parts through the decoder, against transformers' single pass in float32."""

import re

import numpy as np
import pytest
from oracle import load_reference, run_reference
from parity import LOGITS, OK, TOLERANCE, row, table
from random_models import random_config, random_inputs, write_checkpoint

import minivl

ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 500.0}
GRIDS = [(1, 30, 22), (1, 12, 16)]  # 165 and 48 tokens
TEXT = 150


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """(folder, inputs, reference tensors)"""
    folder = tmp_path_factory.mktemp("long")
    write_checkpoint(folder, random_config(np.random.default_rng(41), rope=ROPE), 41)
    reference = load_reference(folder)
    inputs = random_inputs(reference.config, GRIDS, seed=41, text=TEXT)
    assert len(inputs.input_ids) > 5 * ROPE["original_max_position_embeddings"]
    return folder, inputs, run_reference(reference, **vars(inputs))


def joined(trace, name):
    """A tensor of all parts, tokens below each other: [T, ...], or [heads, T, K]."""
    parts = [name, *(part for part in trace if re.fullmatch(rf"chunks\.\d+\.{re.escape(name)}", part))]
    return np.concatenate([trace[part] for part in parts], axis=1 if name.endswith(("q_rope", "k_rope")) else 0)


@pytest.mark.parametrize("most", [50, 128])  # both borders and ends of images
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_every_tensor(setting, backend, most):
    folder, inputs, expected = setting
    vlm = minivl.load(folder, backend=backend)
    vlm.prefill_chunk = most
    trace = vlm.trace(inputs)
    assert "chunks.2.model.norm" in trace.names
    rows = []
    for name, tensor in expected.items():
        if name.startswith("model.") and name != "model.embed_tokens":
            if name.endswith(("scores", "probs")):
                continue  # of a part they have fewer columns; contexts are compared
            rows.append(row(name, tensor, joined(trace, name), TOLERANCE))
        else:
            rows.append(row(name, tensor, trace[name], LOGITS if name == "lm_head" else TOLERANCE))
    assert all(one.verdict == OK for one in rows) and len(rows) > 60, "\n" + table(rows)
