"""A port of Qwen2.5-VL to torch, written for the benchmark of `compare`, and mistakes that can be made in it.

    Port(weights, config, torch.bfloat16, {"unscaled"}).run(ids, pixels, grids)     # {name: array}, as hooks record it

One image after another, no cache, no batch axis. It shares no code with minivl: windows, positions and masks are made here.
"""

import numpy as np
import torch
from torch.nn.functional import gelu, layer_norm, linear, silu

# mistake: what `compare` calls it
MISTAKES = {
    "float16 patches": "rounded inputs",
    "no window order of angles": "positions not in window order",
    "rows and columns swapped": "height and width swapped",
    "raster positions": "raster order of patches",
    "interleaved tower": "interleaved RoPE",
    "backward tower": "rotated backwards",
    "no windows": "no window attention",
    "windows everywhere": "window attention everywhere",
    "half windows": "windows of the wrong size",
    "pictures see each other": "attention across images",
    "unscaled tower": "unscaled scores",
    "whole width": "scale of the whole width",
    "no qkv bias": "no bias",
    "no MLP biases": "no bias",
    "tower eps": "wrong eps",
    "LayerNorm": "LayerNorm",
    "post-norm": "post-norm residual",
    "gate and up": "gate and up exchanged",
    "quick GELU in MLP": "quick GELU",
    "GELU in MLP": "GELU for SiLU",
    "quick GELU in merger": "quick GELU",
    "no GELU": "no activation",
    "tanh GELU in merger": "tanh GELU",
    "window order left": "window order not undone",
    "inverse by index": "inverse of the window order",
    "no pictures": "images not put in",
    "scaled embeddings": "scaled embeddings",
    "1-D": "1-D positions",
    "h and w": "height and width swapped",
    "by tokens": "text continues by tokens",
    "late text": "off by one after images",
    "sections": "wrong mrope sections",
    "interleaved sections": "wrong mrope sections",
    "theta": "wrong theta",
    "interleaved decoder": "interleaved RoPE",
    "unrotated decoder": "no rotation",
    "unscaled decoder": "unscaled scores",
    "no decoder biases": "no bias",
    "not causal": "no causal mask",
    "key heads": "key heads dealt out wrong",
    "gate left out": "no gate",
    "attention lost": "wrong residual",
    "decoder eps": "wrong eps",
    "no norm weight": "no weight",
    "tied head": "tied head",
}


