"""Attention windows: which patches attend to each other, in window order.

A *unit* is 2x2 patches, what the merger turns into one token. Units come from the image processor in raster order,
frame by frame, image by image. Windowed blocks attend inside windows of 4x4 units (112 pixels), so before the first
block the units are reordered window by window, and put back after the merger:

    units of a frame of 3 x 6, windows of 4 x 4        window_index
     0  1  2  3 | 4  5
     6  7  8  9 | 10 11                                0 1 2 3 6 7 8 9 12 13 14 15 | 4 5 10 11 16 17
    12 13 14 15 | 16 17                                segments, in patches: 0, 48, 72

Windows at the right and bottom edges are smaller, never padded. A window never crosses a frame or an image.
Source: `get_window_index` of transformers' Qwen2.5-VL, which pads with a sentinel and drops it; sorting the units by
(image, frame, window row, window column, row, column) gives the same order.
"""

import numpy as np

from minivl.errors import Error


def unit_grid(grid_thw, merge_size):
    """Coordinates of the units in raster order: int64 [U, 4] of (image, frame, row, column)."""
    units = [
        np.stack(
            np.meshgrid([i], np.arange(t), np.arange(h // merge_size), np.arange(w // merge_size), indexing="ij"), -1
        )
        for i, (t, h, w) in enumerate(grid_thw)
    ]
    return np.concatenate([u.reshape(-1, 4) for u in units]).astype(np.int64)


def window_index(grid_thw, vision):
    """The window order and its boundaries.

    grid_thw  int [images, 3]: frames, patch rows, patch columns of each image
    returns   window_index int64 [U]: entry i is the raster index of the unit that stands i-th in window order
              cu_window_seqlens int64 [windows + 1]: window k holds patches cu[k]:cu[k+1] of that order
    """
    image, frame, row, col = unit_grid(grid_thw, vision.spatial_merge_size).T
    size = vision.window_size // vision.spatial_merge_size // vision.patch_size
    order = np.lexsort((col, row, col // size, row // size, frame, image))
    window = np.stack([image, frame, row // size, col // size], axis=1)[order]
    first = np.flatnonzero(np.any(window[1:] != window[:-1], axis=1)) + 1
    bounds = np.concatenate([[0], first, [len(order)]]).astype(np.int64)
    return order.astype(np.int64), bounds * vision.merge_unit


def frame_segments(grid_thw):
    """Boundaries of full attention, int64 [frames + 1]: one segment for each frame of each image, in patches.

    subtle: "full" is full within a frame. A video's frames (pairs of images) never see each other in the tower.
    """
    grid_thw = np.asarray(grid_thw, dtype=np.int64)
    lengths = np.repeat(grid_thw[:, 1] * grid_thw[:, 2], grid_thw[:, 0])
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def check_order(patches, index, *boundaries):
    """Raise an Error unless an order names every unit once and boundaries go from 0 to the number of patches."""
    if patches % len(index) or not np.array_equal(np.sort(index), np.arange(len(index))):
        raise Error(f"window_index must name each of the units of these {patches} patches once.")
    for bounds in boundaries:
        if bounds[0] != 0 or bounds[-1] != patches or np.any(np.diff(bounds) < 0):
            raise Error(f"segment boundaries must rise from 0 to {patches}, the number of patches; these are {bounds}.")


def to_window_order(x, index, merge_unit):
    """Reorder [N, ...] patches unit by unit; the patches of a unit keep their order. "(u p) ... -> (u' p) ..." """
    return x.reshape(len(index), merge_unit, *x.shape[1:])[index].reshape(x.shape)


def to_raster_order(x, index):
    """Undo the window order of [U, ...] units."""
    return x[np.argsort(index)]
