"""The pictures that the shipped model is trained and scored on: does the truth agree with the pixels?"""

import json

import numpy as np
import pytest

import minivl
from minivl.model.positions import prompt_positions
from minivl.processing.chat_template import render
from minivl.processing.image_processor import ImageProcessor
from minivl.processing.messages import expand, user
from minivl.processing.tokenizer import Tokenizer
from minivl.tiny import CHECKPOINT, digit_picture, digits, scene
from minivl.tiny.evaluate import overlap
from minivl.tiny.scenes import COLOURS, GAP, KINDS, SIZES, TASKS, background, describe, draw_scene, mask, task_of, where
from minivl.tiny.training import recipe
from minivl.tiny.training.batches import ALONE_TURNS, cell_targets, conversation, make_batch, patches, spoken_of

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
    assert asked == set(TASKS)


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


# ---- what training sees is what the engine sees ----


@pytest.mark.parametrize("size", SIZES)
def test_training_pixels_are_the_published_preprocessing(size):
    drawn = scene(1, size=size)
    processor = ImageProcessor.read(CHECKPOINT)
    resized = processor.resize(drawn.image)
    assert np.array_equal(resized, np.asarray(drawn.image))  # a scene keeps its size: boxes are in its own pixels
    expected, grid = processor.patchify(processor.normalize(resized)[None])
    assert grid == (1, size[0] // 14, size[1] // 14)
    assert np.abs(patches(resized) - expected).max() < 1e-6


@pytest.mark.parametrize("alone", (False, True))
def test_a_training_conversation_is_the_chat_template(alone):
    """What a turn sees, rendered by the engine; only the answers and their end carry weight."""
    drawn, tokens = scene(5, size=(140, 196), count=3), 5 * 7
    made = conversation(np.random.default_rng(0), drawn, (140, 196), recipe.build_tokenizer(), alone)
    ids, weight, task, turn = (np.array(made[key]) for key in ("input_ids", "weight", "task", "turn"))
    assert len(set(turn)) == (ALONE_TURNS + 1 if alone else 1) and made["position_ids"].shape == (3, len(ids))
    for number in sorted(set(turn) - {0}) or [0]:
        seen = (turn == 0) | (turn == number)
        text = TOKENIZER.decode(ids[seen], skip_special=False)
        turns = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>")[2:]]
        question, *rest = (turn.split("\n", 1)[1] for turn in turns)
        question = question.split("<|vision_end|>")[1]
        messages = user(question, drawn.image)
        messages += [{"role": ("assistant", "user")[i % 2], "content": said} for i, said in enumerate(rest)]
        assert expand(render(messages, add_generation_prompt=False), [tokens]).rstrip("\n") == text
        answers = "".join(f"{answer}<|im_end|>" for answer in rest[::2])
        learnt = seen & (weight > 0)
        assert TOKENIZER.decode(ids[learnt], skip_special=False) == answers
        places, _ = prompt_positions(ids[seen], minivl.load().config, [(1, 10, 14)])
        assert np.array_equal(made["position_ids"][:, seen], places)
    assert np.array_equal(task >= 0, weight > 0)


def test_a_training_answer_knows_which_shape_it_speaks_of():
    tokenizer = recipe.build_tokenizer()
    shapes = scene(5, count=3).shapes
    names = [shape.label for shape in shapes]
    described = describe(shapes)
    reply = tokenizer.encode(described).ids
    spoken = spoken_of(shapes, "Describe the picture.", described, reply, tokenizer)
    parts = [tokenizer.decode([t for t, s in zip(reply, spoken) if s == i]).strip() for i in range(3)]
    assert all(part.endswith(name) for part, name in zip(parts, names)), parts
    answer = where(shapes[1:2])
    reply = tokenizer.encode(answer).ids
    assert set(spoken_of(shapes, f"Where is the {names[1]}?", answer, reply, tokenizer)[:-1]) == {1}
    assert spoken_of(shapes, "How many shapes are there?", "3", [7, 8], tokenizer) == [-1, -1]


def test_batches_repeat():
    one, two, other = (make_batch(2, n, 2, 1.0, recipe.build_tokenizer()) for n in (3, 3, 4))
    assert one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)
    assert one["pixel_values"].shape != other["pixel_values"].shape or np.any(
        one["pixel_values"] != other["pixel_values"]
    )


def test_targets_of_the_tower_lie_on_the_shape():
    drawn = next(d for d in (scene(s, size=(112, 112), count=1) for s in range(99)) if d.shapes[0].kind == "square")
    targets = cell_targets(drawn, (112, 112))
    x1, y1, x2, y2 = drawn.shapes[0].box
    covered = targets["kind"].reshape(4, 4) > 0
    assert covered[(y1 + y2) // 56, (x1 + x2) // 56]
    assert np.allclose(targets["box"][covered.reshape(-1)] * 336, (x1, y1, x2, y2))
    assert set(targets["kind"]) <= {0, 1 + KINDS.index("square")} and set(targets["digit"]) == {-1}


def test_overlap():
    box = '[{"bbox_2d": [%d, 0, %d, 10], "label": "red ring"}]'
    assert overlap(box % (0, 10), box % (0, 10)) == 1
    assert overlap(box % (5, 15), box % (0, 10)) == pytest.approx(1 / 3)
    assert (
        overlap(box % (20, 30), box % (0, 10)) == overlap("there", box % (0, 10)) == overlap("[]", box % (0, 10)) == 0
    )


# ---- the checkpoint folder ----


def test_the_folder_is_what_the_recipe_writes(tmp_path):
    recipe.write_folder(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}
    assert shipped.keys() == {*written, "model.safetensors"}
    for name in written:
        assert json.loads(shipped[name]) == json.loads(written[name]), name
    assert sum(map(len, shipped.values())) < 12_000_000
