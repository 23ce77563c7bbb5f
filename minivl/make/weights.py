"""Random weights by the published names and layout, in safetensors files: bfloat16, sharded, one tensor at a time.

Values are normal over sqrt(fan-in), norm weights lie around 1, biases are not zero: with transformers' own initialisation a
small net would be almost linear, and every bias, norm and pattern of attention invisible. Random bits would be denormal
numbers, slow and meaningless.
"""

import json
import math
import statistics
from dataclasses import dataclass

import numpy as np

HEAD, SECTIONS = 128, (16, 24, 24)
SHARD = 4 * 10**9  # bytes
PIECE = 1 << 24  # values drawn at a time


@dataclass(frozen=True)
class Sizes:
    """The sizes that may be chosen; heads of the decoder have 128 channels.

    blocks, full, vision_heads, vision_width, vision_inner  of the tower; full: the blocks with full attention
    layers, heads, key_heads, inner                         of the decoder
    """

    blocks: int
    full: tuple
    vision_heads: int
    vision_width: int
    vision_inner: int
    layers: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int
    tied: bool = True

    @property
    def width(self):
        return self.heads * HEAD


def config(sizes):
    """config.json in the published, flat layout."""
    vision = dict(
        depth=sizes.blocks, hidden_act="silu", hidden_size=sizes.vision_width, intermediate_size=sizes.vision_inner,
        num_heads=sizes.vision_heads, in_chans=3, out_hidden_size=sizes.width, patch_size=14, spatial_merge_size=2,
        spatial_patch_size=14, window_size=112, fullatt_block_indexes=list(sizes.full), tokens_per_second=2,
        temporal_patch_size=2,
    )  # fmt: skip
    return dict(
        architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", torch_dtype="bfloat16",
        hidden_act="silu", hidden_size=sizes.width, intermediate_size=sizes.inner, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.key_heads, vocab_size=sizes.vocabulary,
        tie_word_embeddings=sizes.tied, rms_norm_eps=1e-6, rope_theta=1000000.0,
        rope_scaling={"type": "mrope", "mrope_section": list(SECTIONS)}, max_position_embeddings=128000,
        use_sliding_window=False, sliding_window=32768, max_window_layers=70, attention_dropout=0.0,
        initializer_range=0.02, bos_token_id=151643, eos_token_id=151645, vision_start_token_id=151652,
        vision_end_token_id=151653, vision_token_id=151654, image_token_id=151655, video_token_id=151656,
        vision_config=vision,
    )  # fmt: skip


def shapes(sizes):
    """{published name: shape} of every tensor. Tied: there is no lm_head."""
    W, V, D, F, K = sizes.vision_width, sizes.vision_inner, sizes.width, sizes.inner, sizes.key_heads * HEAD
    table = {"visual.patch_embed.proj.weight": (W, 3, 2, 14, 14)}
    for i in range(sizes.blocks):
        table |= {f"visual.blocks.{i}.norm{n}.weight": (W,) for n in (1, 2)}
        linears = {"attn.qkv": (3 * W, W), "attn.proj": (W, W)}
        linears |= {"mlp.gate_proj": (V, W), "mlp.up_proj": (V, W), "mlp.down_proj": (W, V)}
        table |= with_biases({f"visual.blocks.{i}.{name}": shape for name, shape in linears.items()})
    table |= {"visual.merger.ln_q.weight": (W,)}
    table |= with_biases({"visual.merger.mlp.0": (4 * W, 4 * W), "visual.merger.mlp.2": (D, 4 * W)})
    table |= {"model.embed_tokens.weight": (sizes.vocabulary, D)}
    for i in range(sizes.layers):
        at = f"model.layers.{i}"
        table |= {f"{at}.{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
        table |= with_biases(
            {f"{at}.self_attn.{n}": (rows, D) for n, rows in (("q_proj", D), ("k_proj", K), ("v_proj", K))}
        )
        table |= {f"{at}.self_attn.o_proj.weight": (D, D), f"{at}.mlp.down_proj.weight": (D, F)}
        table |= {f"{at}.mlp.{name}.weight": (F, D) for name in ("gate_proj", "up_proj")}
    table |= {"model.norm.weight": (D,)}
    return table if sizes.tied else table | {"lm_head.weight": (sizes.vocabulary, D)}


def with_biases(linears):
    weights = {f"{name}.weight": shape for name, shape in linears.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in linears.items()}


def total_bytes(sizes):
    return sum(size_of(shape) for shape in shapes(sizes).values())


def write_weights(folder, sizes, seed=0, count=lambda nbytes: None):
    """Write all tensors to safetensors files and their index.

    count  function that is told the bytes of each piece that is written
    """
    rng, shards, weight_map = np.random.default_rng(seed), shards_of(shapes(sizes)), {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, shard, rng, count)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total_bytes(sizes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def shards_of(shapes):
    """Tensors in order, a new shard whenever one is full."""
    shards, room = [{}], SHARD
    for name, shape in shapes.items():
        if size_of(shape) > room and shards[-1]:
            shards.append({})
            room = SHARD
        shards[-1][name] = shape
        room -= size_of(shape)
    return shards


def size_of(shape):
    return 2 * math.prod(shape)


def write_shard(path, shapes, rng, count):
    """A safetensors file: 8 bytes length, JSON header, then the tensors one after the other."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size_of(shape)]}
        end += size_of(shape)
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, shape in shapes.items():
            for values in draw(name, shape, rng):
                count(file.write(values))


def draw(name, shape, rng):
    """Pieces of a tensor's random values, with a fitting mean and deviation: bfloat16 as uint16."""
    mean, deviation = 0.0, 1 / math.sqrt(math.prod(shape[1:]))
    if "embed_tokens" in name:
        deviation = 0.3  # subtle: at 1, a tied head would see little but the last token itself, and repeat it for ever
    elif len(shape) == 1:
        mean, deviation = (1.0, 0.2) if "norm" in name or "ln_q" in name else (0.0, 0.3)
    values = bfloat16(mean + deviation * QUANTILES)
    for start in range(0, math.prod(shape), PIECE):
        yield values[rng.integers(0, len(values), min(PIECE, math.prod(shape) - start), dtype=np.uint16)]


def bfloat16(values):
    """The upper 16 bits of float32, rounded to nearest even: uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# A normal number is drawn as one of 65,536 quantiles: ten times as fast as drawing it, and good enough for weights.
QUANTILES = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)])
