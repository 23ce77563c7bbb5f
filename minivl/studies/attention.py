"""Attention of one token to an image, in some layer or followed through all layers (rollout)."""

from dataclasses import dataclass

import numpy as np

from minivl.checkpoint.memory import system_memory
from minivl.errors import Error
from minivl.helpers import format_bytes
from minivl.studies.from_trace import find_kept, find_numbers, require, step_prefix
from minivl.trace.trace import Trace


@dataclass(frozen=True)
class AttentionToImage:
    """What one token attends to on an image.

    values  float32 [token rows, token columns]: shares of the token's whole attention, text included
    token   the query, counted through prompt and answer;  layers  their numbers, averaged;  head  None: all, averaged
    best    the image's token with most of it;  box  its (x0, y0, x1, y1) on the resized image
    image, frame   which image, and which frame of a video
    """

    values: np.ndarray
    token: int
    layers: tuple
    head: int | None
    best: int
    box: tuple
    image: int
    frame: int

    @property
    def share(self):
        """The share of its attention that is on this image."""
        return float(self.values.sum())

    def __str__(self):
        x0, y0, x1, y1 = self.box
        where = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"the mean of {len(self.layers)} layers"
        heads = "all heads" if self.head is None else f"head {self.head}"
        return (
            f"In {where}, {heads}, {self.share:.1%} of token {self.token}'s attention is on image {self.image}; most, "
            f"{float(self.values.max()):.2%}, on token {self.best}, x {x0} to {x1}, y {y0} to {y1}."
        )


def attention_to_image(trace, token=None, layer=None, head=None, image=0, frame=0):
    """The attention of one token to an image. -> AttentionToImage

    token  counted from 0 through the prompt and on through the answer; the prompt's last, at which the answer's first is
           chosen, if not given. The answer's last token is chosen and never run
    layer  a number; the mean of all that were kept if not given;  head  a number, or the mean of all
    image, frame   which image (images first, then videos), and which frame of a video
    Needs model.layers.{layer}.self_attn.probs (for a token of the answer, with steps.*. in front).
    """
    maps = trace.maps
    T = len(maps.input_ids)
    rows = T + len(trace.steps) - 1
    token = T - 1 if token is None else token
    if token not in range(rows):
        raise Error(
            f"token {token!r}: attention is known for {rows}, counted from 0; the prompt has {T}, the answer's follow."
        )
    step = max(0, token - T + 1)
    pattern = step_prefix(step) + "model.layers.{i}.self_attn.probs"
    layers = [layer] if layer is not None else find_kept(trace, pattern)
    shares = [select_head(attention_of_step(trace, pattern.format(i=i), token, step, T), head) for i in layers]
    values = maps.on_image(np.mean(shares, axis=0, dtype=np.float32)[:T], "prompt", image, frame)
    best = int(maps.raster("tokens", image, frame).reshape(-1)[np.argmax(values)])
    box = tuple(maps.pixels_of_token(best).tolist())
    return AttentionToImage(values, int(token), tuple(layers), head, best, box, image, frame)


def attention_of_step(trace, name, token, step, T):
    """Attention of one token in the probs of this name, all heads, float32 [H, T + step]."""
    (probs,) = require(trace, name)
    if probs.shape[1] != (1 if step else T):
        raise Error("this is a trace of one step. Give the whole run's.")
    return attention_of_row(probs, 0 if step else token, T + step)


def attention_of_row(probs, row, tokens):
    """What one row attends to, of probs [H, rows, S] -> float32 [H, tokens], tokens of this prompt and answer.

    S > tokens   earlier turns are in the cache: their columns, the first ones, are left out
    S < tokens   a chunk of a long prompt: zeros for the tokens after it
    """
    shares = probs[:, row, max(probs.shape[2] - tokens, 0) :].astype(np.float32)
    return np.pad(shares, ((0, 0), (0, tokens - shares.shape[1])))


def select_head(shares, head=None):
    """[H, ...] -> [...] of one head, or the mean."""
    if head is None:
        return shares.mean(axis=0)
    if head not in range(len(shares)):
        raise Error(f"head {head!r}: there are {len(shares)} heads, counted from 0. None is the mean of all.")
    return shares[head]


