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
from minivl.kernels.tile import COLUMNS, ROWS, add_to, raise_to, take_from, tile

FAST = {"reassoc", "contract"}  # sums may be reordered, which is what lets the compiler use vectors
KEYS = 240  # keys whose scores are held at a time: a multiple of every ROWS; 15 KB at 16 COLUMNS
LOWEST = np.finfo(np.float32).min
WIDE = -(-COLUMNS // ROWS) * ROWS  # COLUMNS in whole tiles


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
    """q [H, N, K], k and v [KV, S, K] -> [N, H*K]. first and last do not fall from one query to the next."""
    H, N, K = q.shape
    out = np.empty((N, H, K), dtype=np.float32)
    _attend_tiles(np.ascontiguousarray(q), _buffer(k), _buffer(v), first, last, out)
    return out.reshape(N, H * K)


def _buffer(rows):
    """The first rows of each head in a cache, [KV, S, K] -> the cache [KV, capacity, K] that holds them, without a copy.
    What is behind S there belongs to nobody, and is not read.

    Where there are gaps between the heads' rows, Numba does not know them to be dense, and cannot take whole registers.
    """
    KV, S, K = rows.shape
    dense = rows.strides[1:] == (4 * K, 4) and rows.strides[0] >= 4 * S * K and rows.strides[0] % (4 * K) == 0
    if rows.flags.c_contiguous or not dense:
        return np.ascontiguousarray(rows)
    return np.lib.stride_tricks.as_strided(rows, (KV, rows.strides[0] // (4 * K), K))


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _attend_tiles(q, k, v, first, last, out):
    (H, N, _), KV = q.shape, len(k)
    group = H // KV
    panels = (N * group + COLUMNS - 1) // COLUMNS
    for task in numba.prange(KV * panels):
        _attend_panel(q, k, v, first, last, task // panels, task % panels * COLUMNS, out)


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _attend_panel(q, k, v, first, last, g, start, out):
    """COLUMNS queries of group g at a time, against KEYS keys at a time, which are read once for all of them.

        scores [keys, COLUMNS]  = k [keys, K] @ queries [K, COLUMNS]       never leave the cache
        scores                  = e^(scores - largest so far)              in place: weights, of which the sum is not known yet
        context [COLUMNS, K]   += scores.T @ v [keys, K]

    With each block of keys the largest score may grow; what was summed before is scaled down by as much (online softmax).
    The queries of a group are counted token by token: number i is token i // group, head i % group.
    """
    (H, N, K), (KV, capacity, _), S = q.shape, k.shape, last[len(last) - 1]
    group = H // KV
    many, wide = min(COLUMNS, N * group - start), (K + COLUMNS - 1) // COLUMNS
    scale = np.float32(1 / math.sqrt(K))
    queries = np.zeros((K, COLUMNS), dtype=np.float32)
    for c in range(many):
        for j in range(K):
            queries[j, c] = q[g * group + (start + c) % group, (start + c) // group, j] * scale
    scores = np.zeros(
        (KEYS + 1, COLUMNS), dtype=np.float32
    )  # subtle: the last tile of columns reads on in the next row
    edge = np.zeros((KEYS, max(K, COLUMNS)), dtype=np.float32)  # what a tile would read beyond the end, padded
    context = np.zeros((wide, WIDE, COLUMNS), dtype=np.float32)
    # subtle: not -inf, because of a query whose segment begins after this block, -inf - -inf would be NaN
    top, total = np.full(COLUMNS, LOWEST, dtype=np.float32), np.zeros(COLUMNS, dtype=np.float32)
    at_k, at_v = k.ctypes.data + 4 * g * capacity * K, v.ctypes.data + 4 * g * v.shape[1] * K
    # subtle: Numba frees an array after its last use by name, and an address is no use: each of these is named in the loop
    at_edge, at_scores, at_context = edge.ctypes.data, scores.ctypes.data, context.ctypes.data
    end = last[(start + many - 1) // group]
    for s in range(first[start // group], end, KEYS):
        keys = min(KEYS, end - s)
        scores[:] = np.float32(0)
        for r in range(0, keys, ROWS):
            rows, stride = at_k + 4 * (s + r) * K, K
            if s + r + ROWS > S:
                _copy(k[g], s + r, S, 0, edge)
                rows, stride = at_edge, edge.shape[1]
            tile(rows, stride, 1, queries.ctypes.data, COLUMNS, at_scores + 4 * r * COLUMNS, K)
        _mask(scores, keys, s, start, many, group, first, last)
        _softmax_block(scores, keys, top, total, context)
        for b in range(wide):
            columns, stride = at_v + 4 * (s * K + b * COLUMNS), K
            if (b + 1) * COLUMNS > K:
                _copy(v[g], s, s + keys, b * COLUMNS, edge)
                columns, stride = at_edge, edge.shape[1]
            for r in range(0, many, ROWS):
                place = at_context + 4 * (b * WIDE + r) * COLUMNS
                tile(at_scores + 4 * r, 1, COLUMNS, columns, stride, place, keys)
    for c in range(many):
        n, h = (start + c) // group, g * group + (start + c) % group
        for j in range(K):
            out[n, h, j] = context[j // COLUMNS, c, j % COLUMNS] / total[c]


@numba.njit(cache=True, error_model="numpy")
def _copy(rows, first, last, column, edge):
    for i in range(first, last):
        for j in range(column, rows.shape[1]):
            edge[i - first, j - column] = rows[i, j]


@numba.njit(cache=True, error_model="numpy")
def _mask(scores, keys, s, start, many, group, first, last):
    """Set to -inf what a query may not see."""
    for c in range(many):
        n = (start + c) // group
        for i in range(max(last[n] - s, 0), keys):
            scores[i, c] = -np.inf
        for i in range(min(first[n] - s, keys)):
            scores[i, c] = -np.inf


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _softmax_block(scores, keys, top, total, context):
    """scores = e^(scores - largest so far); top, total and context [wide, WIDE, COLUMNS] are brought up to date."""
    shrink, new = top.copy(), np.zeros(COLUMNS, dtype=np.float32)
    at_scores, at_top, at_new = scores.ctypes.data, top.ctypes.data, new.ctypes.data
    raise_to(at_top, at_scores, keys)
    take_from(at_top, at_scores, keys)
    _exponentials(scores[:keys].reshape(-1))
    add_to(at_new, at_scores, keys)
    for c in range(COLUMNS):
        shrink[c] -= top[c]
    _exponentials(shrink)
    for c in range(COLUMNS):
        total[c] = total[c] * shrink[c] + new[c]
    for b in range(len(context)):
        for c in range(COLUMNS):
            for j in range(COLUMNS):
                context[b, c, j] *= shrink[c]


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _exponentials(x):
    for i in range(len(x)):
        x[i] = exponential(x[i])