class Port:
    def __init__(self, weights, config, dtype, mistakes=()):
        self.w = {name: torch.tensor(np.asarray(array, dtype=np.float32)).to(dtype) for name, array in weights.items()}
        self.c, self.v, self.dtype, self.mistakes, self.seen = config, config["vision_config"], dtype, set(mistakes), {}
        assert self.mistakes <= set(MISTAKES)

    def bug(self, name):
        return name in self.mistakes

    def keep(self, name, x):
        self.seen[name] = x.float().numpy().copy() if x.is_floating_point() else x.numpy().copy()
        return x

    def run(self, ids, pixels, grids):
        with torch.no_grad():
            ids, pixels = torch.tensor(ids), torch.tensor(pixels)
            features = self.tower(pixels, grids)
            x = self.keep("model.embed_tokens", self.w["model.embed_tokens.weight"][ids])
            x = x * len(x[0]) ** 0.5 if self.bug("scaled embeddings") else x.clone()
            if not self.bug("no pictures"):
                x[ids == self.c["image_token_id"]] = features
            x = self.decoder(x, self.token_positions(ids, grids))
            head = "model.embed_tokens.weight" if self.bug("tied head") else "lm_head.weight"
            self.keep("lm_head", linear(x[-1:], self.w[head]))
        return self.seen

    # ---- shared ----

    def dense(self, name, x, bias=True):
        offset = self.w.get(f"{name}.bias") if bias else None
        return self.keep(name, linear(x, self.w[f"{name}.weight"], offset))

    def norm(self, name, x, eps, bug):
        wide, weight = x.float(), self.w[f"{name}.weight"]
        if bug == "LayerNorm":
            return self.keep(name, layer_norm(wide, wide.shape[-1:], eps=eps).to(self.dtype) * weight)
        wide = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(self.dtype)
        return self.keep(name, wide if bug == "no weight" else wide * weight)

    def attend(self, q, k, v, angles, mask, scale, rotation):
        """q, k, v [N, H, K], angles [N, K/2] -> [N, H K]"""
        if rotation != "none":
            q, k = (self.rotate(x.float(), angles, rotation).to(self.dtype) for x in (q, k))
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        scores = (q @ k.transpose(1, 2)) * scale
        probs = torch.softmax(scores.float().masked_fill(~mask, -torch.inf), dim=-1).to(self.dtype)
        return (probs @ v).transpose(0, 1).reshape(len(mask), -1)

    def rotate(self, x, angles, rotation):
        angles = -angles if rotation == "backwards" else angles
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        if rotation == "interleaved":
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def mlp(self, name, x, bias, kinds):
        gate, up = self.dense(f"{name}.gate_proj", x, bias), self.dense(f"{name}.up_proj", x, bias)
        if "gate and up" in kinds:
            gate, up = up, gate
        act = silu(gate)
        if "quick GELU in MLP" in kinds:
            act = gate * torch.sigmoid(1.702 * gate)
        if "GELU in MLP" in kinds:
            act = gelu(gate)
        return self.dense(f"{name}.down_proj", act if "gate left out" in kinds else act * up, bias)

    # ---- the tower ----

    def tower(self, pixels, grids):
        v, units, pieces, where, frames = self.v, 0, [], [], []
        side = v["window_size"] // v["patch_size"] // 2 // (2 if self.bug("half windows") else 1)
        windows = []
        for picture, (_, h, w) in enumerate(grids):
            rows, cols = np.divmod(np.arange(h // 2 * (w // 2)), w // 2)
            window = rows // side * 1000 + cols // side
            order = np.argsort(window, kind="stable")
            pieces.append(order + units)
            windows += [(picture, cut) for cut in window[order]]
            inner = np.stack([np.repeat(rows, 4) * 2, np.repeat(cols, 4) * 2], axis=1)
            inner += np.tile([[0, 0], [0, 1], [1, 0], [1, 1]], (len(rows), 1))
            if self.bug("raster positions"):
                inner = np.stack(np.divmod(np.arange(h * w), w), axis=1)
            where.append(inner)
            frames += [picture] * (h * w)
            units += len(rows)
        index = np.concatenate(pieces)
        patches = torch.tensor((index[:, None] * 4 + np.arange(4)).reshape(-1))
        if self.bug("float16 patches"):
            pixels = pixels.half().float()
        weight = self.w["visual.patch_embed.proj.weight"]
        x = self.keep("visual.patch_embed", linear(pixels.to(self.dtype), weight.reshape(len(weight), -1)))[patches]
        where = torch.tensor(np.concatenate(where), dtype=torch.float32)
        where = where.flip(1) if self.bug("rows and columns swapped") else where
        where = where if self.bug("no window order of angles") else where[patches]
        K = v["hidden_size"] // v["num_heads"]
        turns = 10000.0 ** (-torch.arange(0, K // 2, 2) / (K // 2))
        angles = torch.cat([where[:, :1] * turns, where[:, 1:] * turns], dim=1)
        near = np.repeat([cut[0] * 10**6 + cut[1] for cut in windows], 4)
        near, frames = torch.tensor(near), torch.tensor(frames)
        for i in range(v["depth"]):
            full = i in v["fullatt_block_indexes"]
            full = (full or self.bug("no windows")) and not self.bug("windows everywhere")
            group = frames if full else near
            mask = group[:, None] == group
            mask = torch.ones_like(mask) if full and self.bug("pictures see each other") else mask
            x = self.keep(f"visual.blocks.{i}", self.tower_block(f"visual.blocks.{i}", x, angles, mask))
        x = self.norm("visual.merger.ln_q", x, 1e-6, "")
        x = self.dense("visual.merger.mlp.0", x.reshape(len(x) // 4, -1))
        if self.bug("quick GELU in merger"):
            x = x * torch.sigmoid(1.702 * x)
        elif not self.bug("no GELU"):
            x = gelu(x, approximate="tanh" if self.bug("tanh GELU in merger") else "none")
        x = self.dense("visual.merger.mlp.2", self.keep("visual.merger.mlp.1", x))
        if not self.bug("window order left"):
            x = x[torch.tensor(index if self.bug("inverse by index") else np.argsort(index))]
        return self.keep("visual", x)

    def tower_block(self, name, x, angles, mask):
        eps, N, H = 1e-2 if self.bug("tower eps") else 1e-6, len(x), self.v["num_heads"]
        kind = "LayerNorm" if self.bug("LayerNorm") else ""
        h = self.norm(f"{name}.norm1", x, eps, kind)
        qkv = self.dense(f"{name}.attn.qkv", h, not self.bug("no qkv bias"))
        q, k, v = qkv.reshape(N, 3, H, -1).unbind(1)
        width = q.shape[-1] * (H if self.bug("whole width") else 1)
        scale = 1.0 if self.bug("unscaled tower") else width**-0.5
        rotation = "interleaved" if self.bug("interleaved tower") else "backwards" if self.bug("backward tower") else ""
        a = self.dense(f"{name}.attn.proj", self.attend(q, k, v, angles, mask, scale, rotation))
        x = (h if self.bug("post-norm") else x) + a
        h = self.norm(f"{name}.norm2", x, eps, kind)
        kinds = self.mistakes & {"gate and up", "quick GELU in MLP", "GELU in MLP"}
        return x + self.mlp(f"{name}.mlp", h, not self.bug("no MLP biases"), kinds)

    # ---- the decoder ----

    def token_positions(self, ids, grids):
        """int [3, T]"""
        if self.bug("1-D"):
            return torch.arange(len(ids)).repeat(3, 1)
        columns, at, following, pictures = [], 0, 0, iter(grids)
        while at < len(ids):
            if ids[at] != self.c["image_token_id"]:
                columns.append([following] * 3)
                at, following = at + 1, following + 1
                continue
            _, h, w = next(pictures)
            for row in range(h // 2):
                for col in range(w // 2):
                    place = (col, row) if self.bug("h and w") else (row, col)
                    columns.append([following, following + place[0], following + place[1]])
            at += h // 2 * (w // 2)
            following += h // 2 * (w // 2) if self.bug("by tokens") else max(h, w) // 2 + self.bug("late text")
        return torch.tensor(columns).T

    def decoder(self, x, positions):
        c = self.c
        K = c["hidden_size"] // c["num_attention_heads"]
        turns = (1e4 if self.bug("theta") else c["rope_theta"]) ** (-torch.arange(0, K, 2) / K)
        sections = [2, 1, 1] if self.bug("sections") else c["rope_scaling"]["mrope_section"]
        axis = torch.arange(K // 2) % 3 if self.bug("interleaved sections") else torch.arange(3).repeat_interleave(
            torch.tensor(sections))  # fmt: skip
        angles = positions.float()[axis].T * turns
        seen = torch.ones(len(x), len(x), dtype=torch.bool)
        seen = seen if self.bug("not causal") else seen.tril()
        for i in range(c["num_hidden_layers"]):
            x = self.keep(f"model.layers.{i}", self.decoder_layer(f"model.layers.{i}", x, angles, seen))
        return self.norm("model.norm", x, c["rms_norm_eps"], "no weight" if self.bug("no norm weight") else "")

    def decoder_layer(self, name, x, angles, seen):
        eps, entering = 1e-2 if self.bug("decoder eps") else self.c["rms_norm_eps"], x
        h = self.norm(f"{name}.input_layernorm", x, eps, "")
        q, k, v = (self.dense(f"{name}.self_attn.{one}_proj", h, not self.bug("no decoder biases")) for one in "qkv")
        H, KV = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        q, k, v = (y.reshape(len(x), heads, -1) for y, heads in ((q, H), (k, KV), (v, KV)))
        rotation = "interleaved" if self.bug("interleaved decoder") else "none" if self.bug("unrotated decoder") else ""
        spread = (
            (lambda y: y.repeat(1, H // KV, 1))
            if self.bug("key heads")
            else (lambda y: y.repeat_interleave(H // KV, 1))
        )
        scale = 1.0 if self.bug("unscaled decoder") else q.shape[-1] ** -0.5
        a = self.attend(q, spread(k), spread(v), angles, seen, scale, rotation)
        x = x + self.dense(f"{name}.self_attn.o_proj", a)
        h = self.norm(f"{name}.post_attention_layernorm", x, eps, "")
        kinds = self.mistakes & {"gate left out"}
        return (entering if self.bug("attention lost") else x) + self.mlp(f"{name}.mlp", h, True, kinds)
