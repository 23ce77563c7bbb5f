"""Shared by all plots: figure and size, the image of a trace with values over it, token text."""

import functools
import io
import textwrap
from contextvars import ContextVar
from fnmatch import fnmatchcase

import numpy as np
from matplotlib import font_manager, rcParams
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import PercentFormatter

from minivl.errors import Error
from minivl.palette import COLOURS
from minivl.processing.image_processor import ImageProcessor
from minivl.studies.from_trace import require
from minivl.tensors.tokens import quote_tokens

VERMILION, BLUE, YELLOW, GREEN, PINK, SKY, ORANGE = COLOURS
GREY = "#666666"
SMALL = 8  # points, the smallest letters
LETTERS = font_manager.get_font(font_manager.findfont("DejaVu Sans"))  # comes with matplotlib
# width in inches, largest height, and dots per inch times: a projector's figure fills a slide of 13.3 x 7.5 inches, where
# SMALL is 14 points
SIZES = {"notebook": (9.0, 30.0, 1.0), "projector": (7.6, 4.3, 1.75)}
_size = ContextVar("size", default="notebook")


class Plot(Figure):
    """A matplotlib figure that a notebook shows by itself, whether or not pyplot was imported."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def resizable(function):
    """Give a plot the option size="notebook" or "projector" (large letters, the shape of a slide)."""

    @functools.wraps(function)
    def plot_at_size(*arguments, size="notebook", **options):
        if size not in SIZES:
            raise Error(f"size={size!r}: choose one of {', '.join(SIZES)}.")
        token = _size.set(size)
        try:
            return function(*arguments, **options)
        finally:
            _size.reset(token)

    return plot_at_size


def figure_width():
    """Inches across a figure of the current size."""
    return SIZES[_size.get()][0]


def plot(title, width=None, height=4.5, layout="constrained"):
    """An empty figure, sizes in inches, as fine as matplotlib's "figure.dpi" says (100 unless set).

    width   the current size's if not given; a projector's figure is never larger than its slide
    layout  "compressed" for panels whose height and width belong together
    """
    wide, tall, fine = SIZES[_size.get()]
    width = wide if width is None else min(width, wide) if fine > 1 else width
    figure = Plot(figsize=(width, min(height, tall)), dpi=rcParams["figure.dpi"] * fine, layout=layout)
    lines = [textwrap.fill(line, int(width * 72 / 6.3)) for line in title.split("\n")]  # 6.3 points: a letter of 11
    figure.suptitle("\n".join(lines), fontsize=11)
    return figure


# ---- on the image ----


def picture(trace, image=0, frame=0):
    """The resized image (of a video, the first of the frame's two), uint8 [H, W, 3]."""
    maps = trace.maps
    maps.raster("tokens", image, frame)  # an Error if there is no such image
    kind, number = ("image", image - maps.images) if image < maps.images else ("video", image - len(maps.grids))
    names = [name for name in trace.names if fnmatchcase(name, f"{kind}.*.resized")]
    if names:  # counted from the end: with a cache the earlier images of a conversation are not run again
        (pixels,) = require(trace, sorted(names, key=lambda name: int(name.split(".")[1]))[number])
        return (
            pixels if kind == "image" else pixels[min(frame * maps.config.vision.temporal_patch_size, len(pixels) - 1)]
        )
    return unpatchify(trace, image, frame)


def unpatchify(trace, image, frame):
    """The image from the patches of hand-made `Inputs`; mean and deviation of colours as in the published models."""
    maps, vision = trace.maps, trace.maps.config.vision
    name, first = ("pixel_values", 0) if image < maps.images else ("pixel_values_videos", maps.images)
    processor = ImageProcessor(patch_size=vision.patch_size, temporal_patch_size=vision.temporal_patch_size)
    start, count = int(maps.grids[first:image].prod(axis=1).sum()), int(maps.grids[image].prod())
    (values,) = require(trace, name)
    frames = processor.unpatchify(values[start : start + count], maps.grids[image])
    pixels = frames[frame * vision.temporal_patch_size].transpose(1, 2, 0) * processor.image_std + processor.image_mean
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def show_picture(axes, pixels):
    H, W, _ = pixels.shape
    axes.imshow(pixels, extent=(0, W, H, 0), interpolation="nearest")
    axes.set_xlabel("x, pixels", fontsize=SMALL)
    axes.set_ylabel("y, pixels", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)


def lay_over(axes, values, size, most, **options):
    """Values [rows, columns] as frames inside the cells of an image of this (height, width): its colours stay visible.

    most  the largest value of the scale; frames fade towards 0; NaN has none. -> the image, for its colour bar
    """
    H, W = size
    alpha = (2.2 * np.sqrt(np.nan_to_num(np.abs(values)) / most) - 0.1).clip(0, 1)
    shared = {"extent": (0, W, H, 0), "interpolation": "nearest", "alpha": alpha}
    dark = np.dstack([*np.zeros((3, *values.shape)), alpha])  # a dark line inside each frame
    dark = axes.imshow(dark, extent=(0, W, H, 0), interpolation="nearest")
    image = axes.imshow(values, **shared, **{"cmap": "viridis", **options})
    for layer, width in ((dark, 0.19), (image, 0.15)):
        layer.set_clip_path(PathPatch(cell_frames(values.shape, size, width), transform=axes.transData))
    return image


def cell_frames(shape, size, width):
    """A path around the inside of each cell of a grid [rows, columns]; width as a share of the cell's side."""
    (rows, columns), (H, W) = shape, size
    h, w = H / rows, W / columns
    edge = width * min(h, w)
    outer = np.array([[0, 0], [w, 0], [w, h], [0, h], [0, 0]])
    inner = (
        np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]) * [w - 2 * edge, h - 2 * edge] + edge
    )  # the other way round
    corners = np.stack(np.meshgrid(np.arange(columns) * w, np.arange(rows) * h), axis=-1).reshape(-1, 1, 2)
    codes = np.array([Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY] * 2)
    return Path((corners + np.concatenate([outer, inner])).reshape(-1, 2), np.tile(codes, rows * columns))


