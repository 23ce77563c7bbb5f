"""Places done wrong: windows, rows and columns of patches, three positions of tokens, and the cos and sin made from them."""

from dataclasses import replace

import numpy as np

from minivl.causes import Unknown
from minivl.positions import VISION_THETA, inverse_frequencies, mrope, patch_positions, prompt_positions, vision_rope
from minivl.windows import frame_segments, to_window_order, window_index


def grids(step):
    """(grids of the pictures, of the videos), int64 [n, 3] each."""
    found = []
    for name in ("image_grid_thw", "video_grid_thw"):
        try:
            found.append(step.anywhere(name))
        except Unknown:
            found.append(np.zeros((0, 3), dtype=np.int64))
    if not len(found[0]) + len(found[1]):
        raise Unknown("grids")
    return found


def all_grids(step):
    return np.concatenate(grids(step))


# ---- the tower: windows ----


def order(step):
    grid, vision = all_grids(step), step.config.vision
    index, _ = window_index(grid, vision)
    yield "no window order", "it counts up: the units are left in raster order", np.arange(len(index))
    yield "inverse of the window order", "it is argsort(window_index): the way back instead of the way there", np.argsort(index)
    for name, sentence, other in other_windows(grid, vision):
        yield name, sentence, window_index(*other)[0]
    parts, start = [], 0
    for one in grid:
        parts.append(window_index(one[None], vision)[0])
        start += len(parts[-1])
    yield "windows without offset", "each picture's indices start at 0: those of earlier pictures are not added", (
        np.concatenate(parts)
    )  # fmt: skip


