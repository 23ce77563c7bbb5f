"""Qwen2.5-VL in PyTorch, for training the small model only: equal images in a batch, parameters named as published.

Faster than a general implementation in one way: all images of a batch have one size, so the windows are one boolean
mask [N, N], nothing is reordered, and nothing is padded in the tower. It computes the same function; that is tested by
loading what it saves into minivl and into transformers.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from minivl.model.positions import inverse_frequencies, patch_positions
from minivl.tiny.training.recipe import CONFIG

VISION = CONFIG["vision_config"]


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class MLP(nn.Module):
    def __init__(self, width, inner, bias):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x, cos, sin):
    """x [..., T, K]; cos, sin broadcast against it."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class VisionAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, cos, sin, mask):
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=mask)
        return self.proj(context.transpose(1, 2).reshape(B, N, D))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(c["hidden_size"]), RMSNorm(c["hidden_size"])
        self.attn = VisionAttention(c["hidden_size"], c["num_heads"])
        self.mlp = MLP(c["hidden_size"], c["intermediate_size"], bias=True)

    def forward(self, x, cos, sin, mask):
        x = x + self.attn(self.norm1(x), cos, sin, mask)
        return x + self.mlp(self.norm2(x))


class Tower(nn.Module):
    """pixel_values [B, N, 1176] of images with one grid (1, h, w) -> [B, N/4, D_text], raster order."""

    def __init__(self, c=VISION):
        super().__init__()
        self.config = c
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, c["hidden_size"], (2, 14, 14), bias=False)})
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c["depth"]))
        wide = c["hidden_size"] * 4
        mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, c["out_hidden_size"]))
        self.merger = nn.ModuleDict({"ln_q": RMSNorm(c["hidden_size"]), "mlp": mlp})

    def forward(self, pixel_values, h, w):
        B, N, _ = pixel_values.shape
        cos, sin, windows = (t.to(pixel_values.device) for t in tower_tables(h, w))
        x = pixel_values @ self.patch_embed["proj"].weight.flatten(1).T
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, None if i in self.config["fullatt_block_indexes"] else windows)
        return self.merger["mlp"](self.merger["ln_q"](x).view(B, N // 4, -1))


TABLES = {}


def tower_tables(h, w):
    """cos, sin [N, K] and which patches share a window, bool [N, N], for an image of h x w patches; kept."""
    if (h, w) not in TABLES:
        places = patch_positions([(1, h, w)], 2)
        K = VISION["hidden_size"] // VISION["num_heads"]
        angles = (places[:, :, None] * inverse_frequencies(10000.0, K // 2)).reshape(len(places), -1)
        angles = torch.from_numpy(np.concatenate([angles, angles], axis=1).astype(np.float32))
        window = places // 8 @ np.array([1000, 1])  # 8 patches are 112 pixels
        TABLES[h, w] = angles.cos(), angles.sin(), torch.from_numpy(window[:, None] == window[None])
    return TABLES[h, w]


class SelfAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        D, H, KV = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.heads, self.kv_heads, self.width = H, KV, D // H
        self.q_proj = nn.Linear(D, D)
        self.k_proj = nn.Linear(D, KV * self.width)
        self.v_proj = nn.Linear(D, KV * self.width)
        self.o_proj = nn.Linear(D, D, bias=False)

    def forward(self, x, cos, sin, mask):
        B, T, D = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.width).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.width).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.width).transpose(1, 2)
        k = rotate(k, cos, sin).repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        context = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, attn_mask=mask)
        return self.o_proj(context.transpose(1, 2).reshape(B, T, D))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(c["hidden_size"]), RMSNorm(c["hidden_size"])
        self.self_attn = SelfAttention(c)
        self.mlp = MLP(c["hidden_size"], c["intermediate_size"], bias=False)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"])


class Model(nn.Module):
    """Tower and decoder; the output layer is the embedding table."""

    def __init__(self):
        super().__init__()
        self.visual, self.model = Tower(), Decoder()
        self.apply(initialise)
        quiet_residuals(self.visual.blocks, "attn.proj", "mlp.down_proj")
        quiet_residuals(self.model.layers, "self_attn.o_proj", "mlp.down_proj")
        for layer in self.model.layers:
            match_contents(layer.self_attn)
        nn.init.constant_(self.model.norm.weight, 0.07)  # the output layer is the embedding table: keep logits small

    def forward(self, input_ids, position_ids, features, turn):
        """input_ids, turn [B, T], position_ids [3, B, T], features [B, U, D] of one image each.

        A token sees the tokens before it that are of turn 0 or of its own. Returns logits [B, T, V], and a list with the
        hidden states [B, T, D] after each layer.
        """
        image = input_ids == CONFIG["image_token_id"]
        x = self.model.embed_tokens(input_ids)
        x = x.masked_scatter(image[..., None], features.to(x.dtype))
        cos, sin = mrope_tables(position_ids)
        mask = ((turn[:, None] == 0) | (turn[:, None] == turn[:, :, None])).tril()[:, None]
        hidden = []
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
            hidden.append(x)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight), hidden


def mrope_tables(position_ids):
    """cos, sin [B, 1, T, K] of positions [3, B, T]."""
    K = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    frequencies = torch.from_numpy(inverse_frequencies(CONFIG["rope_theta"], K)).to(position_ids.device)
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(CONFIG["rope_scaling"]["mrope_section"]))
    angles = position_ids[row].permute(1, 2, 0).float() * frequencies  # [B, T, K/2]
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def initialise(module):
    """By fan-in: at these widths the usual 0.02 would leave activations, and so gradients, far too small."""
    if isinstance(module, (nn.Linear, nn.Conv3d)):
        nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)  # words and image tokens are then of one size in the residual stream


def match_contents(attention):
    """Let the first query head of each group start as its key head: it looks for tokens that are like its own."""
    K, group = attention.width, attention.heads // attention.kv_heads
    q = attention.q_proj.weight.data.view(attention.kv_heads, group, K, -1)
    q[:, 0] = attention.k_proj.weight.data.view(attention.kv_heads, K, -1)


def quiet_residuals(blocks, *names):
    """Start each branch small, so that the sum over the depth is as large as its input."""
    for block in blocks:
        for name in names:
            block.get_submodule(name).weight.data /= math.sqrt(2 * len(blocks))
