"""Why a tensor differs, found by trying: each known mistake is computed, and the one that gives the other's tensor is named.

    step = Step("visual.blocks.0.attn.q_rope", ours, theirs, known, config)
    causes(step, limit=2e-5)      # [Cause("interleaved RoPE", "pairs are neighbours (2i, 2i + 1) ...", 1.3e-7)]

The rooms, in the order of the data flow; in each, a function is a stage of the model done wrong in the ways in which ports do
it wrong, as a generator of (name, sentence, what would come out), which may be a function where that takes long:

    pictures.py   resizing, colours, patches
    prompts.py    tokens, grids, embeddings
    places.py     window order, rows and columns of patches, their cos and sin
    tokens.py     positions of tokens, the delta, their cos and sin
    attention.py  q, k, v, rotation, scores, masks, heads
    layers.py     norms, MLPs, residuals, biases
    arrays.py     of any tensor: transposed, shifted, scaled, rounded, rows in another order

A stage is computed from the tensors that go into it, which both sides agree about: no weights are needed.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from minivl.tensors.names import parse


@dataclass(frozen=True)
class Cause:
    """A mistake that explains a tensor.

    sentence  what is done otherwise, of the side that `whose` says
    error     what is left: largest difference over the largest value, once the mistake is made on purpose
    exact     False: not computed but concluded from the kind of difference
    """

    name: str
    sentence: str
    error: float
    exact: bool = True
    whose: str = "theirs"


RIGHT = "right"  # the name under which a stage yields, first of all, what it should be


class Unknown(Exception):
    """A hypothesis needs a tensor, or the config, that nobody has recorded."""


class Step:
    """One tensor that differs, and what it is made from.

    name    as in docs/tensors.md;  short  the same without "steps.3.";  room  without its last word
    ours, theirs  the two, theirs without axes of 1, and transposed back if its shape says so
    known(name)  the array that both sides agree about, or ours; None where there is none
    config  a Config or None;  pictures  the originals as PIL images;  weights  Weights: if somebody gave them
    """

    def __init__(self, name, ours, theirs, known, config=None, pictures=(), weights=None):
        parsed = parse(name)
        self.name, self.short, self.number, self.lead = name, parsed.own, parsed.step, parsed.prefix
        self.room, _, self.word = self.short.rpartition(".")
        self.ours, self.theirs, self.pictures, self.weights = ours, theirs, pictures, weights
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
        """One of the same room: near("qkv") of visual.blocks.0.attn.q_rope."""
        return self.at(f"{self.room}.{word}")

    def anywhere(self, name):
        """A tensor by its whole name, "steps.3." included."""
        found = self._known(name)
        if found is None:
            raise Unknown(name)
        return found

    def cached(self, name):
        """A tensor of the prompt and of the tokens up to this one, [heads, tokens, K]: what a cache holds."""
        parts = [self.anywhere(name)]
        parts += [self.anywhere(f"steps.{n}.{name}") for n in range(1, self.number + 1)]
        return np.concatenate(parts, axis=1)

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

    def entering(self):
        """What the block or layer is given: [N, D]."""
        i = self.layer
        if self.in_tower:
            return self.at(f"visual.blocks.{i - 1}" if i else "visual.window_order")
        if i:
            return self.at(f"model.layers.{i - 1}")
        return self.at("model.embed_tokens" if self.lead else "inputs_embeds")


def particular(name):
    """The functions that know mistakes of this tensor alone."""
    from minivl.compare.mistakes import attention, layers, prompt, text_positions, vision_positions
    from minivl.compare.mistakes import image as pictures

    for room in (pictures, prompt, vision_positions, text_positions, attention, layers):
        for pattern, make in room.MISTAKES:
            if fnmatchcase(name, pattern):
                yield make


def stages(step):
    """Those that know this tensor alone."""
    return particular(step.short)


def layouts(step):
    """Those that change no value."""
    from minivl.compare.mistakes import any_tensor, attention

    whole = step.word in ("scores", "probs") and step.theirs.ndim == 3 and step.theirs.shape[1] == step.theirs.shape[2]
    return [*any_tensor.LAYOUTS, *([attention.in_whole_rows] if whole and step.in_tower else [])]


def general(step):
    """Those that any tensor may suffer."""
    from minivl.compare.mistakes import any_tensor

    return any_tensor.MISTAKES


EVERYTHING = (stages, general)


def hypotheses(step, ask=stages):
    """(name, sentence, array) of every known mistake of this tensor that can be computed."""
    for make in ask(step):
        try:
            for name, sentence, found in make(step):
                yield name, sentence, np.asarray(found() if callable(found) else found)
        except (Unknown, ValueError, IndexError):  # not recorded, or of a shape that this mistake cannot have
            continue


def is_right(step, limit):
    """Whether theirs is what the stage should give, as far as that can be computed from what goes into it."""
    from minivl.compare.mistakes.any_tensor import distance

    before = distance(step.ours, step.theirs)
    rights = [array for name, _, array in hypotheses(step) if name == RIGHT]
    return any(distance(array, step.theirs) <= min(limit, before / 10) for array in rights)


def causes(step, limit, ask=EVERYTHING):
    """The mistakes that give theirs to within `limit`, of the largest value; the likeliest first. [] if none does.

    ask  which functions, of `stages`, `general` and `layouts`: the later ones if none of the earlier explains it exactly
    """
    from minivl.compare.mistakes.any_tensor import distance
    from minivl.compare.mistakes.image import guesses

    before, found = distance(step.ours, step.theirs), {}
    for functions in ask:
        for name, sentence, candidate in hypotheses(step, functions):
            left = distance(candidate, step.theirs)
            if left > min(limit, before / 10):
                continue
            if name == RIGHT:  # theirs is as it should be
                return []
            if name not in found or left < found[name].error / 10:  # of one name, the sentence that fits best
                found[name] = Cause(name, sentence, left)
        best = min((cause.error for cause in found.values()), default=before)
        if best <= limit / 20:
            break
    likely = [cause for cause in found.values() if cause.error <= max(10 * best, limit / 20)]
    guessed = guesses(step) if ask is EVERYTHING else ()
    return likely or [Cause(name, sentence, before, exact=False) for name, sentence in guessed]


def drowned(step):
    """[Cause] of a mistake that changes each value by less than rounding does, found in all of them together."""
    from minivl.compare.mistakes.any_tensor import distance
    from minivl.compare.mistakes.layers import faint_eps

    try:
        sentence = faint_eps(step)
    except Unknown:
        return []
    return [Cause("wrong eps", sentence, distance(step.ours, step.theirs), exact=False)] if sentence else []
