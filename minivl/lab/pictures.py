"""Where the first wrong row lies on the grid of its image: as text, and as a drawing for a notebook."""

from dataclasses import dataclass

import numpy as np

from minivl.palette import COLOURS

VERMILION, _, _, GREEN = COLOURS[:4]
MOST = 30  # rows and columns that are drawn
SIDE = 20  # pixels of a cell in a notebook
RIGHT, WRONG, FIRST = ".", "x", "X"


@dataclass(frozen=True)
class Grid:
    """One image's units or patches; cells [rows, columns] of RIGHT, WRONG, FIRST, or " " where there is no row.

    caption  which image, and which part of it if it is large;  first  row and column of the first wrong one
    """

    cells: np.ndarray
    caption: str
    first: tuple

    def __str__(self):
        row, column = self.first
        legend = f"(X the first wrong one: row {row}, column {column}; x wrong, . right)"
        return "\n".join([f"{self.caption} {legend}:", *("  " + " ".join(row) for row in self.cells)])

    def to_html(self):
        row, column = self.first
        legend = f"(framed: the first wrong one, row {row}, column {column}; orange wrong, green right)"
        return f"<p>{self.caption} {legend}</p>{self.to_svg()}"

    def to_svg(self):
        rows, columns = self.cells.shape
        fills = {RIGHT: GREEN, WRONG: VERMILION, FIRST: VERMILION, " ": "none"}
        boxes, letters = [], []
        for (row, column), cell in np.ndenumerate(self.cells):
            x, y = column * SIDE + 1, row * SIDE + 1
            boxes.append(f'<rect x="{x}" y="{y}" width="{SIDE - 1}" height="{SIDE - 1}" fill="{fills[cell]}"/>')
            if cell == FIRST:  # a frame that is visible on light and dark backgrounds
                boxes.append(
                    f'<path d="M{x + 2} {y + 2}h{SIDE - 5}v{SIDE - 5}h{5 - SIDE}z" fill="none" stroke="black"/>'
                )
            if cell != " ":
                letters.append(f'<text x="{x + SIDE // 2}" y="{y + SIDE * 7 // 10}">{cell}</text>')
        size = f'width="{columns * SIDE + 2}" height="{rows * SIDE + 2}"'
        style = 'font-family="monospace" font-weight="bold" font-size="13" text-anchor="middle" fill="black"'
        drawing = f"{''.join(boxes)}<g {style}>{''.join(letters)}</g>"
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{drawing}</svg>'


def draw_grid(places, wrong, index):
    """The `Grid` of the image on which the first wrong row lies.

    places  int64 [rows, 4]: (image, frame, row, column);  wrong  bool [rows];  index  that of the first wrong row
    """
    image, frame, row, column = (int(n) for n in places[index])
    here = (places[:, 0] == image) & (places[:, 1] == frame)
    rows, columns = places[here, 2:].max(axis=0) + 1
    cells = np.full((rows, columns), " ")
    cells[places[here, 2], places[here, 3]] = RIGHT
    bad = here & wrong
    cells[places[bad, 2], places[bad, 3]] = WRONG
    cells[row, column] = FIRST
    top, left = start_of_part(row, rows), start_of_part(column, columns)
    cells = cells[top : top + MOST, left : left + MOST]
    part = "" if (rows, columns) == cells.shape else f", from row {top} and column {left}"
    return Grid(cells, f"image {image}, frame {frame}{part}", (row, column))


def start_of_part(at, count):
    """The first of MOST rows (or columns) around `at`."""
    return 0 if count <= MOST else min(max(at - MOST // 2, 0), count - MOST)
