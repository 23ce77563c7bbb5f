"""The pictures that the shipped model is trained and scored on: does the truth agree with the pixels?"""

import json

import numpy as np
import pytest

from minivl.errors import Error
from minivl.processing.tokenizer import Tokenizer
from minivl.tiny import CHECKPOINT, digit_picture, digits, scene
from minivl.tiny.drawing import COLOURS, GAP, KINDS, background, mask
from minivl.tiny.scenes import SIZES, USUAL_TASKS, draw_scene, task_of
from minivl.tiny.scoring import boxes_in, overlap_of
from minivl.tiny.training import recipe, vocabulary

SCENES = [scene(seed) for seed in range(60)]
TOKENIZER = Tokenizer.read(CHECKPOINT)


def pixels(image):
    return np.asarray(image, dtype=np.int64)


# ---- scenes ----


def test_a_seed_is_a_picture():
    again, other = scene(7), scene(8)
    assert again.shapes == SCENES[7].shapes and again.questions == SCENES[7].questions
    assert again.image.tobytes() == SCENES[7].image.tobytes()
    assert other.image.tobytes() != again.image.tobytes()


def test_size_and_count_can_be_chosen():
    drawn = scene(3, size=(336, 224), count=2)
    assert drawn.image.size == (224, 336) and len(drawn.shapes) == 2


def test_sizes_exercise_every_kind_of_window():
    assert all(side % 28 == 0 and 112 <= side <= 336 for size in SIZES for side in size)
    assert any(h < w for h, w in SIZES) and any(h > w for h, w in SIZES)
    assert (112, 112) in SIZES and (336, 336) in SIZES
    assert any(h % 112 and w % 112 for h, w in SIZES)


def test_every_kind_and_colour_occurs():
    shapes = [shape for drawn in SCENES for shape in drawn.shapes]
    assert {shape.kind for shape in shapes} == set(KINDS)
    assert {shape.colour for shape in shapes} == set(COLOURS)
    assert {len(drawn.shapes) for drawn in SCENES} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("drawn", SCENES[:30])
def test_a_shape_has_its_colour(drawn):
    picture = pixels(drawn.image)
    names, palette = list(COLOURS), np.array(list(COLOURS.values()), dtype=np.int64)
    for shape in drawn.shapes:
        x1, y1, x2, y2 = shape.box
        inside = 0.14 if shape.kind == "ring" else 0.5  # a ring's centre shows the ground
        found = picture[(y1 + y2) // 2, x1 + int(inside * (x2 - x1))]
        assert np.abs(found - palette[names.index(shape.colour)]).max() <= 12
        assert names[np.abs(palette - found).sum(axis=1).argmin()] == shape.colour


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [28, 45, 76])
def test_a_shape_fills_its_box_from_edge_to_edge(kind, side):
    # bounds of what is covered by more than 1/16: a tip may share its outermost pixel with the ground
    x1, y1, x2, y2 = mask(kind, side).point(lambda v: 255 * (v > 16)).getbbox()
    assert max(x1, y1, side - x2, side - y2) <= 2
    assert mask(kind, side).getbbox() == (0, 0, side, side)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_tight_in_the_picture(seed):
    """What differs from the same ground without a shape lies in the box, and reaches its edges."""
    size = SIZES[seed % len(SIZES)]
    drawn = draw_scene(np.random.default_rng([9, seed]), size, 1)
    changed = np.abs(pixels(drawn.image) - pixels(background(np.random.default_rng([9, seed]), size))).max(axis=2) > 3
    rows, cols = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    x1, y1, x2, y2 = drawn.shapes[0].box
    slack = (cols[0] - x1, rows[0] - y1, x2 - 1 - cols[-1], y2 - 1 - rows[-1])
    assert min(slack) >= 0 and max(slack) <= 2


@pytest.mark.parametrize("drawn", SCENES)
def test_shapes_keep_apart_and_inside(drawn):
    width, height = drawn.image.size
    centres = [shape.box[0] + shape.box[2] for shape in drawn.shapes]  # twice the column, so that it is whole
    assert all(b - a > 4 * GAP for a, b in zip(centres, centres[1:]))
    for i, shape in enumerate(drawn.shapes):
        x1, y1, x2, y2 = shape.box
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        for other in drawn.shapes[:i]:
            a1, b1, a2, b2 = other.box
            assert x1 >= a2 + GAP or a1 >= x2 + GAP or y1 >= b2 + GAP or b1 >= y2 + GAP


# ---- questions ----


