"""What the model would say if it stopped after each layer: the logit lens."""

from dataclasses import dataclass

import numpy as np

from minivl.errors import Error
from minivl.kernels.attention import softmax
from minivl.studies.from_trace import lines_of, needed, numbered, spoken, token_ids


@dataclass(frozen=True)
class LogitLens:
    """The likeliest next tokens after each layer.

    ids     int64 [layers, tokens, most], the likeliest first;  probs  float32, theirs
    layers  numbers of the rows;  tokens  where they are read, counted through prompt and answer
    prompt  how many tokens the prompt has;  following  id of the token that comes after each, int64 [tokens]
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
        """The first layer from which on the likeliest token at tokens[column] stays what it is in the end."""
        top = self.ids[:, column, 0]
        other = np.flatnonzero(top != top[-1])
        return self.layers[int(other[-1]) + 1 if len(other) else 0]

    def __str__(self):
        column = self.tokens.index(self.prompt - 1) if self.prompt - 1 in self.tokens else len(self.tokens) - 1
        return (
            f"At token {self.tokens[column]}, {self.word(self.ids[-1, column, 0])} is the likeliest next token from layer "
            f"{self.settled(column)} on; it ends at {float(self.probs[-1, column, 0]):.1%}."
        )


def logit_lens(trace, vlm, start=None, end=None, most=5):
    """The likeliest next tokens if the model stopped after each layer: final norm and lm_head of the residual stream there.
    -> LogitLens

    start, end  which tokens to read it at, counted through prompt and answer; from the prompt's last four on if not given,
                twelve at most
    most        how many tokens at each place
    Needs model.layers.* (each layer's output) and, of an answer with several tokens, steps.*.model.layers.*.
    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    ids, T = token_ids(trace)
    made = T + len(
        numbered(trace, "steps.{i}.next_token")
    )  # rows of the residual stream: the last token chosen has none
    start = max(T - 4, 0) if start is None else start
    end = min(made, start + 12) if end is None else end
    if not 0 <= start < end <= made:
        raise Error(f"start={start}, end={end}: choose tokens from 0 to {made}; the prompt ends at {T}.")
    layers = kept_layers(trace)
    top, chance = zip(*[likeliest(lens_logits(trace, vlm, i, start, end, T), most) for i in layers])
    return LogitLens(
        np.stack(top), np.stack(chance), tuple(layers), tuple(range(start, end)), T, ids[start + 1 : end + 1],
        lambda id: spoken(vlm, [id]),
    )  # fmt: skip


def likeliest(logits, most):
    """(ids, probabilities), [tokens, most] each, of logits [tokens, V]; of equal ones the lowest id first."""
    probs = softmax(logits)
    top = np.argsort(-probs, axis=1, kind="stable")[:, :most]
    return top, np.take_along_axis(probs, top, axis=1)


def kept_layers(trace):
    """Which decoder layers' outputs the trace holds; an Error if none."""
    made = numbered(trace, "model.layers.{i}")
    kept = [i for i in made if f"model.layers.{i}" in trace]
    if not kept:
        needed(trace, f"model.layers.{made[-1] if made else 0}")
    return kept


def lens_logits(trace, vlm, layer, start, end, T):
    """Logits of the next token after a layer, float32 [tokens, V]."""
    hidden = lines_of(trace, f"model.layers.{layer}", start, end, T)
    normed = vlm.kernels.rms_norm(hidden, vlm.weights["model.norm.weight"], vlm.config.text.rms_norm_eps)
    return vlm.kernels.linear(normed, vlm.weights["lm_head.weight"])
