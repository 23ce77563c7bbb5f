"""Qwen2.5-VL in PyTorch, for training the small model: many examples packed into rows of one fixed size.

Parameters have the published names. A mask makes attention block-diagonal, so nothing is reordered or padded within a
row; RoPE works on the two halves of a head; as shapes are fixed, torch.compile compiles each graph once.
tests/reference/test_training.py compares the model with minivl.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from minivl.model.positions import inverse_frequencies
from minivl.tiny.training.recipe import CONFIG, PREPROCESSOR

VISION = CONFIG["vision_config"]
FAR, ASKED = 1, 2  # decoder layers after which auxiliary heads read what image tokens show, and what an answer is about


class Model(nn.Module):
    """Tower and decoder; the output layer is tied to the embeddings."""

    def __init__(self):
        super().__init__()
        self.visual, self.model = Tower(), Decoder()
        self.apply(initialise)
        quiet_residuals(self.visual.blocks, "attn.proj", "mlp.down_proj")
        quiet_residuals(self.model.layers, "self_attn.o_proj", "mlp.down_proj")
        for layer in self.model.layers:
            match_contents(layer.self_attn)
        nn.init.constant_(self.model.norm.weight, 0.07)  # the output layer is the embedding table: keep logits small


# ---- the tower ----


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        D, wide = VISION["hidden_size"], VISION["hidden_size"] * 4
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, D, (2, 14, 14), bias=False)})
        self.blocks = nn.ModuleList(VisionBlock(D) for _ in range(VISION["depth"]))
        mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, VISION["out_hidden_size"]))
        self.merger = nn.ModuleDict({"ln_q": RMSNorm(D), "mlp": mlp})


class VisionBlock(nn.Module):
    def __init__(self, D):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(D), RMSNorm(D)
        self.attn = VisionAttention(D, VISION["num_heads"])
        self.mlp = MLP(D, VISION["intermediate_size"], bias=True)


class VisionAttention(nn.Module):
    def __init__(self, D, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x, cos, sin, mask):
        R, N, D = x.shape
        q, k, v = self.qkv(x).view(R, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        context = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask)
        return self.proj(context.transpose(1, 2).reshape(R, N, D))


def run_tower(tower, pixels, segment, cos, sin):
    """Run the tower: pixels uint8 [R, N, 1176], segment [2, R, N] -> features [R*N/4, D_text], unit order."""
    scale, shift = normalisation(pixels.device)
    x = ((pixels.float() * scale + shift) @ tower.patch_embed["proj"].weight.flatten(1).T).float()
    full, windows = (to_bias(numbers[:, :, None] == numbers[:, None]) for numbers in segment)
    for i, block in enumerate(tower.blocks):
        x = x + block.attn(block.norm1(x), cos, sin, full if i in VISION["fullatt_block_indexes"] else windows)
        x = x + block.mlp(block.norm2(x))
    R, N, D = x.shape
    return tower.merger["mlp"](tower.merger["ln_q"](x).view(R * N // 4, 4 * D))


def normalisation(device):
    """Scale and shift [1176] that normalise a patch's bytes as the preprocessor does."""
    mean, std = (torch.tensor(PREPROCESSOR[f"image_{key}"], device=device) for key in ("mean", "std"))
    return (1 / (255 * std)).repeat_interleave(392), (-mean / std).repeat_interleave(392)


