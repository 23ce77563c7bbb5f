"""Training batches: what training sees is what the engine sees."""

import json
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
from minivl.tiny.examples import Medium, Sign, Turn
from minivl.tiny.scenes import COLOURS, KINDS, SIZES, Shape
from minivl.tiny.tasks import FAMILIES, TRAINED, draw_example
from minivl.tiny.tasks.reading import CHARACTERS, LONGEST_WORD, draw_page
from minivl.tiny.training import vocabulary
from minivl.tiny.training.batches import (
    CELL_KINDS,
    COUNTED,
    FULL,
    GEOMETRY,
    LINES,
    PAGES,
    SHOUTED,
    UNIT,
    Batch,
    cell_targets,
    grow_tree,
    make_batch,
    patchify,
    planes_of,
    shout,
)
from minivl.tiny.training.recipe import ID, PREPROCESSOR

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


def test_an_answer_knows_the_box_it_speaks_of():
    """A description, or a list of boxes, goes from shape to shape; any other answer speaks of one box, or of none."""
    tasks, several = set(), 0
    for example in (draw("shapes", number, most=6) for number in range(12)):
        shapes = example.media[0].shapes[0]
        turns = [turn for turns in example.conversations for turn in turns]
        for turn, (_, _, reply, spoken) in zip(turns, grow_tree(example, vocabulary.build_tokenizer())["answers"]):
            tasks.add(turn.task)
            assert len(spoken) == len(reply) and spoken[-1] is None
            if turn.task == "all boxes":
                listed = [entry["bbox_2d"] for entry in json.loads(turn.answer)]
                assert list(dict.fromkeys(spoken[:-1])) == ([tuple(box) for box in listed] or [None])
                for box in listed:  # its coordinates, and not those of the box before or after it
                    part = TOKENIZER.decode([token for token, one in zip(reply, spoken) if one == tuple(box)])
                    assert str(box) in part and part.count("bbox_2d") == 1
                several += len(listed) > 1
                continue
            if turn.task not in ("describe", "detail"):
                assert set(spoken[:-1]) == {turn.about}
                continue
            for shape in shapes:
                part = TOKENIZER.decode([token for token, box in zip(reply, spoken) if box == shape.box])
                assert part.endswith(shape.label), part
    assert {"describe", "detail", "where", "count", "exists", "all boxes"} <= tasks and several


def test_a_word_is_spelt_character_by_character():
    """Each token of a word or number speaks of its own character; the description of the image of all of it."""
    tasks = set()
    for example in (draw("text", number) for number in range(20)):
        turns = [turn for turns in example.conversations for turn in turns]
        for turn, (_, _, reply, spoken) in zip(turns, grow_tree(example, vocabulary.build_tokenizer())["answers"]):
            if turn.task not in ("describe", "word", "number"):  # about shapes, of which the image has none
                continue
            tasks.add(turn.task)
            signs = example.media[0].signs[0]
            expected = [turn.about] * (len(reply) - 1) if turn.task == "describe" else [sign.box for sign in signs]
            assert spoken == [*expected, None]
    assert tasks == {"describe", "word", "number"}


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


