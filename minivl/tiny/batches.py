"""Training batches: pictures of one size, what covers each of their tokens, and conversations about them.

Batch number n of a stage is drawn from a generator seeded with (stage, n), so a resumed run sees what an unbroken one
would have. NumPy only.
"""

from types import SimpleNamespace

import numpy as np

from minivl.positions import prompt_positions
from minivl.tiny import scenes
from minivl.tiny.digits import training_digits
from minivl.tiny.recipe import ID, PREPROCESSOR
from minivl.tiny.scenes import TASKS, task_of

UNIT = 28  # pixels of one token
FULL = 336  # pixels of the longest side: the unit of absolute boxes
DIGIT_SHARE = 0.25
TURNS = 3
SMALLER = {1: 1.5, 2: 1.0}  # a size is drawn with chance area^-this: small pictures are cheap, and full of shapes
MOST = {1: 7, 2: 5}  # shapes in a picture; the tower alone may as well see crowded ones
GEOMETRY = SimpleNamespace(
    image_token_id=ID["<|image_pad|>"],
    video_token_id=ID["<|video_pad|>"],
    vision=SimpleNamespace(spatial_merge_size=2, merge_unit=4, tokens_per_second=2),
)


def make_batch(stage, number, size, ease, tokenizer):
    """A dict of arrays: `size` pictures; ease in 0..1 is how far the way from one shape to five has been gone."""
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
    """The published preprocessing of one picture: [H, W, 3] uint8 -> float32 [N, 1176]."""
    H, W, _ = pixels.shape
    mean, std = (np.array(PREPROCESSOR[f"image_{k}"], dtype=np.float32) for k in ("mean", "std"))
    x = ((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)
    x = x.reshape(3, H // 28, 2, 14, W // 28, 2, 14).transpose(
        1, 4, 2, 5, 0, 3, 6
    )  # "c (R r y) (S s x) -> R S r s c y x"
    x = np.broadcast_to(x[:, :, :, :, :, None], (*x.shape[:5], 2, 14, 14))  # the picture twice in time
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
    """input_ids, weight, task [B, T] and position_ids [3, B, T]: a few questions and answers about each picture.

    weight is 0 but for the answers' tokens and their end, where it is 1/sqrt(length): long answers count more, not most.
    """
    tokens = size[0] * size[1] // UNIT**2
    made = [conversation(rng, d, tokens, tokenizer) for d in drawn]
    T = max(len(ids) for ids, _, _ in made)
    input_ids = np.full((len(made), T), ID["<|endoftext|>"], dtype=np.int64)
    weight, task = np.zeros((len(made), T), dtype=np.float32), np.full((len(made), T), -1, dtype=np.int64)
    positions = np.zeros((3, len(made), T), dtype=np.int64)
    grid = [(1, size[0] // 14, size[1] // 14)]
    for i, (ids, w, t) in enumerate(made):
        input_ids[i, : len(ids)], weight[i, : len(ids)], task[i, : len(ids)] = ids, w, t
        positions[:, i, : len(ids)] = prompt_positions(np.array(ids), GEOMETRY, grid)[0]
    return {"input_ids": input_ids, "weight": weight, "task": task, "position_ids": positions}


def conversation(rng, drawn, tokens, tokenizer):
    """Token ids, weights and tasks (index into TASKS, -1 outside answers) of one conversation."""

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    ids = encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    ids += [ID["<|image_pad|>"]] * tokens + [ID["<|vision_end|>"]]
    weight, task = [0.0] * len(ids), [-1] * len(ids)
    for turn, (question, answer) in enumerate(ask(rng, drawn)):
        opening = "" if turn == 0 else "\n<|im_start|>user\n"
        prompt = encode(f"{opening}{question}<|im_end|>\n<|im_start|>assistant\n")
        reply = encode(f"{answer}<|im_end|>")
        ids += prompt + reply
        weight += [0.0] * len(prompt) + [len(reply) ** -0.5] * len(reply)
        task += [-1] * len(prompt) + [TASKS.index(task_of(question, answer))] * len(reply)
    return ids, weight, task


def ask(rng, drawn):
    """Up to TURNS questions about a picture, in random order and wording."""
    if drawn.digit is not None:
        return drawn.questions
    asked = scenes.questions(
        rng, drawn.shapes, lambda rng, phrases: phrases[0 if rng.random() < 0.5 else rng.integers(len(phrases))]
    )
    return [asked[i] for i in rng.permutation(len(asked))[:TURNS]]