def attention_received(probs, bounds):
    """What each patch receives in a block of the tower, mean of the heads: probs [H, N, L] -> [N], 1 on average.

    bounds  int64 [n + 1], slots at which windows (or frames) begin and end
    """
    mean, received = probs.mean(axis=0), np.zeros(probs.shape[1], dtype=np.float32)
    for start, end in zip(bounds[:-1], bounds[1:]):
        received[start:end] = mean[start:end, : end - start].sum(axis=0)
    return received


# ---- rollout ----


@dataclass(frozen=True)
class Rollout:
    """Attention through all layers.

    shares  float32 [rows, rows]: shares[n, m] is how much of row n, at the end, comes from row m at the start; rows sum to 1
    part    "tower": the rows are patches in window order; "decoder": tokens of the prompt
    layers  numbers of the blocks or layers that were followed
    trace   whose `maps` lead to the image
    """

    shares: np.ndarray
    part: str
    layers: tuple
    trace: Trace

    def on_image(self, row, image=0, frame=0):
        """The shares of one row on an image: [patch rows, patch columns], or [token rows, token columns] of the decoder."""
        if row not in range(len(self.shares)):
            raise Error(f"row {row!r}: there are {len(self.shares)}, counted from 0.")
        order = "patch slots" if self.part == "tower" else "prompt"
        return self.trace.maps.on_image(self.shares[row], order, image, frame)

    def __str__(self):
        own = float(np.trace(self.shares)) / len(self.shares)
        if self.part == "tower":
            reach = float(np.mean(np.sum(self.shares > 0, axis=1)))
            return (
                f"After blocks {self.layers[0]} to {self.layers[-1]} a patch is, by attention alone, {own:.1%} itself and "
                f"comes from {reach:.0f} of {len(self.shares)} patches."
            )
        on_images = float(self.shares[-1, self.trace.maps.shown].sum())
        return (
            f"After layers {self.layers[0]} to {self.layers[-1]} the prompt's last token is, by attention alone, "
            f"{on_images:.1%} images and {float(self.shares[-1, -1]):.1%} itself."
        )


def attention_rollout(trace, part="tower", layers=None):
    """Attention followed from layer to layer: the product of (mean of the heads + identity) / 2. -> Rollout

    part    "tower", or "decoder" in the prefill
    layers  numbers; all that were made if not given
    MLPs and the lengths of vectors are left out: rollout says where information may come from, not how it is used.
    Needs visual.blocks.*.attn.probs or model.layers.*.self_attn.probs.
    Source: Abnar and Zuidema 2020 (arXiv:2005.00928).
    """
    patterns = {"tower": "visual.blocks.{i}.attn.probs", "decoder": "model.layers.{i}.self_attn.probs"}
    if part not in patterns:
        raise Error(f'part={part!r}: choose "tower" or "decoder".')
    numbers = find_numbers(trace, patterns[part]) if layers is None else sorted(layers)
    probs = require(trace, *[patterns[part].format(i=i) for i in numbers or [0]])
    rows = probs[0].shape[1]
    check_memory(rows)
    shares = np.eye(rows, dtype=np.float32)
    for i, heads in zip(numbers, probs):
        mean = heads.mean(axis=0)
        mixed = [mean[start:end, : end - start] @ shares[start:end] for start, end in segments(trace, part, i, mean)]
        shares = (shares + np.concatenate(mixed)) / 2
    return Rollout(shares, part, tuple(numbers), trace)


def segments(trace, part, number, mean):
    """(start, end) of rows that attend to each other: windows or frames of a block of the tower; all rows of the decoder."""
    maps = trace.maps
    if part == "decoder":
        if mean.shape[0] != mean.shape[1]:
            raise Error(
                "a run with a cache attends to tokens that are not in its prompt. Trace the whole prompt, without cache=."
            )
        return [(0, len(mean))]
    bounds = maps.bounds(number)
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist()))


def check_memory(rows):
    free, needs = system_memory(), 3 * 4 * rows * rows
    if free is not None and needs > free // 2:
        raise Error(
            f"a rollout of {rows} rows takes {format_bytes(needs)}, and {format_bytes(free // 2)} may be had. "
            f"Lower max_pixels and trace again."
        )
