"""Messages to `Inputs`: images and videos to patches, text to token ids, a placeholder for each token of an image.

processor = Processor(image_processor, template, tokenizer, config)
inputs = run(prepare(processor, messages))      # names: image.0.resized, image.0.normalized, image.0.patches, ...
"""

import math
from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.processing.image_processor import prepare_image
from minivl.processing.inputs import Inputs
from minivl.processing.load_image import open_image
from minivl.processing.messages import expand, find_media, parse
from minivl.processing.video_processor import prepare_video
from minivl.stream import under


@dataclass(frozen=True)
class Processor:
    """The four parts that turn messages into `Inputs`: an ImageProcessor, a Template, a Tokenizer, and the model's Config."""

    image_processor: object
    template: object
    tokenizer: object
    config: object


@dataclass(frozen=True)
class Processed:
    """An image or video as the model takes it.

    patches  float32 [N, 1176]; None if only the rest is known (media_cache.py)
    grid     frames, patch rows, patch columns
    size     (height, width) of an image before it was resized
    seconds  of a video, from one pair of frames to the next
    digest   of the patches (reuse.py), where there is a cache
    """

    patches: np.ndarray | None
    grid: tuple
    size: tuple | None = None
    seconds: float = 0.0
    digest: str | None = None


def prepare(processor, messages, sizes=None, sampling=None, add_vision_id=False):
    """Stage: messages -> `Inputs`. sizes and sampling: see `find_media`."""
    messages = parse(messages)
    media, images, videos = find_media(messages, sizes, sampling), [], []
    for i, image in enumerate(media[0]):
        images.append((yield from under(f"image.{i}", process(image, processor.image_processor))))
    for i, video in enumerate(media[1]):
        videos.append((yield from under(f"video.{i}", process(video, processor.image_processor))))
    input_ids = tokenize(processor, messages, images, videos, add_vision_id)
    return build_inputs(input_ids, media[0], images, videos, processor.config)


def process(media, image_processor):
    """Stage: a `Media` -> `Processed`."""
    if media.kind == "video":
        patches, grid, seconds = yield from prepare_video(media.source, image_processor, **media.options)
        return Processed(patches, grid, seconds=seconds)
    image = open_image(media.source)
    patches, grid = yield from prepare_image(image, image_processor, **media.options)
    return Processed(patches, grid, size=(image.height, image.width))


def tokenize(processor, messages, images, videos, add_vision_id):
    """Token ids of the prompt, int64 [T], each placeholder expanded."""
    if not messages:
        raise Error('there are no messages to answer. Give at least one, {"role": "user", "content": "..."}.')
    unit = processor.config.vision.merge_unit
    counts = [[math.prod(p.grid) // unit for p in processed] for processed in (images, videos)]
    text = processor.template.render(messages, add_vision_id=add_vision_id)
    return processor.tokenizer.encode(expand(text, *counts))


def build_inputs(input_ids, image_media, images, videos, config, cached=(0, 0)):
    """`Inputs` from a `Processed` for each image and video, without the patches of the first, which a KV cache holds.

    image_media  the `Media` of each image, for its source
    """
    patches, grids, digests = [], [], []
    for processed, first in zip((images, videos), cached):
        rows = [p.patches for p in processed[first:]]
        empty = np.zeros((0, config.vision.patch_dim), dtype=np.float32)
        patches.append(rows[0] if len(rows) == 1 else np.concatenate([empty, *rows]))
        grids.append(np.array([p.grid for p in processed], dtype=np.int64).reshape(-1, 3))
        digests.append(tuple(p.digest for p in processed[:first]))
    return Inputs(
        input_ids,
        pixel_values=patches[0],
        image_grid_thw=grids[0],
        pixel_values_videos=patches[1],
        video_grid_thw=grids[1],
        second_per_grid_ts=np.array([video.seconds for video in videos], dtype=np.float32),
        image_sizes=tuple(image.size for image in images),
        images=tuple(image.source for image in image_media),
        cached=tuple(digests),
    )
