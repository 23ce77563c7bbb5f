"""What the model takes once text, pictures and videos are prepared, and how their tokens find their places.

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

    input_ids            int64 [T], the placeholder of each picture and video expanded
    pixel_values         float32 [N, 1176], the patches of all pictures
    image_grid_thw       int64 [images, 3]: frames, patch rows, patch columns of each
    pixel_values_videos  float32 [N, 1176], the patches of all videos
    video_grid_thw       int64 [videos, 3]: pairs of frames, patch rows, patch columns of each
    second_per_grid_ts   float32 [videos]: seconds from one pair of frames to the next; 1.0 if not given
    image_sizes          (height, width) of each before it was resized, for the boxes of the answer; the model does without
    """

    input_ids: np.ndarray
    pixel_values: np.ndarray
    image_grid_thw: np.ndarray
    pixel_values_videos: np.ndarray | None = None
    video_grid_thw: np.ndarray | None = None
    second_per_grid_ts: np.ndarray | None = None
    image_sizes: tuple = ()

    def __post_init__(self):
        """No videos are empty arrays."""
        given = {
            "pixel_values_videos": np.asarray(self.pixel_values)[:0],
            "video_grid_thw": np.zeros((0, 3), dtype=np.int64),
        }
        for name, empty in given.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, empty)
        if self.second_per_grid_ts is None:
            object.__setattr__(self, "second_per_grid_ts", np.ones(len(self.video_grid_thw), dtype=np.float32))


def checked(inputs, config):
    """The same `Inputs` as dense arrays of the right types; an Error where shapes or ids do not fit the model."""
    ids, seconds = np.asarray(inputs.input_ids), np.asarray(inputs.second_per_grid_ts)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise Error(f"input_ids is {ids.dtype} {list(ids.shape)}; it must be whole numbers [T], at least one.")
    pictures = checked_media(inputs, "pixel_values", "image_grid_thw", config)
    videos = checked_media(inputs, "pixel_values_videos", "video_grid_thw", config)
    if seconds.shape != (len(videos[1]),) or not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise Error(
            f"second_per_grid_ts is {seconds.tolist()}; it must be a number of seconds above 0 for each of the "
            f"{len(videos[1])} videos."
        )
    return Inputs(ids.astype(np.int64), *pictures, *videos, seconds.astype(np.float32), inputs.image_sizes)


def checked_media(inputs, pixels, grid_thw, config):
    """Patches and grids of the pictures, or of the videos: their two names in `Inputs`."""
    patches, grids = np.asarray(getattr(inputs, pixels)), np.asarray(getattr(inputs, grid_thw))
    merge, width = config.vision.spatial_merge_size, config.vision.patch_dim
    if grids.ndim != 2 or grids.shape[1] != 3 or grids.dtype.kind not in "iu" or np.any(grids < 1):
        kind = grid_thw.partition("_")[0]
        raise Error(f"{grid_thw} is {grids.dtype} {list(grids.shape)}; it must be whole numbers above 0, [{kind}s, 3].")
    if np.any(grids[:, 1:] % merge):
        raise Error(f"{grid_thw} holds {grids.tolist()}; rows and columns must be multiples of {merge}.")
    if patches.dtype.kind != "f" or patches.shape != (grids.prod(axis=1).sum(), width):
        raise Error(
            f"{pixels} is {patches.dtype} {list(patches.shape)}; for this {grid_thw} it must be float32 "
            f"{[int(grids.prod(axis=1).sum()), width]}: a row for each patch."
        )
    return np.ascontiguousarray(patches, dtype=np.float32), grids.astype(np.int64)


def pictures_of(inputs, config):
    """For each picture, then each video: the index of its first token, how many it has, and a digest of what it shows."""
    still = np.zeros(len(inputs.image_grid_thw), dtype=np.float32)
    return [
        *_places(inputs, config.image_token_id, inputs.pixel_values, inputs.image_grid_thw, still, config),
        *_places(
            inputs, config.video_token_id, inputs.pixel_values_videos, inputs.video_grid_thw, inputs.second_per_grid_ts, config
        ),
    ]  # fmt: skip


def _places(inputs, token_id, pixels, grids, seconds, config):
    tokens = grids.prod(axis=1) // config.vision.merge_unit
    places = np.flatnonzero(inputs.input_ids == token_id)
    patches = np.split(pixels, np.cumsum(tokens * config.vision.merge_unit)[:-1])
    starts = places[np.cumsum(tokens) - tokens] if len(tokens) else []
    for start, count, *shown in zip(starts, tokens, grids, seconds, patches):
        # subtle: pages of one colour differ in their grids only, and a video played faster in its seconds only
        yield int(start), int(count), hashlib.sha256(b"".join(part.tobytes() for part in shown)).hexdigest()


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


def after(inputs, pictures, held):
    """Patches and grids of the pictures, then of the videos, that start behind the first `held` tokens."""
    images = len(inputs.image_grid_thw)
    return (
        *_without(inputs.pixel_values, inputs.image_grid_thw, pictures[:images], held),
        *_without(inputs.pixel_values_videos, inputs.video_grid_thw, pictures[images:], held),
    )


def _without(pixels, grids, pictures, held):
    first = sum(start < held for start, _, _ in pictures)
    return pixels[int(grids[:first].prod(axis=1).sum()) :], grids[first:]


def even_parts(length, most):
    """Slices of at most `most` that follow each other up to `length`, equally long as near as can be: 9, 4 -> 0:3 3:6 6:9"""
    count = -(-length // most)
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]


def scatter(x, features, where, kind="image"):
    """Put the tokens of the pictures (or videos), [U, D] in order, in the places of their placeholders.
    x [T, D], where bool [T]."""
    if where.sum() != len(features):
        raise Error(
            f"the prompt has {where.sum()} {kind} placeholders and the {kind}s have {len(features)} tokens. "
            f"Expand each placeholder to grid_t * grid_h * grid_w / 4 copies, one placeholder for each {kind}."
        )
    x = x.copy()
    x[where] = features
    return x
