"""Two pictures, where the order matters, and videos of two to eight frames."""

from dataclasses import replace

import numpy as np

from minivl.tiny.drawing import COLOURS, KINDS, Shape, background, draw_shapes, paint
from minivl.tiny.examples import Example, Medium, Turn
from minivl.tiny.phrasings import plural, with_article
from minivl.tiny.scenes import describe, unique
from minivl.tiny.tasks.shapes import (
    ABSENT,
    NOTHING,
    ask_about,
    ask_count,
    ask_count_kind,
    ask_exists,
    asks_more,
    missing_label,
    pick,
    worded,
)

FIRST, SECOND = "the first", "the second"
SIZE = (112, 112)  # of the frames of a video
PAIR_SIZES = (
    (112, 112), (112, 112), (112, 112), (112, 140), (140, 112), (140, 140), (168, 168), (168, 168), (168, 224), (224, 168),
    (224, 224),
)  # fmt: skip
ORDINALS = ("first", "second")
MOVES = ("left", "right", "up", "down")


def draw_family_pair(rng, options):
    """Family "pair": two pictures. Half of them differ in one shape, half are drawn apart."""
    if rng.random() < 0.5:
        return draw_change(rng, options)
    sizes = [pick(rng, PAIR_SIZES)] * 2 if rng.random() < 0.5 else [pick(rng, PAIR_SIZES) for _ in range(2)]
    made = [draw_shapes(rng, size, int(rng.integers(1, 2 + round(2 * options.ease)))) for size in sizes]
    pictures = [shapes for _, shapes in made]
    media = tuple(Medium((image,), (shapes,)) for image, shapes in made)
    turns = [ask_more, ask_which, ask_of_two]
    asked = [turns[i](rng, pictures) for i in rng.integers(0, 3, options.most + 1)]
    turns = tuple((worded(rng, one, options.held_out),) for one in asked if one)[: options.most]
    return Example(media, turns + ask_of_both(rng, pictures, options))


def ask_of_both(rng, pictures, options):
    """Now and then, after another question, one that is not for one of the pictures: what is there, is there, how many."""
    if not asks_more(rng, options, 0.4):
        return ()
    shapes = (*pictures[0], *pictures[1])
    asked = pick(rng, (ask_exists, ask_count, ask_count_kind))(rng, shapes)
    if rng.random() < 0.4:
        told = [describe(shown) if shown else NOTHING for shown in pictures]
        asked = ("describe", {}, f"first: {told[0]}; second: {told[1]}", None)
    return ((worded(rng, (*asked[:3], None), options.held_out),),)


def ask_more(rng, pictures):
    kind = pick(rng, [shape.kind for shapes in pictures for shape in shapes])
    kind = pick(rng, KINDS) if rng.random() < 0.1 else kind  # perhaps in neither
    first, second = (sum(shape.kind == kind for shape in shapes) for shapes in pictures)
    answer = FIRST if first > second else SECOND if second > first else "the same"
    return "more", {"kinds": plural(kind)}, answer, None


def ask_which(rng, pictures):
    labels = [{shape.label for shape in shapes} for shapes in pictures]
    every = sorted(labels[0] | labels[1])
    if rng.random() < 0.2:
        every = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS if f"{colour} {kind}" not in every]
    label = pick(rng, every)
    held_by = [label in one for one in labels]
    answer = "both" if all(held_by) else FIRST if held_by[0] else SECOND if held_by[1] else "none"
    return "which picture", {"thing": label}, answer, None


def ask_of_two(rng, pictures):
    """The colour of a kind in one of the pictures; where it can be, of a kind that is in both."""
    nth = int(rng.integers(2))
    known = unique(pictures[nth], "kind")
    shared = [shape for shape in known if shape.kind in {other.kind for other in pictures[1 - nth]}]
    if not known:
        return None
    if rng.random() < 0.15:
        absent = [kind for kind in KINDS if kind not in {shape.kind for shape in pictures[nth]}]
        return "of two", {"thing": pick(rng, absent), "nth": ORDINALS[nth]}, "none", None
    shape = pick(rng, shared or known)
    return "of two", {"thing": shape.kind, "nth": ORDINALS[nth]}, shape.colour, None


def draw_change(rng, options):
    """Two pictures of the same shapes, of which one is new, gone or of another colour; or nothing has changed."""
    size = pick(rng, PAIR_SIZES)
    ground = background(rng, size)
    count = int(rng.integers(2, 3 + round(2 * options.ease)))
    _, shapes = draw_shapes(rng, size, count, ground=ground.copy(), distinct="kind")
    index, what = int(rng.integers(len(shapes))), pick(rng, ("new", "gone", "colour", "colour", "nothing"))
    before = after = list(shapes)
    changed = shapes[index]
    if what == "colour":
        colour = pick(rng, [colour for colour in COLOURS if colour != changed.colour])
        after = [Shape(s.kind, colour, s.box) if s is changed else s for s in shapes]
        answer = f"the {changed.kind} is now {colour}"
    elif what == "nothing":
        answer = "nothing"
    else:
        rest = [shape for shape in shapes if shape is not changed]
        before, after = (rest, before) if what == "new" else (before, rest)
        answer = f"the {changed.label} is {what}"
    media = []
    for shown in (before, after):
        image = ground.copy()
        for shape in shown:
            paint(np.random.default_rng(list(shape.box)), image, shape)  # one tone in both pictures
        media.append(Medium((image,), (tuple(shown),)))
    about = None if what == "nothing" else changed.box
    turns = [(worded(rng, ("changed", {}, answer, about), options.held_out),)]
    if rng.random() < 0.5 and before and after:
        asked = ask_of_two(rng, [before, after])
        turns += [(worded(rng, asked, options.held_out),)] if asked else []
    return Example(tuple(media), (*turns[: options.most], *ask_of_both(rng, [tuple(before), tuple(after)], options)))


