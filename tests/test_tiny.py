"""The scenes' truth is true, the digits are held out, and the shipped model has learnt to see."""

import json

import numpy as np
import pytest

import minivl
from minivl.tiny import CHECKPOINT, digit_picture, scene
from minivl.tiny import evaluate as scoring
from minivl.tiny.batches import cell_targets, make_batch, patches
from minivl.tiny.digits import all_digits, held_out_digits, training_digits
from minivl.tiny.scenes import COLOURS, KINDS, SIZES, TASKS, corners, mask, task_of

SCENES = [scene(seed) for seed in range(60)]


def test_a_seed_is_a_picture():
    again = scene(7)
    assert (
        np.array_equal(np.asarray(again.image), np.asarray(SCENES[7].image)) and again.questions == SCENES[7].questions
    )
    assert SCENES[7].shapes != SCENES[8].shapes


def test_boxes_are_tight_and_colours_right():
    """Inside its box a shape paints something near its colour on every side; outside nothing changes."""
    for drawn in SCENES:
        pixels = np.asarray(drawn.image).astype(int)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        painted = np.abs(pixels - ground).max(axis=2) > 60
        for shape in drawn.shapes:
            x1, y1, x2, y2 = shape.box
            inside = pixels[y1:y2, x1:x2]
            near = np.abs(inside - np.array(COLOURS[shape.colour])).max(axis=2) <= 16
            assert near.mean() > 0.2, shape
            rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
            assert rows[0] <= 3 and rows[-1] >= y2 - y1 - 4 and columns[0] <= 3 and columns[-1] >= x2 - x1 - 4, shape
            painted[y1:y2, x1:x2] = False
        assert painted.mean() < 0.01  # the ground's own noise and gradient


def test_questions_agree_with_the_shapes():
    seen = set()
    for drawn in SCENES:
        for question, answer in drawn.questions:
            task = task_of(question, answer)
            seen.add(task)
            if task == "count":
                assert int(answer) == len(drawn.shapes)
            if task == "describe":
                centres = [shape.box[0] + shape.box[2] for shape in drawn.shapes]
                assert centres == sorted(centres)
                assert [answer.index(shape.label) >= 0 for shape in drawn.shapes]
            if task == "where":
                found = json.loads(answer)[0]
                assert [s for s in drawn.shapes if s.label == found["label"]][0].box == tuple(found["bbox_2d"])
            if task == "colour":
                assert [s.colour for s in drawn.shapes if s.kind in question] == [answer]
    assert seen == set(TASKS) - {"digit"}


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_fill_their_boxes(kind):
    covered = np.asarray(mask(kind, 40)) > 127
    assert covered.any(axis=0).sum() >= 38 and covered.any(axis=1).sum() >= 38 and covered.mean() < 1.01
    if kind in ("triangle", "star"):
        assert np.array(corners(kind)).min() == 0 and np.array(corners(kind)).max() == 1


def test_sizes_run_from_one_window_to_nine():
    assert {(112, 112), (336, 336)} <= set(SIZES) and all(h % 28 == w % 28 == 0 for h, w in SIZES)
    assert any(h % 112 for h, _ in SIZES) and any(h != w for h, w in SIZES)


def test_held_out_digits_are_not_trained_on():
    images, labels = all_digits()
    held, kept = held_out_digits(), training_digits()
    assert (len(images), len(held[0]), len(kept[0])) == (1797, 360, 1437)
    known = {image.tobytes() for image in kept[0]}
    assert not any(image.tobytes() in known for image in held[0])
    assert digit_picture(4).questions[0][1] == str(held[1][4])


def test_training_pixels_are_the_processors():
    pixels = np.asarray(SCENES[0].image)
    processor = minivl.load().processor
    expected, _ = processor.patchify(processor.normalize(pixels)[None])
    np.testing.assert_allclose(patches(pixels), expected, atol=1e-6)


def test_a_batch_is_what_its_number_says():
    one, again = (make_batch(2, 5, 3, 1.0, None) for _ in range(2))
    assert all(np.array_equal(one[key], again[key]) for key in one if key != "size")
    assert not np.array_equal(one["pixel_values"], make_batch(2, 6, 3, 1.0, None).get("pixel_values"))


def test_cells_know_what_covers_them():
    drawn = next(d for d in SCENES if len(d.shapes) == 1)
    width, height = drawn.image.size
    targets, shape = cell_targets(drawn, (height, width)), drawn.shapes[0]
    x, y = (shape.box[0] + shape.box[2]) // 2, (shape.box[1] + shape.box[3]) // 2
    cell = y // 28 * (width // 28) + x // 28
    assert targets["kind"][cell] == KINDS.index(shape.kind) + 1
    assert targets["colour"][cell] == list(COLOURS).index(shape.colour) + 1
    np.testing.assert_allclose(targets["box"][cell] * 336, shape.box)
    assert (targets["kind"] == 0).any()


def test_scores():
    truth = '[{"bbox_2d": [0, 0, 10, 10], "label": "red ring"}]'
    assert scoring.overlap(truth, truth) == 1
    assert scoring.overlap('[{"bbox_2d": [0, 5, 10, 15], "label": ""}]', truth) == pytest.approx(1 / 3)
    for broken in ("", "[]", "a red ring", '[{"bbox_2d": [1, 2]}]', '[{"bbox_2d": null}]', "5"):
        assert scoring.overlap(broken, truth) == 0


def test_the_checkpoint_is_small_and_runs_every_branch():
    config = minivl.load().config
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 12_000_000
    assert 0 < len(config.vision.fullatt_block_indexes) < config.vision.depth > max(config.vision.fullatt_block_indexes)
    assert config.text.num_attention_heads > config.text.num_key_value_heads
    assert len(set(config.text.rope.mrope_section)) == 3


def test_the_shipped_model_sees():
    """A floor well below docs/tiny-model.md, far above chance (1 in 10 for a digit, 1 in 42 for a single shape)."""
    scores = scoring.evaluate(minivl.load(), scene_count=25, digit_count=30)
    assert np.mean(scores["describe"]) >= 0.4 and np.mean(scores["count"]) >= 0.7 and np.mean(scores["digit"]) >= 0.8
