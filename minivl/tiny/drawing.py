"""Draw coloured shapes with known boxes: a few far apart, many close together, or small ones inside large ones.

Everything is drawn from one NumPy Generator, so a seed determines the image. Needs NumPy and Pillow only.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {  # easy to name, and distinct in lightness as well as in hue
    "red": (205, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 60),
    "green": (35, 140, 70),
    "blue": (35, 85, 215),
    "purple": (125, 55, 165),
    "pink": (245, 155, 195),
}
KINDS = ("circle", "square", "triangle", "star", "ring", "cross")
SUPERSAMPLE = 4
GAP = 6  # pixels between two shapes' boxes; their centres are more than twice as far apart horizontally
EMPTY, CROWDED, CROWDED_IN_TRAINING = 0.05, 0.2, 0.3  # shares of pictures without shapes, and with as many as fit
ALIKE = 0.2  # share of the training pictures whose shapes have only two kinds or only two colours


@dataclass(frozen=True)
class Shape:
    """One shape: its kind, colour, and box (x1, y1, x2, y2) in pixels, right and bottom exclusive."""

    kind: str
    colour: str
    box: tuple

    @property
    def label(self):
        return f"{self.colour} {self.kind}"


def draw_shapes(rng, size, count, kinds=KINDS, ground=None, sides=None, distinct=None, tries=25, colours=COLOURS):
    """Draw up to `count` shapes that neither touch nor share a centre column: (image, shapes from left to right).

    sides      (least, most + 1) of a shape's box
    distinct   "kind", "colour" or "label" if no two shapes may share it
    tries      attempts per shape; fewer shapes if they find no space
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


def draw_crowd(rng, size, count, sides=None, **alike):
    """Call `draw_shapes` so that all shapes fit: four or more are small, and a picture with too few is drawn again."""
    low, high = sides or (28, 1 + min(68, min(size) // 2 - 4))
    high = high if count < 4 else min(high, {112: 37, 140: 42}.get(min(size), 49))
    if count == 0 and rng.random() < 0.5:
        return clutter(rng, size), ()
    for _ in range(10):
        image, shapes = draw_shapes(rng, size, count, sides=(low, high), tries=40, **alike)
        if len(shapes) == count:
            break
    return image, shapes


def draw_count(rng, size, options):
    """Draw the number of shapes: sometimes 0, else up to as many as fit; the highest numbers more often than others."""
    most = 1 + round(({112: 4, 140: 5}.get(min(size), 6) - 1) * options.ease)
    crowded = CROWDED_IN_TRAINING if options.training else CROWDED
    draw = rng.random()
    if draw < EMPTY:
        return 0
    if draw >= EMPTY + crowded:
        return int(rng.integers(1, 1 + most))
    # subtle: if training drew only `most` here, the model would count five shapes as six
    return int(rng.integers(max(1, most - 2), 1 + most)) if options.training else most


def pick_alike(rng, options):
    """Limit `draw_shapes` to two kinds or colours in some training pictures: else repeats are rare and miscounted."""
    if not options.training or rng.random() >= ALIKE:
        return {}
    name, values = (("kinds", KINDS), ("colours", tuple(COLOURS)))[rng.integers(2)]
    return {name: tuple(values[i] for i in rng.permutation(len(values))[:2])}


def draw_inside(rng, size):
    """Draw one large shape, a small one of another colour inside it and, if there is space, a third next to them."""
    image = background(rng, size)
    outer = int(rng.integers(64, min(size) - 20))
    x, y = int(rng.integers(2, size[1] - outer - 1)), int(rng.integers(2, size[0] - outer - 1))
    side = int(rng.integers(24, outer // 2 - 2))
    cx, cy = x + (outer - side) // 2 + int(rng.integers(-4, 5)), y + (outer - side) // 2 + int(rng.integers(-4, 5))
    first, second, third = rng.permutation(len(COLOURS))[:3]
    colours = list(COLOURS)
    big = Shape(("square", "circle")[rng.integers(2)], colours[first], (x, y, x + outer, y + outer))
    small = Shape(KINDS[rng.integers(len(KINDS))], colours[second], (cx, cy, cx + side, cy + side))
    shapes = [big, small]
    for _ in range(10):
        side = int(rng.integers(28, 40))
        px, py = int(rng.integers(2, size[1] - side - 1)), int(rng.integers(2, size[0] - side - 1))
        more = Shape(KINDS[rng.integers(len(KINDS))], colours[third], (px, py, px + side, py + side))
        if is_apart(more.box, big.box):
            shapes.append(more)
            break
    for shape in shapes:
        paint(rng, image, shape)
    return image, tuple(shapes)


def draw_crowded_page(rng):
    """Draw an image full of small shapes, some inside large ones, to train the tower only: it has no questions."""
    side, cell = 168, 84
    image, shapes = background(rng, (side, side)), []
    for x, y in [(x, y) for x in range(0, side, cell) for y in range(0, side, cell)]:
        if rng.random() < 0.5:
            outer = int(rng.integers(56, cell - 3))
            left, top = (start + int(rng.integers(1, cell - outer)) for start in (x, y))
            inner = int(rng.integers(22, outer // 2 + 2))
            cx, cy = (start + (outer - inner) // 2 + int(rng.integers(-5, 6)) for start in (left, top))
            first, second = (list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:2])
            shapes.append(Shape(("square", "circle")[rng.integers(2)], first, (left, top, left + outer, top + outer)))
            shapes.append(Shape(KINDS[rng.integers(len(KINDS))], second, (cx, cy, cx + inner, cy + inner)))
            continue
        for left, top in ((x, y), (x + cell // 2, y), (x, y + cell // 2), (x + cell // 2, y + cell // 2)):
            small = int(rng.integers(24, cell // 2 - 2))
            left, top = (start + int(rng.integers(0, cell // 2 - small)) for start in (left, top))
            kind, colour = KINDS[rng.integers(len(KINDS))], list(COLOURS)[rng.integers(len(COLOURS))]
            shapes.append(Shape(kind, colour, (left, top, left + small, top + small)))
    for shape in shapes:
        paint(rng, image, shape)
    return image, tuple(shapes)


def is_apart(a, b):
    """True if two boxes have a gap and their centres are not (nearly) in one column, so that left to right is clear."""
    overlap = a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP
    return not overlap and abs(a[0] + a[2] - b[0] - b[2]) > 4 * GAP


def background(rng, size):
    """A light or dark background with a slight gradient and noise: [H, W, 3] as a PIL image."""
    height, width = size
    level = rng.uniform(190, 250) if rng.random() < 0.6 else rng.uniform(5, 60)
    tint = rng.uniform(-12, 12, 3)
    slope = rng.uniform(-12, 12, 2)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    ground = (level + slope[0] * y + slope[1] * x)[..., None] + tint + rng.normal(0, 2, (height, width, 1))
    return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))


def clutter(rng, size):
    """An image without shapes, but not plain: sharp or blurred noise, or bands of colours."""
    height, width = size
    coarse = int(rng.integers(2, 12)), int(rng.integers(2, 12))
    grain = (size, coarse, (coarse[0], 1), (1, coarse[1]))[rng.integers(4)]
    colours = rng.normal(rng.uniform(60, 200, 3), rng.uniform(20, 90), (*grain, 3))
    image = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    return image.resize((width, height), Image.Resampling.BICUBIC)


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
