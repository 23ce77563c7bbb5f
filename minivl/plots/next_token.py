"""Next-token predictions: after each layer (logit lens), and with their probabilities at each step of the answer."""

import numpy as np

from minivl import studies
from minivl.errors import Error
from minivl.kernels.attention import softmax
from minivl.plots.figure import (
    BLUE,
    ORANGE,
    SMALL,
    colour_bar,
    figure_width,
    label_token,
    plot,
    resizable,
)
from minivl.studies.from_trace import require, step_prefix, token_ids
from minivl.tensors.tokens import likeliest


@resizable
def logit_lens(trace, vlm, start=None, end=None):
    """The likeliest next token if the model stopped after each layer: final norm and lm_head of the residual stream there.

    start, end  which tokens to read it at, counted through prompt and answer; from the prompt's last four on if not given,
                twelve at most
    Needs model.layers.* (each layer's output) and, of an answer with several tokens, steps.*.model.layers.*.
    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    lens = studies.logit_lens(trace, vlm, start, end, most=1)
    layers, start, end, T = lens.layers, lens.tokens[0], lens.tokens[-1] + 1, lens.prompt
    ids, _ = token_ids(trace)
    top, probs = lens.ids[:, :, 0], lens.probs[:, :, 0]
    size = np.clip([1.8 + 0.8 * (end - start), 0.3 * len(layers) + 2.2], (6, 3), (20, 20))
    figure = plot("Logit lens: the likeliest next token if the model stopped after each layer", *size.tolist())
    axes = figure.subplots()
    image = axes.imshow(probs, cmap="cividis", vmin=0, vmax=1, aspect="auto", origin="lower", interpolation="nearest")
    # letters of a token that fit into a cell, quotes left out
    letters = int(np.clip(72 * (figure.get_figwidth() - 1.8) / (end - start) / 4.8 - 2, 3, 9))
    for row in range(len(layers)):
        for column in range(end - start):
            dark = probs[row, column] < 0.55
            axes.text(column, row, label_token(vlm, top[row, column], letters), ha="center", va="center", fontsize=SMALL,
                      color="white" if dark else "black")  # fmt: skip
    axes.set_yticks(range(len(layers)), [f"layer {i}" for i in layers], fontsize=SMALL)
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(
        range(end - start), [f"{i}: {label_token(vlm, ids[i])}" for i in range(start, end)], fontsize=SMALL, **turned
    )
    axes.set_xlabel("token at which it is read; from the white line on, the answer is chosen there", fontsize=SMALL)
    above = axes.secondary_xaxis("top")
    above.set_xticks(
        range(end - start), [label_token(vlm, ids[i + 1], letters) for i in range(start, end)], fontsize=SMALL
    )
    above.set_xlabel("token that follows: in the answer, the one that was chosen", fontsize=SMALL)
    if start < T - 1 < end:
        axes.axvline(T - 1 - start - 0.5, color="white", linewidth=2.5)
    colour_bar(figure, image, axes, "probability of that token")
    return figure


@resizable
def token_probabilities(trace, vlm=None, most=5, steps=12):
    """The likeliest tokens at each step of the answer, in %, the chosen one marked. Before temperature and penalties.

    most   how many of each step;  steps  how many steps, from the first
    Needs lm_head and next_token, and steps.*.lm_head and steps.*.next_token.
    """
    ids, T = token_ids(trace)
    count = min(steps, len(ids) - T)
    if count < 1:
        raise Error("this trace has no next_token: its run was stopped before. Trace it to the end.")
    logits = require(trace, *[f"{step_prefix(k)}lm_head" for k in range(count)])
    columns = min(4, count)
    rows = -(-count // columns)
    figure = plot(
        f"Probabilities of the next token: the {most} likeliest at each step, the chosen one in orange",
        figure_width(), (0.19 * most + 0.55) * rows + 0.7,
    )  # fmt: skip
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in panels[count:]:
        axes.remove()
    for k, axes in enumerate(panels[:count]):
        bars(axes, softmax(logits[k][0]), int(ids[T + k]), vlm, most)
        axes.set_title(f"token {k} of the answer", fontsize=SMALL)
        if k // columns == (count - 1 - k % columns) // columns:
            axes.set_xlabel("probability, %", fontsize=SMALL)
    return figure


def bars(axes, probs, chosen, vlm, most):
    """One step: bars of the likeliest tokens; the chosen one comes last if it is not among them."""
    order = likeliest(probs, most)
    order = order if chosen in order else np.append(order[:-1], chosen)
    share = 100 * probs[order]
    axes.barh(range(len(order)), share, color=[ORANGE if i == chosen else BLUE for i in order])
    for row, value in enumerate(share):
        axes.text(value + 2, row, f"{value:.1f}" if value >= 0.05 else "<0.1", va="center", fontsize=SMALL)
    axes.set_yticks(range(len(order)), [label_token(vlm, i) for i in order], fontsize=SMALL)
    axes.set(xlim=(0, 125), ylim=(len(order) - 0.4, -0.6), xticks=[0, 50, 100])
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
