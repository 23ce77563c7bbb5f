"""Training batches of one fixed size: many examples packed into rows, for the tower and for the decoder.

    tower     rows of patches; an image's patches, or those of a pair of frames, are one segment of a row
    decoder   rows of tokens; an example is one tree: images first, then conversations that do not see each other

    tokens   <s> I I I I  Q  A   Q  A  A   Q  A  |  <s> I I  Q  A  ...        two trees in a row
    tree      0  0 0 0 0  0  0   0  0  0   0  0  |   1  1 1  1  1
    turn      0  0 0 0 0  1  1   2  2  2   3  3  |   0  0 0  1  1

A token sees the earlier tokens of its tree whose turn is 0 or its own. Batch number n is drawn from a generator seeded
with n, so a resumed run sees what an unbroken one would have. NumPy only.
"""

import re
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np

from minivl.model.positions import patch_positions, prompt_positions
from minivl.tiny.examples import DrawOptions
from minivl.tiny.scenes import COLOURS, KINDS
from minivl.tiny.scoring import TASKS
from minivl.tiny.tasks import FAMILIES, TRAINED, draw_example
from minivl.tiny.tasks.far_apart import draw_family_line
from minivl.tiny.tasks.reading import CHARACTERS, draw_page
from minivl.tiny.tasks.shapes import is_within
from minivl.tiny.training.recipe import ID

UNIT, FULL = 28, 336  # pixels of a token, and of the longest side: the unit of absolute boxes
NEAR = 2 * UNIT  # that of boxes as seen from a token
CELL_KINDS = ("nothing", *KINDS, "bar", "digit")
MOST = 5  # conversations about one example
LONGEST = 4  # pairs of frames in a video
COUNTED = 6  # shapes to count up to
SHOUTED = 0.1  # share of the questions in capitals, in addition to those that `vary` writes so
JOINED = 0.3  # share of the examples in which two conversations are one
WIDE = 0.45  # share of the batches for the images of family "scene", which are up to 336 x 336, and for enlarged videos
IN_WIDE = {"scene": 3.0, "video": 0.8}  # how often these are drawn there, in units of the sum of all shares
PLAN = {  # (tower rows, patches of each, decoder rows, tokens of each)
    False: (16, 288, 13, 256),
    True: (8, 576, 9, 384),
}
PAGES, LINES = 4, 4  # images full of characters, and of lines between dots, in each batch, for the tower alone
ENTRY = re.compile(r"\{[^}]*\[(\d+), (\d+), (\d+), (\d+)\][^}]*\}")  # one box in an answer that lists them
GEOMETRY = SimpleNamespace(
    image_token_id=ID["<|image_pad|>"],
    video_token_id=ID["<|video_pad|>"],
    vision=SimpleNamespace(spatial_merge_size=2, merge_unit=4, tokens_per_second=2),
)


def make_batch(number, ease, tokenizer):
    """A dict of arrays; see `Batch.arrays`.

    number   an integer, or several
    ease     0..1: how far the way from easy to hard examples has been gone
    """
    seed = np.atleast_1d(number)
    rng = np.random.default_rng([5, *seed])
    wide = bool(rng.random() < WIDE)
    batch = Batch(*PLAN[wide])
    shares = {name: later if ease == 1 else early for name, (early, later, _) in FAMILIES.items()}
    total = sum(shares.values())
    shares |= {name: share * total for name, share in IN_WIDE.items()} if wide else {"scene": 0.0}
    names, chances = list(shares), np.array(list(shares.values()), dtype=np.float64)
    chances /= chances.sum()
    for _ in range(PAGES):
        batch.add_media((draw_page(rng),))
    for _ in range(LINES):
        batch.add_media(draw_family_line(rng, DrawOptions(ease=ease, training=True)).media)
    misfits = 0
    for attempt in range(1000):
        family = names[rng.choice(len(names), p=chances)]
        example = draw_example(family, (*seed, 1 + attempt), ease=ease, most=MOST, branch=TRAINED, enlarged=wide)
        conversations = shout(rng, join(rng, example.conversations))
        misfits += not batch.add(replace(example, conversations=conversations), tokenizer)
        if misfits == 4:
            break
    return batch.arrays()


