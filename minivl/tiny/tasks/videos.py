"""Videos of two to eight frames: direction of motion, time of a change, first shape, number of new shapes.

Two frames are one temporal step of the grid. The answers are computed from the shapes on each pair of frames
(`ANSWERS`): the same pairs in another order have other answers.
"""

from dataclasses import replace

import numpy as np

from minivl.tiny.drawing import COLOURS, KINDS, Shape, background, draw_shapes, paint
from minivl.tiny.examples import Example, Medium
from minivl.tiny.phrasings import with_article
from minivl.tiny.tasks.shapes import ABSENT, NOTHING, ask_exists, missing_label, pick, worded

SIZE = (112, 112)
MOVES = ("left", "right", "up", "down")


def draw_family_video(rng, options):
    """Family "video": a shape that moves, one that changes its colour, or shapes that come and go."""
    example = pick(rng, (draw_motion, draw_recolouring, draw_visitors))(rng, options)
    if options.most > 1 and rng.random() < 0.3:
        shapes = tuple({shape.label: shape for shown in example.media[0].shapes for shape in shown}.values())
        asked = ask_exists(rng, shapes)
        turn = worded(rng, (*asked[:3], None), options.held_out)
        example = replace(example, conversations=(*example.conversations, (turn,)))
    return example


def film(rng, ground, states):
    """A Medium with one frame for each tuple of shapes in `states`; two successive frames are a pair."""
    frames = []
    for shapes in states:
        image = ground.copy()
        for shape in shapes:
            paint(np.random.default_rng(7), image, shape)
        frames.append(image)
    return Medium(tuple(frames), tuple(states[1::2]))


def still(states):
    """Repeat each state for two frames, so that no pair by itself shows movement."""
    return [state for state in states for _ in range(2)]


def draw_motion(rng, options):
    """Draw a shape that moves, in half of the longer videos only from pair to pair of frames; or one that stays."""
    pairs = int(rng.integers(1, 5))
    within = pairs == 1 or rng.random() < 0.5
    way = pick(rng, MOVES)
    side, colour, kind = int(rng.integers(28, 45)), pick(rng, list(COLOURS)), pick(rng, KINDS)
    room = SIZE[0] - side - 4
    total = int(rng.integers(min(24, room - 1), room))
    if rng.random() < ABSENT / 2:
        total, way = 0, NOTHING
    start = int(rng.integers(2, 2 + room - total + 1))
    across = int(rng.integers(2, SIZE[0] - side - 1))
    states, count = [], 2 * pairs if within else pairs
    for i in range(count):
        along = start + round(total * i / (count - 1))
        along = along if way in ("right", "down", NOTHING) else SIZE[0] - side - along
        x, y = (along, across) if way in ("left", "right") else (across, along)
        states.append((Shape(kind, colour, (x, y, x + side, y + side)),))
    medium = film(rng, background(rng, SIZE), states if within else still(states))
    asked = ("way", {"thing": pick(rng, (kind, f"{colour} {kind}"))}, way, None)
    turns = [(worded(rng, asked, options.held_out),)]
    if rng.random() < ABSENT:
        asked = ("way", {"thing": missing_label(rng, states[0])}, NOTHING, None)
        turns = [(worded(rng, asked, options.held_out),)]
    turns += [(worded(rng, ("colour", {"thing": kind}, colour, None), options.held_out),)] if options.most > 1 else []
    return Example((medium,), tuple(turns))


def draw_recolouring(rng, options):
    """Draw a shape whose colour changes at frame 3, 5 or 7, the first of a temporal step of the grid; or does not."""
    pairs = int(rng.integers(2, 5))
    change = int(rng.integers(1, pairs)) if rng.random() >= ABSENT else pairs
    _, (shape,) = draw_shapes(rng, SIZE, 1)
    colour = pick(rng, [colour for colour in COLOURS if colour != shape.colour])
    states = [(shape if i < change else replace(shape, colour=colour),) for i in range(pairs)]
    return Example(
        (film(rng, background(rng, SIZE), still(states)),),
        ((worded(rng, ("when", {}, answer_when(states), None), options.held_out),),),
    )


def draw_visitors(rng, options):
    """Draw shapes that come and go: each alone, one after the other; or some appear, some disappear, others stay."""
    pairs = int(rng.integers(2, 5))
    alone = rng.random() < 0.4
    count = pairs if alone else 1 + int(rng.integers(0, 2 + round(2 * options.ease)))
    _, shapes = draw_shapes(rng, SIZE, count, distinct="label", sides=(28, 45))
    shapes = [shapes[i] for i in rng.permutation(len(shapes))]
    if alone:
        states = [(shape,) for shape in shapes]
    else:
        stays = [(0, pairs)]  # for each shape, the range of pairs of frames that show it
        for at in rng.integers(1, pairs, len(shapes) - 1):
            stays.append((at, pairs) if rng.random() < 0.5 else (0, at))
        states = [tuple(shape for shape, (a, b) in zip(shapes, stays) if a <= i < b) for i in range(pairs)]
    asked = [("appeared", {}, answer_appeared(states), None)]
    if first := answer_first(states):
        asked.insert(int(rng.random() < 0.3), ("first", {}, first, None))
    turns = tuple((worded(rng, one, options.held_out),) for one in asked[: options.most])
    return Example((film(rng, background(rng, SIZE), still(states)),), turns)


# ---- answers, from the shapes on each pair of frames ----


def answer_way(states):
    """The direction in which the only shape moves, "none" if it stays."""
    (x, y), (to_x, to_y) = (shapes[0].box[:2] for shapes in (states[0], states[-1]))
    ways = {"right": to_x > x, "left": to_x < x, "down": to_y > y, "up": to_y < y}
    return next((way for way, holds in ways.items() if holds), NOTHING)


def answer_when(states):
    """The first frame with a change, else "none"."""
    return next((f"frame {1 + 2 * i}" for i in range(1, len(states)) if states[i] != states[i - 1]), NOTHING)


def answer_first(states):
    """The shape on the first frame; None if there are several."""
    return with_article(states[0][0].label) if len(states[0]) == 1 else None


def answer_appeared(states):
    """The number of shapes that are not on the first frame."""
    return str(len({shape for shapes in states for shape in shapes} - set(states[0])))


ANSWERS = {"way": answer_way, "when": answer_when, "first": answer_first, "appeared": answer_appeared}


def needs_order(example, turn):
    """Whether the answer to this turn depends only on the order of a video's pairs of frames.

    That is so if both frames of each pair are equal, and the answer changes when the pairs are reversed.
    """
    medium, answer = example.media[0], ANSWERS.get(turn.task)
    if not medium.is_video or answer is None or answer(medium.shapes) != turn.answer:
        return False
    frames = [frame.tobytes() for frame in medium.frames]
    return frames[::2] == frames[1::2] and answer(medium.shapes[::-1]) not in (None, turn.answer)
