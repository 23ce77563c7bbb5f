"""The text decoder: embeddings in, hidden states out, with a cache of keys and values.

    x [T, D] -> 36 layers (3B) of attention and SwiGLU -> model.norm [T, D]

Prefill runs all T tokens of a prompt at once (of a long one, part after part: see `VLM.prefill`), decoding one at a time;
both are the same code, and the cache holds what came before. Axes: T new tokens, S tokens in the cache after them, D width,
H heads, KV key heads, K = D/H.
Source: arXiv:2412.15115 (Qwen2.5), arXiv:2409.12191 (M-RoPE); names are the checkpoint's, below `model.`.

Several prompts at once (several.py) are the same code once more: only the cache knows that each row has a past of its own.
"""

from typing import NamedTuple

import numpy as np

from minivl.kernels import attention
from minivl.positions import mrope
from minivl.stream import Lazy, under
from minivl.vision import softmax_of, swiglu


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


def decoder(x, position_ids, cache, weights, config, kernels, first=0):
    """Hidden states after the final norm, float32 [T, D], of T tokens that follow those in the cache.

    position_ids  int64 [3, T], rows t, h, w;  weights  those below `model.`;  config  the TextConfig
    first         the layer to begin with, for who has what goes into it
    """
    cos, sin = mrope(position_ids, config.rope, config.head_dim)
    cos = yield "rope.cos", cos
    sin = yield "rope.sin", sin
    for i in range(first, config.num_hidden_layers):
        layer = decoder_layer(x, (cos, sin), cache, i, weights.at(f"layers.{i}"), config, kernels)
        x = yield f"layers.{i}", (yield from under(f"layers.{i}", layer))
    return (yield "norm", kernels.rms_norm(x, weights["norm.weight"], config.rms_norm_eps))


def decoder_layer(x, rope, cache, index, weights, config, kernels):
    """Pre-norm transformer layer: x + attn(norm(x)), then x + mlp(norm(x)). [T, D] -> [T, D]"""
    eps = config.rms_norm_eps
    h = yield "input_layernorm", kernels.rms_norm(x, weights["input_layernorm.weight"], eps)
    a = yield from under("self_attn", self_attention(h, rope, cache, index, weights.at("self_attn"), config, kernels))
    x = yield "attn_residual", x + a
    h = yield "post_attention_layernorm", kernels.rms_norm(x, weights["post_attention_layernorm.weight"], eps)
    m = yield from under("mlp", swiglu(h, weights.at("mlp"), kernels))
    return x + m


def self_attention(x, rope, cache, index, weights, config, kernels):
    """Causal grouped-query attention over the cache. [T, D] -> [T, D]"""
    T, D = x.shape
    H, KV, K = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q = yield "q_proj", kernels.linear(x, *weights.linear("q_proj"))
    k = yield "k_proj", kernels.linear(x, *weights.linear("k_proj"))
    v = yield "v_proj", kernels.linear(x, *weights.linear("v_proj"))
    q = yield "q_rope", kernels.rotate(q.reshape(T, H, K), *rope)  # [T, H, K] -> [H, T, K]
    k = yield "k_rope", kernels.rotate(k.reshape(T, KV, K), *rope)
    seen = cache.extend(index, k, v.reshape(T, KV, K).swapaxes(0, 1))  # keys are rotated before they are kept

    window = config.layer_window(index)
    scores = yield "scores", Lazy((H, T, seen.length), lambda: seen.scores(q, window))
    probs = yield "probs", softmax_of(scores)
    context = seen.attend(q, window, kernels) if isinstance(probs, Lazy) else seen.context(probs)
    context = yield "context", context
    return (yield "o_proj", kernels.linear(context, *weights.linear("o_proj")))
