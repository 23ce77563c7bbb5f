"""Attention: softmax(q k.T / sqrt(K)) v, in the two forms of the model.

Tower: a patch sees the patches of its own segment, in both directions. Segments are runs of rows, so there is no mask:

    bounds 0 3 5        scores of 5 patches     x x x . .
                                                x x x . .
                                                x x x . .
                                                . . . x x
                                                . . . x x

Decoder: a token sees itself and the tokens before it, over the cache; query heads share key heads in groups (GQA):

    2 new tokens after 3 cached       x x x x .      query head h reads key head h // (H / KV)
                                      x x x x x

The fused kernels never store scores. `segment_scores`, `causal_scores` and `softmax` build them on request, and
`segment_context`, `causal_context` continue from edited probabilities.
Shapes: q [H, N, K], k and v [KV, S, K] -> context [N, H*K], the heads side by side.
"""

import math

import numba
import numpy as np

from minivl.kernels.activations import exponential
from minivl.kernels.jit_cache import CACHE
from minivl.kernels.matmul import transpose_into
from minivl.kernels.tile import COLUMNS, ROWS, add_to, first_tile, subtract_from, take_maximum, tile

FAST = {"reassoc", "contract"}  # sums may be reordered, which is what lets the compiler use vectors
KEYS = 240  # keys whose scores are held at a time: a multiple of ROWS on every processor; 15 KB at 16 COLUMNS
LOWEST = np.finfo(np.float32).min
PANELS = 4  # panels of queries for one load of keys and values into the cache: 64 at 16 COLUMNS, the tower's window


def softmax(scores):
    """e^(x - max) / sum, over the last axis; -inf becomes exactly 0. A row of only -inf is all 0."""
    top = np.max(scores, axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, np.float32(0)))
    total = np.sum(weights, axis=-1, keepdims=True, dtype=np.float32)
    return weights / np.where(total > 0, total, np.float32(1))


# ---- the tower: attention inside segments ----


def segment_scores(q, k, bounds):
    """Scores [H, N, L]: row n holds those of patch n with its own segment, L is the longest one, the rest is -inf."""
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
    stop = np.repeat(bounds[1:], np.diff(bounds))
    starts = [np.arange(*segment, COLUMNS) for segment in zip(bounds[:-1], bounds[1:])]
    return _attend(q, k, v, first, stop, np.concatenate([*starts, bounds[-1:]]))


# ---- the decoder: causal attention over a cache ----


