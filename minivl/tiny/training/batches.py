"""Training batches of fixed sizes: many examples packed into rows, for the tower and for the decoder.

    tower     rows of patches; an image's patches, or those of a pair of frames, are one segment of a row
    decoder   rows of tokens; an example is one tree: images first, then conversations that do not see each other

    tokens   <s> I I I I  Q  A   Q  A  A   Q  A  |  <s> I I  Q  A  ...        two trees in a row
    tree      0  0 0 0 0  0  0   0  0  0   0  0  |   1  1 1  1  1
    turn      0  0 0 0 0  1  1   2  2  2   3  3  |   0  0 0  1  1

A token sees the earlier tokens of its tree whose turn is 0 or its own. Batch number n is drawn from a generator seeded
with n, so a resumed run sees the same batches as an uninterrupted one. NumPy only.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from minivl.model.positions import patch_positions, prompt_positions
from minivl.tiny.drawing import draw_crowded_page
from minivl.tiny.examples import DrawOptions, Medium
from minivl.tiny.scoring import TASKS
from minivl.tiny.tasks import FAMILIES, TRAINED, draw_example
from minivl.tiny.tasks.far_apart import draw_family_line
from minivl.tiny.tasks.reading import draw_page
from minivl.tiny.training.recipe import ID
from minivl.tiny.training.targets import FULL, boxes_about, cell_arrays, cell_targets

MAX_CONVERSATIONS = 7  # conversations about one example
MAX_PAIRS = 4  # pairs of frames in a video
SHOUTED = 0.16  # share of the questions in capitals, in addition to those that `vary` writes so
SHUFFLED = 0.5  # share of the videos with pairs of frames in random order in the prompt: only positions tell their time
MERGED = 0.4  # share of the examples in which two or more conversations are joined into one
WIDE = 0.45  # share of wide batches: with images of family "scene" (up to 336 x 336) and enlarged images and videos
LARGE = 0.8  # share of the examples of wide batches that are enlarged
# how often families come in those batches, in units of the sum of all shares
IN_WIDE = {"scene": 3.0, "video": 1.0, "longer": 0.15, "chart": 0.1, "digit": 0.14, "text": 0.3}
PLAN = {  # (tower rows, patches of each, decoder rows, tokens of each)
    False: (16, 288, 13, 256),
    True: (8, 576, 9, 384),
}
PAGES, CROWDED, LINES = 3, 3, 1  # images per batch for the tower only: of characters, of small shapes, of lines
GEOMETRY = SimpleNamespace(
    image_token_id=ID["<|image_pad|>"],
    video_token_id=ID["<|video_pad|>"],
    vision=SimpleNamespace(spatial_merge_size=2, merge_unit=4, tokens_per_second=2),
)


def make_batch(number, ease, tokenizer):
    """Draw a batch: a dict of arrays, see `Batch.arrays`.

    number   an integer, or several: the seed
    ease     0..1: from the easiest examples only to all of them
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
    for _ in range(CROWDED):
        image, shapes = draw_crowded_page(rng)
        batch.add_media((Medium((image,), (shapes,)),))
    for _ in range(LINES):
        batch.add_media(draw_family_line(rng, DrawOptions(ease=ease, training=True)).media)
    misfits = 0
    for attempt in range(1000):
        family = names[rng.choice(len(names), p=chances)]
        enlarged = wide and rng.random() < LARGE
        drawn_as = {"ease": ease, "most": MAX_CONVERSATIONS, "branch": TRAINED, "enlarged": enlarged}
        example = draw_example(family, (*seed, 1 + attempt), **drawn_as)
        conversations = shout(rng, merge_conversations(rng, example.conversations))
        order = shuffle(rng, example.media)
        misfits += not batch.add(replace(example, conversations=conversations), tokenizer, order)
        if misfits == 4:
            break
    return batch.arrays()


def merge_conversations(rng, conversations):
    """Join two or more conversations, MERGED of the time, so that a question may follow any others, but not itself."""
    if len({turns[0].question for turns in conversations}) < 2 or rng.random() > MERGED:
        return conversations
    count = int(rng.integers(2, len(conversations) + 1))
    if len({turns[0].question for turns in conversations[:count]}) < count:
        return conversations
    return (tuple(turn for turns in conversations[:count] for turn in turns), *conversations[count:])


def shout(rng, conversations):
    """Write SHOUTED of the questions in capitals, where each letter is a token."""
    return tuple(
        tuple(replace(turn, question=turn.question.upper()) if rng.random() < SHOUTED else turn for turn in turns)
        for turns in conversations
    )


