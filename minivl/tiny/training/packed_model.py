"""The forward pass over packed rows: the same function as minivl's, in the forms that a compiler can fuse.

Parameters have the published names. Rows of one fixed size, so that torch.compile makes each shape once; attention is
block-diagonal by a mask; rotation multiplies halves; keys and values are repeated inside the compiled graph only.
"""

import torch
from torch import nn
from torch.nn import functional as F

from minivl.model.positions import inverse_frequencies
from minivl.tiny.training.recipe import PREPROCESSOR
from minivl.tiny.training.torch_model import Decoder, Tower, initialise, match_contents, quiet_residuals
from minivl.tiny.training.vocabulary import CONFIG

VISION = CONFIG["vision_config"]
FAR, ASKED = 1, 2  # layers of the decoder whose output says where image tokens are, and what is being spoken of


class PackedModel(nn.Module):
    """Tower and decoder; the output layer is the embedding table."""

    def __init__(self):
        super().__init__()
        self.visual, self.model = Tower(), Decoder(CONFIG)
        self.apply(initialise)
        quiet_residuals(self.visual.blocks, "attn.proj", "mlp.down_proj")
        quiet_residuals(self.model.layers, "self_attn.o_proj", "mlp.down_proj")
        for layer in self.model.layers:
            match_contents(layer.self_attn)
        nn.init.constant_(self.model.norm.weight, 0.07)  # the output layer is the embedding table: keep logits small


