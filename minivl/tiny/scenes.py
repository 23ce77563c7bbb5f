"""Images of known content: scenes of coloured shapes and real handwritten digits, with questions and true answers.

    drawn = scene(7)
    drawn.image                       # PIL image, both sides multiples of 28 pixels
    drawn.shapes[0]                   # Shape(kind="star", colour="red", box=(12, 40, 60, 88))
    drawn.questions[0]                # ("Describe the picture.", "a red star and a blue ring")

Everything is drawn from one NumPy Generator, so a seed determines the image. Needs NumPy and Pillow only.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from minivl.errors import Error
from minivl.tiny.digits import draw_digit, held_out_digits
from minivl.tiny.drawing import COLOURS, KINDS, Shape, background, draw_shapes
from minivl.tiny.phrasings import join_words, plural, with_article

SIZES = (  # (height, width): from one window of 112 pixels to 3 x 3, partial windows included
    (112, 112), (112, 168), (168, 112), (140, 196), (196, 140), (168, 168), (168, 224), (224, 168),
    (224, 224), (252, 196), (168, 336), (224, 336), (336, 224), (280, 308), (336, 336),
)  # fmt: skip
MIN_SIDE = 72  # minimum side in pixels: a shape of 28 fits, with room around it


@dataclass(frozen=True)
class Scene:
    """An image, what is on it, and (question, true answer) pairs."""

    image: Image.Image
    shapes: tuple
    questions: tuple
    digit: int = None


def scene(seed, size=None, count=None):
    """Scene number `seed`: shapes on a plain background; size (height, width) and count (1-5) are random by default."""
    if size is not None and min(size) < MIN_SIDE:
        raise Error(f"size={tuple(size)}: a scene has at least {MIN_SIDE} x {MIN_SIDE} pixels. Give (height, width).")
    rng = np.random.default_rng([1, seed])
    return draw_scene(rng, size or SIZES[rng.integers(len(SIZES))], count or int(rng.integers(1, 6)))


def digit_picture(index, seed=0):
    """An image of held-out handwritten digit number `index`, and the question which digit it is."""
    pixels, label = held_out_digits()
    if not 0 <= index < len(label):
        raise Error(f"digit {index}: there are {len(label)} held-out digits, counted from 0.")
    rng = np.random.default_rng([2, seed, index])
    return draw_digit_picture(rng, SIZES[rng.integers(len(SIZES))], pixels[index], int(label[index]))


def draw_scene(rng, size, count):
    """Draw up to `count` shapes, and questions about them."""
    image, shapes = draw_shapes(rng, size, count, sides=sides_for(size), tries=20)
    return Scene(image, shapes, questions(rng, shapes))


def sides_for(size):
    """(least, most + 1) pixels of a shape's side in a scene."""
    return 28, 1 + min(76, min(size) // 2 - 4)


def draw_digit_picture(rng, size, pixels, label, augment=False):
    """Draw a handwritten digit, enlarged from 8x8 pixels, at a random place; ink and background are random."""
    image = background(rng, size)
    side = int(rng.integers(56, min(113, min(size) - 7)))
    height, width = size
    x, y = int(rng.integers(4, width - side - 3)), int(rng.integers(4, height - side - 3))
    dark = np.asarray(image, dtype=np.float32).mean() < 128
    ink = tuple(int(v) for v in (rng.integers(200, 256, 3) if dark else rng.integers(0, 60, 3)))
    image.paste(ink, (x, y), draw_digit(rng, pixels, side, augment))
    question = DIGIT[0] if not augment else DIGIT[rng.integers(len(DIGIT))]
    return Scene(image, (Shape("digit", "", (x, y, x + side, y + side)),), ((question, str(label)),), label)


# ---- questions, each in its usual wording; those of the tasks are worded in phrasings.py ----

USUAL_TASKS = ("describe", "count", "count kind", "colour", "where", "digit")
DESCRIBE = "Describe the picture."
COUNT = "How many shapes are there?"
COUNT_KIND = "How many {} are there?"
COLOUR = "What colour is the {}?"
WHERE = "Where is the {}?"
DIGIT = ("Which digit is written here?", "What digit is this?", "Read the digit.")


def describe(shapes):
    """ "a red circle, a blue square and an orange star", from left to right."""
    return join_words([with_article(shape.label) for shape in shapes])


def unique(shapes, attribute):
    """The shapes whose kind, colour or label no other shape has."""
    values = [getattr(shape, attribute) for shape in shapes]
    return [shape for shape in shapes if values.count(getattr(shape, attribute)) == 1]


def where(shapes):
    """Boxes in Qwen2.5-VL's grounding format, in pixels of the image."""
    boxes = ", ".join(f'{{"bbox_2d": {list(shape.box)}, "label": "{shape.label}"}}' for shape in shapes)
    return f"[{boxes}]"


def questions(rng, shapes):
    """One question of each task about these shapes, with the true answers."""
    asked = [(DESCRIBE, describe(shapes)), (COUNT, str(len(shapes)))]
    kinds = [shape.kind for shape in shapes]
    kind = kinds[rng.integers(len(kinds))] if rng.random() < 0.8 else KINDS[rng.integers(len(KINDS))]
    asked.append((COUNT_KIND.format(plural(kind)), str(kinds.count(kind))))
    if single := unique(shapes, "kind"):
        shape = single[rng.integers(len(single))]
        asked.append((COLOUR.format(shape.kind), shape.colour))
    if single := unique(shapes, "label"):
        shape = single[rng.integers(len(single))]
        asked.append((WHERE.format(shape.label), where([shape])))
    return tuple(asked)


def task_of(question, answer):
    """Which of USUAL_TASKS a question belongs to."""
    if answer.startswith("[{"):
        return "where"
    if answer in COLOURS:
        return "colour"
    if question in DIGIT:
        return "digit"
    if answer.isdigit():
        return "count" if question == COUNT else "count kind"
    return "describe"
