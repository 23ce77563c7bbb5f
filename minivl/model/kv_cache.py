"""KV cache for one sequence, or for a batch decoded together.

    past = cache.extend(layer, k, v)            # append the new tokens' keys and values, [KV, T, K] each
    past.attend(q, window, kernels)             # [T, H*K]: each new token attends to itself and to those before it
    cache.commit(input_ids, next_position)      # once every layer has been extended

T new tokens, S tokens in the cache after them, B sequences, H heads, KV key heads, K head width.
window: how many tokens a token looks back, itself included, None for all (`TextConfig.layer_window`); not one of the tower's.
"""

from typing import NamedTuple

import numpy as np

from minivl.kernels import attention


class KeysValues(NamedTuple):
    """Keys and values of one layer, [KV, S, K] each, the T new tokens' last."""

    k: np.ndarray
    v: np.ndarray

    @property
    def length(self):
        """S: tokens in the cache, the new ones included."""
        return self.k.shape[1]

    def scores(self, q, window):
        """q [H, T, K] -> [H, T, S]"""
        return attention.causal_scores(q, self.k, window)

    def attend(self, q, window, kernels):
        """q [H, T, K] -> [T, H*K]"""
        return kernels.causal_attention(q, self.k, self.v, window)

    def context(self, probs):
        """probs [H, T, S] -> [T, H*K]"""
        return attention.causal_context(probs, self.v)


class KVCache:
    """Rotated keys and values of every layer, float32 [KV, capacity, K] each, and the tokens they belong to.

    input_ids      the cached tokens, in order
    media          (start, count, digest) of each cached image or video: its first token, number of tokens, content
    next_position  M-RoPE position of the next token
    reused         how many tokens of the last prompt were in the cache
    prepared       {source of an image or video of the conversation: the prepared one}; see processing/media_cache.py

    Buffers are allocated once for as many tokens as `reserve` was given; beyond that, capacity doubles when it runs out, so
    that appending a token copies nothing.
    """

    def __init__(self, text, of=None):
        self.of = of  # the model that made these keys and values
        self._heads = text.num_key_value_heads, text.head_dim
        self._keys = [self._buffer(0) for _ in range(text.num_hidden_layers)]
        self._values = [self._buffer(0) for _ in range(text.num_hidden_layers)]
        self.input_ids = np.zeros(0, dtype=np.int64)
        self.media = []
        self.next_position = 0
        self.reused = 0
        self.prepared = {}
        self._reserved = 0

    def __len__(self):
        return len(self.input_ids)

    @property
    def nbytes(self):
        """Bytes of the buffers, unused capacity included."""
        return sum(buffer.nbytes for buffer in [*self._keys, *self._values])

    def reserve(self, tokens):
        """Allocate for this many tokens in all, the next time that capacity runs out."""
        self._reserved = tokens

    def extend(self, layer, k, v):
        """Append k, v [KV, T, K]. -> the layer's KeysValues"""
        start, end = len(self), len(self) + k.shape[1]
        # subtle: each by its own capacity, since an interrupt may come between the two
        for buffers, new in ((self._keys, k), (self._values, v)):
            capacity = next_capacity(end, buffers[layer].shape[1], self._reserved)
            if capacity > buffers[layer].shape[1]:
                buffers[layer] = self._enlarge(buffers[layer], start, capacity)
            buffers[layer][:, start:end] = new
        return KeysValues(self._keys[layer][:, :end], self._values[layer][:, :end])

    def commit(self, input_ids, next_position):
        """Count the tokens by which every layer has just been extended as cached."""
        self.input_ids = np.concatenate([self.input_ids, input_ids])
        self.next_position = next_position

    def truncate(self, length):
        """Keep the first `length` tokens only. The next prompt sets `next_position`."""
        self.reused = length
        self.input_ids = self.input_ids[:length]
        self.media = [medium for medium in self.media if medium[0] < length]

    def _buffer(self, capacity):
        KV, K = self._heads
        return np.empty((KV, capacity, K), dtype=np.float32)

    def _enlarge(self, array, used, capacity):
        larger = self._buffer(capacity)
        larger[:, :used] = array[:, :used]
        return larger


def next_capacity(end, capacity, reserved):
    """Capacity of a buffer that must hold `end` tokens: unchanged, or as reserved, or doubled, or `end`."""
    if end <= capacity:
        return capacity
    return reserved if end <= reserved else max(end, 2 * capacity)


# ---- batches ----


class KVCaches:
    """The caches of a batch of sequences as one: a step adds a token to each; row b of every tensor belongs to cache b."""

    def __init__(self, caches):
        self.caches = caches

    @property
    def next_position(self):
        """int64 [B]"""
        return np.array([cache.next_position for cache in self.caches], dtype=np.int64)

    def extend(self, layer, k, v):
        """Append row b of k, v [KV, B, K] to cache b. -> BatchKeysValues"""
        return BatchKeysValues(
            cache.extend(layer, k[:, b : b + 1], v[:, b : b + 1]) for b, cache in enumerate(self.caches)
        )

    def commit(self, input_ids, next_position):
        for b, cache in enumerate(self.caches):
            cache.commit(input_ids[b : b + 1], int(next_position[b]))


class BatchKeysValues:
    """Keys and values of one layer for each sequence of a batch, with one new token each.

    S is the length of the longest; past the end of a shorter one, scores are -inf and probabilities 0.
    """

    def __init__(self, rows):
        self.rows = list(rows)

    @property
    def length(self):
        return max(row.length for row in self.rows)

    def scores(self, q, window):
        """q [H, B, K] -> [H, B, S]"""
        scores = np.full((*q.shape[:2], self.length), -np.inf, dtype=np.float32)
        for b, row in enumerate(self.rows):
            scores[:, b : b + 1, : row.length] = row.scores(q[:, b : b + 1], window)
        return scores

    def attend(self, q, window, kernels):
        """q [H, B, K] -> [B, H*K]"""
        return np.concatenate([row.attend(q[:, b : b + 1], window, kernels) for b, row in enumerate(self.rows)])

    def context(self, probs):
        """probs [H, B, S] -> [B, H*K]"""
        return np.concatenate([row.context(probs[:, b : b + 1, : row.length]) for b, row in enumerate(self.rows)])


def batch(caches):
    """The caches of a batch as one: a `KVCaches`, or the cache itself if there is only one."""
    return caches[0] if len(caches) == 1 else KVCaches(caches)
