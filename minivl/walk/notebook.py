"""Steps of a walk in a notebook: tensors drawn on the image, tokens, logits and positions as HTML.

render_step(step, walk)     # the step's name, what happened, and a picture of it if there is one
"""

import html

import numpy as np

from minivl.palette import HEAT
from minivl.studies.attention import attention_of_row, attention_received, select_head
from minivl.studies.logit_lens import likeliest_with_probs
from minivl.tensors import catalogue
from minivl.tensors.chunks import split_evenly
from minivl.tensors.names import parse
from minivl.tensors.tokens import quote_tokens, token_runs, token_text
from minivl.trace.maps import Maps
from minivl.walk.overlays import MOST, data_uri, draw_grid, draw_heat, draw_window_order, draw_windows, encode, views


def render_step(step, walk):
    """A step as HTML."""
    head = f"<b>{html.escape(step.name)}</b> {step.dtype} {list(step.shape)}{' (replaced)' * step.replaced}"
    parts = [f"<p>{head}<br>{html.escape(step.sentence())}</p>"]
    try:
        parts += render_value(step, walk)
    except Exception:  # a replaced tensor may fit no picture: no reason to hide the step
        if not walk.edits:
            raise
        parts.append("<p>No picture: the replaced values do not fit one.</p>")
    return f"<div>{''.join(parts)}</div>"


def render_value(step, walk):
    """The value of a step as a list of HTML."""
    known, context, config = parse(step.name).general, walk.context, walk.vlm.config
    if known in ("image.{i}.resized", "video.{i}.resized"):
        frames = step.value if step.value.ndim == 4 else step.value[None]
        images = [img(draw_grid(frame, config.vision)) for frame in frames[:MOST]]
        return [*images, "<p>Thin lines: patches; thick lines: tokens of 2 x 2 patches.</p>"]
    if known == "input_ids":
        return [tokens_table(step.value, walk.vlm)]
    if known == "lm_head":
        return [logits_table(step.value[0], walk.vlm)]
    if known == "next_token":
        return [f"<code>{html.escape(quote_tokens(walk.vlm, step.value))}</code>"]
    if "visual.window_index" not in context:
        return []
    maps = Maps.from_tensors(config, context)
    if known == "visual.window_index":  # drawn from this tensor: its windows come later
        maps = Maps.from_tensors(config, {**context, "visual.cu_window_seqlens": maps.windows})
        return [
            img(draw_window_order(maps)),
            "<p>Above: the tokens as on the image, each with its slot in window order; below: in window order, each with "
            "its number on the image. One colour is one window.</p>",
        ]
    if known == "visual.cu_window_seqlens":
        images = [img(draw_windows(maps, context, *view)) for view in views(maps)]
        return [*images, "<p>Windows: in a windowed block a patch attends to its own window only.</p>"]
    if known == "position_ids" and step.shape[1] == len(maps.input_ids):
        return [positions_table(step.value, maps)]
    return render_heat(step, maps, context, walk.vlm.prefill_chunk)


def img(image):
    """An <img> that holds a Pillow image."""
    source = data_uri(encode(image, compress_level=1))
    return f'<img style="margin:2px" width="{image.width}" height="{image.height}" src="{source}">'


# ---- a number for each row ----


def render_heat(step, maps, context, most):
    """A tensor's rows on the image, with a legend; nothing for tensors whose rows are not on the image.

    most  tokens of a prompt that are run together: a tensor may hold one chunk of them
    """
    parsed, row = parse(step.name), catalogue.of(step.name)
    name, later = parsed.own, parsed.prefix.startswith("steps.")
    if row is None or not row.rows or not (row.has_length or row.made_by == "softmax"):
        return []
    tokens = len(maps.input_ids)
    if name.endswith("probs") and name.startswith("model"):
        values = select_head(attention_of_row(step.value, -1, tokens + parsed.step))[:tokens]
        meaning = "attention of the last token, mean of all heads"
    elif later or name == "pixel_values":
        return []
    elif name.endswith("probs"):
        values = attention_received(step.value, maps.bounds(parsed.index))
        meaning = "attention that each patch receives, mean of all heads"
    else:
        values, meaning = row_norms(step.value), "Euclidean norm of each row"
        if row.is_chunked:
            values = place_rows(values, split_evenly(tokens, most)[parsed.chunk], tokens)
    images, low, high = draw_heat(maps, values, name, context)
    stops = ",".join(f"rgb({','.join(f'{value:.0f}' for value in colour)})" for colour in HEAT)
    bar = f'<span style="display:inline-block;width:160px;height:.8em;background:linear-gradient(to right,{stops})"></span>'
    return [*map(img, images), f"<p>{meaning}: {low:.3g} {bar} {high:.3g}</p>"]


def place_rows(values, rows, count):
    """Values of some rows among those of all, [count]; NaN for the others."""
    placed = np.full(count, np.nan, dtype=np.float32)
    placed[rows] = values
    return placed


def row_norms(value):
    """The norm of each row: [N, X] -> [N]; of heads [H, N, K] -> [N]."""
    squares = np.square(value, dtype=np.float32)
    return np.sqrt(squares.sum(axis=(0, 2) if value.ndim == 3 else 1, dtype=np.float32))


# ---- tokens ----


def tokens_table(ids, vlm):
    """The prompt token by token, each image or video as one."""
    cells = []
    for start, count in token_runs(ids, (vlm.config.image_token_id, vlm.config.video_token_id)):
        text = html.escape(repr(token_text(vlm, ids[start]))[1:-1]) + (f" × {count}" if count > 1 else "")
        tint = "#ffe0b0" if count > 1 else "#eef" if len(cells) % 2 else "#dde"
        cells.append(
            f'<code style="background:{tint};color:#000;white-space:pre" title="{start}: {ids[start]}">{text}</code>'
        )
    return f"<p>{' '.join(cells)}</p>"


def logits_table(logits, vlm, most=5):
    """The likeliest tokens with their logits, and bars as long as their probabilities."""
    rows = []
    for token, share in zip(*likeliest_with_probs(logits, most)):
        bar = f'<div style="background:#4a7;height:1em;width:{200 * share:.0f}px"></div>'
        cells = html.escape(quote_tokens(vlm, token)), f"{logits[token]:.2f}", f"{share:.1%}", bar
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr><th>token</th><th>logit</th><th>probability</th><th></th></tr>{''.join(rows)}</table>"


def positions_table(positions, maps):
    """Text and images of the prompt with the ranges of their positions in time, row and column."""
    rows, edges = [], np.flatnonzero(np.diff(maps.shown.astype(np.int64))) + 1
    for start, end in zip([0, *edges], [*edges, len(maps.input_ids)]):
        is_video = maps.input_ids[start] == maps.config.video_token_id
        kind = ("video" if is_video else "image") if maps.shown[start] else "text"
        spans = (f"{int(row.min())}..{int(row.max())}" for row in positions[:, start:end])
        cells = "".join(f"<td>{cell}</td>" for cell in (kind, f"{start}..{end - 1}", *spans))
        rows.append(f"<tr>{cells}</tr>")
    heads = "".join(f"<th>{heading}</th>" for heading in ("", "tokens", "t", "h", "w"))
    return f"<table><tr>{heads}</tr>{''.join(rows)}</table>"
