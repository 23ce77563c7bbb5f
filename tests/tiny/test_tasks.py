"""The task families: the same from the same number, true by what is drawn, and worded as they promise."""

import re
import string
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from minivl.tiny.drawing import ALIKE, COLOURS, KINDS, draw_count, mask
from minivl.tiny.examples import DrawOptions, Turn
from minivl.tiny.phrasings import CHOICE, HELD_OUT, PHRASINGS, phrase, vary
from minivl.tiny.tasks import ENLARGED, FAMILIES, SCORED, TRAINED, draw_example, videos
from minivl.tiny.tasks.shapes import ELSEWHERE, FOREIGN

PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
PLURALS = {f"{kind}es" if kind == "cross" else f"{kind}s": kind for kind in (*KINDS, *FOREIGN)}


def many(family, count, **how):
    return [draw_example(family, number, **how) for number in range(count)]


def turns_of(example):
    return [turn for turns in example.conversations for turn in turns]


def fingerprint(example):
    return [frame.tobytes() for medium in example.media for frame in medium.frames], example.conversations


# ---- drawn from one number ----


@pytest.mark.parametrize("family", FAMILIES)
def test_same_number_same_example(family):
    again, other = draw_example(family, 3, most=4), draw_example(family, 4, most=4)
    assert fingerprint(draw_example(family, 3, most=4)) == fingerprint(again) != fingerprint(other)
    assert fingerprint(draw_example(family, 3, most=4, branch=TRAINED)) != fingerprint(again)
    for medium in again.media:
        assert all(side % 28 == 0 for frame in medium.frames for side in frame.size)
        assert len(medium.frames) == 1 or len(medium.frames) in (2, 4, 6, 8)
        assert len(medium.shapes) == max(1, len(medium.frames) // 2)


# ---- what is drawn, read from the pixels ----


def seen_shape(image, box):
    """ "red circle": the commonest colour of the palette in a box, and the kind whose outline fits its pixels best."""
    x1, y1, x2, y2 = box
    pixels = np.asarray(image, dtype=np.float32)[y1:y2, x1:x2]
    distance = np.linalg.norm(pixels[:, :, None] - PALETTE, axis=-1)
    colour = Counter(distance.argmin(axis=-1)[distance.min(axis=-1) < 40].tolist()).most_common(1)[0][0]
    covered = distance[:, :, colour] < 40
    fits = {kind: np.mean(covered == (np.asarray(mask(kind, x2 - x1)) > 127)) for kind in KINDS}
    return f"{list(COLOURS)[colour]} {max(fits, key=fits.get)}"


def parsed(text, names):
    """The names that a question holds, in its order."""
    return [word for word in re.findall(r"\w+", text.lower()) if word in names]


def test_shapes_are_as_they_are_said_to_be():
    for example in many("shapes", 40) + many("corner", 20):
        for shape in example.media[0].shapes[0]:
            assert seen_shape(example.media[0].frames[0], shape.box) == shape.label


def centre(box):
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2


def true_answer(turn, shapes):
    """The answer to a question about shapes, from its words; None for questions checked elsewhere."""
    words = turn.question.lower()
    kinds, colours = parsed(words, (*KINDS, *FOREIGN)), parsed(words, COLOURS)
    if turn.task == "count":
        return str(len(shapes))
    if turn.task in ("count kind", "more kinds"):
        kind = PLURALS[parsed(words, PLURALS)[0]]
        return str(len([s for s in shapes if s.kind == kind]))
    if turn.task == "count colour":
        return str(len([s for s in shapes if s.colour == colours[0]]))
    if turn.task in ("colour", "another"):
        return next((s.colour for s in shapes if s.kind == kinds[0]), "none")
    if turn.task == "kind":
        return next((f"a {s.kind}" for s in shapes if s.colour == colours[0]), "none")
    if turn.task == "exists":
        return "yes" if any(s.kind == kinds[0] and s.colour in (colours or [s.colour]) for s in shapes) else "no"
    if turn.task == "what at":
        box = tuple(int(v) for v in re.findall(r"\d+", words))
        found = next((s for s in shapes if s.box == box), None)
        free = all(max(0, min(a[2], box[2]) - max(a[0], box[0])) * max(0, min(a[3], box[3]) - max(a[1], box[1])) == 0
                   for a in (s.box for s in shapes))  # fmt: skip
        assert found or free
        return f"{'an' if found.colour == 'orange' else 'a'} {found.label}" if found else "none"
    if turn.task == "not shown":
        return "none"
    if not shapes and turn.task in ("describe", "extreme"):
        return "none"
    if turn.task == "unknown":
        return "I don't know"
    return None


@pytest.mark.parametrize("family", ("shapes", "scene"))
def test_training_draws_more_pictures_of_two_kinds_or_two_colours(family):
    """Scoring draws them as often as chance has it."""
    share = {}
    for branch in (SCORED, TRAINED):
        drawn = [draw_example(family, seed, branch=branch).media[0].shapes[0] for seed in range(400)]
        large = [shapes for shapes in drawn if len(shapes) >= 4]
        names = [[{getattr(shape, key) for shape in shapes} for key in ("kind", "colour")] for shapes in large]
        share[branch] = sum(min(map(len, sets)) <= 2 for sets in names) / len(large)
    assert share[TRAINED] > share[SCORED] + 0.5 * ALIKE


def test_training_draws_the_largest_number_no_more_often_than_the_two_below():
    """Else it counts five as six. Scoring keeps its own shares."""
    counts = {}
    for training in (False, True):
        rng, options = np.random.default_rng(1), DrawOptions(training=training)
        counts[training] = Counter(draw_count(rng, (224, 224), options) for _ in range(3000))
        assert set(counts[training]) == set(range(7))
    assert max(counts[True][n] for n in (4, 5, 6)) < 1.25 * min(counts[True][n] for n in (4, 5, 6))
    assert counts[False][6] > 1.5 * counts[False][5]


@pytest.mark.parametrize("family", ("shapes", "inside", "scene"))
def test_answers_about_shapes(family):
    checked = Counter()
    for held_out in (False, True):
        for example in many(family, 150, most=6, held_out=held_out):
            shapes = example.media[0].shapes[0]
            for turn in turns_of(example):
                expected = true_answer(turn, shapes)
                if expected is not None:
                    assert turn.answer == expected, turn
                    checked[turn.task] += 1
    assert len(checked) >= (3 if family == "inside" else 9) and min(checked.values()) >= 1


def named(text, shapes):
    """The shape that a name such as "circle" or "red circle" means."""
    found = [s for s in shapes if s.label in text] or [s for s in shapes if s.kind in text]
    assert len({s.label for s in found}) == 1
    return found[0]


def lies(side, a, b):
    """Of two shapes' boxes: True if a is plainly on this side of b, False if it plainly is not, None in between."""
    a, b = np.array(a), np.array(b)
    holds = [bool((one[:2] <= two[:2]).all() and (one[2:] >= two[2:]).all()) for one, two in ((b, a), (a, b))]
    if side == "inside":
        return holds[0]
    if any(holds):
        return False if holds[0] else None
    dx, dy = centre(a) - centre(b)
    here, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[side]
    return True if here >= 1.5 * abs(across) else False if here <= 4 else None


def test_relations():
    """Sides of two shapes, by their boxes: what is said to be there plainly is, and what is not plainly is not."""
    seen, sides = Counter(), {"left": "left of", "right": "right of"}
    for example in many("shapes", 900, most=6) + many("inside", 400, most=4):
        shapes = example.media[0].shapes[0]
        for turn in turns_of(example):
            words = re.sub(r"\ba\b", "", turn.question.lower())
            if turn.task == "related":
                match = re.search(r"the ([a-z ]+?) (?:(?:really|to be \w+|seen|drawn|placed|found|lie|be seen|is) )*"
                                  r"(left of|right of|above|below|inside) the ([a-z]+(?: [a-z]+)?)", words)  # fmt: skip
                things = match and [named_or_none(match[i], shapes) for i in (1, 3)]
                if match and any(is_absent(match[i], shapes) for i in (1, 3)):
                    assert turn.answer == "no", turn
                    seen[turn.task, "absent"] += 1
                elif things and all(things):
                    truth = lies(match[2], *(thing.box for thing in things))
                    assert truth is (turn.answer == "yes"), (turn, things)
                    seen[turn.task, turn.answer] += 1
            if turn.task == "relation":
                match = re.fullmatch(r"on which side of the (.+) is the (.+?)\??", words)
                if match and any(is_absent(match[i], shapes) for i in (1, 2)):
                    assert turn.answer == "none", turn
                    seen[turn.task, "absent"] += 1
                elif match and (thing := named_or_none(match[2], shapes)) and (other := named_or_none(match[1], shapes)):
                    assert lies(sides.get(turn.answer, turn.answer), thing.box, other.box) is True, turn
                    seen[turn.task] += 1
            if turn.task == "beside":
                match = re.fullmatch(
                    r"(?:what is|which shape is|what lies) (left of|right of|above|below|inside) the (.+?)\??", words
                )
                if match and is_absent(match[2], shapes):
                    assert turn.answer == "none", turn
                    seen[turn.task, "absent"] += 1
                elif match and (other := named_or_none(match[2], shapes)):
                    there = [lies(match[1], s.box, other.box) for s in shapes if s is not other]
                    expected = [True] if turn.answer != "none" else []
                    assert [v for v in there if v is not False] == expected, turn
                    seen[turn.task, turn.answer == "none"] += 1
            if turn.task == "layout":
                label = rf"an? ((?:{'|'.join(COLOURS)}) (?:{'|'.join(KINDS)}))"
                first, side, second = re.fullmatch(rf"{label} (.+) {label}", turn.answer).groups()
                assert sorted((first, second)) == sorted(s.label for s in shapes), turn
                if first != second:
                    assert lies(side, *(named_or_none(one, shapes).box for one in (first, second))) is True, turn
                seen[turn.task, side] += 1
    assert min(seen.values()) > 3 and len(seen) == 5 + 3 + 5 - 1, seen  # what lies right of the other is named second


def is_absent(words, shapes):
    """Whether the words are the name of a thing, and no shape has it."""
    name = re.fullmatch(rf"(?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join((*KINDS, *FOREIGN))})", words)
    return bool(name) and not any(words in (s.kind, s.label) for s in shapes)


def named_or_none(words, shapes):
    """The one shape of this kind, or this colour and kind; None if the words name none, or several."""
    found = [s for s in shapes if words in (s.kind, s.label)]
    return found[0] if len(found) == 1 else None


def test_largest_and_leftmost():
    seen = 0
    for example in many("shapes", 500, most=6):
        shapes = example.media[0].shapes[0]
        boxes = np.array([s.box for s in shapes]).reshape(-1, 4)
        by = {"largest": boxes[:, 0] - boxes[:, 2], "leftmost": boxes[:, 0] + boxes[:, 2]}
        by |= {"topmost": boxes[:, 1] + boxes[:, 3], "lowest": -boxes[:, 1] - boxes[:, 3]}
        by |= {"biggest": by["largest"], "highest": by["topmost"], "bottommost": by["lowest"]}
        for turn in turns_of(example):
            for word in by if turn.task == "extreme" and shapes else ():
                if word in turn.question.lower():
                    assert turn.answer.endswith(shapes[int(by[word].argmin())].label)
                    seen += 1
    assert seen > 50


def test_text_is_where_its_signs_are():
    for example in many("text", 60, branch=TRAINED) + many("text", 30):
        (turn,), (medium,) = turns_of(example), example.media
        signs = medium.signs[0]
        assert "".join(sign.text for sign in signs) == turn.answer and 1 <= len(turn.answer) <= 6
        assert set(turn.answer) <= set(string.ascii_uppercase + string.digits)
        pixels = np.asarray(medium.frames[0], dtype=np.float32).mean(axis=-1)
        ground = np.median(pixels)
        for x1, y1, x2, y2 in (sign.box for sign in signs):
            assert np.abs(pixels[y1:y2, x1:x2] - ground).max() > 60
            assert 0 <= x1 < x2 <= pixels.shape[1] and 0 <= y1 < y2 <= pixels.shape[0]


def test_two_pictures():
    seen = Counter()
    for example in many("pair", 300):
        first, second = (medium.shapes[0] for medium in example.media)
        for turn in turns_of(example):
            seen[turn.task] += 1
            if turn.task == "more":
                kind = PLURALS[parsed(turn.question, PLURALS)[0]]
                a, b = (sum(s.kind == kind for s in shapes) for shapes in (first, second))
                assert turn.answer == ("the same" if a == b else "the first" if a > b else "the second")
            if turn.task == "of two":
                shapes = second if "second" in turn.question.lower() else first
                assert turn.answer == next((s.colour for s in shapes if s.kind in turn.question.lower()), "none")
            if turn.task == "changed":
                boxes = {shape.box for shape in set(first) ^ set(second)}
                assert boxes == ({turn.about} if turn.about else set())
                a, b = (np.asarray(medium.frames[0], dtype=np.float32) for medium in example.media)
                assert (turn.answer == "nothing") == np.array_equal(a, b)
                new, gone = set(second) - set(first), set(first) - set(second)
                if turn.answer.endswith("new"):
                    assert not gone and turn.answer == f"the {new.pop().label} is new"
                if turn.answer.endswith("gone"):
                    assert not new and turn.answer == f"the {gone.pop().label} is gone"
                if " now " in turn.answer:
                    assert turn.answer == f"the {gone.pop().kind} is now {new.pop().colour}"
    assert min(seen.values()) > 20 and set(seen) == {"more", "of two", "changed", "which picture"}


def test_what_two_pictures_show_together():
    """Whether a thing is in one of them, how many there are in both, and a description of each."""
    seen = Counter()
    for example in many("pair", 250, most=4):
        first, second = (medium.shapes[0] for medium in example.media)
        for turn in turns_of(example):
            if turn.task in ("exists", "count", "count kind"):
                assert turn.answer == true_answer(turn, (*first, *second)), turn
                seen[turn.task] += 1
            if turn.task == "describe both":
                told = re.fullmatch("first: (.+); second: (.+)", turn.answer).groups()
                for text, shapes in zip(told, (first, second)):
                    assert re.findall(r"an? (\w+ \w+)", text) == [s.label for s in shapes] and (text == "none") is (not shapes)
                seen[turn.task] += 1
    assert min(seen.values()) > 8 and len(seen) == 4, seen
    told = [turn for example in many("pair", 250, most=4) for turn in turns_of(example) if turn.task == "describe both"]
    of_two = re.compile("both|each|two|them|these|second|pictures|images")
    as_of_one = [turn for turn in told if not of_two.search(turn.question.lower())]
    assert 0.1 < len(as_of_one) / len(told) < 0.4  # "Describe the picture." shows both as well
    sizes = {tuple(medium.frames[0].size for medium in example.media) for example in many("pair", 100)}
    assert len(sizes) > 40 and any(one != other for one, other in sizes)
    assert all(112 <= side <= 252 and w * h <= 64 * 28**2 for pair in sizes for w, h in pair for side in (w, h))


@pytest.mark.parametrize("family", ENLARGED)
def test_an_enlarged_example_is_the_same_one(family):
    """Image and boxes are two or three times as large, or as they are where tokens would not do; questions are the same."""
    larger = 0
    for seed in range(12):
        (small,), (big,) = (
            draw_example(family, seed, most=3, branch=TRAINED, enlarged=enlarged).media for enlarged in (False, True)
        )
        plain, large = (
            turns_of(draw_example(family, seed, most=3, branch=TRAINED, enlarged=enlarged)) for enlarged in (False, True)
        )
        times = big.frames[0].width // small.frames[0].width
        assert times in (1, 2, 3) and big.frames[0].width * big.frames[0].height <= 336 * 336
        larger += times > 1
        assert [(turn.question, turn.answer) for turn in plain] == [(turn.question, turn.answer) for turn in large]
        assert [turn.about and tuple(times * side for side in turn.about) for turn in plain] == [turn.about for turn in large]
        for parts in ("shapes", "signs"):
            boxes = [[tuple(times * side for side in one.box) for one in shown] for shown in getattr(small, parts)]
            assert [[one.box for one in shown] for shown in getattr(big, parts)] == boxes
        back = np.asarray(big.frames[-1].resize(small.frames[0].size), dtype=np.int64)
        assert np.abs(back - np.asarray(small.frames[-1])).mean() < 6
    assert larger >= 6


def test_images_without_shapes_are_plain_or_cluttered():
    empty = [example for example in many("shapes", 300, most=4) if not example.media[0].shapes[0]]
    pixels = [np.asarray(example.media[0].frames[0], dtype=np.float64) for example in empty]
    spread = np.array([values.std(axis=(0, 1)).mean() for values in pixels])
    assert len(empty) > 5 and (spread < 15).any() and (spread > 25).any()
    allowed = ("none", "0", "no", "[]", "I don't know")
    assert all(turn.answer in allowed for example in empty for turn in turns_of(example))


def coloured(frame):
    """Rows and columns of the pixels that have a colour of the palette."""
    pixels = np.asarray(frame, dtype=np.float32)
    distance = np.linalg.norm(pixels[:, :, None] - PALETTE, axis=-1)
    saturated = pixels.max(axis=-1) - pixels.min(axis=-1) > 50
    return np.argwhere((distance.min(axis=-1) < 45) & saturated)


def test_videos():
    seen = Counter()
    for example in many("video", 300):
        frames, (turn, *_) = example.media[0].frames, turns_of(example)
        seen[turn.task] += 1
        if turn.task == "way" and all(np.array_equal(np.asarray(frames[0]), np.asarray(frame)) for frame in frames):
            assert turn.answer == "none"
            seen["still"] += 1
        elif turn.task == "way" and turn.answer == "none":
            shape = example.media[0].shapes[0][0]
            assert not re.search(rf"\b(?:{shape.label}|(?<!\w ){shape.kind})\b", turn.question.lower()) or (
                parsed(turn.question, COLOURS) not in ([], [shape.colour])
            ), turn
            seen["no way"] += 1
        elif turn.task == "way":
            dy, dx = coloured(frames[-1]).mean(axis=0) - coloured(frames[0]).mean(axis=0)
            flat = "right" if dx > 0 else "left"
            assert turn.answer == (flat if abs(dx) > abs(dy) else "down" if dy > 0 else "up")
        if turn.task == "when":
            same = [np.array_equal(np.asarray(frames[0]), np.asarray(frame)) for frame in frames]
            assert turn.answer == ("none" if all(same) else f"frame {same.index(False) + 1}")
        if turn.task == "appeared":
            shown = [(s, frames[2 * i]) for i, shapes in enumerate(example.media[0].shapes) for s in shapes]
            new = {s for s, frame in shown if frame.crop(s.box).tobytes() != frames[0].crop(s.box).tobytes()}
            assert turn.answer == str(len(new))
        if turn.task == "first":
            ((shape,), *_) = example.media[0].shapes
            (x1, y1, x2, y2), (rows, columns) = shape.box, coloured(frames[0]).T
            assert x1 <= columns.min() and columns.max() < x2 and y1 <= rows.min() and rows.max() < y2  # alone
            assert turn.answer in (f"{article} {seen_shape(frames[0], shape.box)}" for article in ("a", "an"))
    assert min(seen.values()) > 5 and set(seen) == {"way", "no way", "still", "when", "appeared", "first"}


def backwards(example):
    """The same video with its pairs of frames in reverse."""
    (medium,) = example.media
    pairs = list(zip(medium.frames[::2], medium.frames[1::2]))[::-1]
    frames = tuple(frame for pair in pairs for frame in pair)
    return replace(example, media=(replace(medium, frames=frames, shapes=medium.shapes[::-1]),))


def test_videos_whose_order_alone_tells():
    """Backwards they are videos that could have been drawn, of which another answer is true."""
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    seen, films = Counter(), many("video", 300)
    for example in films:
        (turn, *_) = turns_of(example)
        if not videos.needs_order(example, turn):
            continue
        frames, steps = example.media[0].frames, example.media[0].shapes
        seen[turn.task] += 1
        assert all(one.tobytes() == other.tobytes() for one, other in zip(frames[::2], frames[1::2]))
        if turn.task == "way":
            answer = opposite[turn.answer]
        elif turn.task == "when":
            answer = f"frame {len(frames) + 2 - int(turn.answer.split()[1])}"
        elif turn.task == "first":
            (last,) = steps[-1]
            answer = f"{'an' if last.colour == 'orange' else 'a'} {last.label}"
        else:
            answer = str(len({s for shapes in steps for s in shapes if s not in steps[-1]}))
        assert answer != turn.answer
        assert videos.needs_order(backwards(example), replace(turn, answer=answer)) and len(steps) > 1
        assert not videos.needs_order(backwards(example), turn)
        assert not videos.needs_order(example, replace(turn, task="exists", answer="yes"))
    assert set(seen) == set(videos.ANSWERS) and min(seen.values()) > 10, seen
    ways = [example for example in films if turns_of(example)[0].task == "way" and len(example.media[0].frames) > 2]
    within = [example for example in ways if example.media[0].frames[0] != example.media[0].frames[1]]
    assert 0.3 < len(within) / len(ways) < 0.6 and not any(videos.needs_order(e, turns_of(e)[0]) for e in within)
    image = draw_example("pair", 1)
    assert not any(videos.needs_order(image, turn) for turn in turns_of(image))


def test_bars_and_tables():
    for example in many("chart", 100, most=3):
        medium = example.media[0]
        unit = (medium.frames[0].height - 14) // (6 if medium.frames[0].height == 112 else 8)
        heights = {s.colour: s.box[3] - s.box[1] for s in medium.shapes[0]}
        for turn in turns_of(example):
            if turn.task == "bar":
                colour = parsed(turn.question, COLOURS)[0]
                assert turn.answer == (str(heights[colour] // unit) if colour in heights else "none")
            elif turn.task == "exists" and "bar" in turn.question.lower():
                assert turn.answer == ("yes" if parsed(turn.question, COLOURS)[0] in heights else "no")
            elif turn.task == "count kind" and "bars" in turn.question.lower():
                assert turn.answer == str(len(heights))
            elif turn.task == "describe":
                assert re.findall(r"(\w+) bar", turn.answer) == list(heights)
            elif turn.task != "best bar":
                assert turn.answer in ("none", "no", "0", "[]"), turn
            else:
                best = max if "highest" in turn.question.lower() else min
                assert turn.answer == best(heights, key=heights.get)
    for example in many("table", 60, most=2):
        signs = {sign.text: sign for sign in example.media[0].signs[0][::-1]}  # the row's letter is there once
        for turn in turns_of(example):
            if turn.task != "table":
                assert turn.answer in ("a table", "none", "no", "0", "[]"), turn
                continue
            row = re.search(r"row (\w)", turn.question, re.I)[1].upper()
            column = int(re.search(r"column (\d)", turn.question, re.I)[1])
            if turn.answer == "none":
                texts = [sign.text for sign in example.media[0].signs[0]]
                across, down = (sum(text in names for text in texts) for names in (set("123"), set("ABC")))
                letters = [text for text in texts if text.isalpha()]
                columns = len([s for s in example.media[0].signs[0] if s.box[1] < min(
                    one.box[1] for one in example.media[0].signs[0] if one.text in letters)])  # fmt: skip
                assert row not in letters or column > columns, turn
                continue
            level = [s for s in example.media[0].signs[0] if abs(centre(s.box)[1] - centre(signs[row].box)[1]) < 8]
            assert sorted(level, key=lambda sign: sign.box[0])[column].text == turn.answer


def test_far_apart():
    for example in many("corner", 100):
        (turn,), (mark, *shapes) = turns_of(example), example.media[0].shapes[0]
        assert turn.answer == next((f"a {s.kind}" for s in shapes if s.colour == mark.colour), "none")
        assert all(max(centre(s.box)) > 112 or s.box[2] > 112 or s.box[3] > 112 for s in shapes)
    for example in many("longer", 100):
        a, b = ((coloured(example.media[0].frames[0].crop(s.box)) + 1).max() for s in example.media[0].shapes[0])
        side = max(example.media[0].frames[0].size)
        wide = example.media[0].frames[0].width == side
        names = ("left", "right") if wide else ("top", "bottom")
        assert turns_of(example)[0].answer == f"the {names[0 if a > b else 1]} one" and abs(int(a) - int(b)) >= 6
    for example in many("line", 60, most=2):
        image, dots = example.media[0].frames[0], example.media[0].shapes[0]
        left, right = dots[: len(dots) // 2], dots[len(dots) // 2 :]
        pixels = np.asarray(image, dtype=np.float32).mean(axis=-1)
        for turn in turns_of(example):
            if turn.task != "line":
                assert turn.answer == true_answer(turn, dots) or turn.task == "describe", turn
                continue
            colour = parsed(turn.question, COLOURS)[0]
            if turn.answer == "none":
                assert colour not in [s.colour for s in dots]
                continue
            start = next(s for s in left if s.colour == colour)
            end = next(s for s in right if s.colour == turn.answer)
            ends = example.media[0].joined
            assert ends[dots.index(start)] == end.colour and ends[dots.index(end)] == start.colour
            for t in np.linspace(0.2, 0.8, 20):
                y = start.box[1] + 10 + (end.box[1] - start.box[1]) * t
                x = round(16 + (image.width - 32) * t)
                near = pixels[int(y) - 1 : int(y) + 3, x]
                assert np.abs(near - np.median(pixels)).max() > 60


def test_uncertain_ones_accept_what_is_true():
    answers = Counter()
    for example in many("ambiguous", 200):
        (turn,), shapes = turns_of(example), example.media[0].shapes[0]
        assert sorted(turn.accepted) == sorted(s.colour for s in shapes) and turn.answer in turn.accepted
        answers[turn.accepted.index(turn.answer)] += 1
    assert 70 < answers[0] < 130  # 100 of 200 but for chance
    hidden = Counter(turns_of(example)[0].answer for example in many("hidden", 200))
    assert set(hidden) == {"a circle", "a ring"} and 70 < hidden["a ring"] < 130
    assert Turn("one", "?", "a", ("a", "b")).is_right("b") and not Turn("one", "?", "a").is_right("b")


def test_other_one_is_the_other_one():
    seen = 0
    for example in many("shapes", 900, most=4):
        for turns in example.conversations:
            if turns[0].task == "one":
                labels = {s.label for s in example.media[0].shapes[0]}
                assert {turn.answer.split(" ", 1)[1] for turn in turns} == labels and len(labels) == 2
                seen += 1
    assert seen > 5


def test_yes_and_no_are_balanced():
    answers = Counter()
    for family, count in (("shapes", 700), ("inside", 700), ("pair", 2500)):
        for example in many(family, count, most=6, branch=TRAINED):
            answers.update((turn.task, turn.answer) for turn in turns_of(example) if turn.answer in ("yes", "no"))
    for task in ("exists", "related", "exists of two"):
        yes, no = answers[task, "yes"], answers[task, "no"]
        assert yes + no > 250 and 0.43 < yes / (yes + no) < 0.57, answers


def test_what_one_of_two_pictures_shows():
    seen, answers = Counter(), Counter()
    for example in many("pair", 600, most=4):
        for turn in turns_of(example):
            if turn.task not in ("describe of two", "count of two", "exists of two"):
                continue
            question = turn.question.lower()
            assert ("first" in question) != ("second" in question)
            shapes = example.media[int("second" in question)].shapes[0]
            if turn.task == "describe of two":
                assert re.findall(r"an? (\w+ \w+)", turn.answer) == [shape.label for shape in shapes]
            elif turn.task == "count of two":
                assert turn.answer == str(len(shapes))
            else:
                assert turn.answer == ("yes" if any(shape.label in question for shape in shapes) else "no")
                answers[turn.answer] += 1
            seen[turn.task, "second" in question] += 1
    assert min(seen.values()) > 20 and len(seen) == 6, seen
    assert min(answers["yes"], answers["no"]) > 20, answers


def test_absent_things_are_asked_for_in_every_kind_of_question():
    """Of each kind of question that something can be absent from; after those about it, the others with their reasons."""
    there = {"detail", "layout", "one", "other one", "first", "more", "longer", "hidden", "noisy", "ambiguous"}  # as drawn
    there |= {"unknown", "word", "number", "digit", "best bar"}  # asked elsewhere, as "not shown"
    there |= {"describe both", "describe of two", "count of two"}  # a picture of a pair is never empty
    nothing = dict.fromkeys(set(PHRASINGS) - there, "none") | {"where": "[]", "all boxes": "[]", "point": "[]"}
    nothing |= {"count": "0", "count kind": "0", "count colour": "0", "more kinds": "0", "appeared": "0"}
    nothing |= {"exists": "no", "exists of two": "no", "related": "no", "changed": "nothing", "not shown": "none"}
    shares = {task: [] for task in nothing}
    for family in ("shapes", "pair", "video", "chart", "table", "corner", "line"):
        for example in many(family, 600 if family == "shapes" else 150, most=6, branch=TRAINED):
            for turn in turns_of(example):
                if turn.task in nothing:
                    shares[turn.task].append(turn.answer == nothing[turn.task])
    shares = {task: float(np.mean(right)) for task, right in shares.items()}
    assert shares.pop("not shown") == 1 and all(0.01 < share < 0.65 for share in shares.values()), shares


# ---- wordings ----


def plain(question):
    """In small letters, without "please", "'s" and the mark at the end: what all variations of a question share."""
    question = re.sub(r"\b(what|where|which|there)'s\b", r"\1 is", re.sub(r"\ban\b", "a", question.lower()))
    return re.sub(r"^please |, please|[.?]$", "", re.sub(r"\?$", "", question))


def forms_of(wording):
    """All that a wording with choices can become."""
    choice = CHOICE.search(wording)
    if not choice:
        return [wording]
    before, after = wording[: choice.start()], wording[choice.end() :]
    return [form for part in choice[1].split("|") for form in forms_of(before + part + after)]


def test_each_question_has_eight_wordings_and_two_are_held_out():
    for task, wordings in PHRASINGS.items():
        assert len(wordings) >= 8 and len({plain(w) for w in wordings}) == len(wordings), task
    fields = {"thing": "cross", "kinds": "stars", "colour": "red", "other": "ring", "side": "above", "most": "largest"}
    fields |= {"nth": "first", "row": "A", "column": 1, "a": "left", "b": "right", "box": [1, 2, 3, 4]}
    rng = np.random.default_rng(0)
    for task, wordings in PHRASINGS.items():
        held = {plain(w.format(**fields)) for w in wordings[-HELD_OUT:]}
        known = {plain(form.format(**fields)) for w in wordings[:-HELD_OUT] for form in forms_of(w)}
        asked = {plain(vary(rng, phrase(rng, task, **fields))) for _ in range(300)}
        assert asked <= known and not known & held and len(asked) >= len(wordings) - HELD_OUT, task
        assert {plain(phrase(rng, task, held_out=True, **fields)) for _ in range(30)} == held


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_wordings_are_never_trained(family):
    fields = dict.fromkeys(
        ("thing", "kinds", "colour", "other", "side", "most", "nth", "row", "column", "a", "b", "box"), "\0"
    )
    held, field = {}, r"(?:\w+(?: \w+)?|\[[\d, ]+\])"  # "star", "red star", "[1, 2, 3, 4]"
    for task, wordings in PHRASINGS.items():
        parts = [re.escape(plain(w.format(**fields))).replace("\0", field) for w in wordings[-HELD_OUT:]]
        held[task] = re.compile("|".join(parts).replace(r"\ ", " "))
    held["not shown"] = re.compile("|".join(held[task].pattern for task, _ in ELSEWHERE))
    for example in many(family, 40, most=5, branch=TRAINED):
        for turn in turns_of(example):
            if turn.task in held:
                assert not held[turn.task].fullmatch(plain(turn.question)), turn
    for example in many(family, 10, held_out=True):
        for turn in turns_of(example):
            assert turn.task == "blind" or held[turn.task].fullmatch(plain(turn.question)), turn


def test_scoring_draws_from_its_own_branch_and_digits_that_are_held_out(monkeypatch):
    assert SCORED != TRAINED

    def refuse():
        raise AssertionError("a digit of the other half")

    for branch, other in ((SCORED, "training_digits"), (TRAINED, "held_out_digits")):
        with monkeypatch.context() as patch:
            patch.setattr(f"minivl.tiny.tasks.reading.{other}", refuse)
            assert draw_example("digit", 0, branch=branch).media[0].digit is not None