@pytest.mark.parametrize("drawn", SCENES)
def test_answers_are_true(drawn):
    labels = [shape.label for shape in drawn.shapes]
    for question, answer in drawn.questions:
        task = task_of(question, answer)
        if task == "describe":
            named = answer.replace(" and ", ", ").split(", ")
            assert [name.split(" ", 1)[1] for name in named] == labels
            assert all((name.split()[0] == "an") == (name.split()[1][0] in "aeiou") for name in named)
        if task == "count":
            assert int(answer) == len(labels)
        if task in ("count kind", "colour"):
            kind = [kind for kind in KINDS if kind in question]
            assert len(kind) == 1
            of_kind = [shape.colour for shape in drawn.shapes if shape.kind == kind[0]]
            assert answer == (str(len(of_kind)) if task == "count kind" else of_kind[0])
            assert task == "count kind" or len(of_kind) == 1
        if task == "where":
            (box,) = json.loads(answer)
            assert box["label"] in question and labels.count(box["label"]) == 1
            assert tuple(box["bbox_2d"]) == drawn.shapes[labels.index(box["label"])].box


def test_every_task_is_asked():
    asked = {task_of(*pair) for drawn in [*SCENES, digit_picture(0)] for pair in drawn.questions}
    assert asked == set(USUAL_TASKS)


# ---- digits ----


def test_held_out_digits_are_no_training_digits():
    held, labels = digits.held_out_digits()
    trained, _ = digits.training_digits()
    assert len(held) == len(labels) == 360 and len(trained) == 1437
    assert not {image.tobytes() for image in held} & {image.tobytes() for image in trained}
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("index", range(0, 360, 40))
def test_a_digit_picture_shows_its_digit_in_its_box(index):
    drawn = digit_picture(index)
    _, labels = digits.held_out_digits()
    assert drawn.digit == labels[index] and drawn.questions == (("Which digit is written here?", str(drawn.digit)),)
    (shape,) = drawn.shapes
    x1, y1, x2, y2 = shape.box
    picture = pixels(drawn.image).mean(axis=2)
    inside = picture[y1:y2, x1:x2].copy()
    picture[y1:y2, x1:x2] = np.median(picture)
    assert np.ptp(inside) > 100 > 60 > np.ptp(picture)


# ---- tokenizer ----


TEXTS = ["", " \n\t", "a red circle", '[{"bbox_2d": [1, 20, 300, 4]}]', "Größe 猫 🦊 \x00\x7f", "e\u0301"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_round_trip(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == ("é" if text == "e\u0301" else text)


def test_common_words_are_one_token_and_digits_stay_single():
    words = [f" {word}" for word in (*COLOURS, *KINDS)]
    assert {word: len(TOKENIZER.encode(word)) for word in words} == dict.fromkeys(words, 1)
    assert len(TOKENIZER.encode("1234")) == 4


def test_special_tokens_end_the_vocabulary_in_qwens_order():
    ids = [TOKENIZER.id(token) for token in recipe.SPECIAL]
    assert ids == list(range(TOKENIZER.size - len(ids), TOKENIZER.size))
    assert TOKENIZER.decode(np.array(ids, dtype=np.int64)) == ""


def test_overlap():
    box = '[{"bbox_2d": [%d, 0, %d, 10], "label": "red ring"}]'
    true = boxes_in(box % (0, 10))
    assert overlap_of(boxes_in(box % (0, 10)), true) == 1
    assert overlap_of(boxes_in(box % (5, 15)), true) == pytest.approx(1 / 3)
    assert overlap_of(boxes_in(box % (0, 10)) * 2, true) == 0.5  # the same box twice, of which one is too many
    assert [overlap_of(boxes_in(text), true) for text in (box % (20, 30), "there", "[]")] == [0, 0, 0]


# ---- the checkpoint folder ----


def test_the_folder_is_what_the_recipe_writes(tmp_path):
    recipe.write_folder(tmp_path, vocabulary.build_tokenizer())
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}
    assert shipped.keys() == {*written, "model.safetensors"}
    for name in written.keys() - {"tokenizer.json"}:
        assert json.loads(shipped[name]) == json.loads(written[name]), name
    assert sum(map(len, shipped.values())) < 12_000_000


def test_the_tokenizer_is_the_recipes():
    """All but a fourteenth of the tokens: wordings were added after the tokenizer of the weights was made."""
    built = json.loads(vocabulary.build_tokenizer().to_str())
    shipped = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    tokens, ours = shipped["model"].pop("vocab"), built["model"].pop("vocab")
    assert len(tokens) == len(ours) and len(tokens.keys() & ours.keys()) > 0.92 * len(ours)
    assert shipped["model"].pop("merges") and built["model"].pop("merges") and shipped == built


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(Error, match=r"size=\(56, 56\): a scene has at least 72 x 72"):
        scene(0, size=(56, 56))
    assert scene(0, size=(72, 72)).shapes
    for index in (-1, 360):
        with pytest.raises(Error, match=f"digit {index}: there are 360 held-out digits"):
            digit_picture(index)
