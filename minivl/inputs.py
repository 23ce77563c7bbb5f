"""What the model takes once text and pictures are prepared, and how a picture's tokens find their places.

inputs = run(vlm.prepare(messages))           # or made by hand, to run the model on any token ids and patches
vlm.trace(inputs)
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from minivl.errors import Error


@dataclass(frozen=True)
class Inputs:
    """A prompt.

    input_ids       int64 [T], every picture's placeholder expanded
    pixel_values    float32 [N, 1176], the patches of all pictures
    image_grid_thw  int64 [images, 3]: frames, patch rows, patch columns of each
    image_sizes     (height, width) of each before it was resized, for the boxes of the answer; the model does without
    """

    input_ids: np.ndarray
    pixel_values: np.ndarray
    image_grid_thw: np.ndarray
    image_sizes: tuple = ()


def checked(inputs, config):
    """The same `Inputs` as dense arrays of the right types; an Error where shapes or ids do not fit the model."""
    ids, patches, grids = map(np.asarray, (inputs.input_ids, inputs.pixel_values, inputs.image_grid_thw))
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise Error(f"input_ids is {ids.dtype} {list(ids.shape)}; it must be whole numbers [T], at least one.")
    merge, width = config.vision.spatial_merge_size, config.vision.patch_dim
    if grids.ndim != 2 or grids.shape[1] != 3 or grids.dtype.kind not in "iu" or np.any(grids < 1):
        raise Error(
            f"image_grid_thw is {grids.dtype} {list(grids.shape)}; it must be whole numbers above 0, [images, 3]."
        )
    if np.any(grids[:, 1:] % merge):
        raise Error(f"image_grid_thw holds {grids.tolist()}; rows and columns must be multiples of {merge}.")
    if patches.dtype.kind != "f" or patches.shape != (grids.prod(axis=1).sum(), width):
        raise Error(
            f"pixel_values is {patches.dtype} {list(patches.shape)}; for this image_grid_thw it must be float32 "
            f"{[int(grids.prod(axis=1).sum()), width]}: a row for each patch."
        )
    patches = np.ascontiguousarray(patches, dtype=np.float32)
    return Inputs(ids.astype(np.int64), patches, grids.astype(np.int64), inputs.image_sizes)


def pictures_of(inputs, config):
    """For each picture: the index of its first token in the prompt, how many it has, and a digest of what it shows."""
    tokens = inputs.image_grid_thw.prod(axis=1) // config.vision.merge_unit
    places = np.flatnonzero(inputs.input_ids == config.image_token_id)
    patches = np.split(inputs.pixel_values, np.cumsum(tokens * config.vision.merge_unit)[:-1])
    starts = places[np.cumsum(tokens) - tokens] if len(tokens) else []
    # subtle: pages of one colour differ in their grids only
    digests = [
        hashlib.sha256(grid.tobytes() + p.tobytes()).hexdigest() for grid, p in zip(inputs.image_grid_thw, patches)
    ]
    return [(int(start), int(count), digest) for start, count, digest in zip(starts, tokens, digests)]


def reusable(cache, input_ids, pictures):
    """How many tokens at the start of the prompt the cache holds already: all but one at most, no part of a picture."""
    length = min(len(cache), len(input_ids) - 1)
    differing = np.flatnonzero(cache.input_ids[:length] != input_ids[:length])
    held = int(differing[0]) if len(differing) else length
    for picture in pictures:
        start, count, _ = picture
        if start < held and (picture not in cache.pictures or held < start + count):
            held = start
    return held


def without(inputs, pictures):
    """pixel_values and image_grid_thw without the first `pictures` of them."""
    skipped = int(inputs.image_grid_thw[:pictures].prod(axis=1).sum())
    return inputs.pixel_values[skipped:], inputs.image_grid_thw[pictures:]


def scatter(x, features, where):
    """Put the pictures' tokens, [U, D] in order, in the places of their placeholders. x [T, D], where bool [T]."""
    if where.sum() != len(features):
        raise Error(
            f"the prompt has {where.sum()} image placeholders and the pictures have {len(features)} tokens. "
            "Expand each placeholder to grid_t * grid_h * grid_w / 4 copies, one placeholder for each picture."
        )
    x = x.copy()
    x[where] = features
    return x
