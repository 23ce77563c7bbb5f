"""Training batches: images of one size, what covers each of their tokens, and conversations about them.

Batch number n of a stage is drawn from a generator seeded with (stage, n), so a resumed run sees what an unbroken one
would have. NumPy only.
"""

from types import SimpleNamespace

import numpy as np

from minivl.model.positions import prompt_positions
from minivl.tiny import scenes
from minivl.tiny.digits import training_digits
from minivl.tiny.scenes import TASKS, task_of
from minivl.tiny.training.recipe import ID, PREPROCESSOR

UNIT = 28  # pixels of one token
FULL = 336  # pixels of the longest side: the unit of absolute boxes
DIGIT_SHARE = 0.25
TURNS, ALONE_TURNS = 3, 6  # questions about an image: in one conversation, each alone
ALONE = 0.75  # share of batches whose questions do not see each other: answers are then not copied from earlier ones
SMALLER = {1: 1.5, 2: 1.0}  # a size is drawn with chance area^-this: small images are cheap, and full of shapes
MOST = {1: 7, 2: 5}  # shapes in an image; the tower alone may as well see crowded ones
GEOMETRY = SimpleNamespace(
    image_token_id=ID["<|image_pad|>"],
    video_token_id=ID["<|video_pad|>"],
    vision=SimpleNamespace(spatial_merge_size=2, merge_unit=4, tokens_per_second=2),
)


def make_batch(stage, number, size, ease, tokenizer):
    """A dict of arrays: `size` images; ease in 0..1 is how far the way from one shape to five has been gone."""
    rng = np.random.default_rng([4, stage, number])
    chance = np.array([h * w for h, w in scenes.SIZES], dtype=np.float64) ** -SMALLER[stage]
    shape = scenes.SIZES[rng.choice(len(chance), p=chance / chance.sum())]
    drawn = [draw(rng, shape, MOST[stage], ease) for _ in range(size)]
    batch = {"pixel_values": np.stack([patches(np.asarray(d.image)) for d in drawn]), "size": shape}
    targets = [cell_targets(d, shape) for d in drawn]
    batch |= {key: np.stack([t[key] for t in targets]) for key in targets[0]}
    return batch | conversations(rng, drawn, shape, tokenizer) if tokenizer else batch


def draw(rng, size, most, ease):
    if rng.random() < DIGIT_SHARE:
        images, labels = training_digits()
        i = rng.integers(len(labels))
        return scenes.draw_digit_picture(rng, size, images[i], int(labels[i]), augment=True)
    while True:
        drawn = scenes.draw_scene(rng, size, int(rng.integers(1, 2 + round((most - 1) * ease))))
        if drawn.shapes:
            return drawn