# ---- videos: a list of frames for each, two to a step of the grid's time ----


def draw_family_video(rng, options):
    """Family "video": a shape that moves, one that changes its colour, or shapes that appear."""
    example = pick(rng, (draw_motion, draw_recolouring, draw_arrivals))(rng, options)
    if asks_more(rng, options, 0.3):
        shapes = tuple({shape.label: shape for shown in example.media[0].shapes for shape in shown}.values())
        asked = ask_exists(rng, shapes)
        turn = worded(rng, (*asked[:3], None), options.held_out)
        example = replace(example, conversations=(*example.conversations, (turn,)))
    return example


def film(rng, ground, states):
    """A Medium of the frames that show these tuples of shapes, two frames for each pair."""
    frames = []
    for shapes in states:
        image = ground.copy()
        for shape in shapes:
            paint(np.random.default_rng(7), image, shape)
        frames.append(image)
    return Medium(tuple(frames), tuple(states[1::2]))


def draw_motion(rng, options):
    count = 2 * int(rng.integers(1, 5))
    way = pick(rng, MOVES)
    side, colour, kind = int(rng.integers(28, 45)), pick(rng, list(COLOURS)), pick(rng, KINDS)
    room = 112 - side - 4
    total = int(rng.integers(min(24, room - 1), room))
    if rng.random() < ABSENT / 2:
        total, way = 0, NOTHING
    start = int(rng.integers(2, 2 + room - total + 1))
    across = int(rng.integers(2, 112 - side - 1))
    states = []
    for i in range(count):
        along = start + round(total * i / (count - 1))
        along = along if way in ("right", "down", NOTHING) else 112 - side - along
        x, y = (along, across) if way in ("left", "right") else (across, along)
        states.append((Shape(kind, colour, (x, y, x + side, y + side)),))
    medium = film(rng, background(rng, SIZE), states)
    asked = ("way", {"thing": pick(rng, (kind, f"{colour} {kind}"))}, way, None)
    turns = [(worded(rng, asked, options.held_out),)]
    if rng.random() < ABSENT:
        asked = ("way", {"thing": missing_label(rng, states[0])}, NOTHING, None)
        turns = [(worded(rng, asked, options.held_out),)]
    turns += [(worded(rng, ("colour", {"thing": kind}, colour, None), options.held_out),)] if options.most > 1 else []
    return Example((medium,), tuple(turns))


def draw_recolouring(rng, options):
    """The colour changes at the third, fifth or seventh frame: the first of a step of the grid's time. Or it does not."""
    pairs = int(rng.integers(2, 5))
    change = int(rng.integers(1, pairs))
    _, shapes = draw_shapes(rng, SIZE, 1)
    shape = shapes[0]
    colour = pick(rng, [colour for colour in COLOURS if colour != shape.colour])
    later = Shape(shape.kind, colour, shape.box)
    states = [(shape if i < 2 * change else later,) for i in range(2 * pairs)]
    medium = film(rng, background(rng, SIZE), states)
    answer = f"frame {2 * change + 1}"
    turns = [(worded(rng, ("when", {}, answer, None), options.held_out),)]
    if rng.random() < ABSENT:
        medium = film(rng, background(rng, SIZE), [(shape,)] * (2 * pairs))
        turns = [(worded(rng, ("when", {}, NOTHING, None), options.held_out),)]
    return Example((medium,), tuple(turns))


def draw_arrivals(rng, options):
    """One shape is there from the start, others appear and stay."""
    pairs, new = int(rng.integers(2, 5)), int(rng.integers(0, 2 + round(options.ease)))
    _, shapes = draw_shapes(rng, SIZE, 1 + new, distinct="label", sides=(28, 45))
    shapes = [shapes[i] for i in rng.permutation(len(shapes))]
    since = [0, *sorted(int(v) for v in rng.integers(1, pairs, len(shapes) - 1))]
    states = [tuple(shape for shape, at in zip(shapes, since) if i // 2 >= at) for i in range(2 * pairs)]
    medium = film(rng, background(rng, SIZE), states)
    asked = [("appeared", {}, str(len(shapes) - 1), None), ("first", {}, with_article(shapes[0].label), None)]
    turns = [(worded(rng, asked[i], options.held_out),) for i in rng.permutation(2)[: options.most]]
    return Example((medium,), tuple(turns))


def draw_family_blind(rng, options):
    """Family "blind": questions about pictures without any picture."""
    _, shapes = draw_shapes(rng, SIZE, 2)
    conversations = ask_about(rng, shapes, options.held_out, options.most)
    unknown = tuple((Turn("blind", turns[0].question, "I don't know"),) for turns in conversations)
    return Example((), unknown)
