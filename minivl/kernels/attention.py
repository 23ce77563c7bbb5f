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

from minivl.kernels.activations import exponential
from minivl.kernels.tile import COLUMNS, ROWS, tile

FAST = {"reassoc", "contract"}  # sums may be reordered, which is what lets the compiler use vectors
KEYS = 240  # keys whose scores are held at a time: a multiple of every ROWS; 15 KB at 16 COLUMNS
LOWEST = np.finfo(np.float32).min
FEW = 4  # below this many queries nothing is gained by tiles


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
    first = np.repeat(bounds[:-1], np.diff(bounds))  # [N]: where patch n's segment starts, and ends
    last = np.repeat(bounds[1:], np.diff(bounds))
    return _attend(q, k, v, first, last)


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
    return _attend(q, k, v, *_visible(q.shape[1], k.shape[1], window))


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


def _attend(q, k, v, first, last):
    """q [H, N, K], k and v [KV, S, K] -> [N, H*K]. Many queries: tiles; few, as when decoding: row by row."""
    H, N, K = q.shape
    out = np.empty((N, H, K), dtype=np.float32)
    if N < FEW:
        _attend_rows(q, k, v, first, last, out)
        return out.reshape(N, H * K)
    # subtle: `tile` reads ROWS rows at a time, by address: the arrays must be dense, and their last rows padded
    q, k = np.ascontiguousarray(q), np.ascontiguousarray(k)
    values = np.zeros((len(v), -(-K // ROWS) * ROWS, v.shape[1]), dtype=np.float32)  # [KV, K, S]
    _turn(v, values)
    _attend_tiles(q, k, values, first, last, out)
    return out.reshape(N, H * K)


@numba.njit(parallel=True, cache=True)
def _turn(v, values):
    """[KV, S, K] -> [KV, K, S]: a value's row is then one number of every token. Some tokens at a time, for the cache."""
    KV, S, K = v.shape
    for task in numba.prange(KV * ((S + 63) // 64)):
        g, start = task % KV, task // KV * 64
        for j in range(K):
            for s in range(start, min(start + 64, S)):
                values[g, j, s] = v[g, s, j]


@numba.njit(parallel=True, cache=True, fastmath=FAST)
def _attend_tiles(q, k, values, first, last, out):
    """COLUMNS queries of one head at a time, against KEYS keys at a time: scores [keys, COLUMNS] never leave the cache.

    With each block of keys the largest score may grow; what was summed before is scaled down by as much (online softmax).
    """
    H, N, K = q.shape
    KV, S, _ = k.shape
    padded = values.shape[1]
    panels = (N + COLUMNS - 1) // COLUMNS
    scale = np.float32(1 / math.sqrt(K))
    for task in numba.prange(H * panels):
        h, start = task // panels, task % panels * COLUMNS
        g, many = h // (H // KV), min(COLUMNS, N - start)
        queries = np.zeros((K, COLUMNS), dtype=np.float32)
        for c in range(many):
            for j in range(K):
                queries[j, c] = q[h, start + c, j]
        edge = np.zeros((ROWS, K), dtype=np.float32)  # the last few keys, padded with zeros
        scores = np.empty((KEYS, COLUMNS), dtype=np.float32)
        context = np.zeros((padded, COLUMNS), dtype=np.float32)
        # subtle: not -inf, because of a query whose segment begins after this block, -inf - -inf would be NaN
        top, total = np.full(COLUMNS, LOWEST, dtype=np.float32), np.zeros(COLUMNS, dtype=np.float32)
        at_k, at_v, at_edge = k.ctypes.data + 4 * g * S * K, values.ctypes.data + 4 * g * padded * S, edge.ctypes.data
        at_q, at_scores, at_context = queries.ctypes.data, scores.ctypes.data, context.ctypes.data
        end = last[start + many - 1]
        for s in range(first[start], end, KEYS):
            keys = min(KEYS, end - s)
            scores[:] = np.float32(0)
            for r in range(0, keys, ROWS):
                rows = at_k + 4 * (s + r) * K
                if s + r + ROWS > S:
                    edge[:] = np.float32(0)
                    edge[: S - s - r] = k[g, s + r :]
                    rows = at_edge
                tile(rows, K, at_q, at_scores + 4 * r * COLUMNS, K)
            _mask(scores, keys, s, start, many, first, last, scale)
            _softmax_block(scores, keys, top, total, context)
            for d in range(0, padded, ROWS):
                tile(at_v + 4 * (d * S + s), S, at_scores, at_context + 4 * d * COLUMNS, keys)
        for c in range(many):
            for j in range(K):
                out[start + c, h, j] = context[j, c] / total[c]


@numba.njit(cache=True)
def _mask(scores, keys, s, start, many, first, last, scale):
    """Scale, and set to -inf what a query may not see."""
    for i in range(keys):
        for c in range(COLUMNS):
            scores[i, c] *= scale
    for c in range(many):
        for i in range(max(last[start + c] - s, 0), keys):
            scores[i, c] = -np.inf
        for i in range(min(first[start + c] - s, keys)):
            scores[i, c] = -np.inf


@numba.njit(cache=True, fastmath=FAST)
def _softmax_block(scores, keys, top, total, context):
    """Scores become e^(score - largest so far); top, total and context [padded, COLUMNS] are brought up to date."""
    old = top.copy()
    for i in range(keys):
        for c in range(COLUMNS):
            top[c] = max(top[c], scores[i, c])
    shrink, new = np.empty(COLUMNS, dtype=np.float32), np.zeros(COLUMNS, dtype=np.float32)
    for c in range(COLUMNS):
        shrink[c] = exponential(old[c] - top[c])
    for i in range(keys):
        for c in range(COLUMNS):
            scores[i, c] = exponential(scores[i, c] - top[c])
            new[c] += scores[i, c]
    for c in range(COLUMNS):
        total[c] = total[c] * shrink[c] + new[c]
    for d in range(len(context)):
        for c in range(COLUMNS):
            context[d, c] *= shrink[c]


@numba.njit(parallel=True, cache=True, fastmath=FAST)
def _attend_rows(q, k, v, first, last, out):
    """One query and one group of heads at a time: every key is read once for all heads that share it."""
    H, N, K = q.shape
    KV = k.shape[0]
    group = H // KV
    scale = np.float32(1 / math.sqrt(K))
    for task in numba.prange(N * KV):
        n, g = task // KV, task % KV
        begin, end = first[n], last[n]
        weights = np.empty((group, end - begin), dtype=np.float32)
        for s in range(begin, end):
            for r in range(group):
                score = np.float32(0)
                for j in range(K):
                    score += q[g * group + r, n, j] * k[g, s, j]
                weights[r, s - begin] = score * scale
        for r in range(group):
            top = np.max(weights[r])
            for i in range(end - begin):
                weights[r, i] = exponential(weights[r, i] - top)
            weights[r] /= np.sum(weights[r])
        out[n, g * group : (g + 1) * group] = np.float32(0)
        for s in range(begin, end):
            for r in range(group):
                for j in range(K):
                    out[n, g * group + r, j] += weights[r, s - begin] * v[g, s, j]
