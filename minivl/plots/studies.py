"""Plots of study results: head ablation, causal tracing, occlusion, rollout. Each takes what the study returned.

What a study returned over many cases, a `studies.Averages`, is drawn by plots/over.py.
"""

import numpy as np

from minivl.errors import Error
from minivl.plots.figure import (
    BLUE,
    ORANGE,
    SMALL,
    colour_bar,
    figure_width,
    lay_over,
    legible,
    picture,
    plot,
    resizable,
    two_panels,
)
from minivl.plots.over import averages
from minivl.plots.positions import SIGNED
from minivl.studies.averages import Averages


@resizable
def ablate_heads(result):
    """The change of the answer's log-probability without each head: decoder and tower, a `studies.HeadAblation`."""
    if isinstance(result, Averages):
        return averages.__wrapped__(result)
    tables = [("decoder", "layer", result.layers, result.decoder), ("tower", "block", result.blocks, result.tower)]
    tables = [table for table in tables if table[3].size]
    if not tables:
        raise Error("no head was ablated: layers= and blocks= were both empty.")
    rows = max(len(table[2]) for table in tables)
    columns = [table[3].shape[1] for table in tables]
    figure = plot(
        f"Each head ablated by itself ({result.by} ablation): change of the log-probability of {legible(result.answer, 28)}\n"
        f"({result.log_prob:.3g} nats with all heads; red: the answer needs the head)",
        height=float(np.clip(0.32 * rows + 1.8, 3, 16)),
    )
    most = max(float(np.abs(table[3]).max()) for table in tables) or 1.0
    panels = figure.subplots(1, len(tables), squeeze=False, width_ratios=columns)[0]
    for axes, (title, name, numbers, values) in zip(panels, tables):
        shown = axes.imshow(values, cmap=SIGNED, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        write_values(axes, values, most, figure_width() / sum(columns))
        mark_rows(axes, [f"{name} {i}" for i in numbers])
        mark_columns(axes, range(values.shape[1]))
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("head", fontsize=SMALL)
    colour_bar(figure, shown, panels, "change of the log-probability, nats")
    return figure


def write_values(axes, values, most, inches):
    """Numbers in the cells, where they fit."""
    if inches < 0.4 or len(values) > 40:
        return
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * most else "black"
        text = f"{value:.2f}" if abs(value) >= 0.005 else "0"
        axes.text(column, row, text, ha="center", va="center", fontsize=SMALL - 1, color=colour)


def mark_rows(axes, names, most=20):
    every = max(1, -(-len(names) // most))
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=SMALL)


def mark_columns(axes, names, most=20):
    names = list(names)
    every = max(1, -(-len(names) // most))
    axes.set_xticks(range(0, len(names), every), names[::every], fontsize=SMALL)


@resizable
def patch_grid(result):
    """The logit difference that patching recovers, by layer and group of tokens: a `studies.PatchGrid`."""
    if isinstance(result, Averages):
        return averages.__wrapped__(result)
    values, labels = result.recovered, [legible(label) for label in result.groups]
    size = float(np.clip(0.5 * len(labels) + 3, 7, 20)), float(np.clip(0.3 * len(values) + 2.8, 3.8, 16))
    clean, corrupted = (legible(answer) for answer in result.answers)
    figure = plot(
        f"Patched from the clean run ({clean}) into the corrupted one ({corrupted}):\n"
        f"recovered share of the difference of their logits (clean {result.clean:.3g}, corrupted {result.corrupted:.3g})",
        *size,
    )
    axes = figure.subplots()
    most = max(1.0, float(np.abs(values).max()))
    shown = axes.imshow(values, cmap=SIGNED, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    write_values(axes, values, most, size[0] / (len(labels) + 3))
    mark_rows(axes, [name.removeprefix("model.") for name in result.layers], 40)
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(labels)), labels, fontsize=SMALL, **turned)
    axes.set_ylabel("patched after", fontsize=SMALL)
    axes.set_xlabel("patched tokens of the prompt", fontsize=SMALL)
    colour_bar(figure, shown, axes, "recovered: 0 corrupted, 1 clean")
    return figure


@resizable
def occlusion(result):
    """The log-probability that hiding each part of the image costs, over the image: a `studies.Occlusion`."""
    if isinstance(result, Averages):
        return averages.__wrapped__(result)
    pixels = picture(result.trace, result.image, result.frame)
    tokens = "each token" if result.size == 1 else f"each {result.size} x {result.size} tokens"
    most = float(np.abs(result.drop).max()) or 1.0
    figure, axes = two_panels(
        f"Occlusion: {tokens} of the image hidden (replaced by {result.by}), and {legible(result.answer, 28)} forced\n"
        f"hiding the outlined box costs most, {float(result.windows.max()):.3g} nats of log-probability",
        pixels,
        [(result.box, ORANGE, 2.0)],
    )
    image = lay_over(axes[1], result.drop, pixels.shape[:2], most, cmap=SIGNED, vmin=-most, vmax=most)
    colour_bar(figure, image, axes[1], "lost when hidden, nats" + ", mean of windows" * (result.size > 1))
    return figure


@resizable
def attention_rollout(result, row=None, image=0, frame=0):
    """Where one row comes from, through all layers, over the image: a `studies.Rollout`.

    row  a patch (as `trace.maps` counts them) of the tower, or a token of the prompt; the patch in the middle of the
         image, or the prompt's last token, if not given
    """
    maps, pixels = result.trace.maps, picture(result.trace, image, frame)
    tower = result.part == "tower"
    if tower:
        patches = maps.raster("patches", image, frame)
        patch = int(patches[patches.shape[0] // 2, patches.shape[1] // 2]) if row is None else row
        if patch not in patches:
            raise Error(
                f"patch {patch!r} is none of this image's, {patches.min()} to {patches.max()}. Give its image=."
            )
        values = result.on_image(int(maps.slot_of_patch(patch)), image, frame)
        name, outlines = f"patch {patch} (blue)", [(maps.pixels_of_patch(patch), BLUE, 1.6)]
    else:
        row = len(result.shares) - 1 if row is None else row
        values, name, outlines = result.on_image(row, image, frame), f"token {row} of the prompt", []
    figure, axes = two_panels(
        f"Attention rollout through {'blocks' if tower else 'layers'} {result.layers[0]} to {result.layers[-1]}: "
        f"what {name} comes from\n{float(values.sum()):.1%} comes from this image, by attention alone",
        pixels,
        outlines,
    )
    # a patch keeps much more of itself than it gets from any other; scaled by itself, all others would be dark
    most = float(np.sort(values.reshape(-1))[-2 if tower else -1]) or 1.0
    image = lay_over(axes[1], values, pixels.shape[:2], most, vmin=0, vmax=most)
    label, extend = f"share, by {'patch' if tower else 'token'}", "max" if tower else "neither"
    colour_bar(figure, image, axes[1], label, extend=extend)
    return figure
