"""Steps of a walk as a notebook shows them: what one sees better than one reads, as HTML that holds its pictures.

html_of(step, walk)         # the step's picture, if it has one, below its name and what happened
"""

import base64
import html
import io

import numpy as np

from minivl.palette import HEAT
from minivl.tensors import catalogue
from minivl.tensors.chunks import split_evenly
from minivl.tensors.explain import word
from minivl.tensors.names import parse
from minivl.trace.maps import Maps
from minivl.walk.overlays import MOST, coloured, gridded, heat_pictures, permutation, places


def html_of(step, walk):
    """The whole of a step."""
    head = f"<b>{html.escape(step.name)}</b> {step.dtype} {list(step.shape)}{' (replaced)' * step.replaced}"
    parts = [f"<p>{head}<br>{html.escape(step.sentence())}</p>"]
    try:
        parts += shown(step, walk)
    except Exception:  # what was put in may fit no picture: no reason to hide the step
        if not walk.edits:
            raise
        parts.append("<p>No picture: what was replaced fits none.</p>")
    return f"<div>{''.join(parts)}</div>"


def shown(step, walk):
    """HTML of what this step has to see."""
    known, context, config = parse(step.name).general, walk.context, walk.vlm.config
    if known in ("image.{i}.resized", "video.{i}.resized"):
        frames = step.value if step.value.ndim == 4 else step.value[None]
        pictures = [png(gridded(frame, config.vision)) for frame in frames[:MOST]]
        return [*pictures, caption("thin lines: patches; thick lines: tokens, 2 x 2 patches each")]
    if known == "input_ids":
        return [tokens_html(step.value, walk.vlm)]
    if known == "lm_head":
        return [logits_html(step.value[0], walk.vlm)]
    if known == "next_token":
        return [f"<code>{html.escape(repr(word(walk.vlm, int(step.value[0]))))}</code>"]
    if "visual.window_index" not in context:
        return []
    maps = Maps.from_tensors(config, context)
    if known == "visual.window_index":  # of the order that stands here, whose windows are still to come
        maps = Maps.from_tensors(config, {**context, "visual.cu_window_seqlens": maps.windows})
        said = (
            "above: each token where it stands, with its place in window order; below: in that order, with its number"
        )
        return [png(permutation(maps)), caption(f"{said}. A colour is a window")]
    if known == "visual.cu_window_seqlens":
        pictures = [png(coloured(maps, context, *place)) for place in places(maps)]
        return [*pictures, caption("a colour is a window: what a patch sees in a windowed block")]
    if known == "position_ids" and step.shape[1] == len(maps.input_ids):
        return [positions_html(step.value, maps)]
    return heat_html(step, maps, context, walk.vlm.prefill_chunk)


