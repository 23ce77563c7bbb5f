"""Known mistakes, each computed from the tensors that go into the stage where it is made.

Weights are needed only for a tied head and for tensors that were not recorded (replay.py).

    image.py             resizing, colours, patches
    prompt.py            tokens, grids, embeddings
    vision_positions.py  window order, rows and columns of patches, their cos and sin
    text_positions.py    M-RoPE positions, rope_delta, their cos and sin
    attention.py         q, k, v, rotation, scores, masks, heads
    layers.py            norms, MLPs, residuals, biases
    any_tensor.py        transposed, shifted, scaled, rounded, rows in another order
    replay.py            mistakes between two recorded tensors, by running the model with each

A file maps names of tensors to functions in MISTAKES. Such a function takes a `Subject` and yields (name of the mistake,
sentence, the tensor that it would give), or first of all (RIGHT, "", the tensor as it should be). The tensor may be a function
that computes it, where that takes long. `diagnose.find_causes` picks the one that gives theirs.
"""

from dataclasses import dataclass

import numpy as np

from minivl.tensors.names import parse

RIGHT = "right"


@dataclass(frozen=True)
class Cause:
    """A mistake that explains a tensor.

    sentence  what the recording `whose` ("theirs" or "ours") does differently
    error     largest difference that is left with the mistake made on purpose, over the largest value
    exact     False: concluded from the kind of difference, not computed
    where     the tensors that it is made in, if these are others before the row's own
    """

    name: str
    sentence: str
    error: float
    exact: bool = True
    whose: str = "theirs"
    where: tuple = ()


class Unknown(Exception):
    """A mistake cannot be computed: a tensor was not recorded, its shape does not fit, or there is no config."""


class Subject:
    """A tensor, and the tensors it is made from, to compute mistakes of.

    name    as in docs/tensors.md;  short  without "steps.3.";  prefix  without its last word;  word  the last word
    decoding_step  the 3 of "steps.3.", 0 for the prompt;  lead  "steps.3." or ""
    ours, theirs  the two arrays, theirs without axes of 1, and transposed back if its shape says so
    known   function of a name: the array that both sides agree about, or ours; None if it was not recorded
    config  a Config or None;  images  the originals as PIL images;  weights  a Weights, or None
    """

    def __init__(self, name, ours, theirs, known, config=None, images=(), weights=None):
        parsed = parse(name)
        self.name, self.short, self.decoding_step, self.lead = name, parsed.own, parsed.step, parsed.prefix
        self.prefix, _, self.word = self.short.rpartition(".")
        self.ours, self.theirs, self.images, self.weights = ours, theirs, images, weights
        self._known, self._config = known, config

    @property
    def config(self):
        if self._config is None:
            raise Unknown("config")
        return self._config

    def at(self, name):
        """A tensor of the same token, by its whole name."""
        return self.anywhere(self.lead + name)

    def near(self, word):
        """A tensor with the same prefix: near("qkv") of visual.blocks.0.attn.q_rope."""
        return self.at(f"{self.prefix}.{word}")

    def anywhere(self, name):
        """A tensor by its whole name, "steps.3." included."""
        array = self._known(name)
        if array is None:
            raise Unknown(name)
        return array

    def cached(self, name):
        """A tensor of the prompt and of all tokens up to this one, [heads, tokens, K], as in a KV cache."""
        chunks = [self.anywhere(name)]
        chunks += [self.anywhere(f"steps.{n}.{name}") for n in range(1, self.decoding_step + 1)]
        return np.concatenate(chunks, axis=1)

    @property
    def in_tower(self):
        return self.short.startswith("visual")

    @property
    def layer(self):
        """Number of the block or layer that the tensor belongs to."""
        parsed = parse(self.short)
        if parsed.counted not in ("visual.blocks", "model.layers"):
            raise Unknown("layer")
        return parsed.index

    def block_input(self):
        """The input of the block or layer, [N, D]."""
        i = self.layer
        if self.in_tower:
            return self.at(f"visual.blocks.{i - 1}" if i else "visual.window_order")
        if i:
            return self.at(f"model.layers.{i - 1}")
        return self.at("model.embed_tokens" if self.lead else "inputs_embeds")
