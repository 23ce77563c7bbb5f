"""Questions about distant parts of a picture, beyond one window of 112 pixels; and questions with uncertain answers.

In the pictures of "corner", "longer" and "line" the two things compared lie in different windows.
"""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from minivl.tiny.drawing import COLOURS, KINDS, Shape, background, draw_shapes, paint
from minivl.tiny.examples import Example, Medium, Turn
from minivl.tiny.phrasings import phrase, with_article
from minivl.tiny.tasks.reading import ask_about_bars, ink_for
from minivl.tiny.tasks.shapes import ABSENT, NOTHING, ask_about, draw_extra, pick, worded

SIZES = ((168, 168), (140, 168), (168, 140), (112, 196), (196, 112))
MARK = 22


def draw_family_corner(rng, options):
    """Family "corner": which shape has the colour of the small square in the top left corner?"""
    size = SIZES[rng.integers(3)]
    image = background(rng, size)
    colours, kinds = list(COLOURS), list(KINDS)
    count = int(rng.integers(2, 3 + round(options.ease)))
    order, forms = rng.permutation(len(colours)), rng.permutation(len(kinds))
    shapes = []
    for _ in range(60):
        if len(shapes) == count:
            break
        side = int(rng.integers(28, 44))
        x, y = int(rng.integers(30, size[1] - side - 2)), int(rng.integers(30, size[0] - side - 2))
        apart = all(abs(x - s.box[0]) > 48 or abs(y - s.box[1]) > 48 for s in shapes)
        if apart and (x + side // 2 > 112 or y + side // 2 > 112):
            n = len(shapes)
            shapes.append(Shape(kinds[forms[n]], colours[order[n]], (x, y, x + side, y + side)))
    target = shapes[int(rng.integers(len(shapes)))] if rng.random() > 0.15 else None
    mark = Shape("square", target.colour if target else colours[order[count]], (3, 3, 3 + MARK, 3 + MARK))
    shapes = sorted((mark, *shapes), key=lambda shape: shape.box[0] + shape.box[2])
    for shape in shapes:
        paint(rng, image, shape)
    answer = with_article(target.kind) if target else "none"
    turn = worded(rng, ("corner", {}, answer, target.box if target else None), options.held_out)
    others = maybe_ask(rng, options, shapes, ("describe", "exists", "count", "count kind", "count colour"))
    return Example((Medium((image,), (tuple(shapes),)),), ((turn,), *others))


def maybe_ask(rng, options, shapes, tasks):
    """Sometimes also ask a question of one of these tasks about the shapes of the picture."""
    return ask_about(rng, shapes, options.held_out, 1, tasks) if draw_extra(rng, options, 0.4) else ()


def draw_family_longer(rng, options):
    """Family "longer": two bars in opposite parts of the picture; the longer one is 8 to 33 pixels longer."""
    size = pick(rng, ((112, 196), (196, 112), (140, 168), (168, 140)))
    height, width = size
    image = background(rng, size)
    draw = ImageDraw.Draw(image)
    across = width > height
    names = ("left", "right") if across else ("top", "bottom")
    length = int(rng.integers(30, 80))
    gap = int(rng.integers(8, 34 - round(16 * options.ease)))
    lengths = [length, length + gap]
    if rng.random() < 0.5:
        lengths.reverse()
    shapes, colour = [], pick(rng, list(COLOURS))
    for i, long in enumerate(lengths):
        far = 12 + int(rng.integers(0, 16)) if i == 0 else max(size) - 28 - int(rng.integers(0, 16))
        along = int(rng.integers(3, min(size) - long - 2)) if min(size) - long > 6 else 3
        box = (far, along, far + 14, along + long) if across else (along, far, along + long, far + 14)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=COLOURS[colour])
        shapes.append(Shape("bar", colour, box))
    answer = f"the {names[lengths.index(max(lengths))]} one"
    asked = ("longer", {"a": names[0], "b": names[1]}, answer, shapes[lengths.index(max(lengths))].box)
    conversations = ((worded(rng, asked, options.held_out),), *ask_about_bars(rng, options, shapes))
    return Example((Medium((image,), (tuple(shapes),)),), conversations)