def run_tower(tower, pixels, segment, cos, sin):
    """pixels uint8 [R, N, 1176], segment [2, R, N] -> features [R*N/4, D_text], unit order."""
    scale, shift = normalisation(pixels.device)
    x = (pixels.float() * scale + shift) @ tower.patch_embed["proj"].weight.flatten(1).T
    full, windows = (block_mask(numbers) for numbers in segment)
    for i, block in enumerate(tower.blocks):
        mask = full if i in VISION["fullatt_block_indexes"] else windows
        x = x + attend_patches(block.attn, block.norm1(x), cos, sin, mask)
        x = x + block.mlp(block.norm2(x))
    R, N, D = x.shape
    return tower.merger["mlp"](tower.merger["ln_q"](x).view(R * N // 4, 4 * D))


def attend_patches(attention, x, cos, sin, mask):
    R, N, D = x.shape
    q, k, v = attention.qkv(x).view(R, N, 3, attention.heads, D // attention.heads).permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=mask)
    return attention.proj(context.transpose(1, 2).reshape(R, N, D))


def run_decoder(decoder, input_ids, feature, features, tree, turn, cos, sin):
    """[R, T] each -> hidden states [R, T, D] after each layer, the last one normalised."""
    x = decoder.embed_tokens(input_ids)
    shown = F.embedding(feature.clamp(min=0), features)
    x = torch.where((feature >= 0)[..., None], shown, x)
    same = (tree[:, :, None] == tree[:, None]) & ((turn[:, None] == 0) | (turn[:, None] == turn[:, :, None]))
    mask = to_bias(same.tril())
    hidden = []
    for layer in decoder.layers:
        x = x + attend_tokens(layer.self_attn, layer.input_layernorm(x), cos, sin, mask)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        hidden.append(x)
    return hidden[FAR], hidden[ASKED], decoder.norm(x)


def attend_tokens(attention, x, cos, sin, mask):
    R, T, D = x.shape
    H, G, K = attention.heads, attention.kv_heads, attention.width
    q = attention.q_proj(x).view(R, T, H, K).transpose(1, 2)
    k = attention.k_proj(x).view(R, T, G, K).transpose(1, 2)
    v = attention.v_proj(x).view(R, T, G, K).transpose(1, 2)
    k = rotate(k, cos, sin).repeat_interleave(H // G, dim=1)
    v = v.repeat_interleave(H // G, dim=1)
    context = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, attn_mask=mask)
    return attention.o_proj(context.transpose(1, 2).reshape(R, T, D))


def rotate(x, cos, sin):
    """x [R, H, T, K]; cos, sin [R, 1, T, K/2]."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def block_mask(numbers):
    """numbers [R, N] -> bias [R, 1, N, N]: 0 where two places have the same number."""
    return to_bias(numbers[:, :, None] == numbers[:, None])


def to_bias(seen):
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -1e9)[:, None]


def normalisation(device):
    """Factor and summand [1176] that turn a patch's bytes into what the preprocessor makes of them."""
    mean, std = (torch.tensor(PREPROCESSOR[f"image_{key}"], device=device) for key in ("mean", "std"))
    return (1 / (255 * std)).repeat_interleave(392), (-mean / std).repeat_interleave(392)


def tower_rotation(place):
    """cos, sin [R, 1, N, K/2] of patches at place [R, N, 2]."""
    K = VISION["hidden_size"] // VISION["num_heads"]
    frequencies = torch.from_numpy(inverse_frequencies(10000.0, K // 2)).to(place.device)
    angles = (place[..., None].float() * frequencies).flatten(2)[:, None]
    return angles.cos(), angles.sin()


def decoder_rotation(position_ids):
    """cos, sin [R, 1, T, K/2] of tokens at position_ids [3, R, T]."""
    K = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    frequencies = torch.from_numpy(inverse_frequencies(CONFIG["rope_theta"], K)).to(position_ids.device)
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(CONFIG["rope_scaling"]["mrope_section"]))
    angles = (position_ids[row].permute(1, 2, 0).float() * frequencies)[:, None]
    return angles.cos(), angles.sin()


def forward(parts, batch, run_tower=run_tower, run_decoder=run_decoder):
    """Features of the pictures' tokens, the hidden states of FAR, of ASKED, and the last one."""
    features = run_tower(parts["model"].visual, batch["pixels"], batch["segment"], *tower_rotation(batch["place"]))
    hidden = run_decoder(
        parts["model"].model, batch["input_ids"], batch["feature"], features, batch["tree"], batch["turn"],
        *decoder_rotation(batch["position_ids"]),
    )  # fmt: skip
    return features, *hidden


class CellHead(nn.Module):
    """What covers a token, by one linear layer: kind, colour, digit, characters, box."""

    def __init__(self, width, kinds, colours, characters):
        super().__init__()
        self.sizes = (kinds, colours, 10, characters, 4)
        self.linear = nn.Linear(width, sum(self.sizes))
        with torch.no_grad():
            self.linear.bias[sum(self.sizes[:3]) : -4] = -3.0  # characters are rare

    def loss(self, x, batch, box):
        """x [U, D] of all tokens -> loss, and figures"""
        drawn = batch["kind"] >= 0
        x = F.rms_norm(x[drawn], x.shape[-1:])
        kind, colour, digit, characters, where = self.linear(x).split(self.sizes, dim=-1)
        true_kind, true_colour = batch["kind"][drawn], batch["colour"][drawn]
        covered, shape = true_kind > 0, true_colour >= 0
        loss = mean_of(F.cross_entropy(kind, true_kind, reduction="none"), covered)
        loss = loss + mean_of(F.cross_entropy(kind, true_kind, reduction="none"), ~covered)
        loss = loss + mean_of(F.cross_entropy(colour, true_colour.clamp(min=0), reduction="none"), shape)
        true_digit = batch["digit"][drawn]
        loss = loss + mean_of(F.cross_entropy(digit, true_digit.clamp(min=0), reduction="none"), true_digit >= 0)
        true_characters = batch["characters"][drawn]
        printed = true_characters.any(dim=-1)
        spelt = F.binary_cross_entropy_with_logits(characters, true_characters, reduction="none").sum(dim=-1)
        loss = loss + mean_of(spelt, printed) + mean_of(spelt, ~printed)
        error = where - batch[box][drawn]
        distance = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=0.05).mean(dim=-1)
        loss = loss + 10 * mean_of(distance, shape)
        with torch.no_grad():
            read = (characters > 0) == (true_characters > 0)
            figures = {
                "kinds": mean_of((kind.argmax(-1) == true_kind).float(), covered),
                "pixels": mean_of(error.abs().mean(-1), shape),
                "characters": mean_of(read.all(dim=-1).float(), printed),
            }
        return loss, figures


def mean_of(values, chosen):
    """The mean over the chosen ones, 0 if there is none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def text_loss(parts, last, batch):
    """Weighted cross entropy of the answers' tokens; for each answer, whether all its tokens are right."""
    x = last.flatten(0, 1)[batch["at"]]
    logits = F.linear(x, parts["model"].model.embed_tokens.weight)
    loss = F.cross_entropy(logits, batch["target"], reduction="none")
    loss = (loss * batch["weight"]).sum() / batch["weight"].sum()
    right = (logits.argmax(-1) == batch["target"]).float()
    whole = torch.ones(len(batch["task"]), device=right.device)
    return loss, whole.scatter_reduce(0, batch["answer"], right, "amin")


def asked_loss(head, hidden, batch):
    """How far the box that an answer speaks of is from what a linear layer reads off the tokens before it."""
    spoken = batch["spoken"]
    if not spoken.any():
        return hidden.sum() * 0
    x = hidden.flatten(0, 1)[batch["at"][spoken]]
    return 10 * F.smooth_l1_loss(head(F.rms_norm(x, x.shape[-1:])), batch["box"][spoken], beta=0.05)


def naming_loss(features, batch, embedding, words):
    """Features should point along the embeddings of the words for what they show: " red", " circle", "7"."""
    x, vectors = F.normalize(features, dim=-1), F.normalize(embedding, dim=-1)
    loss = features.sum() * 0
    for key, shift in (("kind", 1), ("colour", 0), ("digit", 0)):
        ids = torch.tensor(words[key], device=features.device)
        target = batch[key] - shift
        shown = (target >= 0) & (target < len(ids)) & ((batch["colour"] >= 0) | (batch["digit"] >= 0))
        if shown.any():
            loss = loss + F.cross_entropy(10 * x[shown] @ vectors[ids].T, target[shown])
    return loss
