"""Mistakes in the tower's windows, in rows and columns of patches, and in their cos and sin."""

from dataclasses import replace

import numpy as np

from minivl.checkpoint.presets import VISION_THETA
from minivl.compare.mistakes import RIGHT, Unknown
from minivl.model.positions import inverse_frequencies, patch_positions, vision_rope
from minivl.model.windows import frame_segments, to_window_order, window_index


def grids(subject):
    """(image_grid_thw, video_grid_thw), int64 [n, 3] each."""
    pair = []
    for name in ("image_grid_thw", "video_grid_thw"):
        try:
            pair.append(subject.anywhere(name))
        except Unknown:
            pair.append(np.zeros((0, 3), dtype=np.int64))
    if not len(pair[0]) + len(pair[1]):
        raise Unknown("grids")
    return pair


def all_grids(subject):
    return np.concatenate(grids(subject))


def baked_in_grids(grid, vision):
    """[(sentence, grid)] with other sides and as many patches: those of the image that a graph was exported with."""
    merge, grids = vision.spatial_merge_size, []
    for i, (t, h, w) in enumerate(grid[:MOST_GRIDS]):
        for side in range(merge, int(h * w) // merge + 1, merge):
            other = int(h * w) // side
            if side * other == h * w and other % merge == 0 and (side, other) not in ((h, w), (w, h)):
                changed = grid.copy()
                changed[i] = t, side, other
                text = f"it is that of a grid of {side} x {other} patches, not {h} x {w}: was one baked in at export?"
                grids.append((text, changed))
    return grids


MOST_GRIDS = 2

# ---- windows ----


def order(subject):
    grid, vision = all_grids(subject), subject.config.vision
    index, _ = window_index(grid, vision)
    yield RIGHT, "", index
    yield "no window order", "it counts up: the units are left in raster order", np.arange(len(index))
    text = "it is argsort(window_index): the way back instead of the way there"
    yield "inverse of the window order", text, np.argsort(index)
    for name, sentence, other in other_windows(grid, vision):
        yield name, sentence, window_index(*other)[0]
    text = "each image's indices start at 0: those of earlier images are not added"
    yield "windows without offset", text, np.concatenate([window_index(row[None], vision)[0] for row in grid])
    for sentence, other in baked_in_grids(grid, vision):
        yield "baked-in grid", sentence, window_index(other, vision)[0]


def other_windows(grid, vision):
    """(name, sentence, arguments of window_index)"""
    size, merge = vision.window_size, vision.spatial_merge_size
    text = f"windows of {size // vision.patch_size} x {size // vision.patch_size} units: patches were counted as units"
    yield "windows of the wrong size", text, (grid, replace(vision, window_size=size * merge))
    text = f"windows of {size // 2} pixels instead of {size}"
    if size // 2 >= vision.merged_size:
        yield "windows of the wrong size", text, (grid, replace(vision, window_size=size // 2))
    yield "height and width swapped", "height and width of the grid are exchanged", (grid[:, [0, 2, 1]], vision)


def window_bounds(subject):
    grid, vision = all_grids(subject), subject.config.vision
    frames, bounds = frame_segments(grid), window_index(grid, vision)[1]
    yield RIGHT, "", bounds
    yield "no window attention", "its segments are whole frames: there are no windows", frames
    text = "its only segment is everything: there are no windows, and images attend to each other"
    yield "no window attention and attention across images", text, frames[[0, -1]]
    yield "units for patches", "it counts units of 2 x 2 patches instead of patches", bounds // vision.merge_unit
    for name, sentence, other in other_windows(grid, vision):
        yield name, sentence, window_index(*other)[1]
    text = "each image's boundaries start at 0: the patches of earlier images are not added"
    apart = [window_index(row[None], vision)[1][min(i, 1) :] for i, row in enumerate(grid)]
    yield "windows without offset", text, np.concatenate(apart)
    text = "boundaries of empty windows, of padding alone, are kept: each should stand once"
    yield "empty windows", text, bounds_with_empty_windows(grid, vision)


def bounds_with_empty_windows(grid, vision):
    """Boundaries as transformers has them before it drops repeated ones; it pads by a whole window where nothing is missing."""
    size, merge = vision.window_size // vision.spatial_merge_size // vision.patch_size, vision.spatial_merge_size
    ends = [0]
    for t, h, w in grid // np.array([1, merge, merge]):
        rows, cols = (np.minimum(size, np.maximum(0, n - np.arange(0, n + 1, size))) for n in (int(h), int(w)))
        for _ in range(int(t)):
            ends += (ends[-1] + np.cumsum(np.outer(rows, cols).reshape(-1)) * vision.merge_unit).tolist()
    return np.array(ends, dtype=np.int64)


def frame_bounds(subject):
    grid = all_grids(subject)
    frames, sizes = frame_segments(grid), grid.prod(axis=1)
    yield RIGHT, "", frames
    yield "attention across images", "all images are one segment: they attend to each other", frames[[0, -1]]
    text = "a video is one segment: its frames attend to each other"
    yield "frames not apart", text, np.concatenate([[0], np.cumsum(sizes)])
    text = "it counts units of 2 x 2 patches instead of patches"
    yield "units for patches", text, frames // subject.config.vision.merge_unit
    yield "window attention everywhere", "its segments are windows", window_index(grid, subject.config.vision)[1]


# ---- rows and columns ----


def wrong_patch_positions(subject):
    """(name, sentence, int [N, 2]) in the image processor's order."""
    grid, merge = all_grids(subject), subject.config.vision.spatial_merge_size
    positions = patch_positions(grid, merge)
    yield "height and width swapped", "rows and columns of the patches are exchanged", positions[:, ::-1]
    swapped = patch_positions(grid[:, [0, 2, 1]], merge)
    yield "height and width swapped", "the grid's height and width are exchanged", swapped
    text = "the grid's height and width are exchanged, and rows and columns"
    yield "height and width swapped", text, swapped[:, ::-1]
    text = "patches are counted in plain raster order, where they come unit by unit (2 x 2)"
    yield "raster order of patches", text, patch_positions(grid, 1)
    yield "places of units", "all four patches of a unit have the same position", positions // merge
    yield "counted from 1", "rows and columns are counted from 1", positions + 1
    for sentence, other in baked_in_grids(grid, subject.config.vision):
        yield "baked-in grid", sentence, patch_positions(other, merge)
    text = "patches are counted through: row and column are both the number"
    yield "1-D positions", text, np.stack([np.arange(len(positions))] * 2, axis=1)


def positions_of_patches(subject):
    yield RIGHT, "", patch_positions(all_grids(subject), subject.config.vision.spatial_merge_size)
    yield from wrong_patch_positions(subject)


def tower_tables(subject):
    """(name, sentence, (cos, sin)) of wrong ones, in window order."""
    vision, K = subject.config.vision, subject.config.vision.head_dim
    index, unit = window_index(all_grids(subject), vision)[0], vision.merge_unit
    right = patch_positions(all_grids(subject), vision.spatial_merge_size)
    there = to_window_order(right, index, unit)
    yield RIGHT, "", vision_rope(there, K, VISION_THETA)
    text = "rows and columns are in raster order, where the patches are in window order"
    yield "positions not in window order", text, vision_rope(right, K, VISION_THETA)
    text = "rows and columns were sorted by argsort(window_index) instead of window_index"
    inverse = to_window_order(right, np.argsort(index), unit)
    yield "inverse of the window order", text, vision_rope(inverse, K, VISION_THETA)
    for name, sentence, positions in wrong_patch_positions(subject):
        yield name, sentence, vision_rope(to_window_order(positions, index, unit), K, VISION_THETA)
    f = inverse_frequencies(VISION_THETA, K // 2)
    yield from wrong_layouts(there, f)
    for theta in (1e6, 1e5, 5e5):
        angles = (there[:, :, None] * inverse_frequencies(theta, K // 2)).reshape(len(there), -1)
        yield "wrong theta", f"theta is {theta:g} instead of {VISION_THETA:g}", cos_sin_twice(angles)
    angles = (there[:, :, None] * inverse_frequencies(VISION_THETA, K)[: K // 4]).reshape(len(there), -1)
    text = f"frequencies are theta^(-2j/{K}), of the whole head, instead of theta^(-2j/{K // 2}), of half of it"
    yield "frequencies of the whole head", text, cos_sin_twice(angles)


def wrong_layouts(there, f):
    """Right angles in a wrong layout."""
    angles = there[:, :, None] * f  # [N, 2, K/4]
    text = "row and column angles take turns, instead of the row's first and then the column's"
    yield "rows and columns interleaved", text, cos_sin_twice(angles.swapaxes(1, 2).reshape(len(there), -1))
    angles = angles.reshape(len(there), -1)
    text = "each angle stands twice in a row (for neighbouring pairs), instead of the whole row of angles twice"
    yield "interleaved RoPE", text, cos_sin(np.repeat(angles, 2, axis=1))
    row, col = np.split(angles, 2, axis=1)
    text = "it is [row, row, column, column], instead of [row, column, row, column]"
    yield "halves laid out wrong", text, cos_sin(np.concatenate([row, row, col, col], axis=1))


def cos_sin_twice(angles):
    return cos_sin(np.concatenate([angles, angles], axis=1))


def cos_sin(angles):
    angles = angles.astype(np.float32)
    return np.cos(angles), np.sin(angles)


def table(subject):
    for name, sentence, tables in tower_tables(subject):
        yield name, sentence, tables[subject.word == "sin"]


MISTAKES = (
    ("visual.window_index", order),
    ("visual.cu_window_seqlens", window_bounds),
    ("visual.cu_seqlens", frame_bounds),
    ("visual.patch_positions", positions_of_patches),
    ("visual.rope.cos", table),
    ("visual.rope.sin", table),
)
