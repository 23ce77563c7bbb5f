"""Where attention looks on the picture: in the tower from one patch, in the decoder from a token of the prompt or answer."""

import numpy as np
from matplotlib.ticker import PercentFormatter

from minivl.errors import Error
from minivl.plots.figure import (
    BLUE,
    GREY,
    ORANGE,
    SMALL,
    VERMILION,
    WIDTH,
    bare,
    colour_bar,
    lay_over,
    needed,
    numbered,
    outline,
    picture,
    place_of_step,
    plot,
    show_picture,
    token_ids,
    word,
)
from minivl.plots.image_grid import figure_height
from minivl.studies.attention import attention_to_image, chosen_head


def tower_attention(trace, block, patch, head=None):
    """What one patch attends to in a block of the tower: the patches of its window, or of its frame.

    head  counted from 0; the mean of all if not given. Needs image.{i}.resized and visual.blocks.{block}.attn.probs.
    """
    maps = trace.maps
    image, frame = (int(n) for n in maps.places[maps.patch_of_slot(maps.slot_of_patch(patch))][:2])
    pixels, (probs,) = picture(trace, image, frame), needed(trace, f"visual.blocks.{block}.attn.probs")
    start, end = maps.segment(patch, block)
    values = np.full(maps.patches, np.nan, dtype=np.float32)
    values[start:end] = chosen_head(probs, head)[maps.slot_of_patch(patch), : end - start]
    full = block in maps.config.vision.fullatt_block_indexes
    best = int(maps.patch_of_slot(start + np.argmax(values[start:end])))
    figure, axes = beside(
        f"visual.blocks.{block}.attn, {named_head(head)}: what patch {patch} (blue) attends to\n"
        f"of the {end - start} patches of its {'frame (full attention)' if full else 'window'}; "
        f"most to patch {best} (orange), {float(np.nanmax(values)):.1%}",
        pixels,
    )
    marks = [(maps.pixels_of_patch(best), ORANGE, 1.6), (maps.pixels_of_patch(patch), BLUE, 1.6)]
    draw_beside(
        figure, axes, pixels, maps.on_image(values, "patch slots", image, frame), marks, "share of attention, by patch"
    )
    return figure


def named_head(head):
    return "mean of all heads" if head is None else f"head {head}"


def beside(title, pixels):
    """A figure for the picture as it is, and for the picture with attention over it."""
    H, W, _ = pixels.shape
    figure = plot(title, height=figure_height(H / W, 0.42), layout="compressed")
    return figure, figure.subplots(1, 2)


def draw_beside(figure, axes, pixels, values, marks, label):
    for panel, faint in zip(axes, (False, True)):
        show_picture(panel, pixels, faint)
        for box, colour, width in marks:
            outline(panel, box, colour, width)
    colour_bar(
        figure, lay_over(axes[1], values, pixels.shape[:2], 0.75, vmin=0), axes[1], label, format=PercentFormatter(1)
    )


# ---- the decoder ----


def on_tokens(trace, layer, head, step, query, image, frame):
    """Attention to each token of one frame, float32 [token rows, token columns]: its share of one query's whole attention."""
    T = len(trace.maps.input_ids)
    if query is not None and query not in range(T) and not step:
        raise Error(f"query {query!r}: the prompt has {T} tokens, counted from 0. None is the last.")
    token = T - 1 + step if query is None or step else query
    return attention_to_image(trace, token, layer, head, image, frame).values


def attention(trace, layer, head=None, step=0, query=None, image=0, frame=0, vlm=None):
    """What one token attends to on the picture, in one layer of the decoder.

    head   counted from 0; the mean of all if not given
    step   which token of the answer is about to be chosen: 0 is the first, by the prompt's last token
    query  in step 0, another token of the prompt to look from, counted from 0
    vlm    to write tokens as text
    Needs image.{i}.resized, model.layers.{layer}.self_attn.probs (for later steps, with steps.{step}. in front).
    """
    maps, pixels = trace.maps, picture(trace, image, frame)
    values = on_tokens(trace, layer, head, step, query, image, frame)
    tokens = maps.raster("tokens", image, frame)
    best, window = strongest(maps, tokens, values)
    share = f"{values.sum():.1%} of its attention is on this picture"
    title = f"model.layers.{layer}.self_attn, {named_head(head)}: {asker(trace, step, query, vlm)}\n{share}; "
    title += f"most on token {best}, {values.max():.2%} (orange), and window {window} (red)"
    figure, axes = beside(title, pixels)
    marks = [(maps.pixels_of_window(window), VERMILION, 1.2), (maps.pixels_of_token(best), ORANGE, 2)]
    draw_beside(figure, axes, pixels, values, marks, "share of attention, by token")
    return figure


