"""Notebooks 04 and 11: rotation by row and column, M-RoPE for images and for a video."""

import numpy as np

from minivl.checkpoint.config import Config
from minivl.checkpoint.presets import VISION_THETA
from minivl.compare.mistakes.attention import rotate_neighbours
from minivl.kernels.rope import rotate_numpy
from minivl.lab.exercise import Case, Exercise, Mistake
from minivl.model.positions import mrope, patch_positions, prompt_positions, vision_rope
from minivl.model.windows import to_window_order, window_index

CONFIG = Config.named("3B")
IMAGE, VIDEO, START, END = 151655, 151656, 151652, 151653
SPEED = np.float32(CONFIG.vision.tokens_per_second)

# ---- 04.1 rows and columns ----


def table_cases():
    for grid, label in (
        ([[1, 6, 20]], "an image of 6 x 20 patches"),
        ([[1, 10, 6], [2, 4, 12]], "an image and a video"),
    ):
        grid = np.array(grid, dtype=np.int64)
        places = to_window_order(patch_positions(grid, 2), window_index(grid, CONFIG.vision)[0], 4)
        arguments = {"places": places, "head_dim": CONFIG.vision.head_dim, "theta": VISION_THETA}
        yield Case(arguments, label, known={"image_grid_thw": grid}, config=CONFIG)


