"""Attention on the image: in the tower from one patch, in the decoder from a token of the prompt or the answer.

Shares are drawn on a fixed scale of 0 to 100 %, so that two maps can be compared; scale="own" stretches the colours from 0 to
the map's largest share instead.
"""

import numpy as np

from minivl.errors import Error
from minivl.helpers import check_kind
from minivl.plots.figure import (
    BLUE,
    GREY,
    ORANGE,
    SMALL,
    VERMILION,
    figure_width,
    label_token,
    lay_over,
    outline,
    picture,
    plot,
    remove_ticks,
    resizable,
    share_bar,
    share_scale,
    show_picture,
    two_panels,
)
from minivl.studies.attention import attention_to_image, select_head
from minivl.studies.from_trace import find_kept, find_numbers, require, step_prefix, token_ids
from minivl.studies.windows import window_of_tokens

FAINT = 0.005  # a map whose largest share is below this gets no outline


@resizable
def tower_attention(trace, block, patch, head=None, scale="fixed"):
    """What one patch attends to in a block of the tower: the patches of its window, or of its frame.

    head  counted from 0; the mean of all if not given. Needs image.{i}.resized and visual.blocks.{block}.attn.probs.
    """
    maps = trace.maps
    image, frame = (int(n) for n in maps.places[maps.patch_of_slot(maps.slot_of_patch(patch))][:2])
    pixels, (probs,) = picture(trace, image, frame), require(trace, f"visual.blocks.{block}.attn.probs")
    start, end = maps.segment(patch, block)
    values = np.full(maps.patches, np.nan, dtype=np.float32)
    values[start:end] = select_head(probs, head)[maps.slot_of_patch(patch), : end - start]
    full = block in maps.config.vision.fullatt_block_indexes
    best = int(maps.patch_of_slot(start + np.argmax(values[start:end])))
    title = (
        f"visual.blocks.{block}.attn, {head_name(head)}: what patch {patch} (blue) attends to\n"
        f"of the {end - start} patches of its {'frame (full attention)' if full else 'window'}; "
        f"most to patch {best} (orange), {float(np.nanmax(values)):.1%}"
    )
    outlines = [(maps.pixels_of_patch(best), ORANGE, 1.6), (maps.pixels_of_patch(patch), BLUE, 1.6)]
    values = maps.on_image(values, "patch slots", image, frame)
    return draw_shares(title, pixels, values, outlines, "share of attention, by patch", scale)


def head_name(head):
    return "mean of all heads" if head is None else f"head {head}"


def draw_shares(title, pixels, values, outlines, label, scale):
    """A figure of the image, and of the image with shares of attention on it."""
    figure, axes = two_panels(title, pixels, outlines)
    limits = share_scale(values, scale)
    share_bar(figure, lay_over(axes[1], values, pixels.shape[:2], **limits), axes[1], label, scale)
    return figure


# ---- the decoder ----


def shares_on_picture(trace, layer, head, step, query, image, frame):
    """Attention of one query to each token of one frame, float32 [token rows, token columns]: shares of all it attends to."""
    T = len(trace.maps.input_ids)
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
        raise Error(f"step {step!r}: tokens of the answer are counted from 0.")
    if query is not None and query not in range(T) and not step:
        raise Error(f"query {query!r}: the prompt has {T} tokens, counted from 0. None is the last.")
    token = T - 1 + step if query is None or step else query
    return attention_to_image(trace, token, layer, head, image, frame).values


@resizable
def attention(trace, layer, head=None, step=0, query=None, image=0, frame=0, vlm=None, scale="fixed"):
    """What one token attends to on the image, in one layer of the decoder.

    head   counted from 0; the mean of all if not given
    step   which token of the answer is about to be chosen: 0 is the first, by the prompt's last token
    query  in step 0, another token of the prompt to look from, counted from 0
    vlm    to write tokens as text
    Needs image.{i}.resized, model.layers.{layer}.self_attn.probs (for later steps, with steps.{step}. in front).
    """
    maps, pixels = trace.maps, picture(trace, image, frame)
    values = shares_on_picture(trace, layer, head, step, query, image, frame)
    tokens = maps.raster("tokens", image, frame)
    best, window = strongest(maps, tokens, values, image, frame)
    share = f"{values.sum():.1%} of its attention is on this image"
    title = f"model.layers.{layer}.self_attn, {head_name(head)}: {describe_query(trace, step, query, vlm)}\n{share}; "
    title += f"most on token {best}, {values.max():.2%} (orange), and window {window} (red)"
    outlines = [(maps.pixels_of_window(window), VERMILION, 1.2), (maps.pixels_of_token(best), ORANGE, 2)]
    return draw_shares(title, pixels, values, outlines, "share of attention, by token", scale)


