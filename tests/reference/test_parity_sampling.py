"""The steps from logits to a token against transformers' LogitsProcessors, with the real vocabulary and a small one."""

import numpy as np
import pytest
from random_models import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minivl.model import sampling
from minivl.model.sampling import Sampling, keep_top_k, keep_top_p, next_token, penalize_repetition

SIZES = (50, 151936)


def random_logits(seed, size, spread=3.0):
    """Logits with ties, as bfloat16 models have them: values in steps of 1/16."""
    rng = np.random.default_rng([21, seed])
    return (np.round(rng.normal(0, spread, size) * 16) / 16).astype(np.float32), rng


def reference(processor, seen, logits):
    return processor(torch.from_numpy(seen)[None], torch.from_numpy(logits)[None].clone())[0].numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("penalty", [1.05, 1.5, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_repetition_penalty(seed, penalty, size):
    logits, rng = random_logits(seed, size)
    seen = rng.integers(0, size, 40)  # some ids more than once
    expected = reference(RepetitionPenaltyLogitsProcessor(penalty), seen, logits)
    np.testing.assert_array_equal(penalize_repetition(logits, seen, penalty), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 2, 10, 49, 50, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_top_k(seed, k, size):
    logits, _ = random_logits(seed, size)
    expected = reference(TopKLogitsWarper(k), np.zeros(0, dtype=np.int64), logits)
    np.testing.assert_array_equal(keep_top_k(logits, k), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_top_p(seed, p, spread, size):
    """No ties here: which of several equal tokens at the border are kept depends on the sort, in transformers too.
    The border itself moves by the rounding of a sum of up to 151,936 probabilities; `slack` says how far."""
    rng = np.random.default_rng([22, seed])
    logits = rng.normal(0, spread, size).astype(np.float32)
    kept = np.isfinite(keep_top_p(logits, p))
    expected = np.isfinite(reference(TopPLogitsWarper(p), np.zeros(0, dtype=np.int64), logits))
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    slack = 4e-5  # measured: minivl's float32 sum is off by up to 3.4e-5 (flat distribution), torch's by 1.3e-6
    assert probabilities[kept != expected].sum() <= slack, f"{(kept != expected).sum()} tokens, p={p}"


@pytest.mark.parametrize("settings", [
    dict(temperature=0.7, top_k=0, top_p=1.0, repetition_penalty=1.0),
    dict(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.05),
    dict(temperature=0.1, top_k=1, top_p=0.001, repetition_penalty=1.05),  # the settings Qwen2.5-VL was published with
])  # fmt: skip
@pytest.mark.parametrize("seed", range(5))
def test_the_whole_chain_in_its_order(monkeypatch, seed, settings):
    """The probabilities that the token is drawn from, against the chain that transformers' `generate` builds."""
    rng = np.random.default_rng([23, seed])
    logits, seen = rng.normal(0, 3, 5000).astype(np.float32), rng.integers(0, 5000, 60)
    chain = LogitsProcessorList([TemperatureLogitsWarper(settings["temperature"])])
    if settings["repetition_penalty"] != 1:
        chain.insert(0, RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if settings["top_k"]:
        chain.append(TopKLogitsWarper(settings["top_k"]))
    if settings["top_p"] < 1:
        chain.append(TopPLogitsWarper(settings["top_p"]))
    expected = torch.softmax(torch.from_numpy(reference(chain, seen, logits)), dim=-1).numpy()
    drawn_from = []
    monkeypatch.setattr(sampling, "draw", lambda probabilities, rng: drawn_from.append(probabilities) or 0)
    next_token(logits, seen, Sampling(do_sample=True, **settings), rng)
    np.testing.assert_allclose(drawn_from[0], expected, rtol=1e-5, atol=1e-9)


def test_draws_have_the_probabilities():
    """20,000 draws: each frequency within 5 standard deviations."""
    probabilities, rng = np.array([0.5, 0.25, 0.0, 0.2, 0.05], dtype=np.float32), np.random.default_rng(0)
    counts = np.bincount([sampling.draw(probabilities, rng) for _ in range(20000)], minlength=5)
    assert counts[2] == 0
    assert np.all(np.abs(counts - 20000 * probabilities) <= 5 * np.sqrt(20000 * probabilities * (1 - probabilities)))
