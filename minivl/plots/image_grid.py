"""How a picture is cut: patches and tokens, windows, and the order in which the windowed blocks take them."""

import numpy as np

from minivl.plots.figure import (
    BLUE,
    GREEN,
    PINK,
    SMALL,
    VERMILION,
    WIDTH,
    bare,
    colour_bar,
    outline,
    picture,
    plot,
    show_picture,
    write,
)

QUARTET = BLUE, VERMILION, GREEN, PINK  # so that no two neighbours have the same
DIGIT = 0.09  # inches


def patches(trace, image=0, frame=0, token=None):
    """The picture, cut: thin lines between patches, thick ones between tokens; and one token with its patches' numbers.

    token  the one that is shown large; where the picture has most detail if not given. Needs image.{i}.resized.
    """
    maps, pixels = trace.maps, picture(trace, image, frame)
    tokens = maps.raster("tokens", image, frame)
    rows, columns = tokens.shape
    token = most_detailed(maps, tokens, pixels) if token is None else token
    P, unit = maps.config.vision.patch_size, maps.config.vision.merged_size
    H, W, _ = pixels.shape
    figure = plot(
        f"{W} x {H} pixels are {2 * columns} x {2 * rows} patches of {P} x {P}, and {columns} x {rows} = {tokens.size} tokens",
        height=figure_height(H / W, 0.62),
    )
    whole, one = figure.subplots(1, 2, width_ratios=(2, 1))
    show_picture(whole, pixels)
    inches = 0.62 * WIDTH / columns  # across one token
    grid(whole, W, H, P, min(0.3, inches))
    grid(whole, W, H, unit, min(1.2, 3 * inches))
    write_numbers(whole, maps.pixels_of_token(tokens), tokens, inches)
    outline(whole, maps.pixels_of_token(token), VERMILION, zorder=2.5)  # above the lines of the grid
    whole.set_title("numbers: tokens, row by row", fontsize=9)
    draw_token(one, maps, pixels, token)
    return figure


def most_detailed(maps, tokens, pixels):
    """The token over whose pixels colours vary most."""
    found = [
        np.std(pixels[y0:y1, x0:x1], axis=(0, 1)).sum() for x0, y0, x1, y1 in maps.pixels_of_token(tokens.reshape(-1))
    ]
    return int(tokens.reshape(-1)[np.argmax(found)])


def figure_height(ratio, share, least=3.2, most=7.0):
    """Inches for a picture of height / width `ratio` that takes this share of the figure's width."""
    return float(np.clip(share * WIDTH * ratio + 1.1, least, most))


def grid(axes, W, H, step, width):
    for x in range(0, W + 1, step):
        axes.plot([x, x], [0, H], color="white", linewidth=width)
    for y in range(0, H + 1, step):
        axes.plot([0, W], [y, y], color="white", linewidth=width)


def write_numbers(axes, boxes, numbers, inches):
    """A number in the middle of each box; every second, third, ... one if there is no room for all."""
    room = DIGIT * len(str(numbers.max()))
    every = 1 if room < inches else int(np.ceil(2 * room / inches))
    for row in range(0, numbers.shape[0], every):
        for column in range(0, numbers.shape[1], every):
            x0, y0, x1, y1 = boxes[row, column]
            write(axes, (x0 + x1) / 2, (y0 + y1) / 2, str(numbers[row, column]), SMALL - 1)


def draw_token(axes, maps, pixels, token):
    """One token, its patches apart, with their numbers."""
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
    bare(axes)
    axes.set_title(f"token {token}: x {x0} to {x1}, y {y0} to {y1}", fontsize=9)
    axes.set_xlabel(
        f"rows {4 * maps.slot_of_token(token)} to {4 * maps.slot_of_token(token) + 3} in window order\n"
        f"token {maps.prompt_of_token(token)} of the prompt", fontsize=SMALL,
    )  # fmt: skip
    for side in axes.spines.values():
        side.set(color=VERMILION, linewidth=2)