def other_windows(grid, vision):
    """(name, sentence, arguments of window_index)"""
    size, merge = vision.window_size, vision.spatial_merge_size
    text = f"windows of {size // vision.patch_size} x {size // vision.patch_size} units: patches were counted as units"
    yield "windows of the wrong size", text, (grid, replace(vision, window_size=size * merge))
    text = f"windows of {size // 2} pixels instead of {size}"
    if size // 2 >= vision.merged_size:
        yield "windows of the wrong size", text, (grid, replace(vision, window_size=size // 2))
    swapped = "height and width swapped", "height and width of the grid are exchanged"
    yield *swapped, (grid[:, [0, 2, 1]], vision)


def window_bounds(step):
    grid, vision = all_grids(step), step.config.vision
    frames, bounds = frame_segments(grid), window_index(grid, vision)[1]
    yield "no windows", "its segments are whole frames: there are no windows", frames
    yield "no windows", "its only segment is everything", frames[[0, -1]]
    yield "units for patches", "it counts units of 2 x 2 patches instead of patches", bounds // vision.merge_unit
    for name, sentence, other in other_windows(grid, vision):
        yield name, sentence, window_index(*other)[1]
    yield "empty windows", "boundaries of empty windows, of padding alone, are kept: each should stand once", padded(grid, vision)


def padded(grid, vision):
    """Boundaries as transformers makes them before it drops the repeated ones: with 4 more rows where 4 divide them."""
    size, merge = vision.window_size // vision.spatial_merge_size // vision.patch_size, vision.spatial_merge_size
    ends = [0]
    for t, h, w in grid // np.array([1, merge, merge]):
        rows, cols = (np.minimum(size, np.maximum(0, n - np.arange(0, n + 1, size))) for n in (int(h), int(w)))
        for _ in range(int(t)):
            ends += (ends[-1] + np.cumsum(np.outer(rows, cols).reshape(-1)) * vision.merge_unit).tolist()
    return np.array(ends, dtype=np.int64)


def frame_bounds(step):
    grid = all_grids(step)
    frames, sizes = frame_segments(grid), grid.prod(axis=1)
    yield "one segment for all", "all pictures are one segment: they see each other", frames[[0, -1]]
    text = "a video is one segment: its frames see each other"
    yield "frames not apart", text, np.concatenate([[0], np.cumsum(sizes)])
    yield "units for patches", "it counts units of 2 x 2 patches instead of patches", frames // step.config.vision.merge_unit
    yield "no full attention", "its segments are windows", window_index(grid, step.config.vision)[1]


# ---- the tower: rows and columns ----


def wrong_places(step):
    """(name, sentence, int [N, 2]) in the image processor's order."""
    grid, merge = all_grids(step), step.config.vision.spatial_merge_size
    places = patch_positions(grid, merge)
    yield "height and width swapped", "rows and columns of the patches are exchanged", places[:, ::-1]
    swapped = patch_positions(grid[:, [0, 2, 1]], merge)
    yield "height and width swapped", "the grid's height and width are exchanged", swapped
    yield "height and width swapped", "the grid's height and width are exchanged, and rows and columns", swapped[:, ::-1]
    text = "patches are counted in plain raster order, where they come unit by unit (2 x 2)"
    yield "raster order of patches", text, patch_positions(grid, 1)
    yield "places of units", "all four patches of a unit stand in the same place", places // merge
    yield "counted from 1", "rows and columns are counted from 1", places + 1
    yield "1-D positions", "patches are counted through: row and column are both the number", (
        np.stack([np.arange(len(places))] * 2, axis=1)
    )  # fmt: skip


def places_of_patches(step):
    yield from wrong_places(step)


def tower_tables(step):
    """(name, sentence, (cos, sin)) of wrong ones, in window order."""
    vision, K = step.config.vision, step.config.vision.head_dim
    index, unit = window_index(all_grids(step), vision)[0], vision.merge_unit
    right = patch_positions(all_grids(step), vision.spatial_merge_size)
    there = to_window_order(right, index, unit)
    text = "rows and columns are in raster order, where the patches are in window order"
    yield "positions not in window order", text, vision_rope(right, K)
    text = "rows and columns were sorted by argsort(window_index) instead of window_index"
    yield "inverse of the window order", text, vision_rope(to_window_order(right, np.argsort(index), unit), K)
    for name, sentence, places in wrong_places(step):
        yield name, sentence, vision_rope(to_window_order(places, index, unit), K)
    f = inverse_frequencies(VISION_THETA, K // 2)
    yield from tables_of(there, f, K)
    for theta in (1e6, 1e5, 500000.0, 100.0):
        angles = (there[:, :, None] * inverse_frequencies(theta, K // 2)).reshape(len(there), -1)
        yield "wrong theta", f"theta is {theta:g} instead of {VISION_THETA:g}", doubled(angles)
    angles = (there[:, :, None] * inverse_frequencies(VISION_THETA, K)[: K // 4]).reshape(len(there), -1)
    text = f"frequencies are theta^(-2j/{K}), of the whole head, instead of theta^(-2j/{K // 2}), of half of it"
    yield "frequencies of the whole head", text, doubled(angles)


def tables_of(there, f, K):
    """Right angles, laid out wrong."""
    angles = there[:, :, None] * f  # [N, 2, K/4]
    text = "row and column angles take turns, instead of the row's first and then the column's"
    yield "rows and columns interleaved", text, doubled(angles.swapaxes(1, 2).reshape(len(there), -1))
    angles = angles.reshape(len(there), -1)
    text = "each angle stands twice in a row (for neighbouring pairs), instead of the whole row of angles twice"
    yield "interleaved RoPE", text, cos_sin(np.repeat(angles, 2, axis=1))
    row, col = np.split(angles, 2, axis=1)
    text = "it is [row, row, column, column], instead of [row, column, row, column]"
    yield "halves laid out wrong", text, cos_sin(np.concatenate([row, row, col, col], axis=1))


def doubled(angles):
    return cos_sin(np.concatenate([angles, angles], axis=1))


def cos_sin(angles):
    angles = angles.astype(np.float32)
    return np.cos(angles), np.sin(angles)


# ---- the decoder ----


def decoder_tables(step):
    config = step.config.text
    K, rope, ids = config.head_dim, config.rope, step.at("position_ids")
    for name, sentence, other in wrong_positions(step):
        yield name, sentence, mrope(other, rope, K)
    a, b, c = rope.mrope_section
    for section in {(a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)} - {rope.mrope_section}:
        text = f"mrope_section is {list(section)} instead of {list(rope.mrope_section)}"
        yield "wrong mrope sections", text, mrope(ids, replace(rope, mrope_section=section), K)
    third = K // 6
    if (even := (K // 2 - 2 * third, third, third)) != rope.mrope_section:
        text = f"mrope_section is {list(even)}, about a third each, instead of {list(rope.mrope_section)}"
        yield "wrong mrope sections", text, mrope(ids, replace(rope, mrope_section=even), K)
    angles, half = [np.arctan2(*mrope(np.stack([row] * 3), rope, K)[::-1]) for row in ids], K // 2
    turns = np.arange(half) % 3
    text = "t, h and w take turns from frequency to frequency, instead of one section after the other"
    yield "wrong mrope sections", text, doubled(np.stack([angles[turns[j]][:, j] for j in range(half)], axis=1))
    chosen = np.repeat(np.arange(3), rope.mrope_section)
    right = np.stack([angles[chosen[j]][:, j] for j in range(half)], axis=1)
    text = "each angle stands twice in a row (for neighbouring pairs), instead of the whole row of angles twice"
    yield "interleaved RoPE", text, cos_sin(np.repeat(right, 2, axis=1))
    whole = np.concatenate([np.repeat(np.arange(3), rope.mrope_section)] * 2)[np.arange(K) * 2 % K]
    text = "sections are counted over the doubled table: each takes twice its share of the first half"
    yield "wrong mrope sections", text, doubled(np.stack([angles[whole[j]][:, j] for j in range(half)], axis=1))
    yield from other_frequencies(ids, rope, K)


def other_frequencies(ids, rope, K):
    for theta in (1e6, 1e4, 5e5):
        if theta != rope.rope_theta:
            text = f"theta is {theta:g} instead of {rope.rope_theta:g}"
            yield "wrong theta", text, mrope(ids, replace(rope, rope_theta=theta), K)
    if rope.rope_type == "yarn":
        yield "no YaRN", "frequencies are not stretched by YaRN", mrope(ids, replace(rope, rope_type="default"), K)


def rotations(step):
    """(name, sentence, (cos, sin)) of all wrong tables of the tower, or of the decoder."""
    yield from (tower_tables if step.in_tower else decoder_tables)(step)


def table(step):
    for name, sentence, tables in rotations(step):
        yield name, sentence, tables[step.word == "sin"]


def positions(step):
    yield from wrong_positions(step)


def wrong_positions(step):
    """(name, sentence, int [3, T]) of position_ids done wrong."""
    if step.lead:
        yield from later_positions(step)
        return
    ids, config = step.at("input_ids"), step.config
    images, videos = grids(step) if shows(ids, config) else (np.zeros((0, 3), dtype=np.int64),) * 2
    seconds = seconds_of(step, ids, videos)
    right, _ = prompt_positions(ids, config, images, videos, seconds)
    T = len(ids)
    yield "1-D positions", "all three rows count up: 1-D positions instead of M-RoPE", np.tile(np.arange(T), (3, 1))
    yield "height and width swapped", "the rows h and w are exchanged", right[[0, 2, 1]]
    turned = [grid[:, [0, 2, 1]] for grid in (images, videos)]
    other = prompt_positions(ids, config, *turned, seconds)[0]
    yield "height and width swapped", "height and width of the grid are exchanged", other
    yield "height and width swapped", "columns are counted before rows", other[[0, 2, 1]]
    for rows in ([1, 2, 0], [2, 0, 1], [1, 0, 2], [2, 1, 0]):
        yield "rows of positions exchanged", f"its rows are {[('t', 'h', 'w')[r] for r in rows]}, not t, h, w", right[rows]
    yield "time only", "rows and columns are missing: h and w are as t", right[[0, 0, 0]]
    yield from clocks(ids, config, images, videos, seconds)
    yield from continued(ids, config, right)


def shows(ids, config):
    return np.isin(ids, (config.image_token_id, config.video_token_id)).any()


def clocks(ids, config, images, videos, seconds):
    """Time of a video done wrong."""
    if not len(videos):
        return
    def at(seconds, tokens_per_second=config.vision.tokens_per_second, rule="launch"):
        vision = replace(config.vision, tokens_per_second=tokens_per_second)
        return prompt_positions(ids, replace(config, vision=vision), images, videos, seconds, rule)[0]

    whole = [float(int(s)) for s in seconds]
    text = f"second_per_grid_ts are cut to whole numbers: {whole} for {[round(float(s), 3) for s in seconds]}"
    yield "truncated second_per_grid", text, at(whole)
    yield "truncated second_per_grid", "second_per_grid_ts are rounded to whole numbers", at([float(round(s)) for s in seconds])
    yield "no second_per_grid", "second_per_grid_ts are taken for 1.0", at([1.0] * len(seconds))
    if len(seconds) > 1:
        yield "second_per_grid of another video", "every video has the seconds of the first", at([seconds[0]] * len(seconds))
    text = "time is counted in frames: not multiplied by seconds and tokens_per_second"
    yield "time in frames", text, at([1.0] * len(seconds), 1)
    for rate in {1, 2, 4, 25} - {config.vision.tokens_per_second}:
        yield "wrong tokens_per_second", f"tokens_per_second is {rate} instead of {config.vision.tokens_per_second}", at(seconds, rate)
    text = "after a video text goes on by its longer side, as in transformers 5: video_positions=\"transformers5\""
    yield "another rule after a video", text, at(seconds, rule="transformers5")


def continued(ids, config, right):
    """Pictures in their right shape, but starting elsewhere; or text after them."""
    T, shown = len(ids), np.isin(ids, (config.image_token_id, config.video_token_id))
    first = np.flatnonzero(shown & ~np.r_[False, shown[:-1]])
    ends = np.flatnonzero(shown & ~np.r_[shown[1:], False]) + 1
    from_zero, by_count, at_start = right.copy(), np.tile(np.arange(T), (3, 1)), right.copy()
    late = np.zeros(T, dtype=np.int64)
    for start, end in zip(first, ends):
        own = right[:, start:end] - right[:, start:end].min()
        from_zero[:, start:end] = own
        by_count[:, start:end] = own + start
        at_start[:, start:end] = right[:, start:end].min()
        late[end:] += 1
    yield "pictures from 0", "each picture is counted from 0, not from where the text stopped", from_zero
    text = "after a picture positions go on by its number of tokens, not by its longer side"
    yield "text goes on by tokens", text, by_count
    yield "pictures at one place", "all tokens of a picture stand where it starts", at_start
    text = "after a picture text starts at its largest position, not one after it"
    yield "off by one after pictures", text, right - late
    yield "off by one after pictures", "after a picture text starts two after its largest position", right + late


def seconds_of(step, ids, videos):
    """Of each video: recorded, or what its positions in our run say, within the steps of their rounding."""
    found, taken, rate = [], 0, step.config.vision.tokens_per_second
    where = np.flatnonzero(ids == step.config.video_token_id)
    for i, (t, h, w) in enumerate(videos):
        count = int(h * w) // step.config.vision.merge_unit
        try:
            found.append(float(step.anywhere(f"video.{i}.second_per_grid_t")[0]))
        except Unknown:
            rows = step.ours if step.word == "position_ids" else step.anywhere("position_ids")
            time = rows[0, where[taken : taken + int(t) * count : count]]
            found.append(interval((time - time[0])[1:] / rate, np.arange(1, int(t)), rate))
        taken += int(t) * count
    return found


def interval(passed, frames, rate):
    """Middle of the seconds that give these whole positions."""
    if not len(frames):
        return 1.0
    return float((passed / frames).max() + ((passed + 1 / rate) / frames).min()) / 2


def later_positions(step):
    """Of one more token: the number of tokens instead of what position comes next."""
    before = len(step.anywhere("input_ids")) + step.number - 1
    text = "it is the number of tokens before it: rope_delta is left out"
    yield "wrong rope delta", text, np.full((3, 1), before)
    for by, what in ((1, "late"), (-1, "early")):
        yield "off by one", f"it stands one position too {what}", np.asarray(step.anywhere(step.name)) + by
    yield "wrong rope delta", "positions start again from 0 with the answer", np.full((3, 1), step.number - 1)
    delta = int(step.anywhere("rope_delta")[0])
    yield "wrong rope delta", "rope_delta is subtracted instead of added", np.full((3, 1), before - delta)


def delta(step):
    ours, ids = int(step.ours[0]), step.at("input_ids")
    wrong = "wrong rope delta"
    yield wrong, "it is 0: the answer's positions go on from the number of tokens", np.zeros_like(step.ours)
    yield wrong, "its sign is wrong", -step.ours
    for by in (1, -1):
        yield wrong, f"it is {by:+} off: the largest position and the one after it are confused", step.ours + by
    yield wrong, "it is the next position itself, not that minus the number of tokens", step.ours + len(ids)
    images, videos = grids(step)
    for rule in ("transformers5",) if len(videos) else ():
        following = prompt_positions(ids, step.config, images, videos, seconds_of(step, ids, videos), rule)[1]
        yield "another rule after a video", "after a video text goes on by its longer side, as in transformers 5", (
            np.array([following - len(ids)])
        )  # fmt: skip
    text = f"it is {int(step.theirs.reshape(-1)[0])} instead of {ours}"
    yield wrong, text, np.asarray(step.theirs)


MISTAKES = (
    ("visual.window_index", order), ("visual.cu_window_seqlens", window_bounds), ("visual.cu_seqlens", frame_bounds),
    ("visual.patch_positions", places_of_patches), ("position_ids", positions), ("rope_delta", delta),
    ("visual.rope.cos", table), ("visual.rope.sin", table), ("model.rope.cos", table), ("model.rope.sin", table),
)  # fmt: skip
