"""The comparison itself: it must find what is wrong, and name the first tensor that is."""

import numpy as np
import pytest
from oracle import load_reference, run_reference, unknown_to_reference
from parity import DIFF, MISSING, OK, SHAPE, assert_parity, compared, row, table
from random_models import random_config, random_inputs, write_checkpoint

import minivl
from minivl.checkpoint.weights import Weights
from minivl.model import vision

# A weight of one side changed by 1e-3 of its largest value, or a step of the engine done wrong, as ports get them wrong;
# and the tensor where it shows first.
WEIGHTS = {
    "visual.patch_embed.proj.weight": "visual.patch_embed",
    "visual.blocks.0.norm1.weight": "visual.blocks.0.norm1",
    "visual.blocks.1.attn.qkv.bias": "visual.blocks.1.attn.qkv",
    "visual.blocks.0.attn.proj.bias": "visual.blocks.0.attn.proj",
    "visual.blocks.1.mlp.down_proj.bias": "visual.blocks.1.mlp.down_proj",
    "visual.merger.ln_q.weight": "visual.merger.ln_q",
    "visual.merger.mlp.2.bias": "visual.merger.mlp.2",
    "model.embed_tokens.weight": "model.embed_tokens",
    "model.layers.1.self_attn.k_proj.bias": "model.layers.1.self_attn.k_proj",
    "model.layers.0.self_attn.o_proj.weight": "model.layers.0.self_attn.o_proj",
    "model.layers.1.mlp.up_proj.weight": "model.layers.1.mlp.up_proj",
    "model.norm.weight": "model.norm",
    "lm_head.weight": "lm_head",
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """(reference tensors, inputs, minivl's model) of a small untied configuration."""
    folder = tmp_path_factory.mktemp("harness")
    config = random_config(np.random.default_rng(4), tied=False, depth=3, full=[1], window=56, layers=2, eps=1e-3)
    write_checkpoint(folder, config, seed=4)
    reference = load_reference(folder)
    inputs = random_inputs(reference.config, [(1, 10, 6), (1, 4, 8)])
    return run_reference(reference, **vars(inputs)), inputs, minivl.load(folder, "float32")


def first_divergence(setting, vlm):
    expected, inputs, _ = setting
    rows = compared(expected, vlm.trace(inputs))
    return next(row.name for row in rows if row.verdict != OK and row.name not in unknown_to_reference(inputs))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_changed_weight_is_found_and_named(setting, weight):
    vlm = setting[2]
    arrays = {name: vlm.weights[name] for name in vlm.weights.names()}
    arrays[weight] = arrays[weight] + np.float32(1e-3) * np.abs(arrays[weight]).max()
    assert first_divergence(setting, minivl.VLM(vlm.config, Weights(arrays), vlm.kernels)) == WEIGHTS[weight]


def test_a_wrong_order_of_windows_is_found(setting, monkeypatch):
    def raster(grid_thw, config):
        index, bounds = ordered(grid_thw, config)
        return np.arange(len(index)), bounds

    ordered = vision.window_index
    monkeypatch.setattr(vision, "window_index", raster)
    assert first_divergence(setting, setting[2]) == "visual.window_index"


def test_windowed_attention_everywhere_is_found(setting, monkeypatch):
    monkeypatch.setattr(vision, "frame_segments", lambda grid: vision.window_index(grid, setting[2].config.vision)[1])
    assert first_divergence(setting, setting[2]) == "visual.cu_seqlens"


def test_the_other_eps_is_found(setting, monkeypatch):
    monkeypatch.setattr(vision, "EPS", 1e-3)  # that of the decoder, where the tower's own is 1e-6
    assert first_divergence(setting, setting[2]) == "visual.blocks.0.norm1"


def test_the_table_names_the_first_divergence(setting):
    expected, inputs, vlm = setting
    trace = dict(vlm.trace(inputs))
    trace["visual.blocks.1.norm2"] = trace["visual.blocks.1.norm2"] + np.float32(0.1)
    del trace["model.layers.1.mlp.act"]
    with pytest.raises(AssertionError, match=r"first divergence: visual\.blocks\.1\.norm2 \(DIFF\)") as failure:
        assert_parity(expected, trace, unknown_to_reference(inputs))
    assert "MISSING" in str(failure.value) and "model.layers.1.mlp.act" in str(failure.value)


def test_verdicts():
    x = np.array([1.0, -np.inf, 1000.0], dtype=np.float32)
    assert row("a", x, x + np.float32(0.01), 2e-5).verdict == OK  # 1e-5 of the largest value
    assert row("a", x, x + np.float32(0.1), 2e-5).verdict == DIFF
    assert row("a", x, np.zeros(3, dtype=np.float32), 2e-5).error == np.inf  # the infinity is not where it should be
    assert row("a", x, np.full(3, np.nan, dtype=np.float32), 2e-5).verdict == DIFF
    assert row("a", x, x[None], 2e-5).verdict == SHAPE
    assert row("a", None, x, 2e-5).verdict == MISSING
    ids = np.array([1, 2])
    assert row("a", ids, np.array([1, 3]), 2e-5).verdict == DIFF and row("a", ids, ids.copy(), 2e-5).verdict == OK
    assert "2 tensors agree" in table([row("a", x, x, 0), row("b", x, x, 0)])