def test_targets_of_the_tower_lie_on_the_shape():
    drawn = next(d for d in (scene(s, size=(112, 112), count=1) for s in range(99)) if d.shapes[0].kind == "square")
    targets = cell_targets(112, 112, drawn.shapes, (), None)
    x1, y1, x2, y2 = drawn.shapes[0].box
    covered = targets["kind"].reshape(4, 4) > 0
    assert covered[(y1 + y2) // 56, (x1 + x2) // 56]
    assert np.allclose(targets["far"][covered.reshape(-1)] * FULL, (x1, y1, x2, y2))
    centres = np.argwhere(covered)[:, ::-1] * UNIT + UNIT / 2
    assert np.allclose(targets["near"][covered.reshape(-1)] * 56 + np.tile(centres, 2), (x1, y1, x2, y2))
    assert set(targets["kind"]) <= {0, CELL_KINDS.index("square")} and set(targets["digit"]) == {-1}
    assert CELL_KINDS[1 : 1 + len(KINDS)] == KINDS


def test_each_printed_character_is_a_target_where_its_middle_is():
    for seed in range(20):
        medium = draw("text", seed).media[0]
        width, height = medium.frames[0].size
        targets = cell_targets(height, width, (), medium.signs[0], None)["characters"]
        expected = {sign.text for sign in medium.signs[0]}
        assert {CHARACTERS[i] for i in np.flatnonzero(targets.any(axis=(0, 1)))} == expected
        for sign in medium.signs[0]:
            x1, y1, x2, y2 = sign.box
            cell = (y1 + y2) // (2 * UNIT) * (width // UNIT) + (x1 + x2) // (2 * UNIT)
            assert targets[cell, (x1 + x2) // UNIT % 2, CHARACTERS.index(sign.text)] == 1


def test_two_characters_in_one_token_have_an_order():
    """The left half of a token has the character whose middle is there, the right half the other."""
    signs = (Sign("A", (2, 4, 13, 24)), Sign("B", (15, 4, 26, 24)))
    targets = cell_targets(28, 28, (), signs)["characters"][0]
    assert [CHARACTERS[i] for half in targets for i in np.flatnonzero(half)] == ["A", "B"]


def test_characters_are_numbered_in_their_word():
    """From left to right, over the halves of the tokens; the first where a half has two; -1 where nothing is printed."""
    signs = [Sign(c, (x, 4, x + 10, 24), i) for i, (c, x) in enumerate((("A", 2), ("B", 16), ("C", 30), ("D", 44)))]
    assert cell_targets(28, 84, (), signs)["ordinal"].tolist() == [[0, 1], [2, 3], [-1, -1]]
    narrow = [Sign("I", (1, 4, 6, 24), 0), Sign("L", (7, 4, 12, 24), 1)]
    assert cell_targets(28, 28, (), narrow)["ordinal"].tolist() == [[0, -1]]
    for seed in range(20):
        medium = draw("text", seed).media[0]
        width, height = medium.frames[0].size
        found = cell_targets(height, width, (), medium.signs[0])["ordinal"].reshape(height // UNIT, -1)
        assert [sign.ordinal for sign in medium.signs[0]] == list(range(len(medium.signs[0])))
        for row in found:  # a character may cover two rows of tokens, and two halves
            assert (np.diff(row[row >= 0]) >= 0).all()
        for sign in medium.signs[0]:
            x1, y1, x2, y2 = sign.box
            cell = (y1 + y2) // (2 * UNIT) * (width // UNIT) + (x1 + x2) // (2 * UNIT)
            first = found.reshape(-1, 2)[cell, (x1 + x2) // UNIT % 2]
            assert (
                first == sign.ordinal or medium.signs[0][first].box[2] > sign.box[0] - UNIT // 2
            )  # they share the half
        assert found.max() < LONGEST_WORD
    for medium in (draw("table").media[0], draw_page(np.random.default_rng(0))):  # no word is asked for there
        width, height = medium.frames[0].size
        targets = cell_targets(height, width, (), medium.signs[0])
        assert targets["characters"].any() and (targets["ordinal"] == -1).all()


def test_the_smaller_of_two_shapes_is_a_tokens_where_it_is_seen():
    """A small shape that lies across four tokens of a large one has at least one of them, whatever its place."""
    large = Shape("square", "red", (4, 4, 108, 108))
    for left in range(30, 58):
        small = Shape("star", "blue", (left, 44, left + 24, 68))
        targets = cell_targets(112, 112, (large, small), ())
        star = targets["kind"] == CELL_KINDS.index("star")
        assert star.any() and set(targets["colour"][star]) == {list(COLOURS).index("blue")}
        assert np.allclose(targets["far"][star] * FULL, small.box)
        assert (targets["kind"] == CELL_KINDS.index("square")).sum() > 8
    for side, expected in (
        (36, [[1, 1], [1, 2], [2, 1], [2, 2]]),
        (32, [[1, 1]]),
    ):  # 41 and 33 % of each of four tokens
        inner = Shape("star", "blue", (56 - side // 2, 56 - side // 2, 56 + side // 2, 56 + side // 2))
        targets = cell_targets(112, 112, (large, inner), ())["kind"].reshape(4, 4)
        assert np.argwhere(targets == CELL_KINDS.index("star")).tolist() == expected


def test_shapes_are_counted_in_the_order_of_their_first_tokens():
    """Among all, those of their kind, those of their colour: a token of the decoder sees what lies before it."""
    shapes = (
        Shape("star", "red", (0, 56, 28, 84)),  # drawn first, reached last
        Shape("star", "blue", (0, 0, 28, 28)),
        Shape("ring", "blue", (84, 0, 112, 84)),  # behind the star in the first row; its later tokens count the same
    )
    counted = cell_targets(112, 112, shapes, ())["counted"]
    tokens = {0: [0, 0, 0], 3: [1, 0, 1], 7: [1, 0, 1], 11: [1, 0, 1], 8: [2, 1, 0]}
    for token, expected in tokens.items():
        assert counted[token].tolist() == expected
    assert (np.delete(counted, list(tokens), axis=0) == -1).all()
    row = tuple(Shape("star", "red", (28 * i, 0, 28 * i + 28, 28)) for i in range(COUNTED + 1))
    counted = cell_targets(28, 28 * len(row), row, ())["counted"]
    assert counted[:COUNTED].tolist() == [[i] * 3 for i in range(COUNTED)] and (counted[COUNTED] == -1).all()


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
    for number in range(12):
        made = make_batch(number, 1.0, tokenizer)
        wide = made["pixels"].shape[1] == 576
        video = made["feature"][made["input_ids"] == ID["<|video_pad|>"]]
        rows, counts = np.unique(made["segment"][0].reshape(-1)[4 * video], return_counts=True)
        sides[wide] |= {int(count) for count, row in zip(counts, rows) if row >= 0}
    assert sides[False] == {16} and sides[True] == {64, 144}  # tokens of a pair of frames


def test_an_enlarged_video_is_the_same_film():
    for seed in range(12):
        plain, large = (draw_example("video", seed, branch=TRAINED, enlarged=enlarged) for enlarged in (False, True))
        (small,), (big,) = plain.media, large.media
        times = big.frames[0].width // small.frames[0].width
        assert times in (2, 3) and len(big.frames) == len(small.frames) and large.conversations == plain.conversations
        assert all(frame.size == (times * 112, times * 112) for frame in big.frames)
        boxes = [[[times * side for side in shape.box] for shape in shapes] for shapes in small.shapes]
        assert [[list(shape.box) for shape in shapes] for shapes in big.shapes] == boxes
        back = np.asarray(big.frames[-1].resize(small.frames[0].size), dtype=np.int64)
        assert np.abs(back - np.asarray(small.frames[-1])).mean() < 6


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
    assert unasked.sum() >= PAGES * 36 + LINES * 24


def test_a_dot_is_joined_to_the_colour_at_the_other_end_of_its_line():
    seen = 0
    for number in range(20):
        medium = draw_example("line", number).media[0]
        _, (h, w), shapes, marks = next(planes_of(medium))
        targets = cell_targets(h * 14, w * 14, shapes, *marks)
        for cell in np.flatnonzero(targets["joined"] >= 0):
            colour, end = (list(COLOURS)[targets[key][cell]] for key in ("colour", "joined"))
            at, other = ([s.colour for s in shapes].index(c) for c in (colour, end))
            assert medium.joined[at] == end and medium.joined[other] == colour
            assert (at < len(shapes) // 2) != (other < len(shapes) // 2)  # one on the left, one on the right
            seen += 1
    assert seen > 60


def test_special_tokens_are_the_recipes():
    assert {token: TOKENIZER.id(token) for token in ID} == ID
