"""Solutions of notebooks 05 and 12. `minivl lab check decoding.py` checks them."""

import numpy as np

from minivl.stream import run


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def causal_attention(q, k, v):
    (H, T, K), (KV, S, _) = q.shape, k.shape
    k, v = (np.repeat(x, H // KV, axis=0) for x in (k, v))  # query head h reads key head h // (H / KV)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(np.float32(K))
    scores = np.where(np.tri(T, S, S - T, dtype=bool), scores, np.float32(-np.inf))  # the queries are the last T of S
    return (softmax(scores) @ v).swapaxes(0, 1).reshape(T, H * K)


def second_logits(vlm, inputs):
    cache = vlm.new_cache()
    first = run(vlm.prefill(inputs, cache))
    return run(vlm.decode(np.argmax(first, axis=1), cache))


def keep_top_p(logits, p):
    order = np.argsort(-logits, kind="stable")
    probs = softmax(logits)[order]
    before = np.cumsum(probs) - probs  # of those that are likelier
    kept = logits.copy()
    kept[order[1:][before[1:] >= p]] = -np.inf
    return kept


def penalize_repetition(logits, seen, penalty):
    ids, logits = np.unique(seen), logits.copy()
    logits[ids] = np.where(logits[ids] < 0, logits[ids] * penalty, logits[ids] / penalty)
    return logits


def kv_cache_bytes(text, tokens, bytes_per_number):
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * bytes_per_number
