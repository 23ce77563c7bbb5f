"""Targets of the auxiliary heads: what covers each token of an image, and the box that each answer token is about.

NumPy only.
"""

import re
from itertools import permutations

import numpy as np

from minivl.tiny.drawing import COLOURS, KINDS
from minivl.tiny.tasks.reading import CHARACTERS
from minivl.tiny.tasks.shapes import is_within

UNIT, FULL = 28, 336  # pixels: side of a token; longest side of an image, the unit of absolute boxes
NEAR = 2 * UNIT  # the unit of boxes relative to a token
CELL_KINDS = ("nothing", *KINDS, "bar", "digit")
COUNTED = 6  # shapes are counted up to this number
ENTRY = re.compile(r"\{[^}]*\[(\d+), (\d+), (\d+), (\d+)\][^}]*\}")  # one box in an answer that lists them


def cell_arrays(count):
    return {
        **{
            key: np.full(count, -1, dtype=np.int64)
            for key in ("kind", "colour", "digit", "joined", "changed", "order", "former_kind", "former_colour")
        },
        **{key: np.zeros((count, 4), dtype=np.float32) for key in ("near", "far")},
        "characters": np.zeros((count, 2, len(CHARACTERS)), dtype=np.float32),
        "ordinal": np.full((count, 2), -1, dtype=np.int64),
        "counted": np.full((count, 3), -1, dtype=np.int64),
    }


