"""Random Qwen2.5-VL checkpoints whose every branch matters, and inputs for them.

    CASES["one_query_head_per_key"]           what is forced on one configuration; the rest is drawn
    config = random_config(rng, **CASES[...]) transformers' Qwen2_5_VLConfig
    write_checkpoint(folder, config, seed)    bfloat16 safetensors and the nested config.json of transformers 5
    random_inputs(config, grids, seed)        minivl.Inputs

transformers' own initialisation would hide bugs: biases 0, norm weights 1 and a deviation of 0.02 make a small net
almost linear and every bias, norm and attention pattern invisible. Here matrices are normal over sqrt(fan-in), biases are
not zero, and norm weights spread around 1. All values are bfloat16 values, so that both sides hold the same numbers.
"""

import math
import os

import numpy as np
import pytest

# subtle: torch brings its own OpenMP. Let it spin, and minivl's and OpenBLAS's threads starve: 3 s for a tiny answer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from minivl.processing.inputs import Inputs  # noqa: E402

torch.set_num_threads(2)

TOKENS = {"image_token_id": 201, "video_token_id": 202, "vision_start_token_id": 203, "vision_end_token_id": 204}
WORDS = 200  # ids below it are ordinary words
VOCABULARY = 211  # the default end token, 151645, lies outside: no answer is cut short

# Each case forces what it is named after; all else (sizes, heads, window, layout, eps, theta) is drawn from its seed.
# `grids` are (frames, patch rows, patch columns) of the images: h != w, and partial windows in all of them. `videos` are
# those of the videos, `seconds` from one pair of frames to the next: time in fractions of a position, longer than the sides.
CASES = {
    "one_image": dict(seed=1, grids=[(1, 10, 14)]),
    "three_images": dict(seed=2, grids=[(1, 6, 18), (1, 4, 2), (1, 14, 8)]),
    "no_image": dict(seed=3, grids=[]),
    "no_full_block": dict(seed=24, full=[], grids=[(1, 12, 10)]),
    "first_block_full": dict(seed=5, full=[0], grids=[(1, 12, 6), (1, 4, 10)]),
    "last_block_full": dict(seed=6, full=[2], depth=3, grids=[(1, 6, 20)]),
    "all_blocks_full": dict(seed=7, full=[0, 1], depth=2, grids=[(1, 10, 6), (1, 8, 12)]),
    "some_blocks_full": dict(seed=8, full=[1, 3], depth=4, grids=[(1, 14, 10)]),
    "window_56": dict(seed=9, window=56, grids=[(1, 10, 14)]),
    "window_168": dict(seed=10, window=168, grids=[(1, 10, 26)]),
    "small_patches": dict(seed=11, patch=8, window=48, grids=[(1, 10, 14), (1, 2, 8)]),
    "one_query_head_per_key": dict(seed=12, heads=4, key_heads=4, grids=[(1, 8, 10)]),
    "six_query_heads_per_key": dict(seed=13, heads=6, key_heads=1, grids=[(1, 8, 10)]),
    "odd_head_width": dict(seed=14, vision_head=20, grids=[(1, 10, 8)]),
    "tied": dict(seed=15, tied=True, grids=[(1, 8, 14)]),
    "untied": dict(seed=16, tied=False, grids=[(1, 8, 14)]),
    "yarn": dict(
        seed=17,
        rope={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 500.0},
        grids=[(1, 8, 22)],
    ),
    "sliding_window": dict(seed=18, sliding=9, grids=[(1, 8, 14), (1, 4, 6)]),
    "large_eps": dict(seed=19, eps=0.05, grids=[(1, 6, 10)]),
    "one_video": dict(seed=31, grids=[], videos=[(5, 6, 10)], seconds=[1.7]),
    "long_video": dict(seed=32, grids=[(1, 4, 6)], videos=[(12, 2, 4)], seconds=[2.25]),
    "videos_and_images": dict(
        seed=33, grids=[(1, 6, 4), (1, 10, 8)], videos=[(3, 4, 10), (4, 10, 6)], seconds=[1.3, 0.35], window=56
    ),
}