def join(rng, conversations):
    """Mostly the same; JOINED of the time the first two are one, so that a question may follow any other."""
    if len(conversations) < 2 or rng.random() > JOINED:
        return conversations
    return (conversations[0] + conversations[1], *conversations[2:])


def shout(rng, conversations):
    """The same with SHOUTED of the questions in capitals, of which each letter is a token."""
    return tuple(
        tuple(replace(turn, question=turn.question.upper()) if rng.random() < SHOUTED else turn for turn in turns)
        for turns in conversations
    )


class Batch:
    """Rows that are filled example by example."""

    def __init__(self, tower_rows, patches, rows, tokens):
        self.pixels = np.zeros((tower_rows, patches, 1176), dtype=np.uint8)
        self.segment = np.full((2, tower_rows, patches), -1, dtype=np.int64)  # image, window
        self.place = np.zeros((tower_rows, patches, 2), dtype=np.int64)
        self.tower_used = np.zeros(tower_rows, dtype=np.int64)
        self.cells = cell_arrays(tower_rows * patches // 4)
        self.input_ids = np.full((rows, tokens), ID["<|endoftext|>"], dtype=np.int64)
        self.position_ids = np.zeros((3, rows, tokens), dtype=np.int64)
        self.tree = np.full((rows, tokens), -1, dtype=np.int64)
        self.turn = np.zeros((rows, tokens), dtype=np.int64)
        self.feature = np.full((rows, tokens), -1, dtype=np.int64)
        self.used = np.zeros(rows, dtype=np.int64)
        self.answers = {"at": [], "target": [], "weight": [], "answer": [], "spoken": [], "box": []}
        self.tasks, self.trees, self.planes = [], 0, 0

    def add(self, example, tokenizer):
        """Put an example into the rows; False, and nothing is changed, if it finds no room."""
        tree = grow_tree(example, tokenizer)
        rows = np.flatnonzero(self.used + len(tree["ids"]) <= self.input_ids.shape[1])
        features = self.add_media(example.media) if len(rows) else None
        if features is None:
            return False
        self.add_tree(tree, rows[0], features)
        return True

    def add_media(self, media):
        """Put images or a video into rows of the tower: numbers of their features, None (and no change) without room."""
        planes = [plane for medium in media for plane in planes_of(medium)]
        taken, slots = self.tower_used.copy(), []
        for patches, _, _, _ in planes:
            rows = np.flatnonzero(taken + len(patches) <= self.pixels.shape[1])
            if not len(rows):
                return None
            slots.append((rows[0], taken[rows[0]]))
            taken[rows[0]] += len(patches)
        self.tower_used = taken
        features = [self.add_plane(plane, *slot) for plane, slot in zip(planes, slots)]
        for number, tokens in enumerate(features if len(features) > 1 else ()):
            self.cells["order"][tokens] = number
        for before, after in zip(features, features[1:]):
            if len(before) == len(after):
                same = [self.cells[key][before] == self.cells[key][after] for key in ("kind", "colour")]
                self.cells["changed"][after] = ~(same[0] & same[1])
                for key in ("kind", "colour"):
                    self.cells[f"former_{key}"][after] = self.cells[key][before]
        return np.concatenate(features) if features else np.zeros(0, dtype=np.int64)

    def add_plane(self, plane, row, start):
        """Put an image, or a pair of frames, into a row of the tower; returns the numbers of its tokens' features."""
        patches, (h, w), shapes, marks = plane
        end = start + len(patches)
        self.pixels[row, start:end] = patches
        place = patch_positions([(1, h, w)], 2)
        self.place[row, start:end] = place
        self.segment[0, row, start:end] = self.planes
        self.segment[1, row, start:end] = self.planes * 64 + place[:, 0] // 8 * 8 + place[:, 1] // 8
        self.planes += 1
        features = (row * self.pixels.shape[1] + start) // 4 + np.arange(len(patches) // 4)
        for key, values in cell_targets(h * 14, w * 14, shapes, *marks).items():
            self.cells[key][features] = values
        return features

    def add_tree(self, tree, row, features):
        start, ids = self.used[row], tree["ids"]
        place = slice(start, start + len(ids))
        self.input_ids[row, place], self.turn[row, place] = ids, tree["turn"]
        self.position_ids[:, row, place] = tree["positions"]
        self.tree[row, place] = self.trees
        media = np.isin(ids, (ID["<|image_pad|>"], ID["<|video_pad|>"]))
        self.feature[row, place][media] = features
        self.trees += 1
        flat = row * self.input_ids.shape[1] + start
        for task, at, target, spoken in tree["answers"]:
            self.answers["at"] += [flat + i for i in at]
            self.answers["target"] += target
            self.answers["weight"] += [len(target) ** -0.5] * len(target)
            self.answers["answer"] += [len(self.tasks)] * len(target)
            self.answers["spoken"] += [box is not None for box in spoken]
            self.answers["box"] += [box or (0, 0, 0, 0) for box in spoken]
            self.tasks.append(task)
        self.used[row] += len(ids)

    def arrays(self):
        """pixels uint8 [R, N, 1176], segment [2, R, N], place [R, N, 2]; input_ids, tree, turn, feature [R, T],
        position_ids [3, R, T]; of each token of an answer: at (the place before it), target, weight, answer (its number),
        spoken, box [., 4]; task: the task of each answer; of each feature, what covers it: see `cell_targets`."""
        made = {key: getattr(self, key) for key in ("pixels", "segment", "place", "input_ids", "position_ids")}
        made |= {key: getattr(self, key) for key in ("tree", "turn", "feature")} | self.cells
        for key, values in self.answers.items():
            kind = {"weight": np.float32, "box": np.float32, "spoken": np.bool_}.get(key, np.int64)
            made[key] = np.array(values, dtype=kind).reshape((-1, 4) if key == "box" else (-1,))
        made["box"] /= np.float32(FULL)
        made["task"] = np.array(self.tasks, dtype=np.int64)
        return made


# ---- one example ----


def grow_tree(example, tokenizer):
    """The tokens of an example: images, then its conversations side by side."""

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    opening = encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    ids, images, videos = list(opening), [], []
    for medium in example.media:
        h, w = (side // 14 for side in medium.frames[0].size[::-1])
        pad = ID["<|video_pad|>"] if medium.is_video else ID["<|image_pad|>"]
        steps = max(1, len(medium.frames) // 2)
        (videos if medium.is_video else images).append((steps, h, w))
        ids += [ID["<|vision_start|>"], *[pad] * (steps * h * w // 4), ID["<|vision_end|>"]]
    places, start = prompt_positions(np.array(ids), GEOMETRY, images, videos)
    turn, positions, answers = [0] * len(ids), [places], []
    for number, turns in enumerate(example.conversations):
        at = start
        for i, one in enumerate(turns):
            header = "\n<|im_start|>user\n" if i else ""
            prompt = encode(f"{header}{one.question}<|im_end|>\n<|im_start|>assistant\n")
            reply = encode(f"{one.answer}<|im_end|>")
            first = len(ids) + len(prompt)
            before = range(first - 1, first - 1 + len(reply))
            answers.append((TASKS.index(one.task), before, reply, spoken_of(example, one, reply, tokenizer)))
            ids += prompt + reply
            length = len(prompt) + len(reply)
            positions.append(np.tile(np.arange(at, at + length), (3, 1)))
            turn += [number + 1] * length
            at += length
    return {
        "ids": np.array(ids), "turn": turn, "positions": np.concatenate(positions, axis=1), "answers": answers
    }  # fmt: skip


def spoken_of(example, turn, reply, tokenizer):
    """The box that each token of a reply speaks of, or None. Descriptions, lists of boxes and words go from one to the next."""
    parts = spoken_parts(example, turn)
    if not parts:
        return [turn.about] * (len(reply) - 1) + [None]
    start, spoken = 0, []
    for token in reply:
        spoken.append(next((box for end, box in parts if start < end), None))
        start += len(tokenizer.id_to_token(token))  # answers are ASCII: a byte-level token is as long as its text
    return spoken


def spoken_parts(example, turn):
    """[(end, box)]: up to which character of the answer it speaks of each shape or character. Empty where `turn.about` holds
    for the whole answer."""
    if turn.task in ("word", "number"):
        return [(i + 1, sign.box) for i, sign in enumerate(example.media[0].signs[0])]
    if turn.task == "all boxes":
        return [(match.end(), tuple(map(int, match.groups()))) for match in ENTRY.finditer(turn.answer)]
    if turn.task not in ("describe", "detail", "layout") or turn.about or len(example.media) != 1:
        return []
    end, parts, shapes = 0, [], example.media[0].shapes[0]
    if turn.task == "layout":
        shapes = sorted(shapes, key=lambda shape: not turn.answer.split(" ", 1)[1].startswith(shape.label))
    for shape in shapes:
        end = turn.answer.index(shape.label, end) + len(shape.label)
        parts.append((end, shape.box))
    return parts


def planes_of(medium):
    """(patches uint8 [N, 1176], (h, w), shapes, (signs, digit, joined)) of an image, or of each pair of frames."""
    frames = [np.asarray(frame) for frame in medium.frames]
    pairs = list(zip(frames[::2], frames[1::2])) if medium.is_video else [(frames[0], frames[0])]
    signs = medium.signs or ((),) * len(pairs)
    for pair, shapes, printed in zip(pairs, medium.shapes, signs):
        yield (
            patchify(pair),
            tuple(side // 14 for side in pair[0].shape[:2]),
            shapes,
            (printed, medium.digit, medium.joined),
        )


def patchify(pair):
    """Two frames [H, W, 3] -> patches [N, 1176], unit by unit as the image processor has them; not normalised."""
    H, W, _ = pair[0].shape
    x = np.stack(pair).reshape(2, H // 28, 2, 14, W // 28, 2, 14, 3)  # "t (R r y) (S s x) c"
    return x.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(-1, 1176)  # -> "(R S r s) (c t y x)"


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

    kind [U]: number in CELL_KINDS; colour [U]: -1 none; digit [U]: -1 elsewhere; joined [U]: the colour at the other end
    of a dot's line, -1 elsewhere; near [U, 4]: the box from the token's centre, in units of 56 pixels; far [U, 4]: the box
    in units of 336 pixels; characters [U, 2, 36]: those whose middle or more than 40 % is in its left half, and in its
    right half, as 0 or 1; ordinal [U, 2]: the number of the first of them in its word, -1 elsewhere. counted [U, 3]: see
    `count_shapes`, -1 where no shape is. (changed [U], whether something else covers it than in the image or pair of
    frames before, former_kind and former_colour [U], what that was, and order [U], the number of its image or pair of
    frames, are for `Batch.add_media` to find.)

    Of several shapes, that with the strongest claim: `claims`.
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
    """The number of each shape among all, those of its kind, and those of its colour: [shapes, 3], from 0.

    owner [U]   the shape that each token is of, -1 none; shapes are counted in the order of their first tokens, since a
                token of the decoder sees those before it alone
    """
    counted = np.full((len(kinds), 3), -1, dtype=np.int64)
    seen = list(dict.fromkeys(owner[owner >= 0].tolist()))
    for number, shape in enumerate(seen):
        earlier = seen[:number]
        counted[shape] = number, (kinds[earlier] == kinds[shape]).sum(), (colours[earlier] == colours[shape]).sum()
    return np.where(counted < COUNTED, counted, -1)


def claims(area, shapes):
    """How strongly each shape claims each token, from the pixels [U, shapes] that they share.

    A shape inside another takes twice what it covers from the outer one, so that a token of which it covers more than a
    third is its own; and so is the one in which most of it lies. Else it would have few tokens, or none.
    """
    claim = area.copy()
    for inner, outer in permutations(range(len(shapes)), 2):
        if is_within(shapes[inner], shapes[outer]):
            claim[:, outer] -= 2 * area[:, inner]
            claim[area[:, inner].argmax(), outer] = 0
    return claim


def overlap(x, y, boxes, width=UNIT):
    """Pixels that each token, or the part of it from x on that is this wide, shares with each box: [U, boxes]."""
    across = np.minimum(x[:, None] + width, boxes[:, 2]) - np.maximum(x[:, None], boxes[:, 0])
    down = np.minimum(y[:, None] + UNIT, boxes[:, 3]) - np.maximum(y[:, None], boxes[:, 1])
    return across.clip(0) * down.clip(0)


def has_middle(x, y, boxes, width=UNIT):
    """Is the middle of each box in the token, or in the part of it from x on that is this wide? [U, boxes]"""
    middle_x, middle_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    across = (x[:, None] <= middle_x) & (middle_x < x[:, None] + width)
    return across & (y[:, None] <= middle_y) & (middle_y < y[:, None] + UNIT)
