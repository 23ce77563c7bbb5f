"""Messages with pictures and videos to `Inputs`: pictures to patches, text to ids, a placeholder for each token.

inputs = run(vlm.prepare(messages, max_pixels=200_000))      # names: image.0.resized, image.0.normalized, image.0.patches, ...
"""

import math

import numpy as np

from minivl.errors import Error
from minivl.processing import messages as chat
from minivl.processing.image_processor import prepare_image
from minivl.processing.inputs import Inputs, in_cache, known
from minivl.processing.load_image import open_image
from minivl.processing.media_cache import Prepared, digest, prepared, with_patches
from minivl.processing.video_processor import prepare_video


def prepare(vlm, messages, sizes=None, sampling=None, add_vision_id=False, cache=None):
    """Stage: messages -> `Inputs`. sizes and sampling as in `chat.media`.

    cache  of the conversation: what it knows of pictures and videos is not made again, and those that it holds have no patches
    """
    if not messages:
        raise Error('there are no messages to answer. Give at least one, {"role": "user", "content": "..."}.')

    def picture(source, asked):
        opened = open_image(source)
        patches, grid = yield from prepare_image(opened, vlm.processor, **asked)
        return Prepared(patches, grid, digest(patches, grid), size=(opened.height, opened.width))

    def video(source, asked):
        patches, grid, seconds = yield from prepare_video(source, vlm.processor, **asked)
        return Prepared(patches, grid, digest(patches, grid, seconds), seconds=seconds)

    images, videos = chat.media(messages, sizes, sampling)
    earlier, vision = None if cache is None else cache.prepared, vlm.config.vision
    pictures = yield from prepared("image", images, picture, earlier)
    clips = yield from prepared("video", videos, video, earlier)
    counts = [[math.prod(one.grid) // vision.merge_unit for one in media] for media in (pictures, clips)]
    text = chat.expand(vlm.template.render(messages, add_vision_id=add_vision_id), *counts)
    parts = vlm.tokenizer.encode(text), pictures, clips, vision.patch_dim
    if cache is None:
        return gathered(*parts)
    held = in_cache(gathered(*parts, (len(pictures), len(clips))), cache, vlm.config)
    pictures = yield from with_patches("image", images, pictures, held[0], picture)
    clips = yield from with_patches("video", videos, clips, held[1], video)
    return gathered(parts[0], pictures, clips, vision.patch_dim, held)


def gathered(input_ids, pictures, videos, patch_dim, cached=(0, 0)):
    """`Inputs` of a `Prepared` for each picture and video; without the patches of the first, which a cache holds."""
    patches, grids = [], []
    for media, first in zip((pictures, videos), cached):
        made = [one.patches for one in media[first:]]
        whole = made[0] if len(made) == 1 else np.concatenate([np.zeros((0, patch_dim), dtype=np.float32), *made])
        patches.append(whole)
        grids.append(np.array([one.grid for one in media], dtype=np.int64).reshape(-1, 3))
    seconds = np.array([one.seconds for one in videos], dtype=np.float32)
    sizes, digests = tuple(one.size for one in pictures), tuple(one.digest for one in (*pictures, *videos))
    return known(Inputs(input_ids, patches[0], grids[0], patches[1], grids[1], seconds, sizes), digests, cached)
