"""The pictures of a page: as the model saw them, and how they are cut."""

import base64
import io

import numpy as np
from PIL import Image

from minivl.walk.overlays import pixels_of

LONGEST, SMALLER = 1024, 512  # pixels of the longer side in the page: of one picture or two, of more
PNG_BYTES = 300_000  # of all together; a PNG that is larger than its share becomes a JPEG
PLACES = 12  # pictures and pairs of frames that a page shows, evenly chosen among all


def scenes(maps, resized, answer):
    """{"pictures": a dict for each picture or pair of frames that is shown, "hidden": how many are not}.

    Pixels are those of the resized picture.
    src, name, width, height, rows, columns   first: number of its first token
    window   of each token, row by row;  windows  (x0, y0, x1, y1) of each window that lies in it, by number
    """
    context = (
        {"image_grid_thw": maps.grids[: maps.images], **latest(resized, "image", maps.images)} if maps.tokens else {}
    )
    context |= latest(resized, "video", len(maps.grids) - maps.images) if maps.tokens else {}
    places = [(i, frame) for i, (t, _, _) in enumerate(maps.grids) for frame in range(t)]
    count = min(len(places), PLACES)
    chosen = [places[i * (len(places) - 1) // max(count - 1, 1)] for i in range(count)]
    found = [scene(maps, context, answer, *place, count) for place in chosen]
    return {"pictures": found, "hidden": len(places) - count}


def latest(resized, kind, count):
    """The last so many, numbered from 0: with a cache the earlier pictures of a conversation are not run again."""
    made = sorted((name for name in resized if name.startswith(kind)), key=lambda name: int(name.split(".")[1]))
    return {f"{kind}.{i}.resized": resized[name] for i, name in enumerate(made[len(made) - count :])}


def scene(maps, context, answer, image, frame, count):
    pixels = pixels_of(maps, context, image, frame)
    tokens = maps.raster("tokens", image, frame)
    windows = maps.window_of_patch(maps.patches_of_token(tokens)[..., 0])
    boxes = {str(w): maps.pixels_of_window(w).tolist() for w in np.unique(windows).tolist()}
    height, width, _ = pixels.shape
    return {
        "src": source(pixels, count),
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


def source(pixels, count=1):
    """A data: address of the pixels, uint8 [H, W, 3], of one of so many pictures: PNG where that is small, else JPEG."""
    image, longest = Image.fromarray(pixels), LONGEST if count <= 2 else SMALLER
    image.thumbnail((longest, longest))
    kind, data = "png", encoded(image, format="PNG", optimize=True)
    if len(data) > PNG_BYTES / count:
        kind, data = "jpeg", encoded(image, format="JPEG", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()
