"""Which tokens of a prompt a KV cache holds already, and which images and videos still have to run.

    media = locate_media(inputs, config)          # [(first token, number of tokens, digest), ...]: images, then videos
    reused = count_reusable(cache, inputs.input_ids, media)
    patches, grids, patches_of_videos, grids_of_videos = media_after(inputs, media, reused)

Placeholder tokens of any two images are alike, so a digest of the patches tells whether the cache holds this image.
"""

import hashlib

import numpy as np

from minivl.errors import Error


def hash_patches(patches, grid, seconds=0.0):
    """A digest of an image or video, 64 hex digits, from its patches, its grid and the seconds between pairs of frames.

    subtle: pages of one colour differ in their grids only, and a video played faster in its seconds only
    """
    digest = hashlib.sha256(np.asarray(grid, dtype=np.int64).tobytes() + np.float32(seconds).tobytes())
    digest.update(np.ascontiguousarray(patches))
    return digest.hexdigest()


def locate_media(inputs, config):
    """(first token, number of tokens, digest) of each image, then of each video."""
    still, media = np.zeros(len(inputs.image_grid_thw), dtype=np.float32), []
    for token_id, patches, grids, seconds, cached in (
        (config.image_token_id, inputs.pixel_values, inputs.image_grid_thw, still, inputs.cached[0]),
        (config.video_token_id, inputs.pixel_values_videos, inputs.video_grid_thw, inputs.second_per_grid_ts, inputs.cached[1]),
    ):  # fmt: skip
        tokens = grids.prod(axis=1) // config.vision.merge_unit
        placeholders = np.flatnonzero(inputs.input_ids == token_id)
        starts = placeholders[np.cumsum(tokens) - tokens] if len(tokens) else []
        rows = np.split(patches, np.cumsum(grids[len(cached) :].prod(axis=1))[:-1])
        digests = [*cached, *map(hash_patches, rows, grids[len(cached) :], seconds[len(cached) :])]
        media += [(int(start), int(count), digest) for start, count, digest in zip(starts, tokens, digests)]
    return media


def count_reusable(cache, input_ids, media):
    """How many tokens at the start of the prompt need not run again: never the last one, and an image whole or not at all."""
    length = min(len(cache), len(input_ids) - 1)
    differing = np.flatnonzero(cache.input_ids[:length] != input_ids[:length])
    reused = int(differing[0]) if len(differing) else length
    for medium in media:
        start, count, _ = medium
        if start < reused and (medium not in cache.media or reused < start + count):
            reused = start
    return reused


def count_cached_media(inputs, cache, config):
    """(images, videos): how many, from the first on, need not run because the cache holds their tokens."""
    media, images = locate_media(inputs, config), len(inputs.image_grid_thw)
    reused = count_reusable(cache, inputs.input_ids, media)
    return tuple(sum(start < reused for start, _, _ in kind) for kind in (media[:images], media[images:]))


def media_after(inputs, media, reused):
    """Patches and grids of the images, then of the videos, after the first `reused` tokens."""
    images, (stills, films) = len(inputs.image_grid_thw), map(len, inputs.cached)
    return (
        *_rows_after(inputs.pixel_values, inputs.image_grid_thw, stills, media[:images], reused),
        *_rows_after(inputs.pixel_values_videos, inputs.video_grid_thw, films, media[images:], reused),
    )


def _rows_after(patches, grids, cached, media, reused):
    """Patches and grids of the images, or of the videos, after the reused tokens; the first `cached` have no patches."""
    first = sum(start < reused for start, _, _ in media)
    if first < cached:
        raise Error(
            f"the first {cached} of the prompt's images (or videos) were prepared for another cache, which holds them, and "
            "have no patches. Prepare the messages with this cache, or with none."
        )
    return patches[int(grids[cached:first].prod(axis=1).sum()) :], grids[first:]
