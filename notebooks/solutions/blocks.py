"""Solutions of notebook 07. `minivl lab check blocks.py` checks them."""

import numpy as np


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def swiglu(gate, up):
    return gate / (1 + np.exp(-gate)) * up


def segment_attention(q, k, v, bounds):
    H, N, K = q.shape
    context = np.empty_like(v)
    for a, b in zip(bounds[:-1], bounds[1:]):
        scores = q[:, a:b] @ k[:, a:b].swapaxes(1, 2) / np.sqrt(np.float32(K))
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context[:, a:b] = e / e.sum(axis=-1, keepdims=True) @ v[:, a:b]
    return context.swapaxes(0, 1).reshape(N, H * K)


def vision_block(x, weights, cos, sin, bounds, heads):
    N, D = x.shape

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def rotate(x):  # [heads, N, K]
        low, high = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-high, low], axis=-1) * sin

    h = rms_norm(x, weights["norm1.weight"], 1e-6)
    q, k, v = linear(h, "attn.qkv").reshape(N, 3, heads, D // heads).transpose(1, 2, 0, 3)  # each [heads, N, K]
    x = x + linear(segment_attention(rotate(q), rotate(k), v, bounds), "attn.proj")
    h = rms_norm(x, weights["norm2.weight"], 1e-6)
    return x + linear(swiglu(linear(h, "mlp.gate_proj"), linear(h, "mlp.up_proj")), "mlp.down_proj")
