"""What the pictures share: the figure, the palette, the picture of a trace with values over it, words for tokens."""

import io
from fnmatch import fnmatchcase

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivl.palette import COLOURS
from minivl.processing.image_processor import ImageProcessor
from minivl.studies.from_trace import lines_of, needed, numbered, place_of_step, token_ids  # noqa: F401

VERMILION, BLUE, YELLOW, GREEN, PINK, SKY, ORANGE = COLOURS
GREY = "#666666"
SMALL = 8  # points, the smallest letters
WIDTH = 9  # inches, of a figure in a notebook
LETTERS = font_manager.get_font(font_manager.findfont("DejaVu Sans"))  # what matplotlib brings along


class Plot(Figure):
    """A matplotlib figure that a notebook shows by itself, whether or not pyplot was imported."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def plot(title, width=WIDTH, height=4.5, layout="constrained"):
    """An empty figure, sizes in inches, as fine as matplotlib's "figure.dpi" says (100 unless set).

    layout  "compressed" for panels whose height and width belong together
    """
    figure = Plot(figsize=(width, height), layout=layout)
    figure.suptitle(title, fontsize=11)
    return figure


# ---- on the picture ----


def picture(trace, image=0, frame=0):
    """The resized picture (of a video, the first of the frame's two), uint8 [H, W, 3]."""
    maps = trace.maps
    maps.raster("tokens", image, frame)  # an Error if there is none such
    kind, number = ("image", image - maps.images) if image < maps.images else ("video", image - len(maps.grids))
    made = [name for name in trace.names if fnmatchcase(name, f"{kind}.*.resized")]
    if made:  # counted from the end: with a cache the earlier pictures of a conversation are not run again
        (pixels,) = needed(trace, sorted(made, key=lambda name: int(name.split(".")[1]))[number])
        return (
            pixels if kind == "image" else pixels[min(frame * maps.config.vision.temporal_patch_size, len(pixels) - 1)]
        )
    return unprepared(trace, image, frame)


def unprepared(trace, image, frame):
    """From the patches of `Inputs` that were made by hand; colours as in the published models."""
    maps, vision = trace.maps, trace.maps.config.vision
    name, first = ("pixel_values", 0) if image < maps.images else ("pixel_values_videos", maps.images)
    processor = ImageProcessor(patch_size=vision.patch_size, temporal_patch_size=vision.temporal_patch_size)
    start, count = int(maps.grids[first:image].prod(axis=1).sum()), int(maps.grids[image].prod())
    (values,) = needed(trace, name)
    frames = processor.unpatchify(values[start : start + count], maps.grids[image])
    pixels = frames[frame * vision.temporal_patch_size].transpose(1, 2, 0) * processor.image_std + processor.image_mean
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def show_picture(axes, pixels, faint=False):
    """The picture; faint: grey and light, to lay colours over."""
    H, W, _ = pixels.shape
    if faint:
        grey = pixels @ np.array([0.299, 0.587, 0.114])
        pixels = np.repeat((150 + grey * (105 / 255)).astype(np.uint8)[:, :, None], 3, axis=2)
    axes.imshow(pixels, extent=(0, W, H, 0), interpolation="nearest")
    axes.set_xlabel("x, pixels", fontsize=SMALL)
    axes.set_ylabel("y, pixels", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)


def lay_over(axes, values, size, alpha=0.7, **options):
    """Values [rows, columns] over a picture of this (height, width); returns the image, for its colour bar."""
    H, W = size
    return axes.imshow(
        values, extent=(0, W, H, 0), interpolation="nearest", alpha=alpha, **{"cmap": "viridis", **options}
    )


def outline(axes, box, colour, width=2.0, **options):
    """A frame around (x0, y0, x1, y1), with a black edge so that it is seen on any ground."""
    x0, y0, x1, y1 = (float(v) for v in box)
    for line, edge in ((width + 1.5, "black"), (width, colour)):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=line, **options))


def write(axes, x, y, text, size=SMALL, **options):
    """Text on a white plate, for any ground. The layout does without it, for it stands inside."""
    plate = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    axes.text(x, y, text, ha="center", va="center", fontsize=size, bbox=plate, in_layout=False, **options)


def bare(axes):
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")


def colour_bar(figure, image, axes, label, **options):
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, **options)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)


# ---- the prompt ----


def word(vlm, token_id, most=16):
    """A token as text in quotes, its spaces and line ends visible; without a model, its number."""
    if vlm is None:
        return str(int(token_id))
    text = repr(vlm.tokenizer.token(int(token_id)))[1:-1]
    known = "".join(c if LETTERS.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text)
    known = known if len(known) <= most else known[: most - 1] + "…"
    return "“" + known.replace("$", r"\$") + "”"  # a bare $ would start a formula


def mark_pictures(axes, maps, y=-0.03):
    """Bars under the x axis where the prompt's tokens stand for pictures; returns whether there are any."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], maps.shown.astype(np.int64), [0]])))
    for start, end in edges.reshape(-1, 2):
        axes.plot([start - 0.5, end - 0.5], [y, y], transform=axes.get_xaxis_transform(), color=ORANGE, linewidth=4,
                  solid_capstyle="butt", clip_on=False)  # fmt: skip
    return len(edges) > 0
