"""The text decoder: embeddings in, hidden states out, with a cache of keys and values.

    x [T, D] -> 36 layers (3B) of attention and SwiGLU -> model.norm [T, D]

Prefill runs all T tokens of a prompt at once (a long one in chunks, see `Engine.prefill`), decoding runs one at a time;
both are the same code, with a KV cache. Axes: T new tokens, S tokens in the cache after them, D width,
H heads, KV key heads, K = D/H.
Source: arXiv:2412.15115 (Qwen2.5), arXiv:2409.12191 (M-RoPE); names are the checkpoint's, below `model.`.

A batch of prompts (batch.py) is the same code as well: only its cache knows that each row has a sequence of its own.
"""

from minivl.model.layers import mlp, softmax_of
from minivl.model.positions import mrope
from minivl.stream import Lazy, under


def decoder(x, position_ids, cache, weights, config, kernels, first=0):
    """Hidden states after the final norm, float32 [T, D], of T tokens that follow those in the cache.

    position_ids  int64 [3, T], rows t, h, w;  weights  those below `model.`;  config  the TextConfig
    first         start at this layer, with x as its input; studies use it to skip the layers below
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
    m = yield from under("mlp", mlp(h, weights.at("mlp"), kernels))
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
    past = cache.extend(index, k, v.reshape(T, KV, K).swapaxes(0, 1))  # keys are rotated before they are cached

    window = config.layer_window(index)
    scores = yield "scores", Lazy((H, T, past.length), lambda: past.scores(q, window))
    probs = yield "probs", softmax_of(scores)
    context = past.attend(q, window, kernels) if isinstance(probs, Lazy) else past.context(probs)
    context = yield "context", context
    return (yield "o_proj", kernels.linear(context, *weights.linear("o_proj")))