def strongest(maps, tokens, values):
    """The token with the most attention, and the window with the most."""
    windows = maps.window_of_patch(maps.patches_of_token(tokens)[..., 0])
    sums = np.bincount(windows.reshape(-1), weights=values.reshape(-1))
    return int(tokens.reshape(-1)[np.argmax(values)]), int(np.argmax(sums))


def asker(trace, step, query, vlm):
    """Who looks, in words."""
    ids = trace.maps.input_ids
    if query is not None and not step:
        return f"token {query} of the prompt, {word(vlm, ids[query])}"
    name = f"{place_of_step(step)}next_token"
    return f"before token {step} of the answer" + (f", {word(vlm, trace[name][0])}" if name in trace else "")


def attention_heads(trace, step=0, query=None, image=0, frame=0, vlm=None):
    """All heads of all layers that were kept, each on the picture: layers from top to bottom.

    Needs image.{i}.resized and model.layers.*.self_attn.probs; step, query and vlm as in `attention`.
    """
    place = place_of_step(step)
    layers = numbered(trace, place + "model.layers.{i}.self_attn.probs")
    kept = [i for i in layers if f"{place}model.layers.{i}.self_attn.probs" in trace]
    if not kept:
        needed(trace, *[f"{place}model.layers.{i}.self_attn.probs" for i in layers or [0]])
    heads = len(trace[f"{place}model.layers.{kept[0]}.self_attn.probs"])
    who = asker(trace, step, query, vlm)
    title = f"{who[0].upper()}{who[1:]}: each head's attention to the picture\n"
    title += "(colours from 0 to each map's largest, outlined; in %: share of the head's whole attention)"
    cells = [[on_tokens(trace, i, h, step, query, image, frame) for h in range(heads)] for i in kept]
    figure, panels = small_multiples(trace, title, cells, image, frame)
    for row, i in zip(panels, kept):
        row[0].set_ylabel(f"layer {i}", fontsize=SMALL + 1)
    for h, panel in enumerate(panels[0]):
        panel.set_title(f"head {h}: {cells[0][h].sum():.0%}", fontsize=SMALL)
    return figure


def small_multiples(trace, title, cells, image, frame):
    """A grid of small maps; cells hold rows of the values on each."""
    pixels, maps = picture(trace, image, frame), trace.maps
    tokens = maps.raster("tokens", image, frame)
    H, W, _ = pixels.shape
    rows, columns = len(cells), len(cells[0])
    side = min(WIDTH / columns, 2.2 * W / H)  # inches across one map
    size = max(columns * side, 8.5), min(rows * (0.95 * side * H / W + 0.26) + 0.65, 30)
    figure = plot(title, *size, layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False)
    for line, found in zip(panels, cells):
        for axes, values in zip(line, found):
            show_picture(axes, pixels, faint=True)
            bare(axes)
            lay_over(axes, values, (H, W), 0.6, vmin=0)
            outline(axes, maps.pixels_of_token(strongest(maps, tokens, values)[0]), ORANGE, 1)
            axes.set_title(f"{values.sum():.0%}", fontsize=SMALL)
    return figure, panels


def attention_steps(trace, layer, head=None, image=0, frame=0, vlm=None, columns=5):
    """The attention to the picture before each token of the answer, in one layer.

    Needs image.{i}.resized, model.layers.{layer}.self_attn.probs and steps.*.model.layers.{layer}.self_attn.probs.
    """
    steps = [0, *numbered(trace, "steps.{i}.model.layers." + f"{layer}.self_attn.probs")]
    chosen = [f"{place_of_step(k)}next_token" for k in steps]
    needed(trace, *[f"{place_of_step(k)}model.layers.{layer}.self_attn.probs" for k in steps], *chosen)
    found = [on_tokens(trace, layer, head, k, None, image, frame) for k in steps]
    cells = [found[i : i + columns] for i in range(0, len(found), columns)]
    title = f"model.layers.{layer}.self_attn, {named_head(head)}: where it looks before each token of the answer\n"
    title += "(colours from 0 to each map's largest, outlined; in %: share of its whole attention)"
    figure, panels = small_multiples(trace, title, cells, image, frame)
    for axes in panels.reshape(-1)[len(found) :]:
        axes.remove()
    ids, T = token_ids(trace)
    for axes, k, values in zip(panels.reshape(-1), steps, found):
        axes.set_title(f"{k}: {word(vlm, ids[T + k])}\n{values.sum():.0%}", fontsize=SMALL)
        axes.spines[:].set_color(GREY)
    return figure