def windows(trace, image=0, frame=0):
    """The windows of the tower's windowed blocks over the picture; hatched where the picture's edge cuts them smaller."""
    maps, pixels = trace.maps, picture(trace, image, frame)
    H, W, _ = pixels.shape
    side, unit = maps.config.vision.window_size, maps.config.vision.merged_size
    full = (side // unit) ** 2
    found = windows_on(maps, image, frame)
    tokens = {k: len(maps.patches_of_window(k)) // maps.config.vision.merge_unit for k in found}
    partial = sum(count < full for count in tokens.values())
    smaller = f"{partial} of them cut smaller by the picture's edge (hatched)" if partial else "all of them whole"
    figure = plot(
        f"{len(found)} windows of up to {side} x {side} pixels ({full} tokens), {smaller}:\n"
        "in a windowed block a patch sees only the patches of its own window",
        height=figure_height(H / W, 0.75),
        layout="compressed",
    )
    axes = figure.subplots()
    show_picture(axes, pixels, faint=True)
    inches = 0.75 * WIDTH * side / W  # across one window
    grid(axes, W, H, unit, min(0.5, 0.5 * inches))
    for k in found:
        draw_window(axes, maps, k, inches, tokens[k] < full)
    return figure


def draw_window(axes, maps, window, inches, partial):
    """Its colour, and its number; if there is room, also how many tokens it has."""
    x0, y0, x1, y1 = maps.pixels_of_window(window)
    side, unit = maps.config.vision.window_size, maps.config.vision.merged_size
    colour = QUARTET[y0 // side % 2 * 2 + x0 // side % 2]
    shape = {"facecolor": colour, "edgecolor": "white", "linewidth": 0, "hatch": "//" if partial else None}
    axes.fill([x0, x1, x1, x0], [y0, y0, y1, y1], alpha=0.45, **shape)
    if inches > 0.9:
        outline(axes, (x0 + 1.5, y0 + 1.5, x1 - 1.5, y1 - 1.5), colour, 1.5)
    text = f"window {window}\n{(x1 - x0) // unit} x {(y1 - y0) // unit} tokens" if inches > 0.9 else str(window)
    narrow = (x1 - x0) / side * inches < (0.9 if inches > 0.9 else DIGIT * len(text))
    write(axes, (x0 + x1) / 2, (y0 + y1) / 2, text, rotation=90 * narrow)


def windows_on(maps, image, frame):
    """The windows of one frame, in order."""
    return np.unique(maps.window_of_patch(maps.raster("patches", image, frame))).tolist()


def permutation(trace, image=0, frame=0):
    """The window order: each token's slot, on the picture's grid and against its number."""
    maps = trace.maps
    tokens, slots = maps.raster("tokens", image, frame), maps.raster("token slots", image, frame)
    rows, columns = tokens.shape
    unit = maps.config.vision.merged_size
    title = f"The window order of {tokens.size} tokens: row by row inside each window, window by window"
    figure = plot(title, height=4.4, layout="compressed")
    on_grid, curve = figure.subplots(1, 2, width_ratios=(1.25, 1))
    extent = 0, columns * unit, rows * unit, 0
    shown = on_grid.imshow(slots, extent=extent, cmap="cividis", interpolation="nearest")
    write_numbers(on_grid, maps.pixels_of_token(tokens), slots, 0.45 * WIDTH / max(columns, rows))
    for k in windows_on(maps, image, frame):
        outline(on_grid, maps.pixels_of_window(k), "white", min(1.2, 8 / columns))
    on_grid.set_xlabel("x, pixels", fontsize=SMALL)
    on_grid.set_ylabel("y, pixels", fontsize=SMALL)
    on_grid.set_title("each token's slot, at its place on the picture", fontsize=9)
    colour_bar(figure, shown, on_grid, "slot: row in window order")
    curve.scatter(tokens, slots, c=slots, cmap="cividis", s=float(np.clip(2000 / tokens.size, 2, 18)))
    curve.set_xlabel("token: row by row over the whole picture", fontsize=SMALL)
    curve.set_ylabel("slot: row in window order", fontsize=SMALL)
    curve.set_title("visual.window_index: nothing moves where\nthe dots lie on the line", fontsize=9)
    curve.axline((float(tokens.min()), float(tokens.min())), slope=1, color="black", linewidth=0.6)
    curve.set_aspect("equal")
    for axes in (on_grid, curve):
        axes.tick_params(labelsize=SMALL)
    return figure
