"""Training batches: what training sees is what the engine sees."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minivl.model.positions import prompt_positions
from minivl.processing.chat_template import render
from minivl.processing.image_processor import ImageProcessor
from minivl.processing.messages import expand, user
from minivl.processing.tokenizer import Tokenizer
from minivl.tiny import CHECKPOINT, scene
from minivl.tiny.drawing import COLOURS, KINDS, Shape, draw_crowded_page
from minivl.tiny.examples import Medium, Turn
from minivl.tiny.scenes import SIZES
from minivl.tiny.tasks import FAMILIES, TRAINED, draw_example
from minivl.tiny.tasks.reading import draw_page
from minivl.tiny.tasks.shapes import is_within
from minivl.tiny.training import vocabulary
from minivl.tiny.training.batches import (
    CROWDED,
    GEOMETRY,
    LINES,
    PAGES,
    SHOUTED,
    Batch,
    grow_tree,
    make_batch,
    merge_conversations,
    patchify,
    shout,
    shuffle,
)
from minivl.tiny.training.recipe import ID, PREPROCESSOR
from minivl.tiny.training.targets import CELL_KINDS

TOKENIZER = Tokenizer(vocabulary.build_tokenizer())


def draw(family, seed=0, most=4):
    return draw_example(family, seed, most=most, branch=TRAINED)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_the_published_preprocessing(size):
    drawn = scene(1, size=size)
    processor = ImageProcessor.read(CHECKPOINT)
    resized = processor.resize(drawn.image)
    assert np.array_equal(resized, np.asarray(drawn.image))  # a scene keeps its size: boxes are in its own pixels
    expected, grid = processor.patchify(processor.normalize(resized)[None])
    assert grid == (1, size[0] // 14, size[1] // 14)
    mean, std = (np.repeat(np.array(PREPROCESSOR[f"image_{key}"]), 392) for key in ("mean", "std"))
    assert np.abs((patchify((resized, resized)) / 255 - mean) / std - expected).max() < 1e-6


@pytest.mark.parametrize("family", ("shapes", "scene", "pair", "video", "table", "blind"))
def test_a_tree_is_the_chat_template(family):
    """What each conversation sees, rendered by the engine; and only the answers and their ends are learnt."""
    example = draw(family)
    tree = grow_tree(example, vocabulary.build_tokenizer())
    ids, turn = tree["ids"], np.array(tree["turn"])
    grids = {True: [], False: []}
    for medium in example.media:
        width, height = medium.frames[0].size
        grids[medium.is_video].append((max(1, len(medium.frames) // 2), height // 14, width // 14))
    counts = {kind: [t * h * w // 4 for t, h, w in sizes] for kind, sizes in grids.items()}
    for number, turns in enumerate(example.conversations, start=1):
        seen = (turn == 0) | (turn == number)
        messages = user(turns[0].question, example.images, example.videos)
        for said, following in zip(turns, turns[1:]):
            messages += [{"role": "assistant", "content": said.answer}, {"role": "user", "content": following.question}]
        messages.append({"role": "assistant", "content": turns[-1].answer})
        text = expand(render(messages, add_generation_prompt=False), counts[False], counts[True])
        assert TOKENIZER.decode(ids[seen], skip_special=False) == text.rstrip("\n")
        places, _ = prompt_positions(ids[seen], GEOMETRY, grids[False], grids[True])
        assert np.array_equal(tree["positions"][:, seen], places)
    learnt = [reply for _, _, reply, _ in tree["answers"]]
    said = [turn.answer for turns in example.conversations for turn in turns]
    assert [TOKENIZER.decode(reply, skip_special=False) for reply in learnt] == [f"{one}<|im_end|>" for one in said]
    assert all(list(ids[[i + 1 for i in at]]) == reply for _, at, reply, _ in tree["answers"])


def test_batches_repeat():
    one, two, other = (make_batch(n, 1.0, vocabulary.build_tokenizer()) for n in (3, 3, 5))
    assert one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)
    assert np.any(one["pixels"] != other["pixels"]) and len(one["task"]) > 0


def test_families_have_their_shares():
    """Each family is drawn while examples get harder and after; text more often then, since it is learnt last."""
    early, later = ({name: share[i] for name, share in FAMILIES.items()} for i in (0, 1))
    assert min(early.values()) > 0 and min(later.values()) > 0 and later["text"] > early["text"]


def test_an_example_without_room_changes_nothing():
    batch, tokenizer = Batch(1, 288, 1, 256), vocabulary.build_tokenizer()
    added = [batch.add(draw("shapes", n), tokenizer) for n in range(30)]
    assert True in added and False in added
    again = Batch(1, 288, 1, 256)
    for n in (n for n, fits in enumerate(added) if fits):
        assert again.add(draw("shapes", n), tokenizer)
    one, two = batch.arrays(), again.arrays()
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_some_questions_are_in_capitals():
    rng, turn = np.random.default_rng(0), Turn("colour", "What colour is the star?", "red")
    turns = [turn for turns in shout(rng, ((turn,) * 500, (turn,) * 500)) for turn in turns]
    capitals = [one for one in turns if one != turn]
    assert set(capitals) == {replace(turn, question=turn.question.upper())}
    assert abs(len(capitals) / len(turns) - SHOUTED) < 0.03


def test_targets_of_change_are_where_something_else_is():
    """Of each image or pair of frames but the first: 1 where another kind or colour covers the token than before."""
    blank = Image.new("RGB", (112, 112))
    red, blue = (Shape("square", colour, (28, 56, 56, 84)) for colour in ("red", "blue"))
    moved = Shape("square", "red", (56, 56, 84, 84))
    at, beside = 2 * 4 + 1, 2 * 4 + 2  # tokens: row 2, columns 1 and 2
    film = Medium((blank,) * 8, ((red,), (red,), (blue,), (blue,)))
    images = Medium((blank,), ((red,),)), Medium((blank,), ((moved,),))
    larger = Medium((blank.resize((140, 112)),), ((red,),))
    for media, expected in (
        ((film,), [None, [], [at], []]),
        (images, [None, [at, beside]]),
        ((images[0], larger), [None, None]),  # of another size: not compared
    ):
        batch, ends = Batch(16, 288, 1, 256), [16 * i for i in range(1, len(expected))]
        features = batch.add_media(media)
        changed, order = (np.split(batch.cells[key][features], ends) for key in ("changed", "order"))
        assert [set(numbers) for numbers in order] == [{i} for i in range(len(expected))]
        for marks, places in zip(changed, expected):
            assert (marks == -1).all() if places is None else np.flatnonzero(marks).tolist() == places
            assert places is None or set(marks) <= {0, 1}
    batch = Batch(16, 288, 1, 256)
    features = batch.add_media(images)
    former = [batch.cells[f"former_{key}"][features] for key in ("kind", "colour")]
    kind, colour = CELL_KINDS.index("square"), list(COLOURS).index("red")
    for values, there, nothing in zip(former, (kind, colour), (0, -1)):
        assert (values[:16] == -1).all()  # of the first image nothing is asked
        assert values[16 + at] == there and values[16 + beside] == nothing
    batch = Batch(16, 288, 1, 256)
    assert set(batch.cells["order"][batch.add_media(images[:1])]) == {-1}  # of a single image nothing is asked


def test_batches_of_large_images_have_enlarged_videos():
    """And those of small ones have none: a row of each holds what the other cannot."""
    tokenizer, sides = vocabulary.build_tokenizer(), {True: set(), False: set()}
    for number in range(16):
        made = make_batch(number, 1.0, tokenizer)
        wide = made["pixels"].shape[1] == 576
        video = made["feature"][made["input_ids"] == ID["<|video_pad|>"]]
        rows, counts = np.unique(made["segment"][0].reshape(-1)[4 * video], return_counts=True)
        sides[wide] |= {int(count) for count, row in zip(counts, rows) if row >= 0}
    assert sides[False] == {16} and {64, 144} <= sides[True]  # tokens of a pair of frames


def test_pages_are_full_of_characters_and_nothing_is_asked_about_them():
    made = make_batch(3, 1.0, vocabulary.build_tokenizer())
    pages = draw_page(np.random.default_rng(0)), draw_page(np.random.default_rng(1))
    for page in pages:
        assert page.frames[0].size == (168, 168) and len(page.signs[0]) > 15
        boxes = np.array([sign.box for sign in page.signs[0]], dtype=np.int64)
        assert boxes.min() >= 0 and boxes.max() <= 168
    in_decoder = np.zeros(len(made["kind"]), dtype=bool)
    in_decoder[made["feature"][made["feature"] >= 0]] = True
    unasked = ~in_decoder & (made["kind"] >= 0)
    printed, joined = made["characters"][unasked].any(axis=(1, 2)), made["joined"][unasked] >= 0
    assert printed.sum() > 0.5 * PAGES * 36 and joined.sum() >= 4 * LINES and not (printed & joined).any()
    assert unasked.sum() >= (PAGES + CROWDED) * 36 + LINES * 24
    shown = np.isin(made["kind"][unasked], [CELL_KINDS.index(kind) for kind in KINDS]) & ~joined
    assert shown.sum() > 0.5 * CROWDED * 36


def test_crowded_pages_are_full_of_shapes_that_are_as_they_are_said_to_be():
    """Each in its cell, in no other shape's way, with its colour in the middle of its box (of a ring: of its left side)."""
    inner = 0
    for seed in range(10):
        image, shapes = draw_crowded_page(np.random.default_rng(seed))
        pixels = np.asarray(image, dtype=np.int64)
        assert len(shapes) >= 8
        for number, shape in enumerate(shapes):
            x1, y1, x2, y2 = shape.box
            assert 0 <= x1 and x2 <= 168 and 0 <= y1 and y2 <= 168 and x2 - x1 == y2 - y1 >= 22
            for other in shapes[:number]:
                a = other.box
                within = is_within(shape, other)
                inner += within
                assert within or x1 >= a[2] or a[0] >= x2 or y1 >= a[3] or a[1] >= y2
                assert not within or shape.colour != other.colour
            covered = any(is_within(other, shape) for other in shapes if other is not shape)
            x = x1 + (x2 - x1) // 7 if shape.kind == "ring" else (x1 + x2) // 2
            if not covered:
                assert np.abs(pixels[(y1 + y2) // 2, x] - COLOURS[shape.colour]).max() <= 14
    assert inner > 10


def test_half_of_the_videos_have_their_pairs_of_frames_in_another_order():
    """In the prompt: each pair keeps its features and its positions, and no token is told of what follows it."""
    tokenizer, drawn = vocabulary.build_tokenizer(), [draw("video", seed) for seed in range(40)]
    for example in drawn:
        pairs = len(example.media[0].frames) // 2
        plain, mixed = (Batch(8, 576, 4, 384) for _ in range(2))
        order = np.random.default_rng(pairs).permutation(pairs)
        assert plain.add(example, tokenizer) and mixed.add(example, tokenizer, order)
        at = np.flatnonzero(plain.feature[0] >= 0).reshape(pairs, -1)
        assert np.array_equal(mixed.feature[0, at], plain.feature[0, at[order]])
        assert np.array_equal(mixed.position_ids[:, 0, at], plain.position_ids[:, 0, at[order]])
        rest = np.setdiff1d(np.arange(384), at)
        assert np.array_equal(mixed.position_ids[:, 0, rest], plain.position_ids[:, 0, rest])
        assert np.array_equal(mixed.input_ids, plain.input_ids) and np.array_equal(mixed.pixels, plain.pixels)
        for time in range(1, pairs):
            features = plain.feature[0, at[time]]
            seen = list(order).index(time - 1) < list(order).index(time)
            for key in ("changed", "former_kind", "former_colour"):
                assert np.array_equal(mixed.cells[key][features], plain.cells[key][features] if seen else [-1] * len(features))
        assert np.array_equal(mixed.cells["order"], plain.cells["order"])
    rng = np.random.default_rng(0)
    orders = [shuffle(rng, example.media) for example in drawn if len(example.media[0].frames) > 2 for _ in range(10)]
    assert 0.4 < np.mean([order is not None for order in orders]) < 0.6
    assert shuffle(rng, draw("pair").media) is None and shuffle(rng, ()) is None


def test_uncertain_questions_are_trained_with_both_answers():
    """The same question of the same image, once with each answer, and never one after the other."""
    rng = np.random.default_rng(0)
    for family in ("ambiguous", "hidden"):
        for seed in range(20):
            example = draw(family, seed)
            one, other = (turns[0] for turns in example.conversations)
            assert one.question == other.question and {one.answer, other.answer} == set(one.accepted) == set(other.accepted)
            assert merge_conversations(rng, example.conversations) == example.conversations


def test_special_tokens_are_the_recipes():
    assert {token: TOKENIZER.id(token) for token in ID} == ID