def draw_family_line(rng, options):
    """Family "line": dots on the left are joined to dots on the right by straight lines, which may cross."""
    size = pick(rng, ((112, 168), (112, 196), (140, 168)))
    height, width = size
    image = background(rng, size)
    count = 2 if rng.random() > 0.6 * options.ease else 3
    colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[: 2 * count]]
    ends = rng.permutation(count)
    rows = [int((i + 0.5) * height / count) for i in range(count)]
    ink, draw = ink_for(rng, image), ImageDraw.Draw(image)
    for i, end in enumerate(ends):
        draw.line((16, rows[i], width - 16, rows[end]), fill=ink, width=3)
    shapes = []
    for x, dots in ((6, colours[:count]), (width - 26, colours[count:])):
        for row, colour in zip(rows, dots):
            shape = Shape("circle", colour, (x, row - 10, x + 20, row + 10))
            paint(rng, image, shape)
            shapes.append(shape)
    turns = []
    for i in rng.permutation(count)[: options.most]:
        target = shapes[count + int(ends[i])]
        asked = ("line", {"colour": shapes[i].colour}, target.colour, target.box)
        turns.append((worded(rng, asked, options.held_out),))
    if rng.random() < ABSENT:
        absent = pick(rng, [colour for colour in COLOURS if colour not in colours])
        turns[-1] = (worded(rng, ("line", {"colour": absent}, NOTHING, None), options.held_out),)
    turns += maybe_ask(rng, options, shapes, ("describe", "exists", "count kind", "count colour"))
    joined = [shapes[count + int(end)].colour for end in ends]
    joined += [shapes[ends.tolist().index(i)].colour for i in range(count)]
    return Example((Medium((image,), (tuple(shapes),), joined=tuple(joined)),), tuple(turns))


# ---- uncertain answers: drawn from all that are true, or not visible for certain ----


def draw_family_ambiguous(rng, options):
    """Family "ambiguous": two circles, say, and a question about the colour of "the circle". Both answers are true."""
    kind = pick(rng, KINDS)
    image, shapes = draw_shapes(rng, pick(rng, SIZES[:3]), 2, kinds=(kind,), distinct="colour")
    question, accepted = phrase(rng, "ambiguous", options.held_out, thing=kind), tuple(shape.colour for shape in shapes)
    turns = [(Turn("ambiguous", question, shape.colour, accepted, shape.box),) for shape in shuffled(rng, shapes)]
    return Example((Medium((image,), (shapes,)),), tuple(turns[: options.most]))


def shuffled(rng, items):
    return [items[i] for i in rng.permutation(len(items))]


def draw_family_hidden(rng, options):
    """Family "hidden": a grey panel covers the middle of a circle or of a ring, which are equally likely."""
    size = pick(rng, ((112, 112), (112, 140), (140, 140)))
    image = background(rng, size)
    kind, side = pick(rng, ("circle", "ring")), int(rng.integers(44, 68))
    x, y = int(rng.integers(2, size[1] - side - 1)), int(rng.integers(2, size[0] - side - 1))
    shape = Shape(kind, pick(rng, list(COLOURS)), (x, y, x + side, y + side))
    paint(rng, image, shape)
    low, high = int(side * 0.22), int(side * 0.78) + 1
    grey = int(rng.integers(110, 145))
    image.paste((grey, grey, grey), (x + low, y + low, x + high, y + high))
    turn, answers = worded(rng, ("hidden", {}, "", shape.box), options.held_out), ("a circle", "a ring")
    turns = [(replace(turn, answer=answer, accepted=answers),) for answer in shuffled(rng, answers)]
    return Example((Medium((image,), ((shape,),)),), tuple(turns[: options.most]))


def draw_family_noisy(rng, options, share=None):
    """Family "noisy": a shape that fades into noise, from clear to nearly invisible. share 0..1: its opacity."""
    size = pick(rng, ((112, 112), (112, 140)))
    ground = background(rng, size)
    image = ground.copy()
    _, shapes = draw_shapes(rng, size, 1, ground=image, sides=(36, 56))
    drawn = rng.uniform(0.05, 0.9)
    share = drawn if share is None else share
    mixed = Image.blend(ground, image, share)
    noise = rng.normal(0, 40, (*size, 3))
    image = Image.fromarray(np.clip(np.asarray(mixed, dtype=np.float32) + noise, 0, 255).astype(np.uint8))
    turn = worded(rng, ("noisy", {}, with_article(shapes[0].kind), shapes[0].box), options.held_out)
    return Example((Medium((image,), (shapes if share > 0.3 else (),)),), ((turn,),))
