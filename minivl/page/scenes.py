"""The pictures of a page: as the model saw them, and how they are cut."""

import base64
import io

import numpy as np
from PIL import Image

from minivl.pictures import pixels_of

LONGEST = 1024  # pixels of the longer side in the page
PNG_BYTES = 300_000  # a PNG that is larger becomes a JPEG
PLACES = 12  # pictures and pairs of frames that a page shows


def scenes(maps, resized, answer):
    """A dict for each picture or pair of frames. Pixels are those of the resized picture.

    src, name, width, height, rows, columns   first: number of its first token
    window   of each token, row by row;  windows  (x0, y0, x1, y1) of each window that lies in it, by number
    """
    context = (
        {"image_grid_thw": maps.grids[: maps.images], **latest(resized, "image", maps.images)} if maps.tokens else {}
    )
    context |= latest(resized, "video", len(maps.grids) - maps.images) if maps.tokens else {}
    places = [(i, frame) for i, (t, _, _) in enumerate(maps.grids) for frame in range(t)]
    return [scene(maps, context, answer, *place) for place in places[:PLACES]]


def latest(resized, kind, count):
    """The last so many, numbered from 0: with a cache the earlier pictures of a conversation are not run again."""
    made = sorted((name for name in resized if name.startswith(kind)), key=lambda name: int(name.split(".")[1]))
    return {f"{kind}.{i}.resized": resized[name] for i, name in enumerate(made[len(made) - count :])}


def scene(maps, context, answer, image, frame):
    pixels = pixels_of(maps, context, image, frame)
    tokens = maps.raster("tokens", image, frame)
    windows = maps.window_of_patch(maps.patches_of_token(tokens)[..., 0])
    boxes = {str(w): maps.pixels_of_window(w).tolist() for w in np.unique(windows).tolist()}
    height, width, _ = pixels.shape
    return {
        "src": source(pixels),
        "name": name_of(maps, answer, image, frame),
        "width": width,
        "height": height,
        "rows": tokens.shape[0],
        "columns": tokens.shape[1],
        "first": int(tokens.min()),
        "window": windows.reshape(-1).tolist(),
        "windows": boxes,
    }


def name_of(maps, answer, image, frame):
    """What stands below it."""
    height, width = maps.size(image)
    if image >= maps.images:
        return f"video {image - maps.images}, pair of frames {frame}: {width} x {height}"
    given = maps.image_sizes[image] if image < len(maps.image_sizes) else None
    was = "" if given is None or tuple(given) == (height, width) else f", given as {given[1]} x {given[0]}"
    return f"picture {image}: {width} x {height} pixels{was}"


def source(pixels):
    """A data: address of the pixels, uint8 [H, W, 3]: PNG where that is small, else JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST, LONGEST))
    kind, data = "png", encoded(image, format="PNG", optimize=True)
    if len(data) > PNG_BYTES:
        kind, data = "jpeg", encoded(image, format="JPEG", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()
