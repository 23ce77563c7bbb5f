"""What came before: the keys and values of earlier tokens, of one sequence or of several that are decoded together.

    seen = cache.extend(layer, k, v)            # those of the new tokens [KV, T, K] behind what is held
    seen.attend(q, window, kernels)             # [T, H*K]: each new token looks back at all before it, and at itself
    cache.commit(input_ids, next_position)      # when every layer has done so

T new tokens, S tokens in the cache after them, B sequences, H heads, KV key heads, K head width.
"""

from typing import NamedTuple

import numpy as np

from minivl.kernels import attention


class Seen(NamedTuple):
    """What the T new tokens of a sequence look at in one layer: all its keys and values, [KV, S, K] each, theirs at the end."""

    k: np.ndarray
    v: np.ndarray

    @property
    def length(self):
        """S"""
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
    """Rotated keys and values of every layer, float32 [KV, capacity, K] each, and which tokens they belong to.

    input_ids      the tokens held, in order
    pictures       (start, count, digest) of each picture held: its first token, how many it has, and what it shows
    next_position  M-RoPE position of the next token
    reused         how many tokens of the last prompt were held already
    prepared       {what a picture or video of the conversation was made of: what was made}; see prepared.py

    Room is made once for as many tokens as `reserve` was told of. Beyond that it is doubled when it runs out, so a token
    appends without copying what is there.
    """

    def __init__(self, text, of=None):
        self.of = of  # the model whose keys and values these are
        self._heads = text.num_key_value_heads, text.head_dim
        self._keys = [self._buffer(0) for _ in range(text.num_hidden_layers)]
        self._values = [self._buffer(0) for _ in range(text.num_hidden_layers)]
        self.input_ids = np.zeros(0, dtype=np.int64)
        self.pictures = []
        self.next_position = 0
        self.reused = 0
        self.prepared = {}
        self._reserved = 0

    def __len__(self):
        return len(self.input_ids)

    @property
    def nbytes(self):
        """Bytes of the buffers, room that is not used yet included."""
        return sum(buffer.nbytes for buffer in [*self._keys, *self._values])

    def reserve(self, tokens):
        """When there is no room for the next tokens, make it for so many in all."""
        self._reserved = tokens

    def extend(self, layer, k, v):
        """Put k, v [KV, T, K] behind what is held. -> Seen, with all of the layer's keys and values"""
        start, end = len(self), len(self) + k.shape[1]
        # subtle: each by its own capacity, for an interrupt may fall between the two
        for buffers, new in ((self._keys, k), (self._values, v)):
            capacity = roomy(end, buffers[layer].shape[1], self._reserved)
            if capacity > buffers[layer].shape[1]:
                buffers[layer] = self._grown(buffers[layer], start, capacity)
            buffers[layer][:, start:end] = new
        return Seen(self._keys[layer][:, :end], self._values[layer][:, :end])

    def commit(self, input_ids, next_position):
        """The tokens that every layer has just been extended by now count as held."""
        self.input_ids = np.concatenate([self.input_ids, input_ids])
        self.next_position = next_position

    def truncate(self, length):
        """Forget all tokens but the first `length`, those of the next prompt. It says its positions itself."""
        self.reused = length
        self.input_ids = self.input_ids[:length]
        self.pictures = [picture for picture in self.pictures if picture[0] < length]

    def _buffer(self, capacity):
        KV, K = self._heads
        return np.empty((KV, capacity, K), dtype=np.float32)

    def _grown(self, array, used, capacity):
        grown = self._buffer(capacity)
        grown[:, :used] = array[:, :used]
        return grown


def roomy(end, capacity, reserved):
    """Tokens that a buffer has room for once it holds `end`: as before, or as reserved, or twice as many, or `end`."""
    if end <= capacity:
        return capacity
    return reserved if end <= reserved else max(end, 2 * capacity)


# ---- of several sequences ----


class KVCaches:
    """The caches of several sequences as one, for steps that add a token to each: row b of every tensor belongs to cache b."""

    def __init__(self, caches):
        self.caches = caches

    @property
    def next_position(self):
        """Of each, int64 [B]"""
        return np.array([cache.next_position for cache in self.caches], dtype=np.int64)

    def extend(self, layer, k, v):
        """Put row b of k, v [KV, B, K] behind what cache b holds. -> SeenByEach"""
        return SeenByEach(cache.extend(layer, k[:, b : b + 1], v[:, b : b + 1]) for b, cache in enumerate(self.caches))

    def commit(self, input_ids, next_position):
        for b, cache in enumerate(self.caches):
            cache.commit(input_ids[b : b + 1], int(next_position[b]))


class SeenByEach(list):
    """What each row looks at: a `Seen` for each, with one new token. S is the length of the longest; behind the
    end of a shorter one, scores are -inf and probabilities 0."""

    @property
    def length(self):
        return max(seen.length for seen in self)

    def scores(self, q, window):
        """q [H, B, K] -> [H, B, S]"""
        scores = np.full((*q.shape[:2], self.length), -np.inf, dtype=np.float32)
        for b, seen in enumerate(self):
            scores[:, b : b + 1, : seen.length] = seen.scores(q[:, b : b + 1], window)
        return scores

    def attend(self, q, window, kernels):
        """q [H, B, K] -> [B, H*K]"""
        return np.concatenate([seen.attend(q[:, b : b + 1], window, kernels) for b, seen in enumerate(self)])

    def context(self, probs):
        """probs [H, B, S] -> [B, H*K]"""
        return np.concatenate([seen.context(probs[:, b : b + 1, : seen.length]) for b, seen in enumerate(self)])


def joined(caches):
    """One cache of all of them."""
    return caches[0] if len(caches) == 1 else KVCaches(caches)
