"""Layers that the vision tower and the decoder share: the MLP, and the softmax of attention scores."""

from minivl.kernels import attention
from minivl.stream import Lazy


def softmax_of(scores):
    """Probabilities of attention scores; lazy as long as the scores are."""
    if isinstance(scores, Lazy):
        return Lazy(scores.shape, lambda: attention.softmax(scores()))
    return attention.softmax(scores)


def mlp(x, weights, kernels):
    """SwiGLU MLP: down(silu(gate(x)) * up(x)). [N, D] -> [N, I] -> [N, D]. The tower's has biases, the decoder's has none."""
    gate = yield "gate_proj", kernels.linear(x, *weights.linear("gate_proj"))
    up = yield "up_proj", kernels.linear(x, *weights.linear("up_proj"))
    act = yield "act", kernels.silu_multiply(gate, up)
    del gate, up
    return (yield "down_proj", kernels.linear(act, *weights.linear("down_proj")))
