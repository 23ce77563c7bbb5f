"""Where a token looks: its attention to a picture in some layer, and attention followed through all layers (rollout)."""

from dataclasses import dataclass

import numpy as np

from minivl.checkpoint.memory import system_memory
from minivl.errors import Error
from minivl.helpers import format_bytes
from minivl.studies.from_trace import needed, numbered, place_of_step
from minivl.trace.trace import Trace


@dataclass(frozen=True)
class AttentionToImage:
    """What one token attends to on a picture.

    values  float32 [token rows, token columns]: shares of the token's whole attention, text included
    token   which looks, counted through prompt and answer;  layers  their numbers, averaged;  head  None: all, averaged
    best    the picture's token with most of it;  box  its (x0, y0, x1, y1) on the resized picture
    image, frame   which picture, and which frame of a video
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
        """Of its attention that is on this picture."""
        return float(self.values.sum())

    def __str__(self):
        x0, y0, x1, y1 = self.box
        where = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"the mean of {len(self.layers)} layers"
        who = "all heads" if self.head is None else f"head {self.head}"
        return (
            f"In {where}, {who}, {self.share:.1%} of token {self.token}'s attention is on picture {self.image}; most, "
            f"{float(self.values.max()):.2%}, on token {self.best}, x {x0} to {x1}, y {y0} to {y1}."
        )


def attention_to_image(trace, token=None, layer=None, head=None, image=0, frame=0):
    """The attention of one token to a picture. -> AttentionToImage

    token  counted from 0 through the prompt and on through the answer; the prompt's last, which chooses the answer's first,
           if not given. The answer's last token is chosen and never looks
    layer  a number; the mean of all that were kept if not given;  head  a number, or the mean of all
    image, frame   which picture (pictures first, then videos), and which frame of a video
    Needs model.layers.{layer}.self_attn.probs (for a token of the answer, with steps.*. in front).
    """
    maps = trace.maps
    T = len(maps.input_ids)
    token = T - 1 if token is None else token
    if token not in range(T + len(trace.steps) - 1):
        raise Error(
            f"token {token!r}: {T + len(trace.steps) - 1} look, counted from 0; the prompt has {T}, the answer's follow."
        )
    step = max(0, token - T + 1)
    layers = [layer] if layer is not None else kept_probs(trace, step)
    rows = [attention_row(trace, i, head, token, step, T) for i in layers]
    values = maps.on_image(np.mean(rows, axis=0, dtype=np.float32), "prompt", image, frame)
    best = int(maps.raster("tokens", image, frame).reshape(-1)[np.argmax(values)])
    box = tuple(maps.pixels_of_token(best).tolist())
    return AttentionToImage(values, int(token), tuple(layers), head, best, box, image, frame)


def kept_probs(trace, step):
    """Layers whose probs the trace holds, in this step."""
    name = place_of_step(step) + "model.layers.{i}.self_attn.probs"
    made = numbered(trace, name)
    kept = [i for i in made if name.format(i=i) in trace]
    if not kept:
        needed(trace, *[name.format(i=i) for i in made or [0]])
    return kept


def attention_row(trace, layer, head, token, step, T):
    """One token's attention to the prompt, float32 [T]."""
    (probs,) = needed(trace, f"{place_of_step(step)}model.layers.{layer}.self_attn.probs")
    rows = chosen_head(probs, head)
    if len(rows) != (1 if step else T):
        raise Error("this is a trace of one step. Give the whole run's.")
    held = rows.shape[1] - T - step  # tokens of earlier turns, in the cache before the prompt
    return rows[0 if step else token, held : held + T]


def chosen_head(probs, head):
    """[H, rows, columns] -> [rows, columns] of one head, or the mean."""
    if head is None:
        return probs.mean(axis=0)
    if head not in range(len(probs)):
        raise Error(f"head {head!r}: there are {len(probs)} heads, counted from 0. None is the mean of all.")
    return probs[head]


# ---- rollout ----


@dataclass(frozen=True)
class Rollout:
    """Attention through all layers.

    shares  float32 [rows, rows]: row n says of which rows at the start row n is made in the end; it sums to 1
    room    "visual": the rows are patches in window order; "model": tokens of the prompt
    layers  numbers of the blocks or layers that were followed
    trace   whose `maps` lead to the picture
    """

    shares: np.ndarray
    room: str
    layers: tuple
    trace: Trace

    def on_image(self, row, image=0, frame=0):
        """The shares of one row on a picture: [patch rows, patch columns], or [token rows, token columns] of the decoder."""
        if row not in range(len(self.shares)):
            raise Error(f"row {row!r}: there are {len(self.shares)}, counted from 0.")
        order = "patch slots" if self.room == "visual" else "prompt"
        return self.trace.maps.on_image(self.shares[row], order, image, frame)

    def __str__(self):
        own = float(np.trace(self.shares)) / len(self.shares)
        if self.room == "visual":
            reach = float(np.mean(np.sum(self.shares > 0, axis=1)))
            return (
                f"After blocks {self.layers[0]} to {self.layers[-1]} a patch is, by attention alone, {own:.1%} itself and "
                f"comes from {reach:.0f} of {len(self.shares)} patches."
            )
        seen = float(self.shares[-1, self.trace.maps.shown].sum())
        return (
            f"After layers {self.layers[0]} to {self.layers[-1]} the prompt's last token is, by attention alone, {seen:.1%} "
            f"pictures and {float(self.shares[-1, -1]):.1%} itself."
        )


def attention_rollout(trace, room="visual", layers=None):
    """Attention followed from layer to layer: the product of (mean of the heads + identity) / 2. -> Rollout

    room    "visual", the tower, or "model", the decoder in the prefill
    layers  numbers; all that were made if not given
    What the MLPs do and how long the vectors are is left out: it says where things may come from, not what is made of them.
    Needs visual.blocks.*.attn.probs or model.layers.*.self_attn.probs.
    Source: Abnar and Zuidema 2020 (arXiv:2005.00928).
    """
    patterns = {"visual": "visual.blocks.{i}.attn.probs", "model": "model.layers.{i}.self_attn.probs"}
    if room not in patterns:
        raise Error(f'room={room!r}: choose "visual" or "model".')
    made = numbered(trace, patterns[room]) if layers is None else sorted(layers)
    probs = needed(trace, *[patterns[room].format(i=i) for i in made or [0]])
    rows = probs[0].shape[1]
    check_room(rows)
    shares = np.eye(rows, dtype=np.float32)
    for i, one in zip(made, probs):
        mean = one.mean(axis=0)
        mixed = np.concatenate([mean[s:e, : e - s] @ shares[s:e] for s, e in segments_of(trace, room, i, mean)])
        shares = (shares + mixed) / 2
    return Rollout(shares, room, tuple(made), trace)


def segments_of(trace, room, number, mean):
    """(start, end) of the rows that see each other: the block's windows or frames; of the decoder, all."""
    maps = trace.maps
    if room == "model":
        if mean.shape[0] != mean.shape[1]:
            raise Error(
                "a run with a cache sees tokens that are not in its prompt. Trace the whole prompt, without cache=."
            )
        return [(0, len(mean))]
    bounds = maps.bounds(number)
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist()))


def check_room(rows):
    free, needs = system_memory(), 3 * 4 * rows * rows
    if free is not None and needs > free // 2:
        raise Error(
            f"a rollout of {rows} rows takes {format_bytes(needs)}, and {format_bytes(free // 2)} may be had. "
            f"Lower max_pixels and trace again."
        )
