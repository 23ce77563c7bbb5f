"""Images of the report: as the model saw them, with the boxes of their windows."""

import numpy as np
from PIL import Image

from minivl.palette import TINTS
from minivl.studies.windows import window_of_tokens, windows_on
from minivl.walk.overlays import data_uri, encode, image_pixels

LONGEST, SMALLER = 1024, 512  # pixels of the longer side in the page: of one image or two, of more
PNG_BYTES = 300_000  # of all together; a PNG that is larger than its share becomes a JPEG
MOST = 12  # images and pairs of frames in a page, evenly spread over all


def views_in_page(maps):
    """(image, frame) of the images and pairs of frames in the page."""
    views = [(i, frame) for i, (t, _, _) in enumerate(maps.grids) for frame in range(t)] if maps.tokens else []
    count = min(len(views), MOST)
    return [views[i * (len(views) - 1) // max(count - 1, 1)] for i in range(count)]


def pictures(maps, resized, answer, views):
    """{"pictures": a dict for each view in the page, "hidden": number of the others}. See `picture`."""
    stills, videos = maps.images, len(maps.grids) - maps.images
    context = {
        "image_grid_thw": maps.grids[:stills],
        **latest(resized, "image", stills),
        **latest(resized, "video", videos),
    }
    hidden = sum(int(t) for t, _, _ in maps.grids) - len(views) if maps.tokens else 0
    return {"pictures": [picture(maps, context, answer, *view, len(views)) for view in views], "hidden": hidden}


def latest(resized, kind, count):
    """The last `count`, numbered from 0: with a cache the earlier images of a conversation are not run again."""
    names = sorted((name for name in resized if name.startswith(kind)), key=lambda name: int(name.split(".")[1]))
    return {f"{kind}.{i}.resized": resized[name] for i, name in enumerate(names[len(names) - count :])}


def picture(maps, context, answer, image, frame, count):
    """One image or pair of frames, of `count` in the page; pixels are those of the resized image.

    src, name, width, height, rows, columns   first: number of its first token;  prompt: place of that in the prompt
    slots    of each token in window order, row by row;  position  {"t": of all, "h": of each row, "w": of each column}
    window   of each token, row by row;  windows  [number, (x0, y0, x1, y1), colour as RGB] of each
    """
    pixels = image_pixels(maps, context, image, frame)
    tokens = maps.raster("tokens", image, frame)
    prompt = maps.raster("prompt", image, frame)
    t, h, w = np.moveaxis(maps.position_of_prompt(prompt), -1, 0)
    height, width, _ = pixels.shape
    return {
        "src": source(pixels, count),
        "name": describe(maps, answer, image, frame),
        "width": width,
        "height": height,
        "rows": tokens.shape[0],
        "columns": tokens.shape[1],
        "first": int(tokens.min()),
        "prompt": int(prompt.min()),
        "slots": maps.raster("token slots", image, frame).reshape(-1).tolist(),
        "position": {"t": int(t[0, 0]), "h": h[:, 0].tolist(), "w": w[0].tolist()},
        "window": window_of_tokens(maps, image, frame).reshape(-1).tolist(),
        "windows": [[w.number, w.box, TINTS[w.colour].astype(int).tolist()] for w in windows_on(maps, image, frame)],
    }


def describe(maps, answer, image, frame):
    """The caption of an image."""
    height, width = maps.size(image)
    if image >= maps.images:
        return f"video {image - maps.images}, pair of frames {frame}: {width} x {height}"
    given = maps.image_sizes[image] if image < len(maps.image_sizes) else None
    was = "" if given is None or tuple(given) == (height, width) else f", given as {given[1]} x {given[0]}"
    return f"image {image}: {width} x {height} pixels{was}"


def source(pixels, count=1):
    """A data: URI of pixels, uint8 [H, W, 3], one of `count` images: PNG if that is small, else JPEG."""
    image, longest = Image.fromarray(pixels), LONGEST if count <= 2 else SMALLER
    image.thumbnail((longest, longest))
    png = encode(image, "PNG", optimize=True)
    if len(png) <= PNG_BYTES / count:
        return data_uri(png, "PNG")
    return data_uri(encode(image, "JPEG", quality=82), "JPEG")
