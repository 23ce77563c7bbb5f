"""The model's inputs: token ids, patches and grids of one prompt.

inputs = run(vlm.prepare(messages))           # or made by hand, to run the model on any token ids and patches
vlm.trace(inputs)
"""

import math
from dataclasses import dataclass

import numpy as np

from minivl.errors import Error


@dataclass(eq=False)
class Inputs:
    """A prompt.

    input_ids            int64 [T], the placeholder of each image and video expanded
    pixel_values         float32 [N, 1176], the patches of all images
    image_grid_thw       int64 [images, 3]: frames, patch rows, patch columns of each
    pixel_values_videos  float32 [N, 1176], the patches of all videos
    video_grid_thw       int64 [videos, 3]: pairs of frames, patch rows, patch columns of each
    second_per_grid_ts   float32 [videos]: seconds from one pair of frames to the next; 1.0 if not given

    The model does not need these, which `prepare` fills in:
    images               the source of each image, such as a path, and
    image_sizes          its (height, width) before it was resized, for the boxes of the answer
    cached               (digests of images, digests of videos): of the first ones, which have no patches here because a
                         KV cache holds their tokens; see reuse.py
    """

    input_ids: np.ndarray
    pixel_values: np.ndarray | None
    image_grid_thw: np.ndarray | None
    pixel_values_videos: np.ndarray | None = None
    video_grid_thw: np.ndarray | None = None
    second_per_grid_ts: np.ndarray | None = None
    image_sizes: tuple = ()
    images: tuple = ()
    cached: tuple = ((), ())

    def __post_init__(self):
        """Make the arrays empty where there are no images or videos."""
        if (self.pixel_values is None) != (self.image_grid_thw is None):
            raise Error("Inputs need both pixel_values and image_grid_thw, or neither: a prompt of text.")
        if self.pixel_values is None:
            self.pixel_values, self.image_grid_thw = np.zeros((0, 0), np.float32), np.zeros((0, 3), np.int64)
        if self.pixel_values_videos is None:
            self.pixel_values_videos = np.asarray(self.pixel_values)[:0]
        if self.video_grid_thw is None:
            self.video_grid_thw = np.zeros((0, 3), dtype=np.int64)
        if self.second_per_grid_ts is None:
            self.second_per_grid_ts = np.ones(len(self.video_grid_thw), dtype=np.float32)


def validate(inputs, config):
    """The same `Inputs` as contiguous arrays of the right types; an Error where shapes or ids do not fit the model."""
    ids, seconds = np.asarray(inputs.input_ids), np.asarray(inputs.second_per_grid_ts)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise Error(f"input_ids is {ids.dtype} {list(ids.shape)}; it must be integers [T], at least one.")
    images, videos = map(len, inputs.cached)
    pixels = validate_media(inputs, "pixel_values", "image_grid_thw", images, config)
    frames = validate_media(inputs, "pixel_values_videos", "video_grid_thw", videos, config)
    if seconds.shape != (len(frames[1]),) or not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise Error(
            f"second_per_grid_ts is {seconds.tolist()}; it must be a number of seconds above 0 for each of the "
            f"{len(frames[1])} videos."
        )
    seconds, rest = seconds.astype(np.float32), (inputs.image_sizes, inputs.images, inputs.cached)
    return Inputs(ids.astype(np.int64), *pixels, *frames, seconds, *rest)


def validate_media(inputs, pixels, grid_thw, cached, config):
    """Patches and grids of the images, or of the videos, by their names in `Inputs`; the first `cached` have no patches."""
    patches, grids = np.asarray(getattr(inputs, pixels)), np.asarray(getattr(inputs, grid_thw))
    merge, width = config.vision.spatial_merge_size, config.vision.patch_dim
    if grids.ndim != 2 or grids.shape[1] != 3 or grids.dtype.kind not in "iu" or np.any(grids < 1):
        kind = grid_thw.partition("_")[0]
        raise Error(f"{grid_thw} is {grids.dtype} {list(grids.shape)}; it must be integers above 0, [{kind}s, 3].")
    if np.any(grids[:, 1:] % merge):
        raise Error(f"{grid_thw} holds {grids.tolist()}; rows and columns must be multiples of {merge}.")
    rows = sum(math.prod(grid) for grid in grids[cached:].tolist())  # subtle: NumPy's product of 2^32 * 2^32 is 0
    if patches.shape == (0, 0):  # of `Inputs` that were made without any
        patches = patches.reshape(0, width)
    if patches.dtype.kind != "f" or patches.shape != (rows, width):
        raise Error(
            f"{pixels} is {patches.dtype} {list(patches.shape)}; for this {grid_thw} it must be float32 {[rows, width]}: a "
            "row for each patch."
        )
    return np.ascontiguousarray(patches, dtype=np.float32), grids.astype(np.int64)
