"""Notebook 02: the window order, its inverse, the reach of a patch, the cost."""

import numpy as np

from minivl.checkpoint.config import Config
from minivl.lab.exercise import Case, Exercise, Mistake
from minivl.model.windows import frame_segments, to_raster_order, unit_grid, window_index
from minivl.trace.grids import Grids

VISION = Config.named("3B").vision
GRIDS = (
    ([[1, 6, 12]], "an image of 3 x 6 units: partial windows at the right and below"),
    ([[1, 20, 22]], "an image of 10 x 11 units"),
    ([[1, 10, 6], [1, 6, 18]], "two images, of 5 x 3 and 3 x 9 units"),
    ([[2, 10, 10], [1, 4, 12]], "a video of two pairs of frames, 5 x 5 units, and an image"),
)


def grid_cases():
    """A case for each of GRIDS, with units as rows of the result."""
    for grid, label in GRIDS:
        grid = np.array(grid, dtype=np.int64)
        index, _ = window_index(grid, VISION)
        places = unit_grid(grid, VISION.spatial_merge_size)[index]
        known = {"image_grid_thw": grid}
        yield Case({"grid_thw": grid, "vision": VISION}, label, places, known=known, config=Config.named("3B"))


def without_frames(grid_thw, vision):
    """Window order with a video's frames as more rows of one image."""
    tall = np.stack([grid_thw[:, 0] * 0 + 1, grid_thw[:, 0] * grid_thw[:, 1], grid_thw[:, 2]], axis=1)
    return window_index(tall, vision)


