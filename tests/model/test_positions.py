"""Positions and rotary tables against transformers' known answers."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minivl.checkpoint.config import RopeConfig
from minivl.errors import Error
from minivl.model.positions import (
    inverse_frequencies,
    mrope,
    patch_positions,
    prompt_positions,
    rope_frequencies,
    vision_rope,
)

FACTS = {
    fact["id"]: fact for fact in json.loads((Path(__file__).parents[1] / "known_answers.json").read_text())["facts"]
}
CONFIG = SimpleNamespace(
    image_token_id=151655,
    video_token_id=151656,
    vision=SimpleNamespace(spatial_merge_size=2, merge_unit=4, tokens_per_second=2),
)


def rope(**changes):
    fields = dict(
        rope_theta=1e6,
        mrope_section=(16, 24, 24),
        rope_type="default",
        factor=None,
        original_max_position_embeddings=None,
        beta_fast=32.0,
        beta_slow=1.0,
        attention_factor=None,
    )
    return RopeConfig(**{**fields, **changes})


@pytest.mark.parametrize("fact", ["mrope_image", "mrope_video_then_image", "mrope_video_fractional"])
def test_prompt_positions(fact):
    given, expected = FACTS[fact]["inputs"], FACTS[fact]["output"]["hf_4_49"]  # the launch rule: see positions.py
    ids = np.array(given["input_ids"], dtype=np.int64)
    positions, after = prompt_positions(
        ids,
        CONFIG,
        given.get("image_grid_thw", []),
        given.get("video_grid_thw", []),
        given.get("second_per_grid_ts", []),
    )
    assert positions.tolist() == [expected["t"], expected["h"], expected["w"]]
    assert after - len(ids) == expected["delta"][0]


def test_prompts_of_a_padded_batch():
    """minivl runs one prompt at a time; each one's positions are those of its part of the batch."""
    given, expected = FACTS["mrope_left_padding"]["inputs"], FACTS["mrope_left_padding"]["output"]["hf_5_23"]
    for row, (ids, mask) in enumerate(zip(given["input_ids"], given["attention_mask"])):
        real = np.array(mask, dtype=bool)
        positions, after = prompt_positions(np.array(ids)[real], CONFIG, given["image_grid_thw"][row : row + 1])
        assert np.array_equal(positions, np.array(expected["pos"])[:, row, real])
        assert after - real.sum() == expected["delta"][row][0]


def test_text_only_counts_up():
    positions, after = prompt_positions(np.arange(5, dtype=np.int64), CONFIG)
    assert positions.tolist() == [list(range(5))] * 3 and after == 5


def test_adjacent_images_are_told_apart_by_their_grids():
    ids = np.full(5, 151655, dtype=np.int64)
    positions, after = prompt_positions(ids, CONFIG, [(1, 2, 4), (1, 2, 6)])
    assert positions.tolist() == [[0, 0, 2, 2, 2], [0, 0, 2, 2, 2], [0, 1, 2, 3, 4]] and after == 5


@pytest.mark.parametrize(
    "ids, grids, words",
    [
        ([1, 151655, 2], [], "more image placeholders"),
        ([1, 151655, 2], [(1, 4, 4)], "needs 4"),
        ([1, 2], [(1, 4, 4)], "1 images and 0 videos have no placeholder"),
    ],
)
def test_placeholders_and_pictures_must_fit(ids, grids, words):
    with pytest.raises(Error, match=words):
        prompt_positions(np.array(ids, dtype=np.int64), CONFIG, grids)


def test_patch_positions():
    known = FACTS["vision_position_ids"]["output"]
    rows, cols = patch_positions([(1, 4, 6)], 2).T
    assert rows.tolist() == known["h"] and cols.tolist() == known["w"]
    assert patch_positions([(2, 4, 6)], 2).tolist() == 2 * patch_positions([(1, 4, 6)], 2).tolist()


def test_vision_rope():
    known = FACTS["vision_rotary"]["output"]
    np.testing.assert_array_equal(inverse_frequencies(10000.0, 40), np.array(known["inv_freq"], dtype=np.float32))
    cos, sin = vision_rope(np.array([[3, 5]], dtype=np.int64), 80, 1e4)
    assert cos.dtype == sin.dtype == np.float32 and cos.shape == (1, 80)
    for table, values in ((cos, known["cos_idx"]), (sin, known["sin_idx"])):
        for index, value in values.items():
            assert abs(table[0, int(index)] - value) < 1e-7  # 1 unit in the last place


def test_frequencies_do_not_depend_on_the_processor():
    """They are Python's own powers, rounded: not NumPy's float32 power, which AVX-512 computes otherwise."""
    for theta, dim in ((1e4, 40), (1e6, 128), (300.0, 32), (5e5, 64)):
        powers = [np.float32(math.pow(theta, np.float32(j) / np.float32(dim))) for j in range(0, dim, 2)]
        expected = np.float32(1) / np.array(powers, dtype=np.float32)
        np.testing.assert_array_equal(inverse_frequencies(theta, dim), expected)


def test_mrope():
    known = FACTS["mrope_cos"]["output"]
    for index, value in known["inv_freq"].items():
        assert inverse_frequencies(1e6, 128)[int(index)] == np.float32(value)
    cos, sin = mrope(np.array([[5], [7], [11]], dtype=np.int64), rope(), 128)
    for table, name in ((cos, "cos"), (sin, "sin")):
        for index, value in known[name].items():
            assert abs(table[0, int(index)] - value) < 1e-7


def test_equal_rows_are_ordinary_rope():
    positions = np.tile(np.arange(50, dtype=np.int64), (3, 1))
    cos, _ = mrope(positions, rope(), 128)
    plain = np.cos(np.arange(50, dtype=np.float32)[:, None] * inverse_frequencies(1e6, 128))
    np.testing.assert_allclose(cos[:, :64], plain, rtol=0, atol=1.2e-7)  # NumPy's cosine depends on the alignment


def test_yarn():
    known = FACTS["yarn"]["output"]
    frequencies, factor = rope_frequencies(
        rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768), 128
    )
    assert abs(factor - known["attention_factor"]) < 1e-6 and frequencies.dtype == np.float32
    for index, value in known["inv_freq"].items():
        assert frequencies[int(index)] == pytest.approx(value, rel=3e-7)
