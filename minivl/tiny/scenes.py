"""Pictures with a known truth: scenes of coloured shapes, and real handwritten digits; questions and answers about them.

    drawn = scene(7)
    drawn.image                       # PIL image, both sides multiples of 28 pixels
    drawn.shapes[0]                   # Shape(kind="star", colour="red", box=(12, 40, 60, 88))
    drawn.questions[0]                # ("Describe the picture.", "a red star and a blue ring")

Everything is drawn from one NumPy Generator, so a seed is an image. Needs NumPy and Pillow only.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from minivl.errors import Error
from minivl.tiny.digits import draw_digit, held_out_digits
from minivl.tiny.phrasings import join_words, plural, with_article

COLOURS = {  # nameable, and apart from each other in lightness as well as in hue
    "red": (205, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 60),
    "green": (35, 140, 70),
    "blue": (35, 85, 215),
    "purple": (125, 55, 165),
    "pink": (245, 155, 195),
}
KINDS = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = (  # (height, width): from one window of 112 pixels to 3 x 3, partial windows included
    (112, 112), (112, 168), (168, 112), (140, 196), (196, 140), (168, 168), (168, 224), (224, 168),
    (224, 224), (252, 196), (168, 336), (224, 336), (336, 224), (280, 308), (336, 336),
)  # fmt: skip
LEAST = 72  # pixels of a side: a shape of 28 fits, with room around it
SUPERSAMPLE = 4
GAP = 6  # pixels between two shapes' boxes, and between their centres from left to right


@dataclass(frozen=True)
class Shape:
    """One shape: its kind, colour, and box (x1, y1, x2, y2) in pixels, right and bottom exclusive."""

    kind: str
    colour: str
    box: tuple

    @property
    def label(self):
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """An image, what is on it, and (question, true answer) pairs."""

    image: Image.Image
    shapes: tuple
    questions: tuple
    digit: int = None


def scene(seed, size=None, count=None):
    """Scene number `seed`: shapes on a plain ground. size (height, width) and count (1-5) are drawn if not given."""
    if size is not None and min(size) < LEAST:
        raise Error(f"size={tuple(size)}: a scene has at least {LEAST} x {LEAST} pixels. Give (height, width).")
    rng = np.random.default_rng([1, seed])
    return draw_scene(rng, size or SIZES[rng.integers(len(SIZES))], count or int(rng.integers(1, 6)))


def digit_picture(index, seed=0):
    """An image of held-out handwritten digit number `index`, and the question which one it is."""
    pixels, label = held_out_digits()
    if not 0 <= index < len(label):
        raise Error(f"digit {index}: there are {len(label)} held-out digits, counted from 0.")
    rng = np.random.default_rng([2, seed, index])
    return draw_digit_picture(rng, SIZES[rng.integers(len(SIZES))], pixels[index], int(label[index]))


def draw_scene(rng, size, count):
    """Up to `count` shapes, and questions about them."""
    image, shapes = draw_shapes(rng, size, count, sides=sides_for(size), tries=20)
    return Scene(image, shapes, questions(rng, shapes))


def sides_for(size):
    """(least, most + 1) pixels of a shape's side in a scene."""
    return 28, 1 + min(76, min(size) // 2 - 4)


def draw_shapes(rng, size, count, kinds=KINDS, ground=None, sides=None, distinct=None, tries=25, colours=COLOURS):
    """(image, shapes from left to right): up to `count` that neither touch nor share a centre column; fewer without space.

    sides      (least, most + 1) of a shape's box
    distinct   "kind", "colour" or "label" if no two shapes may share it
    tries      places tried for each shape
    """
    image, shapes = ground or background(rng, size), []
    low, high = sides or (28, 1 + min(68, min(size) // 2 - 4))
    for _ in range(tries * count):
        if len(shapes) == count:
            break
        side = int(rng.integers(low, high))
        x, y = int(rng.integers(2, size[1] - side - 1)), int(rng.integers(2, size[0] - side - 1))
        kind, colour = kinds[rng.integers(len(kinds))], list(colours)[rng.integers(len(colours))]
        shape = Shape(kind, colour, (x, y, x + side, y + side))
        fits = all(is_apart(shape.box, other.box) for other in shapes)
        if fits and not (distinct and any(getattr(shape, distinct) == getattr(other, distinct) for other in shapes)):
            paint(rng, image, shape)
            shapes.append(shape)
    return image, tuple(sorted(shapes, key=lambda shape: shape.box[0] + shape.box[2]))


def draw_digit_picture(rng, size, pixels, label, augment=False):
    """A handwritten digit, 8x8 pixels enlarged, in some ink on some paper, somewhere on the image."""
    image = background(rng, size)
    side = int(rng.integers(56, min(113, min(size) - 7)))
    height, width = size
    x, y = int(rng.integers(4, width - side - 3)), int(rng.integers(4, height - side - 3))
    dark = np.asarray(image, dtype=np.float32).mean() < 128
    ink = tuple(int(v) for v in (rng.integers(200, 256, 3) if dark else rng.integers(0, 60, 3)))
    image.paste(ink, (x, y), draw_digit(rng, pixels, side, augment))
    question = DIGIT[0] if not augment else DIGIT[rng.integers(len(DIGIT))]
    return Scene(image, (Shape("digit", "", (x, y, x + side, y + side)),), ((question, str(label)),), label)


def background(rng, size):
    """A light or dark ground with a slight gradient and noise: [H, W, 3] as a PIL image."""
    height, width = size
    level = rng.uniform(190, 250) if rng.random() < 0.6 else rng.uniform(5, 60)
    tint = rng.uniform(-12, 12, 3)
    slope = rng.uniform(-12, 12, 2)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    ground = (level + slope[0] * y + slope[1] * x)[..., None] + tint + rng.normal(0, 2, (height, width, 1))
    return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))


def is_apart(a, b):
    """True if two boxes keep a gap, and their centres are not (nearly) in one column: left to right is then clear."""
    overlap = a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP
    return not overlap and abs(a[0] + a[2] - b[0] - b[2]) > 4 * GAP


def paint(rng, image, shape):
    x1, y1, x2, y2 = shape.box
    colour = np.array(COLOURS[shape.colour]) + rng.integers(-12, 13, 3)
    image.paste(tuple(int(v) for v in np.clip(colour, 0, 255)), (x1, y1), mask(shape.kind, x2 - x1))


def mask(kind, side):
    """The shape's coverage, an "L" image of side x side that it fills from edge to edge, antialiased."""
    n = side * SUPERSAMPLE
    image = Image.new("L", (n, n), 0)
    draw = ImageDraw.Draw(image)
    if kind in ("circle", "ring"):
        draw.ellipse((0, 0, n - 1, n - 1), fill=255)
    if kind == "ring":
        draw.ellipse((n * 0.28, n * 0.28, n * 0.72, n * 0.72), fill=0)
    if kind == "square":
        draw.rectangle((0, 0, n, n), fill=255)
    if kind == "cross":
        draw.rectangle((n * 0.34, 0, n * 0.66, n), fill=255)
        draw.rectangle((0, n * 0.34, n, n * 0.66), fill=255)
    if kind in ("triangle", "star"):
        draw.polygon([(x * n, y * n) for x, y in corners(kind)], fill=255)
    return image.reduce(SUPERSAMPLE)


def corners(kind):
    """Corners of a triangle or a five-pointed star, stretched to fill the unit square."""
    if kind == "triangle":
        return [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]
    angle = -math.pi / 2 + np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
    low, high = points.min(axis=0), points.max(axis=0)
    return [tuple(p) for p in ((points - low) / (high - low)).tolist()]


# ---- questions, each in its usual wording; those of the tasks are worded in phrasings.py ----

TASKS = ("describe", "count", "count kind", "colour", "where", "digit")
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
    """The shapes whose kind, colour or label no other has."""
    values = [getattr(shape, attribute) for shape in shapes]
    return [shape for shape in shapes if values.count(getattr(shape, attribute)) == 1]


def where(shapes):
    """Qwen2.5-VL's grounding format, in pixels of the image."""
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
    """Which of TASKS a question belongs to."""
    if answer.startswith("[{"):
        return "where"
    if answer in COLOURS:
        return "colour"
    if question in DIGIT:
        return "digit"
    if answer.isdigit():
        return "count" if question == COUNT else "count kind"
    return "describe"
