"""`minivl.record.torch` on the real transformers, and on plain modules: right ports raise no alarm, wrong ones are found."""

import numpy as np
import pytest
from random_models import torch

import minivl
from minivl.cli import main
from minivl.compare.comparison import compare
from minivl.reference.hooks import arguments, load_reference
from minivl.tiny import CHECKPOINT, scene

QUESTION = "How many shapes are there?"
# what no module makes; of transformers 5 with generate, the tower's inputs, too, which it runs by itself. Nor scores,
# probabilities and the chosen token
NOT_RECORDED = ("image.", "video.", "rope_delta", "pixel_values", "image_grid_thw")


@pytest.fixture(scope="module")
def setting():
    """(vlm, trace of two tokens, arguments of transformers' generate)"""
    vlm = minivl.load()
    trace = vlm.trace(QUESTION, images=scene(5, size=(187, 130)).image, max_new_tokens=3)
    inputs = {name: np.array(trace[name]) for name in ("input_ids", "pixel_values", "image_grid_thw")}
    return vlm, trace, arguments(vlm.config, **inputs)


def missing(found):
    names = [row.name for row in found.rows if row.status == "MISSING"]
    return [
        name
        for name in names
        if not name.startswith(NOT_RECORDED) and not name.endswith(("scores", "probs", "next_token"))
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_answer_of_transformers(setting, tmp_path, capsys, attention):
    vlm, trace, given = setting
    model = load_reference(CHECKPOINT, attention)
    with torch.no_grad(), minivl.record.torch(model) as recording:
        model.generate(**given, max_new_tokens=3, do_sample=False)
    recording.save(tmp_path / "port.safetensors")
    found = compare(trace, tmp_path / "port.safetensors", model=vlm)
    assert found.ok and found.covered and not found.unmatched, f"\n{found}"
    fused = attention == "sdpa"
    assert [name for name in missing(found) if fused or "_rope" not in name] == []
    assert len(found.compared) > (220 if fused else 190)
    trace.save(tmp_path / "ours.safetensors")
    assert main(["compare", str(tmp_path / "ours.safetensors"), str(tmp_path / "port.safetensors")]) == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_prompt_in_chunks(setting):
    vlm, trace, given = setting
    ours, model = vlm.trace("How many shapes are there? " * 6, max_new_tokens=1), load_reference(CHECKPOINT, "sdpa")
    text = torch.from_numpy(np.array(ours["input_ids"]))[None]
    with torch.no_grad(), minivl.record.torch(model, keep="*model.*") as recording:
        cache = model(input_ids=text[:, :30], use_cache=True).past_key_values
        model(input_ids=text[:, 30:], past_key_values=cache, use_cache=True)
    assert "chunks.1.model.layers.0.self_attn.k_rope" in recording
    found = compare(ours, recording, model=vlm)
    assert found.ok and found["model.layers.4"].status == "OK", f"\n{found}"


def test_lower_precision(setting):
    vlm, trace, given = setting
    model = load_reference(CHECKPOINT, "sdpa", "bfloat16")
    with torch.no_grad(), minivl.record.torch(model) as recording:
        model(**given)
    found = compare(trace, recording, model=vlm)
    assert found.ok and found.arithmetic == "bfloat16", f"\n{found}"


def test_a_wrong_port_is_found(setting):
    vlm, trace, given = setting
    model = load_reference(CHECKPOINT, "sdpa")
    for layer in model.model.language_model.layers:
        layer.self_attn.q_proj.bias = None
    with torch.no_grad(), minivl.record.torch(model) as recording:
        model(**given)
    found = compare(trace, recording, model=vlm)
    assert found.first.name == "model.layers.0.self_attn.q_proj" and found.first.causes[0].name == "no bias"


def test_a_second_prompt_and_nothing(setting):
    vlm, trace, given = setting
    model = load_reference(CHECKPOINT, "sdpa")
    with pytest.raises(minivl.Error, match="another prompt begins"), torch.no_grad(), minivl.record.torch(model):
        model(**given)
        model(**given)
    with pytest.raises(minivl.Error, match="nothing was recorded"), minivl.record.torch(model):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Attention(torch.nn.Module):
    """Queries, keys and values in one product, as some ports have them; returns a tuple."""

    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width), heads

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        mixed = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        return self.proj(mixed.transpose(0, 1).reshape(len(x), -1)), None


class Angles(torch.nn.Module):
    def forward(self, count):
        return torch.polar(torch.ones(count, 2), torch.arange(count)[:, None] * torch.ones(2))


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn = torch.nn.LayerNorm(width), Attention(width, 2)

    def forward(self, x):
        return x + self.attn(self.norm1(x))[0]


class Tower(torch.nn.Module):
    """Without "visual" in its paths, complex and integer outputs, in bfloat16."""

    def __init__(self):
        super().__init__()
        self.angles, self.order, self.blocks = Angles(), torch.nn.Identity(), torch.nn.ModuleList([Block(8)])

    def forward(self, x):
        self.angles(len(x)), self.order(torch.arange(len(x)))
        for block in self.blocks:
            x = block(x)
        return x


def test_plain_modules(tmp_path):
    tower = Tower().to(torch.bfloat16)
    with minivl.record.torch(tower, name="visual") as recording:
        tower(torch.ones(4, 8, dtype=torch.bfloat16))
    shapes = {name: (tensor.shape, tensor.dtype.name) for name, tensor in recording.items()}
    assert shapes == {
        "visual.window_order": ((4, 8), "float32"),
        "visual.blocks.0.norm1": ((4, 8), "float32"),
        "visual.blocks.0.attn.qkv": ((4, 24), "float32"),
        "visual.blocks.0.attn.q_rope": ((2, 4, 4), "float32"),
        "visual.blocks.0.attn.k_rope": ((2, 4, 4), "float32"),
        "visual.blocks.0.attn.context": ((4, 8), "float32"),
        "visual.blocks.0.attn.proj": ((4, 8), "float32"),
        "visual.blocks.0": ((4, 8), "float32"),
        "visual": ((4, 8), "float32"),
        "visual.angles": ((4, 2, 2), "float32"),
        "visual.order": ((4,), "int64"),
    }
    recording.save(tmp_path / "tower.safetensors")
    assert dict(minivl.Trace.load(tmp_path / "tower.safetensors")).keys() == shapes.keys()
