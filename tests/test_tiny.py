"""The shipped checkpoint: what it must be, and that it has learnt to see."""

import numpy as np

import minivl
from minivl.tiny import CHECKPOINT
from minivl.tiny.evaluate import evaluate


def test_the_checkpoint_is_small_and_runs_every_branch():
    config = minivl.load().config
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 12_000_000
    assert 0 < len(config.vision.fullatt_block_indexes) < config.vision.depth > max(config.vision.fullatt_block_indexes)
    assert config.text.num_attention_heads > config.text.num_key_value_heads
    assert len(set(config.text.rope.mrope_section)) == 3


def test_the_shipped_model_sees():
    """A floor well below docs/tiny-model.md, far above chance (1 in 10 for a digit, 1 in 42 for a single shape)."""
    scores = evaluate(minivl.load(), scene_count=25, digit_count=30)
    assert np.mean(scores["describe"]) >= 0.4 and np.mean(scores["count"]) >= 0.7 and np.mean(scores["digit"]) >= 0.8