SCALES = ("fixed", "own")


def share_scale(values, scale):
    """{norm or limits} of shares of attention: "fixed", 0 to 100 %, alike in all plots; "own", up to the map's largest."""
    if scale not in SCALES:
        raise Error(f"scale={scale!r}: choose one of {', '.join(SCALES)}.")
    most = float(np.nanmax(values, initial=0))
    if scale == "own":
        return {"most": most or 1.0, "vmin": 0, "vmax": most or 1.0}
    return {"most": 1.0, "norm": PowerNorm(0.5, 0, 1)}  # square roots, or shares of a few per cent would not be seen


def share_bar(figure, image, axes, label, scale):
    """The colour bar of `share_scale`."""
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1] if scale == "fixed" else None
    colour_bar(figure, image, axes, label, format=PercentFormatter(1), ticks=ticks)


def figure_height(ratio, share, least=3.2, most=7.0):
    """Inches for an image of height / width `ratio` that takes this share of the figure's width."""
    return float(np.clip(share * figure_width() * ratio + 1.1, least, most))


def two_panels(title, pixels, outlines):
    """A figure with the image twice, the second time for values over it. outlines: (box, colour, width) on both."""
    H, W, _ = pixels.shape
    figure = plot(title, height=figure_height(H / W, 0.42), layout="compressed")
    axes = figure.subplots(1, 2)
    for panel in axes:
        show_picture(panel, pixels)
        for box, colour, width in outlines:
            outline(panel, box, colour, width)
    return figure, axes


def outline(axes, box, colour, width=2.0, **options):
    """A frame around (x0, y0, x1, y1), with a black edge so that it shows on any image."""
    x0, y0, x1, y1 = (float(v) for v in box)
    for line, edge in ((width + 1.5, "black"), (width, colour)):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=line, **options))


def write(axes, x, y, text, size=SMALL, **options):
    """Text on a white plate, legible on any image. The layout ignores it, since it is inside the axes."""
    plate = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    axes.text(x, y, text, ha="center", va="center", fontsize=size, bbox=plate, in_layout=False, **options)


def remove_ticks(axes):
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")


def colour_bar(figure, image, axes, label, **options):
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, **options)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)


# ---- the prompt ----


def label_token(vlm, token_id, most=16):
    """A token as text in quotes, its spaces and line ends visible; without a model, its number."""
    text = quote_tokens(vlm, token_id)
    return text if text.startswith("#") else "“" + legible(text[1:-1], most) + "”"


def legible(text, most=24):
    """Text with characters that the font lacks escaped, cut to `most`, and no $ that would start a formula."""
    known = "".join(c if LETTERS.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in str(text))
    known = known if len(known) <= most else known[: most - 1] + "…"
    return known.replace("$", r"\$")


def mark_pictures(axes, maps, y=-0.03):
    """Bars under the x axis where the prompt's tokens stand for images; returns whether there are any."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], maps.shown.astype(np.int64), [0]])))
    for start, end in edges.reshape(-1, 2):
        axes.plot([start - 0.5, end - 0.5], [y, y], transform=axes.get_xaxis_transform(), color=ORANGE, linewidth=4,
                  solid_capstyle="butt", clip_on=False)  # fmt: skip
    return len(edges) > 0
