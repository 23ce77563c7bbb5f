"""A small random Qwen2.5-VL for the tests that need no trained one: every branch of the real model, seconds to run."""

import numpy as np
import pytest

from minivl.checkpoint.config import Config
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.weights import Weights
from minivl.kernels import choose
from minivl.processing.inputs import Inputs
from minivl.vlm import VLM

SMALL = {
    "model_type": "qwen2_5_vl",
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 1]},
    "max_position_embeddings": 500,
    "tie_word_embeddings": False,
    "image_token_id": 101,
    "video_token_id": 102,
    "vision_start_token_id": 103,
    "vision_end_token_id": 104,
    "bos_token_id": 105,
    "eos_token_id": 106,
    "vision_config": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 52,
        "num_heads": 4,
        "patch_size": 4,
        "window_size": 32,
        "out_hidden_size": 48,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
}


def pytest_sessionstart():
    choose(
        "numba"
    )  # subtle: on a fresh installation minivl.load() would start on the NumPy kernels (kernels/first_run.py)


def random_weights(config, seed=0):
    """Values that keep activations near 1: normal over sqrt(fan-in); norms around 1; biases that matter."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            values /= np.float32(np.sqrt(np.prod(shape[1:])))
        elif "norm" in name or "ln_q" in name:
            values = 1 + values * np.float32(0.2)
        weights[name] = values * np.float32(1 if len(shape) == 1 or "embed_tokens" not in name else np.sqrt(shape[1]))
    return weights


def small_model(backend="numba", video_positions="launch", **changes):
    config = Config.from_dict({**SMALL, **changes})
    weights = random_weights(config)
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])  # tied, if the config says so
    return VLM(config, Weights(weights), choose(backend), video_positions=video_positions)


def small_inputs(config, grids=((1, 10, 14), (1, 6, 4)), text=5, seed=0):
    """Text, image, text, image, text: two images with partial windows."""
    rng = np.random.default_rng(seed)
    ids = list(rng.integers(0, 100, text))
    for t, h, w in grids:
        ids += [103, *[101] * (t * h * w // 4), 104, *rng.integers(0, 100, 3)]
    rows = sum(t * h * w for t, h, w in grids)
    pixels = rng.standard_normal((rows, config.vision.patch_dim)).astype(np.float32)
    return Inputs(np.array(ids, dtype=np.int64), pixels, np.array(grids, dtype=np.int64).reshape(-1, 3))


def random_video_inputs(
    config, images=((1, 10, 14), (1, 6, 4)), videos=((3, 4, 6), (2, 6, 4)), seconds=(0.75, 1.3), seed=0
):
    """Text, image, text, video, text, image, text, video, ...: time in fractions of a position, partial windows."""
    rng = np.random.default_rng(seed)
    ids, kinds = list(rng.integers(0, 100, 5)), [(101, grid) for grid in images]
    for i, grid in enumerate(videos):
        kinds.insert(2 * i + 1, (102, grid))
    for token, (t, h, w) in kinds:
        ids += [103, *[token] * (t * h * w // 4), 104, *rng.integers(0, 100, 3)]
    pixels = [
        rng.standard_normal((sum(t * h * w for t, h, w in grids), config.vision.patch_dim)).astype(np.float32)
        for grids in (images, videos)
    ]
    grids = [np.array(g, dtype=np.int64).reshape(-1, 3) for g in (images, videos)]
    seconds = None if seconds is None else np.array(seconds[: len(videos)], dtype=np.float32)
    return Inputs(np.array(ids, dtype=np.int64), pixels[0], grids[0], pixels[1], grids[1], seconds)


@pytest.fixture(scope="session", params=["numba", "numpy"])
def vlm(request):
    return small_model(request.param)


@pytest.fixture(scope="session")
def inputs(vlm):
    return small_inputs(vlm.config)


def say(vlm, text, images, **options):
    """The model's answer to "Where?", or to messages, its tokens replaced by those of a text."""
    ids = iter([*vlm.tokenizer.encode(text), vlm.tokenizer.id("<|im_end|>")])
    edit = {"*next_token": lambda token: np.array([next(ids)])}
    prompt = (images,) if isinstance(images, list) and isinstance(images[0], dict) else ("Where?", images)
    return vlm.trace(*prompt, keep="next_token", edit=edit, max_new_tokens=200, **options).result
