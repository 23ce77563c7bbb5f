"""Position encodings: the rotary tables of tower and decoder, and M-RoPE positions."""

import numpy as np

from minivl.errors import Error
from minivl.plots.figure import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SMALL,
    VERMILION,
    colour_bar,
    mark_pictures,
    plot,
    resizable,
)
from minivl.studies.from_trace import find_numbers, require

SIGNED = "RdBu"  # of ColorBrewer: told apart with any colour vision


@resizable
def rope_tables(trace):
    """cos and sin that rotate queries and keys: by row and column in the tower, by t, h and w in the decoder.

    Needs model.rope.cos, model.rope.sin and, if there is an image, visual.rope.cos and visual.rope.sin.
    """
    config = trace.maps.config
    tables = [("decoder", "model", "token of the prompt", shares(("t", "h", "w"), config.text.rope.mrope_section))]
    if trace.maps.tokens:
        quarter = config.vision.head_dim // 4
        tables.insert(0, ("tower", "visual", "patch, in window order", shares(("row", "column"), (quarter, quarter))))
    require(trace, *[f"{prefix}.rope.{function}" for _, prefix, _, _ in tables for function in ("cos", "sin")])
    figure = plot(
        "Rotary tables: pair j of a head is rotated by the angle position x frequency j", height=3.6 * len(tables)
    )
    for axes, (title, prefix, rows, sections) in zip(figure.subplots(len(tables), 2, squeeze=False), tables):
        for panel, function in zip(axes, ("cos", "sin")):
            table = trace[f"{prefix}.rope.{function}"]
            half = table[:, : table.shape[1] // 2]  # the same twice, for the two halves of a pair
            image = panel.imshow(half, cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
            mark_sections(panel, sections)
            panel.set_title(f"{title}: {function}(angle), {prefix}.rope.{function}", fontsize=9)
            panel.set_ylabel(rows, fontsize=SMALL)
            panel.tick_params(labelsize=SMALL)
        colour_bar(figure, image, axes, "cos or sin")
    return figure


def shares(names, sizes):
    """(name, first pair, last pair + 1) of each."""
    ends = np.cumsum(sizes)
    return [(name, int(end - size), int(end)) for name, size, end in zip(names, sizes, ends)]


def mark_sections(axes, sections):
    for _, start, _ in sections:
        if start:
            axes.axvline(start - 0.5, color="black", linewidth=1)
    axes.set_xticks([(start + end - 1) / 2 for _, start, end in sections])
    axes.set_xticklabels([f"{name}\n{start}–{end - 1}" for name, start, end in sections])
    axes.set_xlabel("rotated by the position in, pair of numbers", fontsize=SMALL)


@resizable
def mrope_3d(trace):
    """M-RoPE positions of prompt and answer: in space, and token by token. Needs position_ids, and those of steps."""
    maps = trace.maps
    steps = [k for k in find_numbers(trace, "steps.{i}.position_ids") if f"steps.{k}.position_ids" in trace]
    if maps.position_ids is None:
        raise Error("this plot needs position_ids, and the run was stopped before they were made. Trace it further.")
    text, media = maps.position_ids[:, ~maps.shown], maps.position_ids[:, maps.shown]
    answer = np.concatenate(
        [np.zeros((3, 0), np.int64), *require(trace, *[f"steps.{k}.position_ids" for k in steps])], axis=1
    )
    kinds = [("text", text, BLUE, "o"), ("images and videos", media, ORANGE, "s"), ("answer", answer, VERMILION, "^")]
    spread = "an image spreads over h and w only" if maps.images else "a video spreads over all three"
    figure = plot("M-RoPE: text counts up on t, h and w at once" + (f"; {spread}" if maps.tokens else ""))
    left, right = figure.add_gridspec(1, 2, width_ratios=(1.15, 1))
    space, along = figure.add_subplot(left, projection="3d"), figure.add_subplot(right)
    for name, (t, h, w), colour, marker in kinds:
        if len(t):
            space.scatter(
                t, w, h, color=colour, marker=marker, s=10, depthshade=False, label=f"{name}: {len(t)} tokens"
            )
    for axis, text in ((space.xaxis, "t, time"), (space.yaxis, "w, column"), (space.zaxis, "h, row (down)")):
        axis.set_label_text(text, fontsize=SMALL)
    space.set_box_aspect(None, zoom=0.82)
    space.invert_zaxis()
    space.tick_params(labelsize=SMALL)
    space.legend(fontsize=SMALL, loc="upper left")
    draw_positions(along, maps, np.concatenate([maps.position_ids, answer], axis=1))
    return figure


def draw_positions(axes, maps, positions):
    """t, h and w of each token: they differ inside images only."""
    index = np.arange(positions.shape[1])
    for name, values, colour, style in zip(
        ("t, time", "h, row", "w, column"), positions, (BLUE, GREEN, PINK), "- -. :".split()
    ):
        axes.plot(index, values, style, color=colour, linewidth=1.6, label=name)
    axes.plot(index, index, color="black", linewidth=0.5, label="position of ordinary RoPE")
    axes.set(xlim=(-0.5, len(index) - 0.5), ylim=(-1, len(index)))
    axes.set_xlabel("token of the prompt, then of the answer" + ("\n(orange bar: images and videos)" if maps.tokens else ""),
                    fontsize=SMALL)  # fmt: skip
    axes.set_ylabel("position", fontsize=SMALL)
    mark_pictures(axes, maps, 0.005)
    axes.legend(fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