def tower_rotation(place):
    """cos, sin [R, 1, N, K/2] of patches at place [R, N, 2]."""
    K = VISION["hidden_size"] // VISION["num_heads"]
    frequencies = torch.from_numpy(inverse_frequencies(10000.0, K // 2)).to(place.device)
    angles = (place[..., None].float() * frequencies).flatten(2)[:, None]
    return angles.cos(), angles.sin()


# ---- the decoder ----


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer(CONFIG["hidden_size"]) for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = RMSNorm(CONFIG["hidden_size"])


class Layer(nn.Module):
    def __init__(self, D):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(D), RMSNorm(D)
        self.self_attn = SelfAttention(D, CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"])
        self.mlp = MLP(D, CONFIG["intermediate_size"], bias=False)


class SelfAttention(nn.Module):
    def __init__(self, D, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, D // heads
        self.q_proj = nn.Linear(D, D)
        self.k_proj, self.v_proj = (nn.Linear(D, kv_heads * self.width) for _ in range(2))
        self.o_proj = nn.Linear(D, D, bias=False)

    def forward(self, x, cos, sin, mask):
        R, T, D = x.shape
        q, k, v = (
            proj(x).view(R, T, -1, self.width).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        group = self.heads // self.kv_heads
        k, v = rotate(k, cos, sin).repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        context = attend(rotate(q, cos, sin), k, v, mask)
        return self.o_proj(context.transpose(1, 2).reshape(R, T, D))


def run_decoder(decoder, input_ids, feature, features, tree, turn, cos, sin):
    """Run the decoder: [R, T] each -> hidden states [R, T, D] after layers FAR and ASKED, and after the final norm."""
    x = decoder.embed_tokens(input_ids)
    shown = F.embedding(feature.clamp(min=0), features)
    x = torch.where((feature >= 0)[..., None], shown, x)
    same = (tree[:, :, None] == tree[:, None]) & ((turn[:, None] == 0) | (turn[:, None] == turn[:, :, None]))
    mask = to_bias(same.tril())
    hidden = []
    for layer in decoder.layers:
        x = x + layer.self_attn(layer.input_layernorm(x), cos, sin, mask)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        hidden.append(x)
    return hidden[FAR], hidden[ASKED], decoder.norm(x)


def decoder_rotation(position_ids):
    """cos, sin [R, 1, T, K/2] of tokens at position_ids [3, R, T]."""
    K = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    frequencies = torch.from_numpy(inverse_frequencies(CONFIG["rope_theta"], K)).to(position_ids.device)
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(CONFIG["rope_scaling"]["mrope_section"]))
    angles = (position_ids[row].permute(1, 2, 0).float() * frequencies)[:, None]
    return angles.cos(), angles.sin()


# ---- both ----


def forward(model, batch, run_tower=run_tower, run_decoder=run_decoder):
    """Features of the image tokens; hidden states after layers FAR and ASKED and after the final norm."""
    features = run_tower(model.visual, batch["pixels"], batch["segment"], *tower_rotation(batch["place"]))
    hidden = run_decoder(
        model.model, batch["input_ids"], batch["feature"], features, batch["tree"], batch["turn"],
        *decoder_rotation(batch["position_ids"]),
    )  # fmt: skip
    return features, *hidden


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class MLP(nn.Module):
    def __init__(self, width, inner, bias):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def attend(q, k, v, bias):
    """Attention in float32, also under bfloat16 autocast: PyTorch's backward pass in bfloat16 is slower on a CPU."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias)


def rotate(x, cos, sin):
    """Apply RoPE: x [R, H, T, K]; cos, sin [R, 1, T, K/2]."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def to_bias(seen):
    """seen bool [R, T, T] -> bias [R, 1, T, T]: 0 where True, else -1e9."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -1e9)[:, None]


# ---- initial weights ----


def initialise(module):
    """Scale by fan-in: at these widths the usual std 0.02 would make activations, and so gradients, far too small."""
    if isinstance(module, (nn.Linear, nn.Conv3d)):
        nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)  # so words and image tokens are equally large in the residual stream


def match_contents(attention):
    """Initialise the first query head of each group as a copy of its key head: it attends to tokens like its own."""
    K, group = attention.width, attention.heads // attention.kv_heads
    q = attention.q_proj.weight.data.view(attention.kv_heads, group, K, -1)
    q[:, 0] = attention.k_proj.weight.data.view(attention.kv_heads, K, -1)


def quiet_residuals(blocks, *names):
    """Scale down each branch's output weights, so that the sum over the depth is as large as its input."""
    for block in blocks:
        for name in names:
            block.get_submodule(name).weight.data /= math.sqrt(2 * len(blocks))
