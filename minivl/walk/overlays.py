"""What a tensor has to do with the picture, drawn on it: patches, windows, their order, a number for each row.

    image = gridded(pixels, config.vision)                              # a Pillow image
    images, low, high = heat_pictures(maps, values, "visual.blocks.2", context)

Rows of the tower are in window order, rows of the decoder are words and pictures mixed: maps.py brings both back to pixels.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from minivl.palette import HEAT, TINTS

LONGEST = 336  # pixels of the longer side of a picture that is shown
MOST = 8  # pictures and pairs of frames that are shown


def places(maps):
    """(image, frame) of the pictures and pairs of frames that are shown."""
    return [(i, frame) for i, (t, _, _) in enumerate(maps.grids) for frame in range(t)][:MOST]


def pixels_of(maps, context, image, frame):
    """The resized picture uint8 [H, W, 3], or the first of a pair of frames; grey where only patches were given."""
    stills, vision = len(context.get("image_grid_thw", ())), maps.config.vision
    name = f"image.{image}.resized" if image < stills else f"video.{image - stills}.resized"
    _, h, w = maps.grids[image]
    if name not in context:
        return np.full((h * vision.patch_size, w * vision.patch_size, 3), 128, dtype=np.uint8)
    return context[name] if image < stills else context[name][frame * vision.temporal_patch_size]


def gridded(pixels, vision):
    """The resized picture with its patches (thin lines) and tokens (thick ones)."""
    H, W, _ = pixels.shape
    scale = scale_of(H, W)
    image = Image.fromarray(pixels).resize((round(W * scale), round(H * scale)))
    pen = ImageDraw.Draw(image, "RGBA")
    pen_lines(pen, image.size, vision.patch_size * scale, (255, 255, 255, 90))
    pen_lines(
        pen, image.size, vision.merged_size * scale, (0, 0, 0, 150), 1
    )  # beside it, to be seen on light ground too
    pen_lines(pen, image.size, vision.merged_size * scale, (255, 255, 255, 230))
    return image


def pen_lines(pen, size, step, colour, shift=0):
    for axis in (0, 1):
        for place in np.arange(0, size[axis] + 1, step):
            at = min(round(float(place)), size[axis] - 1) + shift
            pen.line([(at, 0), (at, size[1])] if axis == 0 else [(0, at), (size[0], at)], fill=colour)


def coloured(maps, context, image, frame):
    """A picture with each window in a colour of its own."""
    windows = maps.window_of_patch(maps.raster("patches", image, frame))
    tint = colours(maps)[windows]
    return blended(pixels_of(maps, context, image, frame), tint)


def heat_pictures(maps, values, name, context):
    """One number for each row of a tensor, float [rows], as colours on each picture: (pictures, least, most)."""
    laid = [maps.on_image(values, name, *place) for place in places(maps)]
    finite = np.concatenate([one[np.isfinite(one)] for one in laid])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    span = high - low if high > low else 1
    shares = [(one - low) / span for one in laid]
    pictures = [blended(pixels_of(maps, context, *place), heat(share)) for share, place in zip(shares, places(maps))]
    return pictures, low, high


def heat(shares):
    """Colours of numbers from 0 to 1: float32 [..., 3]."""
    at = np.nan_to_num(shares).clip(0, 1) * (len(HEAT) - 1)
    low = np.minimum(at.astype(np.int64), len(HEAT) - 2)
    return HEAT[low] + (at - low)[..., None] * (HEAT[low + 1] - HEAT[low])


def blended(pixels, tint):
    """A picture in faint grey under the colours of its parts, [rows, columns, 3]: a light one does not lighten them."""
    H, W, _ = pixels.shape
    scale = scale_of(H, W)
    size = round(W * scale), round(H * scale)
    over = Image.fromarray(tint.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    grey = ImageOps.autocontrast(Image.fromarray(pixels).convert("L")).point(lambda value: 80 + value // 3)
    return Image.blend(grey.convert("RGB").resize(size), over, 0.65)


def permutation(maps):
    """Above, the tokens where they stand, each with its place in window order; below, in that order, with their place in the
    raster. A colour is a window."""
    tint = colours(maps)
    window = maps.window_of_patch(np.arange(maps.tokens) * maps.config.vision.merge_unit)  # [U], raster order
    slots = maps.slot_of_token(np.arange(maps.tokens))
    grids = [maps.token_of_patch(maps.raster("patches", *place))[::2, ::2] for place in places(maps)]
    columns = max(max(grid.shape[1] for grid in grids), 12)
    order = maps.window_index[: MOST * 64]
    strip = np.full(-(-len(order) // columns) * columns, -1, dtype=np.int64)
    strip[: len(order)] = order
    cell = max(10, min(26, 1000 // columns))
    parts = [(grid, slots) for grid in grids] + [(strip.reshape(-1, columns), np.arange(maps.tokens))]
    image = Image.new("RGB", (columns * cell, (sum(len(p) for p, _ in parts) + len(parts) - 1) * cell), "white")
    pen, top = ImageDraw.Draw(image), 0
    for part, numbers in parts:
        for (row, column), token in np.ndenumerate(part):
            if token >= 0:
                x, y = column * cell, top + row * cell
                pen.rectangle([x, y, x + cell - 2, y + cell - 2], fill=tuple(tint[window[token]].astype(int)))
                pen.text((x + 2, y + 2), str(numbers[token]) if cell >= 20 else "", fill="black")
        top += (len(part) + 1) * cell
    return image


def colours(maps):
    """One for each window, float32 [windows, 3]: no two that touch, or follow each other, have the same."""
    first = maps.places[maps.patch_of_slot(maps.windows[:-1])]
    side = maps.config.vision.window_size // maps.config.vision.patch_size
    frame = np.searchsorted(maps.frames, maps.windows[:-1], side="right") - 1
    return TINTS[frame % 2 * 4 + first[:, 2] // side % 2 * 2 + first[:, 3] // side % 2]


def scale_of(H, W):
    return LONGEST / max(H, W)
