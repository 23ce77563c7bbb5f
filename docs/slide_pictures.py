"""Draw the pictures of teaching/slides.md, with letters for the last row of a hall: teaching/slide-*.png.

python docs/slide_pictures.py
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import glossary_picture as glossary  # noqa: E402

import minivl  # noqa: E402
from minivl import plots  # noqa: E402
from minivl.tiny import scene  # noqa: E402


def words(vlm):
    """{name: figure} of the glossary's picture in two halves."""
    keep = ["image.0.resized", "*ids", "*thw", "visual.*"]
    trace = vlm.trace(glossary.QUESTION, scene(glossary.SCENE).image, keep=keep, stop="position_ids")
    path = glossary.follow(trace.maps, *glossary.PIXEL)
    image, rows = (Figure(figsize=(8.4, tall), dpi=150, facecolor="white", layout="constrained") for tall in (3.2, 3.9))
    glossary.image_panels(image, image.add_gridspec(1, 3), trace.maps, trace["image.0.resized"], path)
    grid = rows.add_gridspec(2, 1, height_ratios=[1.1, 2.3])
    glossary.slot_strip(rows.add_subplot(grid[0]), trace.maps, path)
    glossary.prompt_rows(rows.add_subplot(grid[1]), trace.maps, path, vlm)
    return {"image": image, "rows": rows}


def draw():
    """{name: figure} of all pictures."""
    vlm = minivl.load()
    wide = vlm.trace("How many shapes are there?", scene(3, size=(420, 700), count=4).image, stop="visual.window_index")
    asked = vlm.trace("What colour is the cross?", scene(5).image, max_new_tokens=2)
    return words(vlm) | {
        "windows": plots.windows(wide, size="projector"),
        "attention": plots.attention(asked, layer=2, head=4, vlm=vlm, size="projector"),
    }


if __name__ == "__main__":
    for name, figure in draw().items():
        target = DOCS / "teaching" / f"slide-{name}.png"
        figure.savefig(target, metadata={"Software": None})
        print(target)
