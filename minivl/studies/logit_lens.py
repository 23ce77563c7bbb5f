"""The logit lens: what the next token would be if the model stopped after each layer."""

from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.kernels.attention import softmax
from minivl.studies.averages import average
from minivl.studies.cases import check_unused
from minivl.studies.from_trace import find_kept, find_numbers, require, select_rows, token_ids
from minivl.tensors.tokens import likeliest, quote_tokens


@dataclass(frozen=True)
class LogitLens:
    """The likeliest next tokens after each layer.

    ids     int64 [layers, tokens, most], the likeliest first;  probs  float32, theirs
    layers  numbers of the layers;  tokens  at which they are read, counted through prompt and answer
    prompt  number of tokens of the prompt;  following  id of the token that comes after each, int64 [tokens]
    word    function of an id: the token as text in quotes
    """

    ids: np.ndarray
    probs: np.ndarray
    layers: tuple
    tokens: tuple
    prompt: int
    following: np.ndarray
    word: object

    def settled(self, column):
        """The first layer from which on the likeliest token at tokens[column] is the one after the last layer."""
        top = self.ids[:, column, 0]
        other = np.flatnonzero(top != top[-1])
        return self.layers[int(other[-1]) + 1 if len(other) else 0]

    def __str__(self):
        column = self.tokens.index(self.prompt - 1) if self.prompt - 1 in self.tokens else len(self.tokens) - 1
        return (
            f"At token {self.tokens[column]}, {self.word(self.ids[-1, column, 0])} is the likeliest next token from layer "
            f"{self.settled(column)} on; it ends at {float(self.probs[-1, column, 0]):.1%}."
        )


def logit_lens(trace=None, vlm=None, start=None, end=None, most=5, over=None, **options):
    """The likeliest next tokens if the model stopped after each layer: final norm and lm_head of the residual stream there.
    -> LogitLens

    start, end  which tokens to read it at, counted through prompt and answer; from the prompt's last four on if not given,
                twelve at most
    most        how many candidates at each of them
    Needs model.layers.* (each layer's output) and, of an answer with several tokens, steps.*.model.layers.*.

    over        cases instead of a trace, logit_lens(vlm=vlm, over=cases): the logit difference after each layer, at the tokens
                where the answer is chosen. -> Averages (averages.py); options as in `vlm.prepare`
    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    if vlm is None or (trace is None and over is None):
        raise Error("logit_lens takes a trace and a model, or vlm= and over= with cases.")
    if over is not None:
        check_unused("one run", "over=, whose cases are run again", trace=trace)
        rows = {"start": start, "end": end, "most": most if most != 5 else None}
        check_unused("a trace", "over=, which reads the logit difference where the answer is chosen", **rows)
        return lens_over(vlm, over, options)
    if options:
        names = ", ".join(f"{name}=" for name in options)
        raise Error(f"{names}: of a trace, logit_lens takes only start=, end= and most=. Leave the rest out.")
    ids, T = token_ids(trace)
    # rows of the residual stream: the last token of the answer is chosen and never run
    rows = T + len(find_numbers(trace, "steps.{i}.next_token"))
    start = max(T - 4, 0) if start is None else start
    end = min(rows, start + 12) if end is None else end
    if not 0 <= start < end <= rows:
        raise Error(f"start={start}, end={end}: choose tokens from 0 to {rows}; the prompt ends at {T}.")
    layers = find_kept(trace, "model.layers.{i}")
    names = [f"model.layers.{i}" for i in layers]
    require(trace, *names, *[f"steps.{row - T + 1}.{name}" for name in names for row in range(max(start, T), end)])
    hidden = [select_rows(trace, name, start, end, T) for name in names]
    top, probs = zip(*[likeliest_with_probs(lens_logits(x, vlm), most) for x in hidden])
    return LogitLens(
        np.stack(top), np.stack(probs), tuple(layers), tuple(range(start, end)), T, ids[start + 1 : end + 1],
        lambda id: quote_tokens(vlm, [id]),
    )  # fmt: skip


def likeliest_with_probs(logits, most):
    """(ids, probabilities) of the likeliest tokens, [..., most] each, of logits [..., V]."""
    probs = softmax(logits)
    ids = likeliest(probs, most)
    return ids, np.take_along_axis(probs, ids, axis=-1)


def lens_logits(hidden, model):
    """Final norm and lm_head of rows of the residual stream, [rows, D] -> float32 [rows, V]. model: an `Engine`."""
    normed = model.kernels.rms_norm(hidden, model.weights["model.norm.weight"], model.config.text.rms_norm_eps)
    return model.kernels.linear(normed, model.weights["lm_head.weight"])


def lens_over(vlm, over, options):
    """The logit difference after each layer, in every case. -> Averages"""
    layers = range(vlm.config.text.num_hidden_layers)

    def measure(case_run):
        A = len(case_run.forced.ids)
        return [case_run.difference(lens_logits(x[-A:], vlm)) for x in case_run.streams[1:]]

    axes = {"after": [f"layer {i}" for i in layers]}
    return average(vlm, over, "logit lens", axes, measure, "logit difference", **options)
