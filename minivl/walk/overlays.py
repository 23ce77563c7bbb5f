"""Overlays on the image: patches and tokens, windows, window order, one number per row. The image keeps its colours.

    image = draw_grid(pixels, config.vision)                            # a Pillow image
    images, low, high = draw_heat(maps, values, "visual.blocks.2", context)

Rows of the tower are in window order, rows of the decoder are text and images mixed: trace/maps.py leads both back to pixels.
"""

import base64
import io

import numpy as np
from PIL import Image, ImageDraw

from minivl.palette import HEAT, TINTS
from minivl.studies.windows import window_colours, windows_on

LONGEST = 336  # pixels of the longer side of an image
MOST = 8  # images and pairs of frames that are shown


def views(maps):
    """(image, frame) of the images and pairs of frames that are shown."""
    return [(i, frame) for i, (t, _, _) in enumerate(maps.grids) for frame in range(t)][:MOST]


def image_pixels(maps, context, image, frame):
    """The resized image uint8 [H, W, 3], or the first of a pair of frames; grey where only patches were given."""
    stills, vision = len(context.get("image_grid_thw", ())), maps.config.vision
    name = f"image.{image}.resized" if image < stills else f"video.{image - stills}.resized"
    _, h, w = maps.grids[image]
    if name not in context:
        return np.full((h * vision.patch_size, w * vision.patch_size, 3), 128, dtype=np.uint8)
    return context[name] if image < stills else context[name][frame * vision.temporal_patch_size]


def resize_for_display(pixels):
    """(Pillow image with a longer side of LONGEST, its scale)"""
    H, W, _ = pixels.shape
    scale = LONGEST / max(H, W)
    return Image.fromarray(pixels).resize((round(W * scale), round(H * scale))), scale


def draw_grid(pixels, vision):
    """The resized image with its patches (thin lines) and tokens (thick ones)."""
    image, scale = resize_for_display(pixels)
    pen = ImageDraw.Draw(image, "RGBA")
    draw_lines(pen, image.size, vision.patch_size * scale, (255, 255, 255, 90))
    # a dark line beside the light one, to be seen on a light image too
    draw_lines(pen, image.size, vision.merged_size * scale, (0, 0, 0, 150), 1)
    draw_lines(pen, image.size, vision.merged_size * scale, (255, 255, 255, 230))
    return image


def draw_lines(pen, size, step, colour, shift=0):
    for axis in (0, 1):
        for edge in np.arange(0, size[axis] + 1, step):
            at = min(round(float(edge)), size[axis] - 1) + shift
            pen.line([(at, 0), (at, size[1])] if axis == 0 else [(0, at), (size[0], at)], fill=colour)


def draw_windows(maps, context, image, frame):
    """An image with each window outlined in its colour, and numbered."""
    picture, scale = resize_for_display(image_pixels(maps, context, image, frame))
    pen = ImageDraw.Draw(picture)
    for window in windows_on(maps, image, frame):
        x0, y0, x1, y1 = (round(scale * side) for side in window.box)
        pen.rectangle([x0, y0, x1 - 1, y1 - 1], outline="black", width=4)
        pen.rectangle([x0 + 1, y0 + 1, x1 - 2, y1 - 2], outline=tuple(TINTS[window.colour].astype(int)), width=2)
        if min(x1 - x0, y1 - y0) > 24:
            pen.text((x0 + 7, y0 + 5), str(window.number), fill="white", stroke_fill="black", stroke_width=2)
    return picture


def draw_heat(maps, values, name, context):
    """One number for each row of a tensor, float [rows], as coloured frames on each image: (images, least, most)."""
    grids = [maps.on_image(values, name, *view) for view in views(maps)]
    finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    span = high - low if high > low else 1
    images = [
        frame_cells(image_pixels(maps, context, *view), (grid - low) / span) for grid, view in zip(grids, views(maps))
    ]
    return images, low, high


def frame_cells(pixels, shares):
    """An image with a frame inside each cell of a grid: shares float [rows, columns], 0 (or NaN) nothing, 1 brightest.

    The middle of each cell stays as it is, so no colour of the image is hidden.
    """
    image, _ = resize_for_display(pixels)
    shares, (W, H) = np.nan_to_num(shares).clip(0, 1), image.size
    (row, down), (column, right) = (cell_of_pixels(size, count) for size, count in zip((H, W), shares.shape))
    edge = np.minimum(down[:, None], right)  # pixels to the nearest edge of the cell
    width = np.maximum(1, 0.16 * min(H / shares.shape[0], W / shares.shape[1]))
    cells = shares[row[:, None], column]
    colour = np.where((edge < width)[..., None], heat_colours(cells), np.float32(0))  # a dark line inside the frame
    alpha = ((2.2 * np.sqrt(cells) - 0.1).clip(0, 1) * (edge < width + 1))[..., None]
    blended = np.asarray(image, dtype=np.float32) * (1 - alpha) + colour * alpha
    return Image.fromarray(blended.round().astype(np.uint8))


def cell_of_pixels(size, count):
    """(cell of each of `size` pixels, int64 [size]; distance to the nearer edge of that cell, in pixels)"""
    at = (np.arange(size) + 0.5) * count / size
    cell = np.minimum(at.astype(np.int64), count - 1)
    return cell, np.minimum(at - cell, cell + 1 - at) * size / count


def heat_colours(shares):
    """Colours of numbers from 0 to 1: float32 [..., 3]."""
    at = np.nan_to_num(shares).clip(0, 1) * (len(HEAT) - 1)
    low = np.minimum(at.astype(np.int64), len(HEAT) - 2)
    return HEAT[low] + (at - low)[..., None].astype(np.float32) * (HEAT[low + 1] - HEAT[low])


def draw_window_order(maps):
    """Above, the tokens as on the image, each with its slot in window order; below, in that order, with their raster number.
    Windows differ in colour."""
    grids = [(maps.raster("tokens", *view), maps.raster("token slots", *view)) for view in views(maps)]
    columns = max(max(tokens.shape[1] for tokens, _ in grids), 12)
    order = maps.window_index[: MOST * 64]
    strip = np.full(-(-len(order) // columns) * columns, -1, dtype=np.int64)
    strip[: len(order)] = order
    grids.append((strip.reshape(-1, columns), strip.reshape(-1, columns)))
    window = maps.window_of_patch(np.arange(maps.tokens) * maps.config.vision.merge_unit)
    tint, cell = TINTS[window_colours(maps)[window]].astype(int), max(10, min(26, 1000 // columns))
    height = sum(len(tokens) for tokens, _ in grids) + len(grids) - 1
    image = Image.new("RGB", (columns * cell, height * cell), "white")
    pen, top = ImageDraw.Draw(image), 0
    for tokens, numbers in grids:
        for (row, column), token in np.ndenumerate(tokens):
            if token >= 0:
                x, y = column * cell, top + row * cell
                pen.rectangle([x, y, x + cell - 2, y + cell - 2], fill=tuple(tint[token]))
                pen.text((x + 2, y + 2), str(numbers[row, column]) if cell >= 20 else "", fill="black")
        top += (len(tokens) + 1) * cell
    return image


def encode(image, format="PNG", **options):
    """A Pillow image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def data_uri(data, format="PNG"):
    """Bytes of an image file as a data: URI."""
    return f"data:image/{format.lower()};base64,{base64.b64encode(data).decode()}"
