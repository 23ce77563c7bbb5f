"""Solutions of notebook 02. `minivl lab check windows.py` checks them."""

import numpy as np


def window_index(grid_thw, vision):
    order, lengths, start = [], [], 0
    for frames, h, w in grid_thw:
        R, S = h // 2, w // 2  # rows and columns of units
        units = np.arange(R * S).reshape(R, S)
        for _ in range(frames):
            for top in range(0, R, 4):
                for left in range(0, S, 4):
                    window = units[top : top + 4, left : left + 4].reshape(-1)  # smaller at the edges
                    order.append(start + window)
                    lengths.append(4 * len(window))
            start += R * S
    return np.concatenate(order), np.cumsum([0, *lengths])


def to_raster_order(x, window_index):
    raster = np.empty_like(x)
    raster[window_index] = x
    return raster


def reached(patch, grid_thw, blocks, vision):
    places = []  # (image, frame, row, column) of each patch, unit by unit
    for image, (frames, h, w) in enumerate(grid_thw):
        for frame in range(frames):
            for R in range(h // 2):
                for S in range(w // 2):
                    places += [(image, frame, 2 * R + r, 2 * S + s) for r in (0, 1) for s in (0, 1)]
    places = np.array(places)
    if blocks == 0:
        return np.array([patch])
    same_frame = np.all(places[:, :2] == places[patch, :2], axis=1)
    if blocks > min(vision.fullatt_block_indexes):
        return np.flatnonzero(same_frame)
    same_window = np.all(places[:, 2:] // 8 == places[patch, 2:] // 8, axis=1)
    return np.flatnonzero(same_frame & same_window)


def attention_cost(grid_thw, vision):
    windowed = full = 0
    for frames, h, w in grid_thw:
        for top in range(0, h, 8):
            for left in range(0, w, 8):
                windowed += frames * (min(8, h - top) * min(8, w - left)) ** 2
        full += frames * (h * w) ** 2
    return int(windowed), int(full)
