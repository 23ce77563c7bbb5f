"""The task families: each draws one or two pictures, or a video, with questions and true answers, from a seed.

    example = draw_example("shapes", seed=7)
    example.media[0].frames[0]               # the picture
    example.conversations[0][0].question     # and .answer, .task

The same family, seed and options always give the same example. Needs NumPy and Pillow only; with matplotlib installed,
training also prints text in its fonts.
"""

from dataclasses import replace

import numpy as np
from PIL import Image

from minivl.tiny import scenes
from minivl.tiny.drawing import draw_count, draw_crowd, pick_alike
from minivl.tiny.examples import DrawOptions, Example, Medium
from minivl.tiny.phrasings import pick
from minivl.tiny.tasks import far_apart, pairs, reading, shapes, videos

SCORED, TRAINED = 11, 12  # branches of the generator: scoring and training never draw the same example
ENLARGED = ("text", "digit", "chart", "table", "video", "corner", "longer", "line")  # of shapes, "scene" has large images
MOST_PIXELS = 336 * 336


def draw_family_scene(rng, options):
    """Family "scene": pictures of the sizes of minivl.tiny.scenes, up to 336 x 336, with up to six shapes."""
    chance = np.array([1 / (h * w) for h, w in scenes.SIZES], dtype=np.float64)
    size = scenes.SIZES[rng.choice(len(chance), p=chance / chance.sum())]
    count = draw_count(rng, size, options)
    image, shown = draw_crowd(rng, size, count, scenes.sides_for(size), **pick_alike(rng, options))
    conversations = shapes.ask_about(rng, shown, options.held_out, options.most)
    return Example((Medium((image,), (shown,)),), conversations)


FAMILIES = {  # (share of the training examples while they get harder, share after that, drawing function)
    # subtle: "scene" is drawn only in the batches of large images, and is most of those: see batches.py
    "scene": (3.0, 3.0, draw_family_scene),
    "shapes": (6.0, 6.0, shapes.draw_family),
    "inside": (0.7, 4.0, shapes.draw_family_inside),
    "blind": (0.3, 0.2, pairs.draw_family_blind),
    "text": (3.5, 8.0, reading.draw_family_text),
    "digit": (1.2, 3.0, reading.draw_family_digit),
    "chart": (0.8, 0.9, reading.draw_family_chart),
    "table": (0.8, 1.0, reading.draw_family_table),
    "pair": (1.5, 12.0, pairs.draw_family_pair),
    "video": (2.0, 3.0, videos.draw_family_video),
    "corner": (0.8, 0.8, far_apart.draw_family_corner),
    "longer": (0.8, 1.5, far_apart.draw_family_longer),
    "line": (1.0, 1.5, far_apart.draw_family_line),
    "ambiguous": (0.4, 0.8, far_apart.draw_family_ambiguous),
    "hidden": (0.3, 0.4, far_apart.draw_family_hidden),
    "noisy": (0.4, 0.4, far_apart.draw_family_noisy),
}


def draw_example(family, seed, held_out=False, ease=1.0, most=1, branch=SCORED, enlarged=False, font=None):
    """Draw example number `seed` of a family, with up to `most` conversations.

    held_out   use the wordings that training never sees
    ease       0..1: from the easiest examples only to all of them
    enlarged   make the image, or the frames of a video, two or three times as large (families of ENLARGED)
    font       font file for words and numbers, by default Pillow's own; training picks one at random
    """
    rng = np.random.default_rng([branch, list(FAMILIES).index(family), *np.atleast_1d(seed)])
    options = DrawOptions(held_out, ease, most, training=branch == TRAINED, font=font)
    while True:
        example = FAMILIES[family][2](rng, options)
        if example.conversations:
            return enlarge(rng, example) if enlarged and family in ENLARGED else example


def enlarge(rng, example):
    """Enlarge an example's image, or the frames of its video, two or three times, if MOST_PIXELS allows it."""
    (medium,) = example.media
    width, height = medium.frames[0].size
    pairs = max(1, len(medium.frames) // 2)
    fitting = [times for times in (2, 3) if times * times * width * height * (1 if pairs <= 2 else 2.25) <= MOST_PIXELS]
    times = pick(rng, fitting) if fitting else 1
    frames = tuple(frame.resize((times * width, times * height), Image.Resampling.BICUBIC) for frame in medium.frames)

    def larger(parts):
        return tuple(tuple(replace(one, box=scaled(one.box)) for one in shown) for shown in parts)

    def scaled(box):
        return box and tuple(times * side for side in box)

    media = (replace(medium, frames=frames, shapes=larger(medium.shapes), signs=larger(medium.signs)),)
    turns = tuple(tuple(replace(turn, about=scaled(turn.about)) for turn in one) for one in example.conversations)
    return replace(example, media=media, conversations=turns)
