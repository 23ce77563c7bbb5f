"""Norms: of the residual stream from layer to layer, and of the keys and values in the KV cache."""

import numpy as np
from matplotlib.ticker import LogLocator

from minivl.plots.figure import (
    BLUE,
    GREEN,
    ORANGE,
    SMALL,
    colour_bar,
    mark_pictures,
    plot,
    resizable,
)
from minivl.studies.from_trace import find_kept, find_numbers, require


@resizable
def residual_norms(trace):
    """Root mean square of the residual stream after each block and layer: patches, text, tokens of the image.

    Needs visual.window_order, visual.blocks.* (each block's output), inputs_embeds and model.layers.* (each layer's).
    """
    maps = trace.maps
    blocks = [i for i in find_numbers(trace, "visual.blocks.{i}") if f"visual.blocks.{i}" in trace]
    figure = plot("Residual stream, root mean square of a row: median, and from the 10th to the 90th percentile")
    towers = bool(maps.tokens)
    panels = figure.subplots(1, 1 + towers, squeeze=False)[0]
    if towers:
        names = ["visual.window_order", *[f"visual.blocks.{i}" for i in blocks or [0]]]
        draw_sizes(panels[0], [rms(x) for x in require(trace, *names)], ["in", *blocks], "patches", GREEN, "o-")
        label(
            panels[0], "tower", "after block", [str(i) for i in blocks if i in maps.config.vision.fullatt_block_indexes]
        )
    layers = find_kept(trace, "model.layers.{i}")
    sizes = [rms(x) for x in require(trace, "inputs_embeds", *[f"model.layers.{i}" for i in layers])]
    draw_sizes(panels[-1], [x[~maps.shown] for x in sizes], ["in", *layers], "text", BLUE, "o-")
    if towers:
        draw_sizes(panels[-1], [x[maps.shown] for x in sizes], ["in", *layers], "images and videos", ORANGE, "s--")
    label(panels[-1], "decoder", "after layer")
    return figure


def rms(x):
    """Root mean square of each row, float32 [rows]."""
    return np.sqrt(np.mean(np.square(x), axis=1, dtype=np.float32))


def draw_sizes(axes, sizes, labels, name, colour, style):
    """One line over the layers, with a band."""
    low, middle, high = np.stack([np.percentile(x, (10, 50, 90)) for x in sizes], axis=1)
    axes.fill_between(range(len(labels)), low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(range(len(labels)), middle, style, color=colour, markersize=4, label=f"{name}: {len(sizes[0])} rows")
    every = max(1, len(labels) // 16)
    axes.set_xticks(range(0, len(labels), every), [str(place) for place in labels[::every]])


def label(axes, title, below, full=()):
    axes.set_yscale("log")
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.set_title(title + (f" (full attention in {', '.join(full)})" if full else ""), fontsize=9)
    axes.set_xlabel(f"{below} (in: input of the first)", fontsize=SMALL)
    axes.set_ylabel("root mean square, logarithmic", fontsize=SMALL)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=SMALL)
    axes.tick_params(labelsize=SMALL, which="both")


@resizable
def kv_cache(trace):
    """Norms of the keys and values that this run puts into the cache: heads of all layers over tokens.

    Needs model.layers.*.self_attn.k_rope and .v_proj; of an answer with several tokens also with steps.*. in front.
    """
    maps, text = trace.maps, trace.maps.config.text
    layers, KV, K = range(text.num_hidden_layers), text.num_key_value_heads, text.head_dim
    T = len(maps.input_ids)
    steps = [""] + [f"steps.{k}." for k in find_numbers(trace, "steps.{i}.next_token")]
    names = [f"{place}model.layers.{i}.self_attn." for i in layers for place in steps]
    made = require(trace, *[name + "k_rope" for name in names], *[name + "v_proj" for name in names])
    keys = [np.linalg.norm(k, axis=2) for k in made[: len(names)]]  # [KV, T or 1] each
    values = [np.linalg.norm(v.reshape(len(v), KV, K), axis=2).T for v in made[len(names) :]]
    tables = [np.concatenate([np.concatenate(parts[i : i + len(steps)], axis=1) for i in range(0, len(parts), len(steps))])
              for parts in (keys, values)]  # [layers * KV, S]  # fmt: skip
    S = tables[0].shape[1]
    size = len(layers) * KV * S * K * 2 * 4
    figure = plot(
        f"KV cache: {len(layers)} layers x {KV} heads x {S} tokens x 2 x {K} numbers of 4 bytes = {size / 1e6:.3g} MB",
        height=float(np.clip(0.09 * len(tables[0]) * 2 + 2.6, 4, 16)),
    )
    for axes, table, title in zip(figure.subplots(2, 1, sharex=True), tables, ("keys, rotated", "values")):
        image = axes.imshow(table, cmap="viridis", aspect="auto", interpolation="nearest")
        every = max(1, len(layers) // 10)
        axes.set_yticks([i * KV + (KV - 1) / 2 for i in layers[::every]], [f"layer {i}" for i in layers[::every]])
        for i in layers[1:]:
            axes.axhline(i * KV - 0.5, color="white", linewidth=0.8)
        if S > T:
            axes.axvline(T - 0.5, color="white", linewidth=1.5, linestyle="--")
        axes.set_title(f"{title}: length of each head's vector ({KV} rows a layer)", fontsize=9)
        axes.tick_params(labelsize=SMALL)
        colour_bar(figure, image, axes, "Euclidean length")
        marked = mark_pictures(axes, maps)
    note = "; orange bar: images and videos" * marked + "; dashed line: start of the answer" * (S > T)
    axes.set_xlabel(f"token in the cache{note}", fontsize=SMALL)
    return figure