def png(image):
    """An <img> that holds the picture itself."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img style="margin:2px" width="{image.width}" height="{image.height}" src="data:image/png;base64,{data}">'


def caption(text):
    return f"<p>{text[0].upper()}{text[1:]}.</p>"


# ---- a number for each row ----


def heat_html(step, maps, context, most):
    """A tensor's rows on the picture, with what the colours mean; nothing for tensors whose rows are no places.

    most  tokens of a prompt that are run together: a tensor may hold one chunk of them
    """
    parsed, row = parse(step.name), catalogue.of(step.name)
    name, later = parsed.own, parsed.prefix.startswith("steps.")
    if row is None or not row.rows or not (row.has_length or row.made_by == "softmax"):
        return []
    if name.endswith("probs") and name.startswith("model"):
        values, meaning = (
            attention_to(step.value, len(maps.input_ids)),
            "attention of the last token, mean of all heads",
        )
    elif later or name == "pixel_values":
        return []
    elif name.endswith("probs"):
        values, meaning = (
            attention_received(step.value, maps, name),
            "attention that each patch receives, mean of all heads",
        )
    else:
        values, meaning = lengths(step.value), "length (Euclidean norm) of each row"
        if row.is_chunked:
            values = among_all(values, split_evenly(len(maps.input_ids), most)[parsed.chunk], len(maps.input_ids))
    pictures, low, high = heat_pictures(maps, values, name, context)
    stops = ",".join(f"rgb({','.join(f'{value:.0f}' for value in colour)})" for colour in HEAT)
    bar = f'<span style="display:inline-block;width:160px;height:.8em;background:linear-gradient(to right,{stops})"></span>'
    return [*map(png, pictures), f"<p>{meaning}: {low:.3g} {bar} {high:.3g}</p>"]


def among_all(values, rows, count):
    """Values of some rows among those of all, [count]; NaN for the others."""
    found = np.full(count, np.nan, dtype=np.float32)
    found[rows] = values
    return found


def lengths(value):
    """The norm of each row: [N, X] -> [N]; of heads [H, N, K] -> [N]."""
    squares = np.square(value, dtype=np.float32)
    return np.sqrt(squares.sum(axis=(0, 2) if value.ndim == 3 else 1, dtype=np.float32))


def attention_to(probs, tokens):
    """probs [H, T, S] of the decoder -> [tokens]: what the last token gives to each of the prompt."""
    given = np.zeros(tokens, dtype=np.float32)
    seen = min(tokens, probs.shape[2])
    given[:seen] = probs[:, -1, :seen].mean(axis=0)
    return given


def attention_received(probs, maps, name):
    """probs [H, N, L] of the tower -> [N]: the sum over all patches of the segment, 1 on average."""
    bounds = maps.bounds(int(name.split(".")[2]))
    mean, received = probs.mean(axis=0), np.zeros(probs.shape[1], dtype=np.float32)
    for start, end in zip(bounds[:-1], bounds[1:]):
        received[start:end] = mean[start:end, : end - start].sum(axis=0)
    return received


# ---- tokens ----


def runs(ids, config):
    """(first, how many) of each token, the placeholders of a picture as one."""
    media = np.isin(ids, (config.image_token_id, config.video_token_id))
    starts = [0, *(i for i in range(1, len(ids)) if not (media[i] and ids[i] == ids[i - 1]))]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(ids)])]


def tokens_html(ids, vlm):
    """The prompt token by token."""
    cells = []
    for start, count in runs(ids, vlm.config):
        text = html.escape(repr(word(vlm, int(ids[start])))[1:-1]) + (f" × {count}" if count > 1 else "")
        tint = "#ffe0b0" if count > 1 else "#eef" if len(cells) % 2 else "#dde"
        cells.append(
            f'<code style="background:{tint};color:#000;white-space:pre" title="{start}: {ids[start]}">{text}</code>'
        )
    return f"<p>{' '.join(cells)}</p>"


def logits_html(logits, vlm, count=5):
    """The best tokens with their scores, and bars as long as their probabilities."""
    weights = np.exp(logits - logits.max())
    probs, rows = weights / weights.sum(dtype=np.float32), []
    for token in np.argsort(-logits, kind="stable")[:count]:
        bar = f'<div style="background:#4a7;height:1em;width:{200 * probs[token]:.0f}px"></div>'
        cells = (html.escape(repr(word(vlm, int(token)))), f"{logits[token]:.2f}", f"{probs[token]:.1%}", bar)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr><th>token</th><th>score</th><th>probability</th><th></th></tr>{''.join(rows)}</table>"


def positions_html(positions, maps):
    """Runs of the prompt with the positions that they take in time, row and column."""
    rows, edges = [], np.flatnonzero(np.diff(maps.shown.astype(np.int64))) + 1
    for start, end in zip([0, *edges], [*edges, len(maps.input_ids)]):
        kind = "shown" if maps.shown[start] else "text"
        spans = (f"{int(row.min())}..{int(row.max())}" for row in positions[:, start:end])
        cells = "".join(f"<td>{cell}</td>" for cell in (kind, f"{start}..{end - 1}", *spans))
        rows.append(f"<tr>{cells}</tr>")
    heads = "".join(f"<th>{one}</th>" for one in ("", "tokens", "t", "h", "w"))
    return f"<table><tr>{heads}</tr>{''.join(rows)}</table>"