def cell_targets(height, width, shapes, signs, digit=None, joined=()):
    """What covers each token's 28 x 28 pixels, for the auxiliary heads. U tokens in raster order.

    kind [U]: index in CELL_KINDS; colour [U]: -1 none; digit [U]: -1 elsewhere; joined [U]: the colour at the other end
    of a dot's line, -1 elsewhere; near [U, 4]: the box from the token's centre, in units of 56 pixels; far [U, 4]: the box
    in units of 336 pixels; characters [U, 2, 36]: 1 for those whose middle or more than 40 % is in the token's left
    half, and in its right half, else 0; ordinal [U, 2]: the index of the first of them in its word, -1 elsewhere;
    counted [U, 3]: see `count_shapes`, -1 where no shape is. (`Batch.add_media` fills in changed [U]: whether something
    else covers the token than in the image or pair of frames before; former_kind and former_colour [U]: what that was;
    order [U]: the number of its image or pair of frames.)

    If several shapes cover a token, the one with the strongest claim is taken: `claims`.
    """
    rows, cols = height // UNIT, width // UNIT
    y, x = (a.reshape(-1) * UNIT for a in np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"))
    targets = cell_arrays(len(x))
    targets["kind"][:] = 0
    if shapes:
        boxes = np.array([shape.box for shape in shapes], dtype=np.float32)
        area = overlap(x, y, boxes)
        best = claims(area, shapes).argmax(axis=1)
        covered = area.max(axis=1) > 0.2 * UNIT**2
        kinds = np.array([CELL_KINDS.index(shape.kind) for shape in shapes])
        colours = np.array([list(COLOURS).index(shape.colour) if shape.colour else -1 for shape in shapes])
        centre = np.stack([x, y, x, y], axis=1) + UNIT / 2
        targets["kind"] = np.where(covered, kinds[best], 0)
        targets["colour"] = np.where(covered, colours[best], -1)
        counted = count_shapes(np.where(covered, best, -1), kinds, colours)
        targets["counted"] = np.where(covered[:, None], counted[best], -1)
        targets["near"] = ((boxes[best] - centre) / NEAR).astype(np.float32)
        targets["far"] = boxes[best] / np.float32(FULL)
        if digit is not None:
            targets["digit"] = np.where(covered, digit, -1)
        if joined:
            ends = np.array([list(COLOURS).index(colour) for colour in joined])
            targets["joined"] = np.where(covered, ends[best], -1)
    if signs:
        boxes = np.array([sign.box for sign in signs], dtype=np.float32)
        size = boxes[:, 2:] - boxes[:, :2]
        for half, left in enumerate((x, x + UNIT // 2)):
            inside = overlap(left, y, boxes, UNIT // 2) > 0.4 * size[:, 0] * size[:, 1]
            inside |= has_middle(left, y, boxes, UNIT // 2)
            for cell, sign in zip(*np.nonzero(inside)):
                targets["characters"][cell, half, CHARACTERS.index(signs[sign].text)] = 1
            printed = inside.any(axis=1)
            ordinals = np.array([sign.ordinal for sign in signs])
            targets["ordinal"][printed, half] = ordinals[inside[printed].argmax(axis=1)]
    return targets


def count_shapes(owner, kinds, colours):
    """The index of each shape among all, those of its kind, and those of its colour: [shapes, 3], from 0.

    owner [U]   index of the shape on each token, -1 none; shapes are counted in the order of their first tokens, since
                a token of the decoder sees only those before it
    """
    counted = np.full((len(kinds), 3), -1, dtype=np.int64)
    seen = list(dict.fromkeys(owner[owner >= 0].tolist()))
    for number, shape in enumerate(seen):
        earlier = seen[:number]
        counted[shape] = number, (kinds[earlier] == kinds[shape]).sum(), (colours[earlier] == colours[shape]).sum()
    return np.where(counted < COUNTED, counted, -1)


def claims(area, shapes):
    """Strength of each shape's claim to each token, [U, shapes], from the pixels [U, shapes] that they share.

    An inner shape lowers the outer one's claim by twice the pixels that it covers itself, so that it gets each token of
    which it covers more than a third, and the token in which most of it lies. Else it would have few tokens, or none.
    """
    claim = area.copy()
    for inner, outer in permutations(range(len(shapes)), 2):
        if is_within(shapes[inner], shapes[outer]):
            claim[:, outer] -= 2 * area[:, inner]
            claim[area[:, inner].argmax(), outer] = 0
    return claim


def overlap(x, y, boxes, width=UNIT):
    """Pixels that each token, or its part from x to x + width, shares with each box: [U, boxes]."""
    across = np.minimum(x[:, None] + width, boxes[:, 2]) - np.maximum(x[:, None], boxes[:, 0])
    down = np.minimum(y[:, None] + UNIT, boxes[:, 3]) - np.maximum(y[:, None], boxes[:, 1])
    return across.clip(0) * down.clip(0)


def has_middle(x, y, boxes, width=UNIT):
    """Whether the middle of each box is in the token, or in its part from x to x + width: bool [U, boxes]."""
    middle_x, middle_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    across = (x[:, None] <= middle_x) & (middle_x < x[:, None] + width)
    return across & (y[:, None] <= middle_y) & (middle_y < y[:, None] + UNIT)


def boxes_about(example, turn, reply, tokenizer):
    """The box that each token of a reply is about, or None. Descriptions, lists of boxes and words have several."""
    parts = parts_about(example, turn)
    if not parts:
        return [turn.about] * (len(reply) - 1) + [None]
    start, boxes = 0, []
    for token in reply:
        boxes.append(next((box for end, box in parts if start < end), None))
        start += len(tokenizer.id_to_token(token))  # answers are ASCII: a byte-level token is as long as its text
    return boxes


def parts_about(example, turn):
    """[(end, box)]: the boxes that an answer is about, one after the other, each up to character `end`. Empty where
    `turn.about` holds for the whole answer."""
    if turn.task in ("word", "number"):
        return [(i + 1, sign.box) for i, sign in enumerate(example.media[0].signs[0])]
    if turn.task == "all boxes":
        return [(match.end(), tuple(map(int, match.groups()))) for match in ENTRY.finditer(turn.answer)]
    if turn.task not in ("describe", "detail", "layout", "describe both", "describe of two") or turn.about:
        return []
    images = [medium.shapes[0] for medium in example.media]
    if turn.task == "describe of two":
        images = images[1:] if "second" in turn.question.lower() else images[:1]
    end, parts, shapes = 0, [], [shape for image in images for shape in image]
    if turn.task == "layout":
        shapes = sorted(shapes, key=lambda shape: not turn.answer.split(" ", 1)[1].startswith(shape.label))
    for shape in shapes:
        end = turn.answer.index(shape.label, end) + len(shape.label)
        parts.append((end, shape.box))
    return parts
