"""Pairs of images, whose order matters; and questions about an image when there is none."""


import numpy as np

from minivl.tiny.drawing import COLOURS, KINDS, Shape, background, draw_shapes, paint
from minivl.tiny.examples import Example, Medium, Turn
from minivl.tiny.phrasings import plural
from minivl.tiny.scenes import describe, unique
from minivl.tiny.tasks.shapes import (
    NOTHING,
    ask_about,
    ask_count,
    ask_count_kind,
    ask_exists,
    draw_extra,
    pick,
    worded,
)

FIRST, SECOND = "the first", "the second"
UNIT, MAX_SIDE = 28, 252  # pixels: sides of the images of a pair are multiples of UNIT from 112 to MAX_SIDE
ORDINALS = ("first", "second")


def draw_family_pair(rng, options):
    """Family "pair": two pictures. Half of the pairs differ in one shape, half are drawn independently."""
    if rng.random() < 0.5:
        return draw_change(rng, options)
    sizes = [draw_pair_size(rng)] * 2 if rng.random() < 0.5 else [draw_pair_size(rng) for _ in range(2)]
    made = [draw_shapes(rng, size, int(rng.integers(1, 2 + round(2 * options.ease)))) for size in sizes]
    pictures = [shapes for _, shapes in made]
    media = tuple(Medium((image,), (shapes,)) for image, shapes in made)
    turns = [ask_more, ask_which, ask_of_two, ask_more]  # the most difficult twice, in training
    asked = [turns[i](rng, pictures) for i in rng.integers(0, 3 + options.training, options.most + 1)]
    turns = tuple((worded(rng, one, options.held_out),) for one in asked if one)[: options.most]
    return Example(media, turns + ask_of_both(rng, pictures, options) + ask_to_describe(rng, pictures, options))


def ask_of_both(rng, pictures, options):
    """Sometimes also ask about both pictures together: is there a thing, how many are there?"""
    if not draw_extra(rng, options, 0.5):
        return ()
    asked = pick(rng, (ask_exists, ask_count, ask_count_kind))(rng, (*pictures[0], *pictures[1]))
    return ((worded(rng, (*asked[:3], None), options.held_out),),)


def ask_to_describe(rng, pictures, options):
    """Mostly also ask what both pictures show, or about one of them (content, number of shapes, a thing), or both."""
    if not draw_extra(rng, options, 0.9):
        return ()
    told = [describe(shown) if shown else NOTHING for shown in pictures]
    wording = {"like": "describe"} if rng.random() < 0.25 else {}  # as for one picture
    both = ("describe both", wording, f"first: {told[0]}; second: {told[1]}", None)
    asked = [both] if rng.random() < 0.6 else []
    if not asked or rng.random() < 0.6:
        asked.append(ask_of_one(rng, pictures, told))
    return tuple((worded(rng, one, options.held_out),) for one in asked)


def ask_of_one(rng, pictures, told):
    nth = int(rng.integers(2))
    ordinal = {"nth": ORDINALS[nth]}
    task = pick(rng, ("describe", "describe", "count", "count", "exists"))
    if task == "describe":
        return "describe of two", ordinal, told[nth], None
    if task == "count":
        return "count of two", ordinal, str(len(pictures[nth])), None
    other = [shape.label for shape in pictures[1 - nth]]
    there = [shape.label for shape in pictures[nth]]
    if rng.random() < 0.5 and there:
        return "exists of two", {"thing": pick(rng, there)} | ordinal, "yes", None
    absent = [label for label in other if label not in there] if rng.random() < 0.5 else []
    label = pick(rng, absent or [f"{colour} {kind}" for colour in COLOURS for kind in KINDS if f"{colour} {kind}" not in there])
    return "exists of two", {"thing": label} | ordinal, "no", None


def draw_pair_size(rng):
    """Draw (height, width) of an image of a pair: small ones more often, and at most 64 tokens."""
    while True:
        height, width = (UNIT * int(min(rng.integers(4, 1 + MAX_SIDE // UNIT, 2))) for _ in range(2))
        if height * width <= 64 * UNIT**2:
            return height, width


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
    """Ask for the colour of a kind in one of the pictures; if possible, of a kind that is in both."""
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
    """Draw two pictures of the same shapes, of which one is new, gone or of another colour; or nothing has changed."""
    size = draw_pair_size(rng)
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
            paint(np.random.default_rng(list(shape.box)), image, shape)  # the same shade in both pictures
        media.append(Medium((image,), (tuple(shown),)))
    about = None if what == "nothing" else changed.box
    turns = [(worded(rng, ("changed", {}, answer, about), options.held_out),)]
    if rng.random() < 0.5 and before and after:
        asked = ask_of_two(rng, [before, after])
        turns += [(worded(rng, asked, options.held_out),)] if asked else []
    pictures = [tuple(before), tuple(after)]
    turns = turns[: options.most]
    return Example(tuple(media), (*turns, *ask_of_both(rng, pictures, options), *ask_to_describe(rng, pictures, options)))


def draw_family_blind(rng, options):
    """Family "blind": questions about pictures without any picture."""
    _, shapes = draw_shapes(rng, (112, 112), 2)
    conversations = ask_about(rng, shapes, options.held_out, options.most)
    unknown = tuple((Turn("blind", turns[0].question, "I don't know"),) for turns in conversations)
    return Example((), unknown)
