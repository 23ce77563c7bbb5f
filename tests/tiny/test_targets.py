"""Targets of the auxiliary heads: each token is told what covers it, each token of an answer which box it speaks of."""

import json

import numpy as np

from minivl.processing.tokenizer import Tokenizer
from minivl.tiny import scene
from minivl.tiny.drawing import COLOURS, KINDS, Shape
from minivl.tiny.examples import Sign
from minivl.tiny.tasks import TRAINED, draw_example
from minivl.tiny.tasks.reading import CHARACTERS, LONGEST_WORD, draw_page
from minivl.tiny.training import vocabulary
from minivl.tiny.training.batches import grow_tree, planes_of
from minivl.tiny.training.targets import CELL_KINDS, COUNTED, FULL, UNIT, cell_targets

TOKENIZER = Tokenizer(vocabulary.build_tokenizer())


def draw(family, seed=0, most=4):
    return draw_example(family, seed, most=most, branch=TRAINED)


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


def test_an_answer_knows_the_box_it_speaks_of():
    """A description, or a list of boxes, goes from shape to shape; any other answer speaks of one box, or of none."""
    tasks, several = set(), 0
    for example in (draw("shapes", number, most=6) for number in range(40)):
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
            if turn.task not in ("describe", "detail", "layout"):
                assert set(spoken[:-1]) == {turn.about}
                continue
            for shape in shapes:
                part = TOKENIZER.decode([token for token, box in zip(reply, spoken) if box == shape.box])
                assert part.endswith(shape.label), part
    assert {"describe", "detail", "where", "count", "exists", "all boxes"} <= tasks and several


def test_descriptions_of_two_pictures_speak_of_the_shapes_of_their_own():
    seen = dict.fromkeys(("describe both", "describe of two"), 0)
    for number in range(60):
        example = draw("pair", number)
        turns = [turn for turns in example.conversations for turn in turns]
        for turn, (_, _, reply, spoken) in zip(turns, grow_tree(example, vocabulary.build_tokenizer())["answers"]):
            if turn.task not in seen:
                continue
            images = [medium.shapes[0] for medium in example.media]
            if turn.task == "describe of two":
                images = [images["second" in turn.question.lower()]]
            shapes = [shape for shown in images for shape in shown]
            for shape in shapes:
                if [other.box for other in shapes].count(shape.box) == 1:  # a changed pair has a shape twice
                    part = TOKENIZER.decode([token for token, box in zip(reply, spoken) if box == shape.box])
                    assert part.endswith(shape.label), part
            seen[turn.task] += 1
    assert min(seen.values()) > 10, seen


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
