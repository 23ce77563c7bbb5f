"""What the model takes once text, pictures and videos are prepared, and how their tokens find their places.

inputs = run(vlm.prepare(messages))           # or made by hand, to run the model on any token ids and patches
vlm.trace(inputs)
"""

from dataclasses import dataclass, field

import numpy as np

from minivl.errors import Error
from minivl.processing.media_cache import digest


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

    Of prepared messages, besides (a changed copy, dataclasses.replace, has neither):
    digests              what each picture, then each video shows: `prepared.digest`
    cached               (pictures, videos): so many of the first have no patches here, because a cache holds them
    """

    input_ids: np.ndarray
    pixel_values: np.ndarray
    image_grid_thw: np.ndarray
    pixel_values_videos: np.ndarray | None = None
    video_grid_thw: np.ndarray | None = None
    second_per_grid_ts: np.ndarray | None = None
    image_sizes: tuple = ()
    digests: tuple = field(default=(), init=False)
    cached: tuple = field(default=(0, 0), init=False)

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


def known(inputs, digests, cached):
    """The same `Inputs`, with what those of prepared messages say besides."""
    object.__setattr__(inputs, "digests", digests)
    object.__setattr__(inputs, "cached", cached)
    return inputs


def checked(inputs, config):
    """The same `Inputs` as dense arrays of the right types; an Error where shapes or ids do not fit the model."""
    ids, seconds = np.asarray(inputs.input_ids), np.asarray(inputs.second_per_grid_ts)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise Error(f"input_ids is {ids.dtype} {list(ids.shape)}; it must be whole numbers [T], at least one.")
    pictures = checked_media(inputs, "pixel_values", "image_grid_thw", inputs.cached[0], config)
    videos = checked_media(inputs, "pixel_values_videos", "video_grid_thw", inputs.cached[1], config)
    if seconds.shape != (len(videos[1]),) or not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise Error(
            f"second_per_grid_ts is {seconds.tolist()}; it must be a number of seconds above 0 for each of the "
            f"{len(videos[1])} videos."
        )
    found = Inputs(ids.astype(np.int64), *pictures, *videos, seconds.astype(np.float32), inputs.image_sizes)
    return known(found, inputs.digests, inputs.cached)


def checked_media(inputs, pixels, grid_thw, cached, config):
    """Patches and grids of the pictures, or of the videos: their two names in `Inputs`; the first may be cached."""
    patches, grids = np.asarray(getattr(inputs, pixels)), np.asarray(getattr(inputs, grid_thw))
    merge, width = config.vision.spatial_merge_size, config.vision.patch_dim
    if grids.ndim != 2 or grids.shape[1] != 3 or grids.dtype.kind not in "iu" or np.any(grids < 1):
        kind = grid_thw.partition("_")[0]
        raise Error(f"{grid_thw} is {grids.dtype} {list(grids.shape)}; it must be whole numbers above 0, [{kind}s, 3].")
    if np.any(grids[:, 1:] % merge):
        raise Error(f"{grid_thw} holds {grids.tolist()}; rows and columns must be multiples of {merge}.")
    rows = int(grids[cached:].prod(axis=1).sum())
    if patches.dtype.kind != "f" or patches.shape != (rows, width):
        raise Error(
            f"{pixels} is {patches.dtype} {list(patches.shape)}; for this {grid_thw} it must be float32 {[rows, width]}: a "
            "row for each patch."
        )
    return np.ascontiguousarray(patches, dtype=np.float32), grids.astype(np.int64)


def pictures_of(inputs, config):
    """For each picture, then each video: the index of its first token, how many it has, and a digest of what it shows."""
    digests = inputs.digests or _digests(inputs)
    grids = (config.image_token_id, inputs.image_grid_thw), (config.video_token_id, inputs.video_grid_thw)
    found = [place for token_id, grid in grids for place in _places(inputs, token_id, grid, config.vision.merge_unit)]
    return [(*place, shows) for place, shows in zip(found, digests)]


def _places(inputs, token_id, grids, merge_unit):
    tokens = grids.prod(axis=1) // merge_unit
    places = np.flatnonzero(inputs.input_ids == token_id)
    starts = places[np.cumsum(tokens) - tokens] if len(tokens) else []
    return [(int(start), int(count)) for start, count in zip(starts, tokens)]


def _digests(inputs):
    still = np.zeros(len(inputs.image_grid_thw), dtype=np.float32)
    for pixels, grids, seconds in (
        (inputs.pixel_values, inputs.image_grid_thw, still),
        (inputs.pixel_values_videos, inputs.video_grid_thw, inputs.second_per_grid_ts),
    ):
        each = np.split(pixels, np.cumsum(grids.prod(axis=1))[:-1])
        yield from (digest(*shown) for shown in zip(each, grids, seconds))


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


def in_cache(inputs, cache, config):
    """(pictures, videos): how many of the first need not be run, because the cache holds them."""
    pictures, images = pictures_of(inputs, config), len(inputs.image_grid_thw)
    held = reusable(cache, inputs.input_ids, pictures)
    return tuple(sum(start < held for start, _, _ in kind) for kind in (pictures[:images], pictures[images:]))


def after(inputs, pictures, held):
    """Patches and grids of the pictures, then of the videos, that start behind the first `held` tokens."""
    images, (stills, films) = len(inputs.image_grid_thw), inputs.cached
    return (
        *_without(inputs.pixel_values, inputs.image_grid_thw, stills, pictures[:images], held),
        *_without(inputs.pixel_values_videos, inputs.video_grid_thw, films, pictures[images:], held),
    )


def _without(pixels, grids, cached, pictures, held):
    first = sum(start < held for start, _, _ in pictures)
    if first < cached:
        raise Error(
            f"the first {cached} of the prompt's pictures (or videos) were prepared for another cache, which holds them, and "
            "have no patches. Prepare the messages with this cache, or with none."
        )
    return pixels[int(grids[cached:first].prod(axis=1).sum()) :], grids[first:]


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
