"""Draw glossary.png: one pixel of a scene, followed to the row and the position by which the decoder knows it.

python docs/glossary_picture.py
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import minivl  # noqa: E402
from minivl.palette import COLOURS, TINTS  # noqa: E402
from minivl.processing.messages import user  # noqa: E402
from minivl.stream import run  # noqa: E402
from minivl.tensors.tokens import token_text  # noqa: E402
from minivl.tiny import scene  # noqa: E402
from minivl.trace.maps import Maps  # noqa: E402

SCENE, QUESTION, PIXEL = 14, "How many shapes are there?", (77, 190)
VERMILION, BLUE, YELLOW, GREEN, PINK, SKY, ORANGE = COLOURS
WORDS = {
    "pixel": "a point of the *resized* image, whose sides are multiples of 28; x to the right, y down",
    "patch": "14 x 14 pixels, of a video in two frames: a row of `pixel_values` and `visual.patch_embed`. Counted by unit, "
    "not along the lines of the image",
    "unit": "2 x 2 patches: 28 x 28 pixels. Its four patches stay together everywhere",
    "window": "4 x 4 units: 112 x 112 pixels, fewer at the right and lower edge. In most blocks a patch attends to "
    "its own window alone",
    "slot": "the place of a patch in window order: a row of `visual.blocks.*`. Slot s holds patch s % 4 of unit "
    "`visual.window_index[s // 4]`",
    "token": "what the merger makes of a unit: a row of `visual`. It has the number of its unit. (In text, a piece of text)",
    "row": "a line of a tensor, counted from 0 in that tensor's own order. Alone, the word means one of the decoder's: "
    "the index of a token in the prompt, text and images together (`inputs_embeds`, `model.layers.*`)",
    "position": "the three numbers by which M-RoPE rotates queries and keys: `position_ids`. Of text all three are the same; "
    "after an image they are smaller than the row",
}
PIXEL_COLOUR, PATCH_COLOUR, UNIT_COLOUR, WINDOW_COLOUR = "black", VERMILION, BLUE, GREEN
GREY = "#e4e4e4"


def follow(maps, x, y):
    """The numbers of one pixel of the resized image, {word of the glossary: number}."""
    patch, token = int(maps.patch_of_pixel(x, y)), int(maps.token_of_pixel(x, y))
    row = int(maps.prompt_of_token(token))
    return {
        "pixel": (x, y),
        "patch": patch,
        "unit": token,
        "slot": int(maps.slot_of_patch(patch)),
        "window": int(maps.window_of_patch(patch)),
        "token": token,
        "row": row,
        "position": tuple(int(n) for n in maps.position_of_prompt(row)),
    }


def path_in_the_picture():
    """What `follow` says of PIXEL, without running the model."""
    vlm = minivl.load()
    inputs = run(vlm.prepare(user(QUESTION, scene(SCENE).image)))
    return follow(Maps.of(inputs, vlm.config), *PIXEL)


def outline(axes, box, colour, width=2.5):
    x0, y0, x1, y1 = (float(n) for n in box)
    for edge, wide in (("white", width + 2), (colour, width)):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=wide))


def show(axes, pixels, box, title, grid):
    """A part of the image with a grid over it, every `grid` pixels."""
    x0, y0, x1, y1 = (int(n) for n in box)
    axes.imshow(pixels, extent=(0, pixels.shape[1], pixels.shape[0], 0), interpolation="nearest")
    for at in range(x0, x1 + 1, grid):
        axes.axvline(at, color="white", linewidth=0.6, alpha=0.6)
    for at in range(y0, y1 + 1, grid):
        axes.axhline(at, color="white", linewidth=0.6, alpha=0.6)
    axes.set(xlim=(x0, x1), ylim=(y1, y0), xticks=[], yticks=[])
    axes.set_title(title, fontsize=11, loc="left")


def write(axes, x, y, text, size=10, **options):
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.9}
    axes.text(x, y, text, fontsize=size, ha="center", va="center", bbox=box, **options)


def image_panels(figure, grid, maps, pixels, path):
    """The whole image, the window, the unit: each the outlined part of the one before."""
    whole, window, unit = (figure.add_subplot(grid[0, i]) for i in range(3))
    window_box, unit_box = maps.pixels_of_window(path["window"]), maps.pixels_of_token(path["token"])
    patch_box, (x, y) = maps.pixels_of_patch(path["patch"]), path["pixel"]
    height, width = pixels.shape[:2]
    show(whole, pixels, (0, 0, width, height), f"image, {width} x {height} pixels", 14)
    for number in range(len(maps.windows) - 1):
        box = maps.pixels_of_window(number)
        outline(whole, box, WINDOW_COLOUR, 1)
        write(whole, (box[0] + box[2]) / 2, box[1] + 14, f"window {number}", 9)
    outline(whole, window_box, WINDOW_COLOUR, 4)
    outline(whole, unit_box, UNIT_COLOUR)
    show(window, pixels, window_box, f"window {path['window']}: 4 x 4 units", 28)
    for patch in maps.patches_of_window(path["window"])[::4]:
        box = maps.pixels_of_patch(patch)
        if patch // 4 != path["unit"]:
            write(window, box[2], box[3], f"{patch // 4}", 9)
    outline(window, unit_box, UNIT_COLOUR)
    outline(window, patch_box, PATCH_COLOUR)
    show(unit, pixels, unit_box, f"unit {path['unit']}: 2 x 2 patches", 1)
    for patch in range(4 * path["unit"], 4 * path["unit"] + 4):
        box = maps.pixels_of_patch(patch)
        write(unit, (box[0] + box[2]) / 2, box[1] + 3, f"patch {patch}", 9)
        write(unit, (box[0] + box[2]) / 2, box[1] + 5.5, f"slot {maps.slot_of_patch(patch)}", 9)
    outline(unit, patch_box, PATCH_COLOUR, 3)
    outline(unit, (x, y, x + 1, y + 1), PIXEL_COLOUR)
    write(unit, x + 0.5, y + 2.6, f"pixel x={x}, y={y}", 9)
    for axes, colour in ((window, WINDOW_COLOUR), (unit, UNIT_COLOUR)):
        for side in axes.spines.values():
            side.set(color=colour, linewidth=3)


def slot_strip(axes, maps, path):
    """All patches in window order, tinted by window; the four of the unit in its colour."""
    axes.set_title(
        f"slots: the {maps.patches} patches in window order, as the rows of visual.blocks.* have them",
        fontsize=11,
        loc="left",
    )
    for number, (start, end) in enumerate(zip(maps.windows[:-1], maps.windows[1:])):
        axes.add_patch(
            Rectangle((start, 0), end - start, 1, facecolor=TINTS[number % len(TINTS)] / 255, edgecolor="white")
        )
        axes.text(start + 1, 0.5, f"window {number}", fontsize=8, ha="left", va="center")
        axes.text(start + 1, -0.08, f"{start}", fontsize=9, ha="left", va="top")
    first = int(maps.slot_of_token(path["token"])) * 4
    start, end = maps.windows[path["window"] : path["window"] + 2]
    outline(axes, (start, 0, end, 1), WINDOW_COLOUR)
    axes.add_patch(Rectangle((first, 0), 4, 1, facecolor=UNIT_COLOUR))
    axes.annotate(
        f"slots {first} to {first + 3}: unit {path['unit']}",
        (first + 2, 1), (first + 2, 1.55), fontsize=10, ha="center", arrowprops={"arrowstyle": "-", "color": UNIT_COLOUR},
    )  # fmt: skip
    axes.set(xlim=(-1, maps.patches + 1), ylim=(-0.5, 2.1))
    axes.axis("off")


def prompt_rows(axes, maps, path, vlm):
    """Some rows of the prompt: number, token, position."""
    shown, length = np.flatnonzero(maps.shown), len(maps.input_ids)
    rows = [*range(shown[0] - 2, shown[0] + 2), None, *range(path["row"] - 1, path["row"] + 2), None]
    rows += [*range(shown[-1], shown[-1] + 4), None, length - 1]
    axes.set_title(
        f"rows: the {length} tokens of the prompt, as inputs_embeds and model.layers.* have them;\n"
        f"the tower's {maps.tokens} tokens fill rows {shown[0]} to {shown[-1]}",
        fontsize=11, loc="left",
    )  # fmt: skip
    for text, y in (("row", 4.5), ("token", 3.5), ("position t", 2.5), ("h", 1.5), ("w", 0.5)):
        axes.text(-0.15, y, text, fontsize=10, ha="right", va="center")
    for at, row in enumerate(rows):
        if row is None:
            axes.text(at + 0.5, 2.5, "…", fontsize=14, ha="center", va="center")
            continue
        image = bool(maps.shown[row])
        colour = TINTS[0] / 255 if image else GREY
        axes.add_patch(Rectangle((at, 0), 1, 5, facecolor=colour, edgecolor="white", linewidth=2))
        token = f"image\n{maps.token_of_prompt(row)}" if image else token_text(vlm, [int(maps.input_ids[row])])
        token = {"<|vision_start|>": "vision\nstart", "<|vision_end|>": "vision\nend", "\n": "\\n"}.get(token, token)
        cells = [str(row), token.strip() or repr(token), *map(str, maps.position_of_prompt(row))]
        for text, y in zip(cells, (4.5, 3.5, 2.5, 1.5, 0.5)):
            axes.text(at + 0.5, y, text, fontsize=10 if len(text) < 7 or "\n" in text else 8, ha="center", va="center")
    at = rows.index(path["row"])
    outline(axes, (at, 0, at + 1, 5), UNIT_COLOUR, 3)
    axes.set(xlim=(-1.3, len(rows)), ylim=(-0.1, 5.1))
    axes.axis("off")


def draw():
    vlm, drawn = minivl.load(), scene(SCENE)
    trace = vlm.trace(QUESTION, drawn.image, keep=["image.0.resized", "*ids", "*thw", "visual.*"], stop="position_ids")
    maps, pixels = trace.maps, trace["image.0.resized"]
    path = follow(maps, *PIXEL)
    figure = Figure(figsize=(9.6, 8.6), dpi=130, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(3, 3, height_ratios=[3.6, 1.1, 2.1])
    image_panels(figure, grid, maps, pixels, path)
    slot_strip(figure.add_subplot(grid[1, :]), maps, path)
    prompt_rows(figure.add_subplot(grid[2, :]), maps, path, vlm)
    return figure, path


if __name__ == "__main__":
    figure, path = draw()
    figure.savefig(DOCS / "glossary.png", metadata={"Software": None, "Description": json.dumps(path)})
    print("\n".join(f"{word:9} {value}" for word, value in path.items()))
