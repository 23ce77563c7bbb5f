"""`minivl.record.mlx` on modules of MLX, where it is installed (the extra "recorders")."""

import numpy as np
import pytest

import minivl

mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 8)

    def __call__(self, x, cache=None):
        q = self.q_proj(x).reshape(1, len(x[0]), 2, 4).transpose(0, 2, 1, 3)
        k = self.k_proj(x).reshape(1, len(x[0]), 1, 4).transpose(0, 2, 1, 3)
        mixed = mx.fast.scaled_dot_product_attention(q, k, k, scale=0.5)
        return self.o_proj(mixed.transpose(0, 2, 1, 3).reshape(1, -1, 8))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.self_attn = nn.RMSNorm(8), Attention()

    def __call__(self, x):
        return x + self.self_attn(self.input_layernorm(x))


class WideLayer(Layer):
    """Calls its base class's `__call__`: one call of the module."""

    def __call__(self, x):
        return super().__call__(x), None


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.language_model = {"model": {"layers": [WideLayer()]}}

    def __call__(self, input_ids):
        x = mx.ones((1, input_ids.shape[1], 8), dtype=mx.bfloat16)
        return self.language_model["model"]["layers"][0](x)[0]


def test_modules_steps_and_bfloat16(tmp_path):
    model = Model()
    model.set_dtype(mx.bfloat16)
    with minivl.record.mlx(model) as recording:
        for tokens in (3, 1):
            model(mx.zeros((1, tokens), dtype=mx.uint32))
    at, shapes = "model.layers.0", {name: tensor.shape for name, tensor in recording.items()}
    assert shapes["input_ids"] == (3,) and recording["input_ids"].dtype == np.int64
    assert shapes[f"{at}.self_attn.q_rope"] == (2, 3, 4) and shapes[f"{at}.self_attn.k_rope"] == (1, 3, 4)
    assert shapes[at] == shapes[f"{at}.self_attn.context"] == (3, 8) and shapes[f"steps.1.{at}"] == (1, 8)
    assert recording[at].dtype == np.float32
    recording.save(tmp_path / "port.safetensors")
    x = np.array(model(mx.zeros((1, 3), dtype=mx.uint32)).astype(mx.float32))[0]
    assert np.array_equal(x, minivl.Trace.load(tmp_path / "port.safetensors")[at])
    assert WideLayer.__call__.__name__ == "__call__" and nn.Linear.__call__.__name__ == "__call__"  # as before
