"""Positions, rope delta and window order against transformers' own functions, on many random prompts. No model runs."""

import numpy as np
import pytest
from oracle import launch_positions
from random_models import TOKENS, WORDS, Qwen2_5_VLForConditionalGeneration, random_config, torch
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids, get_vision_window_index

from minivl.checkpoint.config import Config
from minivl.model.positions import patch_positions, prompt_positions
from minivl.model.windows import frame_segments, window_index
from minivl.processing.inputs import Inputs

PROMPTS = 60


@pytest.fixture(scope="module")
def pair():
    """transformers' model without weights, and minivl's Config of it."""
    config = random_config(np.random.default_rng(0))
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    return model, Config.from_dict(config.to_dict())


def random_grid(rng, frames=1):
    return [frames, 2 * int(rng.integers(1, 14)), 2 * int(rng.integers(1, 14))]


def random_prompt(rng, images, videos):
    """Text and images in random order, each between vision_start and vision_end; an image may come first or last."""
    kinds = rng.permutation(["image"] * len(images) + ["video"] * len(videos))
    grids, ids = {"image": iter(images), "video": iter(videos)}, []
    for kind in kinds:
        ids += rng.integers(0, WORDS, int(rng.integers(0, 6))).tolist() + [TOKENS["vision_start_token_id"]]
        ids += [TOKENS[f"{kind}_token_id"]] * (int(np.prod(next(grids[kind]))) // 4) + [TOKENS["vision_end_token_id"]]
    return np.array(ids + rng.integers(0, WORDS, int(rng.integers(0, 6))).tolist(), dtype=np.int64)


def reference_positions(model, ids, images, videos=(), seconds=()):
    kinds = (ids == TOKENS["image_token_id"]) * 1 + (ids == TOKENS["video_token_id"]) * 2
    positions, delta = model.model.get_rope_index(
        torch.from_numpy(ids)[None], torch.from_numpy(kinds)[None], torch.tensor(images).reshape(-1, 3),
        torch.tensor(videos).reshape(-1, 3), torch.tensor(seconds) if len(seconds) else None,
    )  # fmt: skip
    return positions[:, 0].numpy(), int(delta)


@pytest.mark.parametrize("seed", range(PROMPTS))
def test_prompts_with_pictures(pair, seed):
    model, config = pair
    rng = np.random.default_rng([11, seed])
    images = [random_grid(rng) for _ in range(int(rng.integers(1, 5)))]
    ids = random_prompt(rng, images, [])
    expected, delta = reference_positions(model, ids, images)
    positions, after = prompt_positions(ids, config, images)
    assert np.array_equal(positions, expected) and after - len(ids) == delta


@pytest.mark.parametrize("seed", range(PROMPTS // 2))
def test_prompts_with_videos(pair, seed):
    """Images and videos of any length, by both rules; seconds as cameras and GIFs give them."""
    model, config = pair
    rng = np.random.default_rng([12, seed])
    images, videos = (
        [random_grid(rng, n) for n in frames] for frames in ([1] * (seed % 3), rng.integers(1, 30, 1 + seed % 2))
    )
    seconds = rng.choice([0.1, 1 / 3, 0.5, 2 / 3, 0.7, 1.0, 1.7, 2 / 2.997, 10.4], len(videos)).astype(np.float32)
    ids = random_prompt(rng, images, videos)
    expected, _ = reference_positions(model, ids, images, videos, seconds)
    positions, after = prompt_positions(ids, config, images, videos, seconds, "transformers5")
    assert np.array_equal(positions, expected) and after == positions[:, -1].max() + 1

    grids = (np.array(grids, dtype=np.int64).reshape(-1, 3) for grids in (images, videos))
    none = np.zeros((0, 1), dtype=np.float32)
    inputs = Inputs(ids, none, next(grids), none, next(grids), seconds)
    positions, after = prompt_positions(ids, config, images, videos, seconds)
    assert np.array_equal(positions, launch_positions(model, inputs)) and after == positions.max() + 1


def test_time_is_never_truncated_to_seconds(pair):
    """Frames 0.7 s apart, 2 positions a second: 0, 1.4, 2.8, 4.2, ... Truncating 0.7 first, as 4.57 did, gives 0 for all."""
    model, config = pair
    ids = np.array([1, *[TOKENS["video_token_id"]] * 50, 2], dtype=np.int64)
    expected, _ = reference_positions(model, ids, [], [[50, 2, 2]], [0.7])
    positions, _ = prompt_positions(ids, config, [], [[50, 2, 2]], [0.7], "transformers5")
    assert np.array_equal(positions, expected) and positions[0, 1:5].tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("window", [56, 84, 112, 168])
@pytest.mark.parametrize("seed", range(8))
def test_windows_and_patches(pair, seed, window):
    """Grids of several frames too: windows and full attention stay inside a frame."""
    model, config = pair
    rng = np.random.default_rng([13, seed])
    grids = [random_grid(rng, int(rng.integers(1, 4))) for _ in range(int(rng.integers(1, 4)))]
    vision = type(config.vision)(**{**vars(config.vision), "window_size": window})
    index, bounds = window_index(grids, vision)
    expected_index, expected_bounds = get_vision_window_index(torch.tensor(grids), 2, window, vision.patch_size)
    assert np.array_equal(index, expected_index) and np.array_equal(bounds, expected_bounds)
    frames, _ = get_vision_attention_seqlens(torch.tensor(grids), model.config.vision_config)
    assert np.array_equal(frame_segments(grids), frames)
    assert np.array_equal(patch_positions(grids, 2), get_vision_position_ids(torch.tensor(grids), 2))