def strongest(maps, tokens, values, image, frame):
    """The token with the most attention, and the window with the most."""
    sums = np.bincount(window_of_tokens(maps, image, frame).reshape(-1), weights=values.reshape(-1))
    return int(tokens.reshape(-1)[np.argmax(values)]), int(np.argmax(sums))


def describe_query(trace, step, query, vlm):
    """The token whose attention is shown, in words."""
    ids = trace.maps.input_ids
    if query is not None and not step:
        return f"token {query} of the prompt, {label_token(vlm, ids[query])}"
    name = f"{step_prefix(step)}next_token"
    return f"before token {step} of the answer" + (f", {label_token(vlm, trace[name][0])}" if name in trace else "")


@resizable
def attention_heads(trace, step=0, query=None, image=0, frame=0, vlm=None, scale="fixed"):
    """All heads of all layers that were kept, each on the image: layers from top to bottom.

    Needs image.{i}.resized and model.layers.*.self_attn.probs; step, query and vlm as in `attention`.
    """
    pattern = step_prefix(step) + "model.layers.{i}.self_attn.probs"
    layers = find_kept(trace, pattern)
    heads = len(trace[pattern.format(i=layers[0])])
    query_name = describe_query(trace, step, query, vlm)
    title = f"{query_name[0].upper()}{query_name[1:]}: each head's attention to the image\n"
    cells = [[shares_on_picture(trace, i, h, step, query, image, frame) for h in range(heads)] for i in layers]
    figure, panels = small_multiples(trace, title, cells, image, frame, scale)
    for row, i in zip(panels, layers):
        row[0].set_ylabel(f"layer {i}", fontsize=SMALL + 1)
    for h, panel in enumerate(panels[0]):
        panel.set_title(f"head {h}: {cells[0][h].sum():.0%}", fontsize=SMALL)
    return figure


def small_multiples(trace, title, cells, image, frame, scale):
    """A grid of small maps; cells hold rows of the values on each."""
    pixels, maps = picture(trace, image, frame), trace.maps
    tokens = maps.raster("tokens", image, frame)
    H, W, _ = pixels.shape
    rows, columns = len(cells), len(cells[0])
    side = min(figure_width() / columns, 2.2 * W / H)  # inches across one map
    size = max(columns * side, 0.94 * figure_width()), min(rows * (0.95 * side * H / W + 0.26) + 0.65, 30)
    title += (
        f"(%: share of all its attention; colours 0 to {'100 %' if scale == 'fixed' else 'the largest of each map'})"
    )
    figure = plot(title, *size, layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False)
    for line, shares in zip(panels, cells):
        for axes, values in zip(line, shares):
            show_picture(axes, pixels)
            remove_ticks(axes)
            lay_over(axes, values, (H, W), **share_scale(values, scale))
            if values.max() >= FAINT:
                outline(axes, maps.pixels_of_token(strongest(maps, tokens, values, image, frame)[0]), ORANGE, 1)
            axes.set_title(f"{values.sum():.0%}", fontsize=SMALL)
    return figure, panels


@resizable
def attention_steps(trace, layer, head=None, image=0, frame=0, vlm=None, columns=5, scale="fixed"):
    """The attention to the image before each token of the answer, in one layer.

    Needs image.{i}.resized, model.layers.{layer}.self_attn.probs and steps.*.model.layers.{layer}.self_attn.probs.
    """
    check_kind("columns=", [columns], int, "a number of images in a row", 1)
    steps = [0, *find_numbers(trace, "steps.{i}.model.layers." + f"{layer}.self_attn.probs")]
    tokens = [f"{step_prefix(k)}next_token" for k in steps]
    require(trace, *[f"{step_prefix(k)}model.layers.{layer}.self_attn.probs" for k in steps], *tokens)
    shares = [shares_on_picture(trace, layer, head, k, None, image, frame) for k in steps]
    cells = [shares[i : i + columns] for i in range(0, len(shares), columns)]
    title = f"model.layers.{layer}.self_attn, {head_name(head)}: attention before each token of the answer\n"
    figure, panels = small_multiples(trace, title, cells, image, frame, scale)
    for axes in panels.reshape(-1)[len(shares) :]:
        axes.remove()
    ids, T = token_ids(trace)
    for axes, k, values in zip(panels.reshape(-1), steps, shares):
        axes.set_title(f"{k}: {label_token(vlm, ids[T + k])}\n{values.sum():.0%}", fontsize=SMALL)
        axes.spines[:].set_color(GREY)
    return figure