def patches(pixels):
    """The published preprocessing of one image: [H, W, 3] uint8 -> float32 [N, 1176]."""
    H, W, _ = pixels.shape
    mean, std = (np.array(PREPROCESSOR[f"image_{k}"], dtype=np.float32) for k in ("mean", "std"))
    x = ((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)
    x = x.reshape(3, H // 28, 2, 14, W // 28, 2, 14).transpose(
        1, 4, 2, 5, 0, 3, 6
    )  # "c (R r y) (S s x) -> R S r s c y x"
    x = np.broadcast_to(x[:, :, :, :, :, None], (*x.shape[:5], 2, 14, 14))  # the image twice in time
    return np.ascontiguousarray(x).reshape(-1, 1176)


def cell_targets(drawn, size):
    """What covers each token's 28 x 28 pixels, for the auxiliary heads. U tokens in raster order.

    kind [U]: 0 nothing, then KINDS, then a digit; colour [U]: 0 nothing or digit; digit [U]: -1 elsewhere;
    near [U, 4]: its box from the token's centre, in units of 56 pixels; box [U, 4]: its box in units of 336 pixels
    """
    rows, cols = size[0] // UNIT, size[1] // UNIT
    y, x = (a.reshape(-1) * UNIT for a in np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"))
    boxes = np.array([shape.box for shape in drawn.shapes], dtype=np.float32)  # [shapes, 4]
    overlap_x = np.minimum(x[:, None] + UNIT, boxes[:, 2]) - np.maximum(x[:, None], boxes[:, 0])
    overlap_y = np.minimum(y[:, None] + UNIT, boxes[:, 3]) - np.maximum(y[:, None], boxes[:, 1])
    area = overlap_x.clip(0) * overlap_y.clip(0)  # [U, shapes]
    best, covered = area.argmax(axis=1), area.max(axis=1) > 0.2 * UNIT**2
    kinds = np.array([(*scenes.KINDS, "digit").index(s.kind) + 1 for s in drawn.shapes])
    colours = np.array([list(scenes.COLOURS).index(s.colour) + 1 if s.colour else 0 for s in drawn.shapes])
    centre = np.stack([x, y, x, y], axis=1) + UNIT / 2
    return {
        "kind": np.where(covered, kinds[best], 0),
        "colour": np.where(covered, colours[best], 0),
        "digit": np.where(covered & (drawn.digit is not None), -1 if drawn.digit is None else drawn.digit, -1),
        "near": ((boxes[best] - centre) / 56).astype(np.float32),
        "box": boxes[best] / np.float32(FULL),
    }


def conversations(rng, drawn, size, tokenizer):
    """Questions and answers about each image: a dict of arrays.

    input_ids, weight, task, turn [B, T]; position_ids [3, B, T]; shape [B, T], asked [B, T, 4].
    weight is 0 but for the answers' tokens and their end, where it is 1/sqrt(length): long answers count more, not most.
    turn is 0 for what everything sees, and n for what only question n sees: in three batches of four each question
    stands alone behind the image (also in its positions), in the fourth they are one conversation.
    asked is the box, in units of 336 pixels, of the shape that the next token speaks of; shape says where there is one.
    """
    alone = rng.random() < ALONE
    made = [conversation(rng, d, size, tokenizer, alone) for d in drawn]
    T = max(len(one["input_ids"]) for one in made)
    empty = {"input_ids": ID["<|endoftext|>"], "weight": 0.0, "task": -1, "turn": -1, "shape": -1}
    batch = {
        key: np.array(
            [one[key] + [fill] * (T - len(one[key])) for one in made], np.float32 if key == "weight" else np.int64
        )
        for key, fill in empty.items()
    }
    batch["position_ids"] = np.zeros((3, len(made), T), dtype=np.int64)
    for i, one in enumerate(made):
        batch["position_ids"][:, i, : len(one["input_ids"])] = one["position_ids"]
    boxes = [np.array([shape.box for shape in d.shapes], dtype=np.float32) / np.float32(FULL) for d in drawn]
    batch["asked"] = np.stack(
        [own[shape] for own, shape in zip(boxes, batch["shape"])]
    )  # of no meaning where shape is -1
    return batch


def conversation(rng, drawn, size, tokenizer, alone=False):
    """The arrays of `conversations` for one image, as lists; position_ids is an array [3, T]."""

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    grid = [(1, size[0] // 14, size[1] // 14)]
    ids = encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    ids += [ID["<|image_pad|>"]] * (size[0] * size[1] // UNIT**2) + [ID["<|vision_end|>"]]
    opening = len(ids)
    weight, task, turns, about = [0.0] * opening, [-1] * opening, [0] * opening, [-1] * opening
    places = [prompt_positions(np.array(ids), GEOMETRY, grid)[0]]
    for turn, (question, answer) in enumerate(ask(rng, drawn, ALONE_TURNS if alone else TURNS)):
        start = "" if alone or turn == 0 else "\n<|im_start|>user\n"
        prompt = encode(f"{start}{question}<|im_end|>\n<|im_start|>assistant\n")
        reply = encode(f"{answer}<|im_end|>")
        before = ids[:opening] if alone else ids
        places.append(prompt_positions(np.array(before + prompt + reply), GEOMETRY, grid)[0][:, len(before) :])
        ids = ids + prompt + reply
        weight += [0.0] * len(prompt) + [len(reply) ** -0.5] * len(reply)
        task += [-1] * len(prompt) + [TASKS.index(task_of(question, answer))] * len(reply)
        turns += [turn + 1 if alone else 0] * (len(prompt) + len(reply))
        about += [-1] * (len(prompt) - 1) + spoken_of(drawn.shapes, question, answer, reply, tokenizer) + [-1]
    return {
        "input_ids": ids, "weight": weight, "task": task, "turn": turns, "shape": about,
        "position_ids": np.concatenate(places, axis=1),
    }  # fmt: skip


def spoken_of(shapes, question, answer, reply, tokenizer):
    """Which shape each token of a reply speaks of: its number, -1 for none."""
    task, chosen = task_of(question, answer), -1
    if task == "where":
        chosen = next(i for i, shape in enumerate(shapes) if scenes.where([shape]) == answer)
    if task == "colour":
        chosen = next(i for i, shape in enumerate(shapes) if shape.colour == answer and shape.kind in question)
    if task != "describe":
        return [chosen] * (len(reply) - 1) + [-1]
    names, now, spoken = {tokenizer.token_to_id(f"Ġ{kind}") for kind in scenes.KINDS}, 0, []
    for token in reply:
        spoken.append(now if now < len(shapes) else -1)
        now += token in names
    return spoken


def ask(rng, drawn, most):
    """Up to `most` questions about an image, in random order and wording."""
    if drawn.digit is not None:
        return drawn.questions

    def wording(rng, phrases):
        return phrases[0 if rng.random() < 0.5 else rng.integers(len(phrases))]

    asked = scenes.questions(rng, drawn.shapes, wording)
    more = [pair for pair in scenes.questions(rng, drawn.shapes, wording)[2:] if pair not in asked]
    asked = [*asked, *more]
    return [asked[i] for i in rng.permutation(len(asked))[:most]]