def causal_scores(q, k, window=None):
    """Scores [H, T, S]: the T queries are the last T of S tokens; keys that a query may not see have -inf."""
    H, T, K = q.shape
    KV, S, _ = k.shape
    grouped = q.reshape(KV, H // KV * T, K)  # "(g r) t k -> g (r t) k"
    scores = (grouped @ k.swapaxes(1, 2)).reshape(H, T, S) * np.float32(1 / math.sqrt(K))
    first, stop = _visible(T, S, window)
    key = np.arange(S)
    seen = (key >= first[:, None]) & (key < stop[:, None])  # [T, S]
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
    H, T, _ = q.shape
    queries = T * H // len(k)
    starts = np.append(np.arange(0, queries, COLUMNS), queries)
    return _attend(q, k, v, *_visible(T, k.shape[1], window), starts)


def _visible(T, S, window):
    """For each query the range of keys it sees, first inclusive, stop exclusive: int64 [T] each."""
    stop = np.arange(S - T, S, dtype=np.int64) + 1
    first = np.zeros(T, dtype=np.int64) if window is None else np.maximum(stop - window, 0)
    return first, stop


def merge_heads(context):
    """[H, N, K] -> [N, H*K]"""
    H, N, K = context.shape
    return np.ascontiguousarray(context.swapaxes(0, 1)).reshape(N, H * K)


# ---- the compiled version of both: query n of every head sees the keys first[n]:stop[n] ----


def _attend(q, k, v, first, stop, starts):
    """q [H, N, K], k and v [KV, S, K] -> [N, H*K]. first and stop never decrease from one query to the next.

    starts  int64 [panels + 1]: where each panel of at most COLUMNS queries begins, and the end. The queries of a group are
            counted token by token: number i is token i // group, head i % group. A panel's patches are of one segment,
            so that the results of an image do not depend on its neighbours
    """
    H, N, K = q.shape
    out = np.empty((N, H, K), dtype=np.float32)
    _attend_tiles(np.ascontiguousarray(q), _buffer(k), _buffer(v), first, stop, starts, out)
    return out.reshape(N, H * K)


def _buffer(rows):
    """The first rows of each head in a cache, [KV, S, K] -> the cache [KV, capacity, K] that holds them, without a copy.
    Entries after S are unused and not read.

    If there are gaps between the heads' rows, Numba does not know that rows are dense, and cannot vectorise.
    """
    KV, S, K = rows.shape
    dense = rows.strides[1:] == (4 * K, 4) and rows.strides[0] >= 4 * S * K and rows.strides[0] % (4 * K) == 0
    if rows.flags.c_contiguous or not dense:
        return np.ascontiguousarray(rows)
    return np.lib.stride_tricks.as_strided(rows, (KV, rows.strides[0] // (4 * K), K))


@numba.njit(parallel=True, cache=CACHE, error_model="numpy")
def _attend_tiles(q, k, v, first, stop, starts, out):
    tasks = (len(starts) - 1 + PANELS - 1) // PANELS
    for task in numba.prange(len(k) * tasks):
        p = task % tasks * PANELS
        _attend_panels(q, k, v, first, stop, starts[p : p + PANELS + 1], task // tasks, out)


@numba.njit(cache=CACHE, fastmath=FAST, error_model="numpy")
def _attend_panels(q, k, v, first, stop, starts, g, out):
    """Panels of queries of group g, against KEYS keys at a time, loaded into the cache once for all panels. For each panel:

        scores [keys, COLUMNS]  = k [keys, K] @ queries [K, COLUMNS]       never leave the cache
        scores                  = e^(scores - largest so far)              in place: weights, of which the sum is not known yet
        context [K, COLUMNS]   += v.T [K, keys] @ scores

    With each block of keys the largest score may grow; earlier sums are then scaled down accordingly (online softmax).
    """
    (H, _, K), (KV, capacity, _), S = q.shape, k.shape, stop[len(stop) - 1]
    group, high, panels = H // KV, (K + ROWS - 1) // ROWS, len(starts) - 1
    scale = np.float32(1 / math.sqrt(K))
    queries, rows = np.zeros((panels, K, COLUMNS), dtype=np.float32), np.zeros((COLUMNS, K), dtype=np.float32)
    blocks = 0
    for p in range(panels):
        begin, end = starts[p], starts[p + 1]
        for i in range(begin, end):
            for j in range(K):
                rows[i - begin, j] = q[g * group + i % group, i // group, j] * scale
        transpose_into(rows, queries[p])
        blocks = max(blocks, (stop[(end - 1) // group] - first[begin // group] + KEYS - 1) // KEYS)
    scores = np.empty((KEYS, COLUMNS), dtype=np.float32)
    # padded copy of what a tile would read beyond the end: rows of k, and all of v if it is narrow
    edge = np.zeros((KEYS if K < ROWS else ROWS, max(K, ROWS)), dtype=np.float32)
    context = np.zeros((panels, high * ROWS, COLUMNS), dtype=np.float32)
    # subtle: not -inf, as -inf - -inf would be NaN
    top, total = np.full((panels, COLUMNS), LOWEST, dtype=np.float32), np.zeros((panels, COLUMNS), dtype=np.float32)
    at_k, at_v = k.ctypes.data + 4 * g * capacity * K, v.ctypes.data + 4 * g * v.shape[1] * K
    # subtle: Numba frees an array after the last use of its name; addresses do not count: all are named in the loop
    at_edge, at_scores, at_context = edge.ctypes.data, scores.ctypes.data, context.ctypes.data
    for block in range(blocks):
        for p in range(panels):
            begin, end = starts[p], starts[p + 1]
            s = first[begin // group] + block * KEYS
            keys = min(s + KEYS, stop[(end - 1) // group]) - s
            if keys <= 0:
                continue
            for r in range(0, keys, ROWS):
                some, stride = at_k + 4 * (s + r) * K, K
                if s + r + ROWS > S:
                    _copy(k[g], s + r, S, edge)
                    some, stride = at_edge, edge.shape[1]
                first_tile(some, stride, 1, queries[p].ctypes.data, COLUMNS, at_scores + 4 * r * COLUMNS, K)
            _mask(scores, keys, s, begin, end, group, first, stop)
            _softmax_block(scores, keys, top[p], total[p], context[p])
            columns, stride = at_v + 4 * s * K, K
            if K < ROWS:
                _copy(v[g], s, s + keys, edge)
                columns, stride = at_edge, edge.shape[1]
            for r in range(high):
                row = max(min(r * ROWS, K - ROWS), 0)  # the last tile begins inside the one before it
                place = at_context + 4 * (p * high + r) * ROWS * COLUMNS
                tile(columns + 4 * row, 1, stride, at_scores, COLUMNS, place, keys)
    done, whole = np.empty((COLUMNS, high * ROWS), dtype=np.float32), (high - 1) * ROWS
    for p in range(panels):
        transpose_into(context[p], done)
        for i in range(starts[p], starts[p + 1]):
            row, c = out[i // group, g * group + i % group], i - starts[p]
            for j in range(whole):
                row[j] = done[c, j] / total[p, c]
            for j in range(min(ROWS, K)):  # the last tile's
                row[max(K - ROWS, 0) + j] = done[c, whole + j] / total[p, c]


@numba.njit(cache=CACHE, error_model="numpy")
def _copy(rows, first, stop, edge):
    for i in range(first, stop):
        for j in range(rows.shape[1]):
            edge[i - first, j] = rows[i, j]


@numba.njit(cache=CACHE, error_model="numpy")
def _mask(scores, keys, s, begin, end, group, first, stop):
    """Set to -inf the scores of the keys from s on that the queries begin:end may not see."""
    for c in range(end - begin):
        n = (begin + c) // group
        for i in range(max(stop[n] - s, 0), keys):
            scores[i, c] = -np.inf
        for i in range(min(first[n] - s, keys)):
            scores[i, c] = -np.inf


@numba.njit(cache=CACHE, fastmath=FAST, error_model="numpy")
def _softmax_block(scores, keys, top, total, context):
    """scores = e^(scores - largest so far); top, total and context [K, COLUMNS] are updated."""
    shrink, new = top.copy(), np.zeros(COLUMNS, dtype=np.float32)
    at_scores, at_top, at_new = scores.ctypes.data, top.ctypes.data, new.ctypes.data
    take_maximum(at_top, at_scores, keys)
    subtract_from(at_top, at_scores, keys)
    _exponentials(scores[:keys].reshape(-1))
    add_to(at_new, at_scores, keys)
    for c in range(COLUMNS):
        shrink[c] -= top[c]
    _exponentials(shrink)
    for c in range(COLUMNS):
        total[c] = total[c] * shrink[c] + new[c]
    for j in range(len(context)):
        for c in range(COLUMNS):
            context[j, c] *= shrink[c]


@numba.njit(cache=CACHE, fastmath=FAST, error_model="numpy")
def _exponentials(x):
    for i in range(len(x)):
        x[i] = exponential(x[i])