def shuffle(rng, media):
    """A random order of the pairs of frames in the prompt, for SHUFFLED of the videos; else None."""
    pairs = len(media[0].frames) // 2 if media else 0
    return rng.permutation(pairs) if pairs > 1 and rng.random() < SHUFFLED else None


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
        self.answers = {"at": [], "target": [], "weight": [], "answer": [], "has_box": [], "box": []}
        self.tasks, self.trees, self.planes = [], 0, 0

    def add(self, example, tokenizer, order=None):
        """Put an example into the rows; False, with nothing changed, if it does not fit.

        order   of a video's pairs of frames in the prompt; they keep the positions of their time
        """
        tree = grow_tree(example, tokenizer)
        rows = np.flatnonzero(self.used + len(tree["ids"]) <= self.input_ids.shape[1])
        features = self.add_media(example.media) if len(rows) else None
        if features is None:
            return False
        if order is not None:
            features = self.reorder(tree, features, order)
        self.add_tree(tree, rows[0], features)
        return True

    def reorder(self, tree, features, order):
        """Change the order of a video's pairs of frames in a tree, with their positions; returns their features.

        The changes in a pair are targets only if the pair before it in time is also before it in the prompt: a token
        does not see what follows.
        """
        features = features.reshape(len(order), -1)
        place = np.argsort(order)
        for late in 1 + np.flatnonzero(place[1:] < place[:-1]):
            for key in ("changed", "former_kind", "former_colour"):
                self.cells[key][features[late]] = -1
        at = np.flatnonzero(np.isin(tree["ids"], (ID["<|image_pad|>"], ID["<|video_pad|>"]))).reshape(len(order), -1)
        tree["positions"][:, at] = tree["positions"][:, at[order]]
        return features[order].reshape(-1)

    def add_media(self, media):
        """Put images or a video into rows of the tower: indices of their features, None (and no change) if full."""
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
        """Put an image, or a pair of frames, into a row of the tower; returns the indices of its features."""
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
        for task, at, target, boxes in tree["answers"]:
            self.answers["at"] += [flat + i for i in at]
            self.answers["target"] += target
            self.answers["weight"] += [len(target) ** -0.5] * len(target)
            self.answers["answer"] += [len(self.tasks)] * len(target)
            self.answers["has_box"] += [box is not None for box in boxes]
            self.answers["box"] += [box or (0, 0, 0, 0) for box in boxes]
            self.tasks.append(task)
        self.used[row] += len(ids)

    def arrays(self):
        """pixels uint8 [R, N, 1176], segment [2, R, N], place [R, N, 2]; input_ids, tree, turn, feature [R, T],
        position_ids [3, R, T]; for each token of an answer: at (flat index of the token before it), target, weight,
        answer (number of its answer), has_box, box [., 4]; task: the task of each answer;
        for each feature, what covers it: see `cell_targets`."""
        made = {key: getattr(self, key) for key in ("pixels", "segment", "place", "input_ids", "position_ids")}
        made |= {key: getattr(self, key) for key in ("tree", "turn", "feature")} | self.cells
        for key, values in self.answers.items():
            kind = {"weight": np.float32, "box": np.float32, "has_box": np.bool_}.get(key, np.int64)
            made[key] = np.array(values, dtype=kind).reshape((-1, 4) if key == "box" else (-1,))
        made["box"] /= np.float32(FULL)
        made["task"] = np.array(self.tasks, dtype=np.int64)
        return made


# ---- one example ----


def grow_tree(example, tokenizer):
    """The tree of an example: its images, then its conversations, all from the same position."""

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
            answers.append((TASKS.index(one.task), before, reply, boxes_about(example, one, reply, tokenizer)))
            ids += prompt + reply
            length = len(prompt) + len(reply)
            positions.append(np.tile(np.arange(at, at + length), (3, 1)))
            turn += [number + 1] * length
            at += length
    return {
        "ids": np.array(ids), "turn": turn, "positions": np.concatenate(positions, axis=1), "answers": answers
    }  # fmt: skip


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
    """Two frames [H, W, 3] -> patches [N, 1176], unit by unit as in the image processor; not normalised."""
    H, W, _ = pair[0].shape
    x = np.stack(pair).reshape(2, H // 28, 2, 14, W // 28, 2, 14, 3)  # "t (R r y) (S s x) c"
    return x.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(-1, 1176)  # -> "(R S r s) (c t y x)"


