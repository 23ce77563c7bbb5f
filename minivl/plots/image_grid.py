"""How an image is cut: patches and tokens, windows, and window order."""

import numpy as np

from minivl.errors import Error
from minivl.plots.figure import (
    BLUE,
    GREEN,
    PINK,
    SMALL,
    VERMILION,
    colour_bar,
    figure_height,
    figure_width,
    outline,
    picture,
    plot,
    remove_ticks,
    resizable,
    show_picture,
    write,
)
from minivl.studies.windows import windows_on

WINDOWS = [BLUE, VERMILION, GREEN, PINK] * 2  # by `Window.colour`: neighbours differ
DIGIT = 0.09  # inches


@resizable
def patches(trace, image=0, frame=0, token=None):
    """The image with thin lines between patches and thick ones between tokens; and one token enlarged, patches numbered.

    token  the one to enlarge; where the image has most detail if not given. Needs image.{i}.resized.
    """
    maps, pixels = trace.maps, picture(trace, image, frame)
    tokens = maps.raster("tokens", image, frame)
    rows, columns = tokens.shape
    token = most_detailed(maps, tokens, pixels) if token is None else token
    if 0 <= token < maps.tokens and token not in tokens:
        raise Error(
            f"token {token!r} is none of this image's, {tokens.min()} to {tokens.max()}. Give its image= and frame=."
        )
    P, unit = maps.config.vision.patch_size, maps.config.vision.merged_size
    H, W, _ = pixels.shape
    figure = plot(
        f"{W} x {H} pixels are {2 * columns} x {2 * rows} patches of {P} x {P}, and {columns} x {rows} = {tokens.size} tokens",
        height=figure_height(H / W, 0.62),
    )
    whole, enlarged = figure.subplots(1, 2, width_ratios=(2, 1))
    show_picture(whole, pixels)
    inches = 0.62 * figure_width() / columns  # across one token
    grid(whole, W, H, P, min(0.3, inches))
    grid(whole, W, H, unit, min(1.2, 3 * inches))
    write_numbers(whole, maps.pixels_of_token(tokens), tokens, inches)
    outline(whole, maps.pixels_of_token(token), VERMILION, zorder=2.5)  # above the lines of the grid
    whole.set_title("numbers: tokens, row by row", fontsize=9)
    draw_token(enlarged, maps, pixels, token)
    return figure


def most_detailed(maps, tokens, pixels):
    """The token whose pixels vary most in colour."""
    deviations = [
        np.std(pixels[y0:y1, x0:x1], axis=(0, 1)).sum() for x0, y0, x1, y1 in maps.pixels_of_token(tokens.reshape(-1))
    ]
    return int(tokens.reshape(-1)[np.argmax(deviations)])


def grid(axes, W, H, step, width):
    for x in range(0, W + 1, step):
        axes.plot([x, x], [0, H], color="white", linewidth=width)
    for y in range(0, H + 1, step):
        axes.plot([0, W], [y, y], color="white", linewidth=width)


def write_numbers(axes, boxes, numbers, inches):
    """A number in the middle of each box, or of every second, third, ... one where they would overlap."""
    wide = DIGIT * len(str(numbers.max()))
    every = 1 if wide < inches else int(np.ceil(2 * wide / inches))
    for row in range(0, numbers.shape[0], every):
        for column in range(0, numbers.shape[1], every):
            x0, y0, x1, y1 = boxes[row, column]
            write(axes, (x0 + x1) / 2, (y0 + y1) / 2, str(numbers[row, column]), SMALL - 1)


def draw_token(axes, maps, pixels, token):
    """One token, its patches drawn apart and numbered."""
    x0, y0, x1, y1 = maps.pixels_of_token(token)
    gap = 1.5
    for patch in maps.patches_of_token(token):
        left, top, right, bottom = maps.pixels_of_patch(patch)
        dx, dy = gap * np.sign(left - x0), gap * np.sign(top - y0)
        axes.imshow(
            pixels[top:bottom, left:right], extent=(left + dx, right + dx, bottom + dy, top + dy), vmin=0, vmax=255
        )
        write(axes, (left + right) / 2 + dx, (top + bottom) / 2 + dy, f"patch {patch}", 9)
    axes.set(xlim=(x0, x1 + gap), ylim=(y1 + gap, y0))
    remove_ticks(axes)
    axes.set_title(f"token {token}: x {x0} to {x1}, y {y0} to {y1}", fontsize=9)
    axes.set_xlabel(
        f"rows {4 * maps.slot_of_token(token)} to {4 * maps.slot_of_token(token) + 3} in window order\n"
        f"token {maps.prompt_of_token(token)} of the prompt", fontsize=SMALL,
    )  # fmt: skip
    for side in axes.spines.values():
        side.set(color=VERMILION, linewidth=2)