def random_config(rng, seed=None, grids=None, videos=None, seconds=None, **forced):
    """A small configuration; `forced` fixes some of what is otherwise drawn (see CASES).

    seed, grids, videos, seconds  of a case, taken so that **CASES[name] can be passed; they do not matter here
    """
    pick = {
        "depth": int(rng.integers(2, 5)),
        "layers": int(rng.integers(2, 5)),
        "vision_heads": int(rng.integers(2, 5)),
        "vision_head": int(rng.choice([8, 12, 16])),
        "key_heads": int(rng.integers(1, 4)),
        "head": int(rng.choice([8, 16, 24])),
        "patch": 14,
        "window": int(rng.choice([56, 112])),
        "eps": float(rng.choice([1e-6, 1e-4, 1e-3])),
        "tied": bool(rng.random() < 0.5),
        "sliding": None,
        "rope": {"rope_type": "default", "rope_theta": float(rng.choice([100.0, 10000.0, 1e6]))},
    }
    pick["full"] = sorted(rng.choice(pick["depth"], int(rng.integers(1, pick["depth"])), replace=False).tolist())
    pick |= forced
    pick.setdefault("heads", pick["key_heads"] * int(rng.integers(2, 4)))
    pick["rope"] = {**pick["rope"], "mrope_section": unequal_parts(rng, pick["head"] // 2)}
    return built(rng, **pick)


def unequal_parts(rng, total):
    """Three integers above 0 that add up to `total`, the last larger than the first, as in (16, 24, 24)."""
    first = int(rng.integers(1, total // 3 + 1))
    last = int(rng.integers(first + 1, total - first)) if total - first > first + 1 else first + 1
    return [first, total - first - last, last]


def built(
    rng, depth, layers, vision_heads, vision_head, heads, key_heads, head, patch, window, eps, tied, sliding, rope, full
):
    """Qwen2_5_VLConfig of what was picked."""
    width = heads * head
    vision = dict(
        depth=depth, hidden_size=vision_heads * vision_head, num_heads=vision_heads, out_hidden_size=width,
        intermediate_size=int(rng.integers(40, 90)), patch_size=patch, window_size=window, fullatt_block_indexes=full,
        tokens_per_second=2,
    )  # fmt: skip
    text = dict(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=int(rng.integers(60, 120)), num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, rms_norm_eps=eps, rope_parameters=rope,
        max_position_embeddings=2048, use_sliding_window=sliding is not None, sliding_window=sliding, max_window_layers=1,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=tied,
    )  # fmt: skip
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=tied, **TOKENS)


def write_checkpoint(folder, config, seed):
    """A bfloat16 checkpoint with random weights, written by transformers' own `save_pretrained`."""
    model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(random_weight(name, weight.shape, random))
    model.generation_config = transformers.GenerationConfig(do_sample=False)
    model.save_pretrained(folder)


def random_weight(name, shape, random):
    """Values that keep activations near 1, and make every bias, norm weight and attention row count."""
    values = torch.randn(shape, generator=random)
    if "embed_tokens" in name:
        return (
            0.3 * values
        )  # subtle: at 1, a tied head would see little but the last token itself, and repeat it for ever
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    if "norm" in name or "ln_q" in name:
        return 1 + 0.2 * values
    return 0.3 * values


def random_inputs(config, grids, seed=0, text=6, videos=(), seconds=()):
    """text, image, text, video, ... text; each between its vision_start and vision_end. -> minivl.Inputs"""
    rng = np.random.default_rng([7, seed])
    ids = rng.integers(0, WORDS, text).tolist()
    for token, (t, h, w) in in_turn(config, grids, videos):
        ids += [config.vision_start_token_id, *[token] * (t * h * w // config.vision_config.spatial_merge_size**2)]
        ids += [config.vision_end_token_id, *rng.integers(0, WORDS, int(rng.integers(0, 5))).tolist()]
    if videos:
        ids.append(int(rng.integers(0, WORDS)))
    images, clips = (random_patches(rng, config.vision_config, shapes) for shapes in (grids, videos))
    grids, videos = (np.array(shapes, dtype=np.int64).reshape(-1, 3) for shapes in (grids, videos))
    return Inputs(np.array(ids, dtype=np.int64), images, grids, clips, videos, np.array(seconds, dtype=np.float32))


def in_turn(config, images, videos):
    """(token id, grid) of all of them: a video, an image, a video, an image, ..."""
    kinds = [(config.image_token_id, grid) for grid in images]
    for i, grid in enumerate(videos):
        kinds.insert(2 * i, (config.video_token_id, grid))
    return kinds


def random_patches(rng, vision, grids):
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return rng.standard_normal((sum(t * h * w for t, h, w in grids), values)).astype(np.float32)
