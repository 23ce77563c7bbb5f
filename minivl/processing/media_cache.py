"""Cache of processed images and videos: each is processed once per conversation.

    inputs = run(prepare_with_cache(processor, messages, cache))

Every turn's messages hold all images from the first on. Of each, the cache remembers the grid, the size and a digest, a few
hundred bytes, under a digest of its content and options; its tokens are in the KV cache. Patches (24 bytes per pixel) are not
cached: where the conversation was changed before an image, the image is processed again. A changed file counts as another
image. An animated PIL image and a `Clip`, whose content is known only when they are decoded, are processed in every turn.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from minivl.processing.messages import find_media, parse
from minivl.processing.prepare import build_inputs, process, tokenize
from minivl.processing.reuse import count_cached_media, hash_patches
from minivl.processing.sources import locate
from minivl.stream import under

BLOCK = 1 << 20  # bytes of a file that are read at a time


def prepare_with_cache(processor, messages, cache, sizes=None, sampling=None, add_vision_id=False):
    """Stage: as `prepare`, but what `cache.prepared` knows is not processed again, and what the KV cache holds has no
    patches."""
    messages = parse(messages)
    media, config = find_media(messages, sizes, sampling), processor.config
    images = yield from process_new("image", media[0], processor.image_processor, cache.prepared)
    videos = yield from process_new("video", media[1], processor.image_processor, cache.prepared)
    input_ids = tokenize(processor, messages, images, videos, add_vision_id)
    without_patches = build_inputs(input_ids, media[0], images, videos, config, (len(images), len(videos)))
    cached = count_cached_media(without_patches, cache, config)
    images = yield from add_patches("image", media[0], images, cached[0], processor.image_processor)
    videos = yield from add_patches("video", media[1], videos, cached[1], processor.image_processor)
    return build_inputs(input_ids, media[0], images, videos, config, cached)


def process_new(kind, media, image_processor, known):
    """Stage: a `Processed` for each `Media`; without patches where `known`, {origin: Processed}, has it. `known` grows."""
    processed = []
    for i, medium in enumerate(media):
        origin = hash_origin(*medium)
        if origin is None or origin not in known:
            new = yield from under(f"{kind}.{i}", process(medium, image_processor))
            new = replace(new, digest=hash_patches(new.patches, new.grid, new.seconds))
            if origin is not None:
                known[origin] = replace(new, patches=None)
        else:
            new = known[origin]
        processed.append(new)
    return processed


def add_patches(kind, media, processed, first, image_processor):
    """Stage: the same list; from index `first` on, all have patches."""
    processed = list(processed)
    for i in range(first, len(media)):
        if processed[i].patches is None:
            new = yield from under(f"{kind}.{i}", process(media[i], image_processor))
            processed[i] = replace(new, digest=processed[i].digest)
    return processed


def hash_origin(kind, source, options):
    """A digest of the content and options of an image or video, 64 hex digits; None if only decoding tells its content."""
    digest = hashlib.sha256(repr((kind, sorted(options.items()))).encode())
    try:
        for block in read_content(source):
            digest.update(block)
    except Exception:  # the error is raised where the source is opened
        return None
    return digest.hexdigest()


def read_content(source):
    """Yield the bytes of a source, block by block. A TypeError if there is no way to get them."""
    if isinstance(source, (str, Path, bytes, bytearray)):
        place = locate(source)
        if isinstance(place, bytes):
            yield place
            return
        with open(place, "rb") as file:
            while block := file.read(BLOCK):
                yield block
    elif isinstance(source, Image.Image) and not getattr(source, "is_animated", False):
        yield repr((source.mode, source.size, source.getpalette(), source.info.get("transparency"))).encode()
        yield source.tobytes()
    elif isinstance(source, np.ndarray) and source.dtype.kind in "uif":
        yield repr((source.shape, source.dtype.str)).encode()
        yield np.ascontiguousarray(source)
    elif isinstance(source, (list, tuple)):
        for frame in source:
            yield hash_origin("frame", frame, {}).encode()  # of an unknown frame None, which has no encode
    else:
        raise TypeError(source)