@resizable
def windows(trace, image=0, frame=0):
    """The windows of the tower's windowed blocks over the image; hatched where the image's edge cuts them smaller."""
    maps, pixels = trace.maps, picture(trace, image, frame)
    H, W, _ = pixels.shape
    side, unit = maps.config.vision.window_size, maps.config.vision.merged_size
    full = (side // unit) ** 2
    on_picture = windows_on(maps, image, frame)
    partial = sum(window.partial for window in on_picture)
    smaller = f"{partial} of them cut smaller (hatched)" if partial else "all of them whole"
    figure = plot(
        f"{len(on_picture)} windows of up to {side} x {side} pixels ({full} tokens), {smaller}:\n"
        "in a windowed block a patch attends to the patches of its own window only",
        height=figure_height(H / W, 0.75),
        layout="compressed",
    )
    axes = figure.subplots()
    show_picture(axes, pixels)
    inches = 0.75 * figure_width() * side / W  # across one window
    grid(axes, W, H, unit, min(0.5, 0.5 * inches))
    for window in on_picture:
        draw_window(axes, window, inches, side, unit)
    return figure


def draw_window(axes, window, inches, side, unit):
    """A window's outline and number; in large ones also its size in tokens."""
    x0, y0, x1, y1 = window.box
    colour = WINDOWS[window.colour]
    if window.partial:
        axes.fill(
            [x0, x1, x1, x0], [y0, y0, y1, y1], facecolor="none", edgecolor=colour, linewidth=0, hatch="//", alpha=0.6
        )
    inset = min(1.5, 0.06 * side)
    outline(axes, (x0 + inset, y0 + inset, x1 - inset, y1 - inset), colour, min(3, 2.5 * inches))
    text = (
        f"window {window.number}\n{(x1 - x0) // unit} x {(y1 - y0) // unit} tokens"
        if inches > 0.9
        else str(window.number)
    )
    narrow = (x1 - x0) / side * inches < (0.9 if inches > 0.9 else DIGIT * len(text))
    write(axes, (x0 + x1) / 2, (y0 + y1) / 2, text, rotation=90 * narrow)


@resizable
def permutation(trace, image=0, frame=0):
    """The window order: each token's slot, on the image's grid and against its number."""
    maps = trace.maps
    tokens, slots = maps.raster("tokens", image, frame), maps.raster("token slots", image, frame)
    rows, columns = tokens.shape
    unit = maps.config.vision.merged_size
    title = f"Window order of {tokens.size} tokens: window by window, row by row inside each window"
    figure = plot(title, height=4.4, layout="compressed")
    on_grid, curve = figure.subplots(1, 2, width_ratios=(1.25, 1))
    extent = 0, columns * unit, rows * unit, 0
    shown = on_grid.imshow(slots, extent=extent, cmap="cividis", interpolation="nearest")
    write_numbers(on_grid, maps.pixels_of_token(tokens), slots, 0.45 * figure_width() / max(columns, rows))
    for window in windows_on(maps, image, frame):
        outline(on_grid, window.box, "white", min(1.2, 8 / columns))
    on_grid.set_xlabel("x, pixels", fontsize=SMALL)
    on_grid.set_ylabel("y, pixels", fontsize=SMALL)
    on_grid.set_title("each token's slot, on the image", fontsize=9)
    colour_bar(figure, shown, on_grid, "slot: row in window order")
    curve.scatter(tokens, slots, c=slots, cmap="cividis", s=float(np.clip(2000 / tokens.size, 2, 18)))
    curve.set_xlabel("token: row by row over the whole image", fontsize=SMALL)
    curve.set_ylabel("slot: row in window order", fontsize=SMALL)
    curve.set_title("visual.window_index: tokens on the line\nkeep their position", fontsize=9)
    curve.axline((float(tokens.min()), float(tokens.min())), slope=1, color="black", linewidth=0.6)
    curve.set_aspect("equal")
    for axes in (on_grid, curve):
        axes.tick_params(labelsize=SMALL)
    return figure