VISION_ROPE = Exercise(
    "04.1", "vision_rope", "Rotation by row and column",
    "Make the tables of cos and sin by which the tower rotates queries and keys.", 20, 2,
    "vision_rope(places, head_dim, theta) -> (cos, sin), float32 [N, head_dim] each",
    """places int64 [N, 2] holds the row and column of each patch. With m = head_dim / 2 there are m / 2 frequencies,
theta ** (-2j / m) for j = 0 .. m / 2 - 1. A row of angles is [row * f, column * f, row * f, column * f].""",
    ("head_dim 80: 20 frequencies, 20 angles of the row, 20 of the column, and all of it twice.",
     "f = theta ** -(np.arange(0, m, 2) / m) with m = head_dim // 2, not head_dim.",
     "angles = np.concatenate([row[:, None] * f, column[:, None] * f], axis=1), then the same twice, then cos and sin as "
     "float32."),
    vision_rope, table_cases, ("cos", "sin"), tensors=("visual.rope.cos", "visual.rope.sin"),
    mistakes=(
        Mistake("exchanged", "cos and sin are exchanged", lambda *a: vision_rope(*a)[::-1]),
        Mistake("degrees", "angles are taken for degrees; they are radians",
                lambda p, K, t: tuple(f(np.radians(angles_of(p, K, t))) for f in (np.cos, np.sin))),
        Mistake("angles once", "the angles stand once; both halves of a head need them",
                lambda *a: tuple(table[:, : a[1] // 2] for table in vision_rope(*a))),
    ),
    part="vision_rope",
)  # fmt: skip


def angles_of(places, head_dim, theta):
    f = theta ** -(np.arange(0, head_dim // 2, 2, dtype=np.float64) / (head_dim // 2))
    return np.tile((places[:, :, None] * f).reshape(len(places), -1), 2)


# ---- 04.2 relative positions ----


def rotate_both(q, k, places, shift, rotate=rotate_numpy, keys=rotate_numpy, shift_keys=1):
    """Rotate q and k [N, K] of one head, both at places + shift; keywords make mistakes."""
    tables = (vision_rope(places + shift * by, q.shape[1], VISION_THETA) for by in (1, shift_keys))
    return tuple(turn(x[:, None], *table)[0] for x, turn, table in zip((q, k), (rotate, keys), tables))


def relative_cases():
    rng = np.random.default_rng(6)
    places = patch_positions([(1, 4, 6)], 2)
    q, k = rng.standard_normal((2, len(places), 16)).astype(np.float32)
    for shift in ((0, 0), (3, 11), (20, 1), tuple(int(n) for n in rng.integers(0, 60, 2))):
        arguments = {"q": q, "k": k, "places": places, "shift": np.array(shift, dtype=np.int64)}
        yield Case(arguments, f"all patches moved by {shift[0]} rows and {shift[1]} columns")


def prove_relativity(submission, cases, rights):
    """Check that scores do not depend on the shift, though queries and keys do."""
    scores = [q @ k.T for q, k in rights]
    change = max(float(np.abs(other - scores[0]).max()) for other in scores[1:])
    turned = max(float(np.abs(q - rights[0][0]).max()) for q, _ in rights[1:])
    shifts = ", ".join(str(tuple(case.arguments["shift"].tolist())) for case in cases[1:])
    return change < 1e-3, (
        f"With shifts of {shifts}, entries of q change by up to {turned:.1f} and q @ k.T by {change:.0e}: rotation sees "
        "differences of positions alone."
    )


def unrotated(x, cos, sin):
    return x.swapaxes(0, 1)


def rotate_backwards(x, cos, sin):
    return rotate_numpy(x, cos, -sin)


def rotating(**how):
    return lambda *arguments: rotate_both(*arguments, **how)


RELATIVITY = Exercise(
    "04.2", "rotate_both", "Proof of relativity by random shifts",
    "Rotate queries and keys, and see that only differences of rows and columns reach the scores.", 20, 2,
    "rotate_both(q, k, places, shift) -> (q, k), float32 [N, K] each        q, k of one head, shift int64 [2]",
    """Rotate both by places + shift (rows and columns; theta 10000). vision_rope of exercise 04.1 makes the tables. Pairs are j
and j + K/2: out[j] = x[j] cos[j] - x[j + K/2] sin[j], out[j + K/2] = x[j + K/2] cos[j + K/2] + x[j] sin[j + K/2]. The check
moves the whole image by random shifts and looks how far the scores q @ k.T change.""",
    ("Both are rotated, each row by its own patch's place.",
     "The second half of the head, with a minus, stands beside the first: np.concatenate([-x[:, K // 2 :], x[:, : K // 2]], axis=1)",
     "cos, sin = vision_rope(places + shift, K, 10000.0); x * cos + that * sin, for q and for k."),
    rotate_both, relative_cases, ("q", "k"),
    (
        Mistake("keys not rotated", "only queries are rotated: scores would depend on where the whole image lies",
                rotating(keys=unrotated)),
        Mistake("keys not moved", "only queries are moved: the difference of positions is another one", rotating(shift_keys=0)),
        Mistake("no rotation", "nothing is rotated: that does not change with a shift either, and says nothing of places",
                lambda q, k, places, shift: (q, k)),
        Mistake("interleaved RoPE", "pairs are neighbours (2i, 2i + 1), instead of half a head apart (i, i + K/2): relative, "
                "too, but not what the weights were trained with",
                rotating(rotate=rotate_neighbours, keys=rotate_neighbours)),
        Mistake("rotated backwards", "the sign of sin is wrong: relative, too, but it turns the other way",
                rotating(rotate=rotate_backwards, keys=rotate_backwards)),
        Mistake("shift ignored", "the shift is not added to the places", lambda q, k, p, s: rotate_both(q, k, p, s * 0)),
        Mistake("height and width swapped", "rows and columns are exchanged",
                lambda q, k, p, s: rotate_both(q, k, p[:, ::-1], s[::-1])),
        Mistake("queries and keys exchanged", "it returns (k, q)", lambda *a: rotate_both(*a)[::-1]),
    ),
    finish=prove_relativity,
)  # fmt: skip

# ---- 04.3, 11.1 positions of tokens ----


def ids_of(*parts):
    """Token ids of parts: a number of words, or (placeholder token, how often)."""
    ids = []
    for part in parts:
        ids += (
            [100 + len(ids) + i for i in range(part)] if isinstance(part, int) else [START, *[part[0]] * part[1], END]
        )
    return np.array(ids, dtype=np.int64)


def with_delta(input_ids, config, images=(), videos=(), seconds=()):
    """(position_ids, rope_delta int64 [1])"""
    positions, following = prompt_positions(input_ids, config, images, videos, seconds)
    return positions, np.array([following - len(input_ids)], dtype=np.int64)


def image_cases():
    for grids, label in (
        ([[1, 4, 6]], "an image of 2 x 3 tokens"),
        ([[1, 4, 10], [1, 12, 6]], "two images of 2 x 5 and 6 x 3 tokens"),
        ([[1, 8, 4], [1, 4, 4]], "two images of 4 x 2 and 2 x 2 tokens"),
    ):
        grid = np.array(grids, dtype=np.int64)
        ids = ids_of(4, *[part for t, h, w in grids for part in ((IMAGE, h * w // 4), 3)])
        known = {"input_ids": ids, "image_grid_thw": grid}
        yield Case({"input_ids": ids, "config": CONFIG, "image_grid_thw": grid}, label, known=known, config=CONFIG)


IMAGE_POSITIONS = Exercise(
    "04.3", "image_positions", "M-RoPE for two images, with delta",
    "Give each token of a prompt its three positions, and the next token its own.", 30, 3,
    "image_positions(input_ids, config, image_grid_thw) -> (position_ids int64 [3, T], rope_delta int64 [1])",
    """The rows are t, h, w. Words count up on all three. The tokens of an image (input_ids == config.image_token_id) all have
t = start; h = start + row; w = start + column, where start is the position that the next word would have had; an image of
h x w patches has h/2 x w/2 tokens, row by row. What follows continues from the largest position so far, plus one. rope_delta
is the position of the token after the prompt, minus the number of tokens T.""",
    ("Walk through the prompt: a run of words, an image, a run of words, ... and keep the next position.",
     "After an image of R x S tokens the next position is start + max(R, S), not start + R * S.",
     "np.indices((R, S)).reshape(2, -1) gives rows and columns; delta = next - T: negative after a large image."),
    with_delta, image_cases, ("position_ids", "rope_delta"),
    (Mistake("wrong rope delta", "it is the next position itself, not that minus the number of tokens",
             lambda ids, *a: (with_delta(ids, *a)[0], with_delta(ids, *a)[1] + len(ids))),
     Mistake("rows alone", "text continues after the rows of an image: the largest position may be that of a column",
             lambda ids, c, g: with_next(ids, c, g, lambda R, S: R)),
     Mistake("columns alone", "text continues after the columns of an image: the largest position may be that of a row",
             lambda ids, c, g: with_next(ids, c, g, lambda R, S: S)),
     Mistake("starts are tokens", "an image starts at the number of tokens before it, and the text continues at that of those "
             "behind: positions are not indices", lambda ids, c, g: starts_are_tokens(ids, c, g))),
    ("position_ids", "rope_delta"),
)  # fmt: skip


def with_next(ids, config, grids, following):
    """Positions where text continues following(R, S) after the start of an image."""
    runs, start, at, grids = [], 0, 0, iter(grids)
    while at < len(ids):
        run, step = np.zeros((3, 1), dtype=np.int64), 1
        if ids[at] == IMAGE:
            R, S = (int(n) // 2 for n in next(grids)[1:])
            run = np.concatenate([np.zeros((1, R * S), dtype=np.int64), np.indices((R, S)).reshape(2, -1)])
            step = following(R, S)
        runs.append(start + run)
        start, at = start + step, at + run.shape[1]
    return np.concatenate(runs, axis=1), np.array([start - len(ids)])


def starts_are_tokens(ids, config, grids):
    positions = np.tile(np.arange(len(ids)), (3, 1))
    for start, grid in zip(np.flatnonzero(ids == START) + 1, grids):
        R, S = (int(n) // 2 for n in grid[1:])
        rows, columns = np.indices((R, S)).reshape(2, -1)
        positions[:, start : start + R * S] = start + np.stack([rows * 0, rows, columns])
    return positions, np.zeros(1, dtype=np.int64)


def video_cases():
    for images, videos, seconds, label in (
        ([], [[4, 4, 6]], [0.5], "a video of four pairs of frames, half a second apart"),
        ([[1, 4, 8]], [[3, 6, 4]], [1.0], "an image and a video of three pairs, a second apart"),
        ([], [[3, 4, 4], [4, 4, 8]], [1.5, 0.4], "two videos, 1.5 and 0.4 seconds from pair to pair"),
    ):
        grids = [np.array(g, dtype=np.int64).reshape(-1, 3) for g in (images, videos)]
        parts = [(IMAGE, t * h * w // 4) for t, h, w in images] + [(VIDEO, t * h * w // 4) for t, h, w in videos]
        ids = ids_of(5, *[piece for part in parts for piece in (part, 2)])
        seconds = np.array(seconds, dtype=np.float32)
        arguments = {"input_ids": ids, "config": CONFIG, "image_grid_thw": grids[0], "video_grid_thw": grids[1],
                     "second_per_grid_ts": seconds}  # fmt: skip
        known = {"input_ids": ids, "image_grid_thw": grids[0], "video_grid_thw": grids[1]}
        known |= {f"video.{i}.second_per_grid_t": seconds[i : i + 1] for i in range(len(seconds))}
        yield Case(arguments, label, known=known, config=CONFIG)


PROMPT = Exercise(
    "11.1", "prompt_positions", "M-RoPE for a video, with delta",
    "Let time run through a video as fast as its seconds say.", 30, 3,
    "prompt_positions(input_ids, config, image_grid_thw, video_grid_thw, second_per_grid_ts) "
    "-> (position_ids int64 [3, T], rope_delta int64 [1])",
    """As 04.3, and videos as well (config.video_token_id, in the order of the prompt). The tokens of pair of frames i have
t = start + int(i * seconds * config.vision.tokens_per_second), seconds being those from pair to pair of this video; rows and
columns begin at start in every pair. The product is truncated to an integer once, at the end. The text continues after the
largest position of all three rows, time included.""",
    ("Each video has its own grid and its own seconds; take the next one whenever a run of video tokens begins.",
     "np.indices((t, R, S)).reshape(3, -1) gives frame, row and column of each token of a video.",
     "time = (np.arange(t, dtype=np.float32) * np.float32(seconds * tokens_per_second)).astype(np.int64); next = largest + 1."),
    with_delta, video_cases, ("position_ids", "rope_delta"),
    (Mistake("wrong rope delta", "it is the next position itself, not that minus the number of tokens",
             lambda ids, *a: (with_delta(ids, *a)[0], with_delta(ids, *a)[1] + len(ids))),
     Mistake("step cut", "seconds * tokens_per_second is truncated to an integer before it is multiplied by i; cut at the end",
             lambda *a: with_delta(*a[:4], np.floor(a[4] * SPEED) / SPEED))),
    ("position_ids", "rope_delta"), part="prompt_positions",
)  # fmt: skip

# ---- 04.4 tables of the decoder ----


def mrope_cases():
    for case in [*image_cases()][:2]:
        positions, _ = with_delta(*case.arguments.values())
        arguments = {"position_ids": positions, "rope": CONFIG.text.rope, "head_dim": CONFIG.text.head_dim}
        yield Case(arguments, case.label, known={**case.known, "position_ids": positions}, config=CONFIG)


MROPE = Exercise(
    "04.4", "mrope", "Three positions in one rotation",
    "Make the decoder's tables of cos and sin from three positions for each token.", 20, 2,
    "mrope(position_ids, rope, head_dim) -> (cos, sin), float32 [T, head_dim] each",
    """There are head_dim / 2 frequencies, rope.rope_theta ** (-2j / head_dim). The first rope.mrope_section[0] of them turn with t,
the next mrope_section[1] with h, the last mrope_section[2] with w. Then all angles stand a second time.""",
    ("np.repeat([0, 1, 2], rope.mrope_section) says for each frequency which row of position_ids turns it.",
     "angles[n, j] = position_ids[axis[j], n] * f[j]",
     "angles = position_ids[axis].T * f; twice side by side; np.cos and np.sin as float32."),
    mrope, mrope_cases, ("cos", "sin"),
    (Mistake("angles once", "the angles stand once; both halves of a head need them",
             lambda *a: tuple(table[:, : a[2] // 2] for table in mrope(*a))),
     Mistake("frequencies of each section", "the frequencies of h and w begin again with the fastest; they run on through all pairs",
             lambda *a: frequencies_again(*a)),
     Mistake("exchanged", "cos and sin are exchanged", lambda *a: mrope(*a)[::-1])),
    ("model.rope.cos", "model.rope.sin"), part="mrope",
)  # fmt: skip


def frequencies_again(position_ids, rope, head_dim):
    f = rope.rope_theta ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angles = np.concatenate([position_ids[axis][:, None] * f[:n] for axis, n in enumerate(rope.mrope_section)], axis=1)
    return np.tile(np.cos(angles), 2).astype(np.float32), np.tile(np.sin(angles), 2).astype(np.float32)


EXERCISES = (VISION_ROPE, RELATIVITY, IMAGE_POSITIONS, MROPE, PROMPT)
