"""Attention: softmax(q k.T / sqrt(K)) v, in the two forms of the model.

Tower: a patch sees the patches of its own segment, in both directions. Segments are runs of rows, so there is no mask:

    bounds 0 3 5        scores of 5 patches     x x x . .
                                                x x x . .
                                                x x x . .
                                                . . . x x
                                                . . . x x

Decoder: a token sees itself and what came before, over the cache; query heads share key heads in groups (GQA):

    2 new tokens after 3 cached       x x x x .      query head h reads key head h // (H / KV)
                                      x x x x x

The fused kernels never keep scores. `segment_scores`, `causal_scores` and `softmax` build them for whoever looks, and
`segment_context`, `causal_context` go on from probabilities that somebody changed.
Shapes: q [H, N, K], k and v [KV, S, K] -> context [N, H*K], the heads side by side.
"""

import math

import numba
import numpy as np

FAST = {"reassoc", "contract"}  # sums may be reordered, which is what lets the compiler use vectors
QUERIES = 16  # query rows of one head that one thread takes at a time


def softmax(scores):
    """e^(x - max) / sum, over the last axis; -inf becomes exactly 0. A row of only -inf is all 0."""
    top = np.max(scores, axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, np.float32(0)))
    total = np.sum(weights, axis=-1, keepdims=True, dtype=np.float32)
    return weights / np.where(total > 0, total, np.float32(1))


# ---- the tower: attention inside segments ----


def segment_scores(q, k, bounds):
    """[H, N, L]: row n holds the scores of patch n against its own segment, L the longest segment, the rest -inf."""
    H, N, K = q.shape
    L = int(np.diff(bounds).max())
    scores = np.full((H, N, L), -np.inf, dtype=np.float32)
    for start, end in zip(bounds[:-1], bounds[1:]):
        scores[:, start:end, : end - start] = q[:, start:end] @ k[:, start:end].swapaxes(1, 2)
    return scores * np.float32(1 / math.sqrt(K))


def segment_context(probs, v, bounds):
    """probs [H, N, L] as `segment_scores` lays them out, v [H, N, K] -> [N, H*K]"""
    context = np.empty(v.shape, dtype=np.float32)
    for start, end in zip(bounds[:-1], bounds[1:]):
        context[:, start:end] = probs[:, start:end, : end - start] @ v[:, start:end]
    return merge_heads(context)


def segment_attention_numpy(q, k, v, bounds):
    """Each patch attends within its segment. q, k, v [H, N, K], bounds int64 [segments + 1] -> [N, H*K]"""
    return segment_context(softmax(segment_scores(q, k, bounds)), v, bounds)


def segment_attention_numba(q, k, v, bounds):
    H, N, K = q.shape
    out = np.empty((N, H, K), dtype=np.float32)
    first = np.repeat(bounds[:-1], np.diff(bounds))  # [N]: where patch n's segment starts, and ends
    last = np.repeat(bounds[1:], np.diff(bounds))
    _attend(q, k, v, first, last, out)
    return out.reshape(N, H * K)


# ---- the decoder: causal attention over a cache ----


def causal_scores(q, k, window=None):
    """[H, T, S]: the T queries are the last T of S tokens; what a query may not see is -inf."""
    H, T, K = q.shape
    KV, S, _ = k.shape
    grouped = q.reshape(KV, H // KV * T, K)  # "(g r) t k -> g (r t) k"
    scores = (grouped @ k.swapaxes(1, 2)).reshape(H, T, S) * np.float32(1 / math.sqrt(K))
    first, last = _visible(T, S, window)
    key = np.arange(S)
    seen = (key >= first[:, None]) & (key < last[:, None])  # [T, S]
    return np.where(seen, scores, np.float32(-np.inf))


def causal_context(probs, v):
    """probs [H, T, S], v [KV, S, K] -> [T, H*K]"""
    H, T, S = probs.shape
    KV, _, K = v.shape
    return merge_heads((probs.reshape(KV, H // KV * T, S) @ v).reshape(H, T, K))


def causal_attention_numpy(q, k, v, window=None):
    """Each token attends to itself and the tokens before. q [H, T, K], k and v [KV, S, K], S >= T -> [T, H*K]

    window  if given, a query sees only the last `window` tokens, itself included (sliding window)
    """
    return causal_context(softmax(causal_scores(q, k, window)), v)


def causal_attention_numba(q, k, v, window=None):
    H, T, K = q.shape
    out = np.empty((T, H, K), dtype=np.float32)
    first, last = _visible(T, k.shape[1], window)
    _attend(q, k, v, first, last, out)
    return out.reshape(T, H * K)


def _visible(T, S, window):
    """For each query the range of keys it sees, first inclusive, last exclusive: int64 [T] each."""
    last = np.arange(S - T, S, dtype=np.int64) + 1
    first = np.zeros(T, dtype=np.int64) if window is None else np.maximum(last - window, 0)
    return first, last


def merge_heads(context):
    """[H, N, K] -> [N, H*K]"""
    H, N, K = context.shape
    return np.ascontiguousarray(context.swapaxes(0, 1)).reshape(N, H * K)


# ---- the compiled twin of both: query n of every head sees the keys first[n]:last[n] ----


@numba.njit(parallel=True, cache=True, fastmath=FAST)
def _attend(q, k, v, first, last, out):
    H, N, K = q.shape
    group = H // k.shape[0]
    blocks = (N + QUERIES - 1) // QUERIES
    scale = np.float32(1 / math.sqrt(K))
    for task in numba.prange(H * blocks):
        h, start = task // blocks, task % blocks * QUERIES
        weights = np.empty(k.shape[1], dtype=np.float32)
        for n in range(start, min(start + QUERIES, N)):
            _attend_row(q[h, n], k[h // group], v[h // group], first[n], last[n], scale, weights, out[n, h])


@numba.njit(cache=True, fastmath=FAST)
def _attend_row(q, k, v, first, last, scale, weights, out):
    K = q.shape[0]
    top = np.float32(-np.inf)
    for s in range(first, last):
        score = np.float32(0)
        for j in range(K):
            score += q[j] * k[s, j]
        weights[s] = score * scale
        top = max(top, weights[s])
    total = np.float32(0)
    for s in range(first, last):
        weights[s] = np.exp(weights[s] - top)
        total += weights[s]
    out[:] = np.float32(0)
    for s in range(first, last):
        weight = weights[s] / total
        for j in range(K):
            out[j] += weight * v[s, j]