def column_by_column(grid_thw, vision):
    image, frame, row, col = unit_grid(grid_thw, 2).T
    return np.lexsort((row, col, row // 4, col // 4, frame, image)), window_index(grid_thw, vision)[1]


def offset_in_patches(grid_thw, vision):
    """Window order whose later images begin at the number of patches before them, not of units."""
    index, bounds = window_index(grid_thw, vision)
    units = grid_thw.prod(axis=1) // 4
    before = np.cumsum(units) - units
    image = np.searchsorted(before, index, side="right") - 1
    return index + 3 * before[image], bounds


def without_offset(grid_thw, vision):
    """Window order with every frame of every image numbered from 0."""
    parts = [window_index(np.array([[1, h, w]]), vision)[0] for t, h, w in grid_thw for _ in range(t)]
    return np.concatenate(parts), window_index(grid_thw, vision)[1]


def frames_without_offset(first_frame_only):
    """A wrong order in which all frames of a video have the numbers of its first one.

    first_frame_only  whether later images are numbered from the end of the first frame, or of all frames
    """

    def order(grid_thw, vision):
        parts, start = [], 0
        for t, h, w in grid_thw:
            parts += [start + window_index(np.array([[1, h, w]]), vision)[0]] * t
            start += h * w // 4 * (1 if first_frame_only else t)
        return np.concatenate(parts), window_index(grid_thw, vision)[1]

    return order


def lengths_for_bounds(grid_thw, vision):
    index, bounds = window_index(grid_thw, vision)
    return index, np.diff(bounds)


def bounds_without_zero(grid_thw, vision):
    index, bounds = window_index(grid_thw, vision)
    return index, bounds[1:]


def full_windows_only(grid_thw, vision):
    """Window order without partial windows."""
    image, frame, row, col = unit_grid(grid_thw, 2).T
    index, _ = window_index(grid_thw, vision)
    R, S = grid_thw[image, 1] // 2, grid_thw[image, 2] // 2
    index = index[((row // 4 + 1) * 4 <= R)[index] & ((col // 4 + 1) * 4 <= S)[index]]
    return index, np.arange(0, 4 * len(index) + 1, 64)


WINDOW_INDEX = Exercise(
    "02.1", "window_index", "The window order, partial windows included",
    "Put the units of all images into window order, and say where each window begins.", 25, 2,
    "window_index(grid_thw, vision) -> (window_index int64 [U], cu_window_seqlens int64 [windows + 1])",
    """grid_thw int64 [images, 3] holds frames, patch rows and patch columns; a unit is 2 x 2 patches, a window 4 x 4 units.
window_index[i] is the number of the unit (row by row, frame by frame, image by image) that stands i-th in window
order: window by window, row by row within each. At the right and lower edge windows are smaller. cu_window_seqlens are
the boundaries of the windows in that order, from 0, counted in patches. No window crosses a frame or an image.""",
    ("units = np.arange(R * S).reshape(R, S) numbers the units of an image; a slice is a window.",
     "units[top : top + 4, left : left + 4] is smaller at the edge by itself. Then the next frame or image: its numbers go "
     "on from the last ones.",
     "For each image, frame, top, left: append the slice plus `start`; after each frame start += R * S. The boundaries are "
     "4 * np.cumsum([0, *lengths])."),
    window_index, grid_cases, ("window_index", "cu_window_seqlens"),
    (
        Mistake("frames not apart", "a video's frames are taken for one tall image: windows cross from one to the next",
                without_frames),
        Mistake("columns before rows", "windows, and units within them, are taken column by column", column_by_column),
        Mistake("windows without offset", "later images begin at the number of patches before them, not of units",
                offset_in_patches),
        Mistake("windows without offset", "each frame's and image's numbers start at 0: those of earlier ones are not added",
                without_offset),
        Mistake("windows without offset", "each frame of a video has the numbers of its first: those of the frames before are "
                "not added", frames_without_offset(False)),
        Mistake("windows without offset", "each frame of a video has the numbers of its first, and the next image continues "
                "after that one: after each frame start += R * S", frames_without_offset(True)),
        Mistake("lengths for boundaries", "cu_window_seqlens are the windows' lengths; they should add up, from 0",
                lengths_for_bounds),
        Mistake("no first boundary", "the boundaries lack the 0 in front", bounds_without_zero),
        Mistake("partial windows lost", "windows at the right and lower edge are left out", full_windows_only),
    ),
    ("visual.window_index", "visual.cu_window_seqlens"), part="window_index",
)  # fmt: skip

# ---- 02.2 back to raster order ----


def order_cases():
    rng = np.random.default_rng(3)
    for case in grid_cases():
        grid = case.arguments["grid_thw"]
        index, _ = window_index(grid, VISION)
        x = rng.standard_normal((len(index), 8)).astype(np.float32)
        known = {**case.known, "visual.merger": x, "visual.window_index": index}
        yield Case({"x": x, "window_index": index}, case.label, unit_grid(grid, 2), known=known, config=case.config)


RASTER = Exercise(
    "02.2", "to_raster_order", "Back from window order",
    "Undo the window order with the inverse permutation.", 10, 1,
    "to_raster_order(x, window_index) -> float32 [U, D]        x float32 [U, D] in window order",
    """Row i of x belongs to the unit window_index[i]. Return the rows in the order of the units.""",
    ("x[window_index] would sort them once more.",
     "You want y with y[window_index[i]] = x[i].",
     "y[window_index] = x, or x[np.argsort(window_index)]."),
    to_raster_order, order_cases, ("rows",),
    (Mistake("inverse of the window order", "its rows were indexed by window_index, where argsort(window_index) undoes it",
             lambda x, window_index: x[window_index]),
     Mistake("sorted by value", "the values are sorted, each column by itself; whole rows should move",
             lambda x, window_index: np.sort(x, axis=0)),
     Mistake("opposite order", "the rows are in the opposite order", lambda x, window_index: x[::-1])),
    ("visual",), part="to_raster_order",
)  # fmt: skip

# ---- 02.3 the reach of a patch ----


def reach(patch, grid_thw, blocks, vision, full=None, of_frame=None):
    """Patches that depend on `patch` after some blocks, in ascending order."""
    grids = Grids(Config.named("3B"), grid_thw)
    place = grids.places[patch]
    size = vision.window_size // vision.patch_size
    same = np.arange(len(grids.places)) == patch
    for block in range(blocks):
        if block in (vision.fullatt_block_indexes if full is None else full):
            columns = slice(0, 2) if of_frame is None else slice(0, of_frame)
            same |= np.all(grids.places[:, columns] == place[columns], axis=1)
        else:
            windows = np.concatenate([grids.places[:, :2], grids.places[:, 2:] // size], axis=1)
            same |= np.isin(window_number(windows), window_number(windows)[same])
    return np.flatnonzero(same)


def window_number(windows):
    return np.unique(windows, axis=0, return_inverse=True)[1].reshape(-1)


def reach_cases():
    for (grid, label), patch in zip(GRIDS[1:], (300, 100, 130)):
        grid = np.array(grid, dtype=np.int64)
        for blocks in (0, 1, 7, 8, 9):
            arguments = {"patch": patch, "grid_thw": grid, "blocks": blocks, "vision": VISION}
            yield Case(arguments, f"patch {patch} after {blocks} block{'s' * (blocks != 1)}, of {label}")


def slots_of(patches, grid_thw):
    """Sorted rows in window order."""
    index, _ = window_index(grid_thw, VISION)
    slot = np.argsort((4 * index[:, None] + np.arange(4)).reshape(-1))
    return np.sort(slot[patches])


def only_windows(patch, grid_thw, blocks, vision):
    return reach(patch, grid_thw, blocks, vision, full=())


def no_windows(patch, grid_thw, blocks, vision):
    return reach(patch, grid_thw, blocks, vision, full=range(32))


def by_first_grid(patch, grid_thw, blocks, vision):
    _, h, w = grid_thw[0]
    return reach(patch, np.array([[patch // (h * w) + 1, h, w]]), blocks, vision)


REACH = Exercise(
    "02.3", "reached", "The exact set of patches that one changed patch reaches",
    "Say which patches can have changed after a number of blocks, if one patch of the image is painted over.", 20, 2,
    "reached(patch, grid_thw, blocks, vision) -> int64 [n], rising",
    """After the first `blocks` blocks of the tower, which patches (in the image processor's order, as `patch`) can differ? Blocks
in vision.fullatt_block_indexes see a whole frame, all others their window of 8 x 8 patches. minivl.trace.grids.Grids(
config, grid_thw).places, or your own arithmetic, knows (image, frame, row, column) of each patch.""",
    ("With 0 blocks it is the patch itself. What does block 0 add?",
     "Two windowed blocks reach no more than one. Blocks are counted from 0: block 7 is the eighth.",
     "Same image, frame, row // 8 and column // 8: the window. Same image and frame: once one of the first `blocks` "
     "blocks is a full one."),
    reach, reach_cases, ("patches",),
    (
        Mistake("window attention everywhere", "it stays in the window, however many blocks: a full block reaches the frame",
                only_windows),
        Mistake("no window attention", "it reaches the whole frame at once: windowed blocks reach their window only",
                no_windows),
        Mistake("attention across images", "a full block reaches all images; full is full within a frame",
                lambda p, g, b, v: reach(p, g, b, v, of_frame=0)),
        Mistake("frames not apart", "a full block reaches all frames of a video; full is full within a frame",
                lambda p, g, b, v: reach(p, g, b, v, of_frame=1)),
        Mistake("off by one", "it counts one block too many: after 7 blocks, block 7 has not run yet",
                lambda p, g, b, v: reach(p, g, b, v, full=[i - 1 for i in v.fullatt_block_indexes])),
        Mistake("off by one", "it counts one block too few: after 8 blocks, block 7 has run",
                lambda p, g, b, v: reach(p, g, max(b - 1, 0), v)),
        Mistake("rows in window order", "these are rows in window order, and patches are asked for",
                lambda p, g, b, v: slots_of(reach(p, g, b, v), g)),
        Mistake("first grid for all", "it reckons with the grid of the first image, and the patch lies in a later one",
                by_first_grid),
        Mistake("itself left out", "the patch itself is missing",
                lambda p, g, b, v: np.setdiff1d(reach(p, g, b, v), [p])),
        Mistake("units for patches", "these are units of 2 x 2 patches, and patches are asked for",
                lambda p, g, b, v: np.unique(reach(p, g, b, v) // 4)),
    ),
)  # fmt: skip

# ---- 02.4 the cost ----


def scores(grid_thw, vision):
    """Number of scores that one head computes: (in a windowed block, in a full one)."""
    _, windows = window_index(grid_thw, vision)
    frames = frame_segments(grid_thw)
    return int(np.sum(np.diff(windows) ** 2)), int(np.sum(np.diff(frames) ** 2))


COST = Exercise(
    "02.4", "attention_cost", "The cost of windows against full attention",
    "Count the scores that a head computes in a windowed block and in a full one.", 10, 1,
    "attention_cost(grid_thw, vision) -> (windowed, full)",
    """A patch has a score against each patch of its segment, itself included. Segments are windows in a windowed block and frames
in a full one. Count all scores of one head, for all images. Mind the windows that are smaller.""",
    ("A segment of n patches has n * n scores.",
     "A window has 64 patches at most; at the edges it has fewer.",
     "windowed = sum of n ** 2 over np.diff(cu_window_seqlens); full = sum of (h * w) ** 2 over the frames."),
    scores, grid_cases, ("windowed", "full"),
    (
        Mistake("partial windows taken for whole", "it is 64 for each patch: windows at the edges have fewer",
                lambda g, v: (64 * int(g.prod(axis=1).sum()), scores(g, v)[1])),
        Mistake("partial windows taken for whole", "it is 64 for each patch, where windows at the edges have fewer; and full is the "
                "square of all patches, where images and frames see themselves only",
                lambda g, v: (64 * int(g.prod(axis=1).sum()), int(g.prod(axis=1).sum()) ** 2)),
        Mistake("attention across images", "full is the square of all patches: images and frames see themselves only",
                lambda g, v: (scores(g, v)[0], int(g.prod(axis=1).sum()) ** 2)),
        Mistake("frames not apart", "full takes a video for one segment: each frame is one",
                lambda g, v: (scores(g, v)[0], int((g.prod(axis=1) ** 2).sum()))),
        Mistake("units for patches", "units are counted, and patches have scores: 16 times as many",
                lambda g, v: tuple(n // 16 for n in scores(g, v))),
        Mistake("patches for scores", "a segment of n patches counts n; each of them has n scores",
                lambda g, v: (int(g.prod(axis=1).sum()),) * 2),
        Mistake("causal mask", "each pair is counted once, as with a causal mask: the tower sees in both directions",
                lambda g, v: tuple((n + int(g.prod(axis=1).sum())) // 2 for n in scores(g, v))),
        Mistake("all heads", "it counts the scores of all heads", lambda g, v: tuple(n * v.num_heads for n in scores(g, v))),
        Mistake("exchanged", "the two numbers are exchanged", lambda g, v: scores(g, v)[::-1]),
    ),
)  # fmt: skip

EXERCISES = (WINDOW_INDEX, RASTER, REACH, COST)
