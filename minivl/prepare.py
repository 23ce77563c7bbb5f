"""Messages with pictures and videos to `Inputs`: pictures to patches, text to ids, a placeholder for each token.

inputs = run(vlm.prepare(messages, max_pixels=200_000))      # names: image.0.resized, image.0.normalized, image.0.patches, ...
"""

import numpy as np

from minivl import chat
from minivl.image import prepare_image
from minivl.image_file import open_image
from minivl.inputs import Inputs
from minivl.stream import under
from minivl.video import prepare_video


def prepare(vlm, messages, sizes=None, sampling=None, add_vision_id=False):
    """Stage: messages -> `Inputs`. sizes and sampling as in `chat.media`."""
    (images, videos), pictures, clips = chat.media(messages, sizes, sampling), [], []
    for i, (source, asked) in enumerate(images):
        picture = open_image(source)
        one = yield from under(f"image.{i}", prepare_image(picture, vlm.processor, **asked))
        pictures.append((*one, (picture.height, picture.width)))
    for i, (source, asked) in enumerate(videos):
        clips.append((yield from under(f"video.{i}", prepare_video(source, vlm.processor, **asked))))
    vision = vlm.config.vision
    counts = [[len(one[0]) // vision.merge_unit for one in media] for media in (pictures, clips)]
    text = chat.expand(vlm.template.render(messages, add_vision_id=add_vision_id), *counts)
    return gathered(vlm.tokenizer.encode(text), pictures, clips, vision.patch_dim)


def gathered(input_ids, pictures, videos, patch_dim):
    """`Inputs` of (patches, grid, size) of each picture and (patches, grid, seconds from pair to pair) of each video."""
    patches, grids = [], []
    for media in (pictures, videos):
        patches.append(np.concatenate([np.zeros((0, patch_dim), dtype=np.float32), *[one[0] for one in media]]))
        grids.append(np.array([one[1] for one in media], dtype=np.int64).reshape(-1, 3))
    seconds = np.array([one[2] for one in videos], dtype=np.float32)
    sizes = tuple(one[2] for one in pictures)
    return Inputs(input_ids, patches[0], grids[0], patches[1], grids[1], seconds, sizes)
