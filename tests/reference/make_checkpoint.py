"""Write a random checkpoint with the real shapes of Qwen2.5-VL-3B: 7.5 GB, sharded, bfloat16, published names and config.

    python tests/reference/make_checkpoint.py FOLDER                        # all 32 blocks and 36 layers
    python tests/reference/make_checkpoint.py FOLDER --blocks 3 --layers 3  # 1.3 GB

One tensor at a time goes to disk, so this takes some 100 MB of memory. It imports NumPy and the standard library only:
neither minivl nor transformers decides what a checkpoint looks like. Values are normal over sqrt(fan-in), with norm weights
around 1 and biases that are not zero: random bits would be denormal numbers, slow and without meaning.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np

WIDTH, INNER, HEAD, HEADS, KEY_HEADS, VOCABULARY = 2048, 11008, 128, 16, 2, 151936
VISION_WIDTH, VISION_INNER, VISION_HEADS = 1280, 3420, 16
SHARD = 4 * 10**9  # bytes


def config(blocks, layers, full):
    """config.json in the published, flat layout."""
    vision = dict(
        depth=blocks, hidden_act="silu", hidden_size=VISION_WIDTH, intermediate_size=VISION_INNER, num_heads=VISION_HEADS,
        in_chans=3, out_hidden_size=WIDTH, patch_size=14, spatial_merge_size=2, spatial_patch_size=14, window_size=112,
        fullatt_block_indexes=full, tokens_per_second=2, temporal_patch_size=2,
    )  # fmt: skip
    return dict(
        architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", torch_dtype="bfloat16",
        hidden_act="silu", hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, vocab_size=VOCABULARY, tie_word_embeddings=True,
        rms_norm_eps=1e-6, rope_theta=1000000.0, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        max_position_embeddings=128000, use_sliding_window=False, sliding_window=32768, max_window_layers=70,
        attention_dropout=0.0, initializer_range=0.02, bos_token_id=151643, eos_token_id=151645,
        vision_start_token_id=151652, vision_end_token_id=151653, vision_token_id=151654, image_token_id=151655,
        video_token_id=151656, vision_config=vision,
    )  # fmt: skip


def shapes(blocks, layers):
    """{published name: shape} of every tensor. Tied: there is no lm_head."""
    W, D, F, K = VISION_WIDTH, WIDTH, INNER, KEY_HEADS * HEAD
    found = {"visual.patch_embed.proj.weight": (W, 3, 2, 14, 14)}
    for i in range(blocks):
        found |= {f"visual.blocks.{i}.norm{n}.weight": (W,) for n in (1, 2)}
        linears = {"attn.qkv": (3 * W, W), "attn.proj": (W, W)}
        linears |= {
            "mlp.gate_proj": (VISION_INNER, W),
            "mlp.up_proj": (VISION_INNER, W),
            "mlp.down_proj": (W, VISION_INNER),
        }
        found |= with_biases({f"visual.blocks.{i}.{name}": shape for name, shape in linears.items()})
    found |= {"visual.merger.ln_q.weight": (W,)}
    found |= with_biases({"visual.merger.mlp.0": (4 * W, 4 * W), "visual.merger.mlp.2": (D, 4 * W)})
    found |= {"model.embed_tokens.weight": (VOCABULARY, D)}
    for i in range(layers):
        at = f"model.layers.{i}"
        found |= {f"{at}.{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
        found |= with_biases(
            {f"{at}.self_attn.{n}": (rows, D) for n, rows in (("q_proj", D), ("k_proj", K), ("v_proj", K))}
        )
        found |= {f"{at}.self_attn.o_proj.weight": (D, D), f"{at}.mlp.down_proj.weight": (D, F)}
        found |= {f"{at}.mlp.{name}.weight": (F, D) for name in ("gate_proj", "up_proj")}
    return found | {"model.norm.weight": (D,)}


def with_biases(linears):
    weights = {f"{name}.weight": shape for name, shape in linears.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in linears.items()}


def write_checkpoint(folder, blocks=32, layers=36, full=(7, 15, 23, 31), seed=0):
    """Make the folder and fill it; returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(blocks, layers, list(full)), indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "repetition_penalty": 1.05}))
    rng, shards, weight_map = np.random.default_rng(seed), shards_of(shapes(blocks, layers)), {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, shard, rng)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(size_of(shape) for shard in shards for shape in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


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


def write_shard(path, shapes, rng):
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
            write_tensor(file, name, shape, rng)


def write_tensor(file, name, shape, rng):
    """Random values with a fitting mean and deviation, 16 million at a time."""
    mean, deviation = 0.0, 1 / math.sqrt(math.prod(shape[1:]))
    if "embed_tokens" in name:
        deviation = 0.3
    elif len(shape) == 1:
        mean, deviation = (1.0, 0.2) if "norm" in name or "ln_q" in name else (0.0, 0.3)
    values = bfloat16(mean + deviation * QUANTILES)
    for start in range(0, math.prod(shape), 2**24):
        count = min(2**24, math.prod(shape) - start)
        file.write(values[rng.integers(0, len(values), count, dtype=np.uint16)])


def bfloat16(values):
    """The upper 16 bits of float32, rounded to nearest even: uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# A normal number is drawn as one of 65,536 quantiles: ten times as fast as drawing it, and good enough for weights.
QUANTILES = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--layers", type=int, default=36)
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.folder, arguments.blocks, arguments.layers))
