"""Real handwritten digits: 1,797 of 8x8 pixels, 0..16, in digits.npz, with a fixed held-out split.

Source: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository (1998),
doi 10.24432/C50P49, licence CC BY 4.0, in the form in which scikit-learn distributes it. Every fifth digit is held out:
the recipe never trains on those.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).with_name("digits.npz")


@lru_cache(maxsize=1)
def all_digits():
    """All digits: images uint8 [1797, 8, 8] with values 0..16, labels uint8 [1797]."""
    with np.load(FILE) as stored:
        return stored["images"], stored["labels"]


def held_out_digits():
    """The digits that training never sees: images [360, 8, 8], labels [360]."""
    images, labels = all_digits()
    return images[::5], labels[::5]


def training_digits():
    """The digits for training: images [1437, 8, 8], labels [1437]."""
    images, labels = all_digits()
    kept = np.arange(len(labels)) % 5 != 0
    return images[kept], labels[kept]


def draw_digit(rng, pixels, side, augment):
    """Draw one digit: its coverage, an "L" image, side x side; augment rotates, shears, scales, shifts it a little."""
    ink = Image.fromarray((np.minimum(pixels, 15) * 17).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    if not augment:
        return ink
    angle, shear = rng.normal(0, 0.12), rng.normal(0, 0.12)
    scale = np.exp(rng.normal(0, 0.08, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(scale)
    centre = np.array([side / 2, side / 2])
    shift = centre - matrix @ (centre + rng.normal(0, side * 0.03, 2))
    (a, b), (d, e) = matrix
    return ink.transform(ink.size, Image.Transform.AFFINE, (a, b, shift[0], d, e, shift[1]), Image.Resampling.BILINEAR)
