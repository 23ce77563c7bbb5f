"""Where each token of the answer looked: attention of the row that chose it, small enough to stand in a page.

A map is one byte a token, 255 for its largest: one scale for the tokens of pictures and one for those of text, for the first
token of a prompt often takes most of the attention and would leave the picture black.
"""

import base64

import numpy as np

from minivl.errors import Error
from minivl.stream import Lazy, value_of

MOST = 3_000_000  # bytes of all maps; a third more as text
LARGE = 1 << 28  # values of one layer's attention, which the model itself never makes: 1 GB


class Looks:
    """Of each step of the answer, the attention of its last row in each layer, float32 [layers, H, S]."""

    def __init__(self):
        self.steps, self.T = [], 0

    def __len__(self):
        return len(self.steps)

    def see(self, step, probs, T):
        """probs [H, rows, S] of one layer, layers in order; T: tokens of the prompt."""
        if isinstance(probs, Lazy) and np.prod(probs.shape, dtype=np.int64) > LARGE:
            raise Error(
                f"the attention of one layer has {probs.shape}: more than {LARGE:,} values. Lower max_pixels, which makes the "
                "picture fewer tokens, or ask about fewer pictures."
            )
        self.T = T
        if step == len(self.steps):
            self.steps.append([])
        if step != len(self.steps) - 1:
            raise Error(
                "the trace holds the attention of some steps only: keep *model.layers.*.self_attn.probs of all of them."
            )
        self.steps[step].append(value_of(probs)[:, -1].astype(np.float32))
        layers = len(self.steps[0]) + 1
        if len(self.steps) * layers * T > MOST:
            raise Error(
                f"the attention of {len(self.steps)} tokens of the answer to {T} of the prompt in {layers - 1} layers is more "
                "than a page should hold. Lower max_new_tokens, or max_pixels, which makes the picture fewer tokens."
            )

    def packed(self, media, n):
        """The maps as text, and what to read them by.

        media  int [U]: where the pictures' tokens stand in the prompt, in their order;  n  tokens of the answer
        A map has U + (T - U) + n columns: pictures, the prompt's text in order, the answer so far. `heads` and `layers` are
        their names, the mean first; where all heads are too many, the mean and the largest of them stay.
        """
        T, U = self.T, len(media)
        text = np.setdiff1d(np.arange(T + n), media)
        layers, heads, C = len(self.steps[0]), len(self.steps[0][0]), T + n
        kinds = chosen_kinds(n * (layers + 1) * C, heads)
        maps = np.stack([reduced(step, T, n, k, kinds) for k, step in enumerate(self.steps)])  # [n, layers+1, kinds, C]
        pictures, others = maps[..., media], maps[..., text]
        tops = [part.max(axis=-1, initial=0) for part in (pictures, others)]
        bytes_ = np.concatenate([scaled(part, top) for part, top in zip((pictures, others), tops)], axis=-1)
        return {
            "layers": ["mean of all layers", *(f"layer {i}" for i in range(layers))],
            "heads": names_of(kinds, heads),
            "tokens": U,
            "columns": C,
            "bytes": base64.b64encode(bytes_.tobytes()).decode(),
            "tops": [rounded(top) for top in tops],
            "shares": rounded(pictures.sum(axis=-1)),
        }


def chosen_kinds(size, heads):
    """What of the heads there is room for: "all" with their mean, "most" (mean and largest), or the "mean" alone."""
    if size * (heads + 1) <= MOST:
        return "all"
    return "most" if size * 2 <= MOST else "mean"


def names_of(kinds, heads):
    names = {"all": [f"head {h}" for h in range(heads)], "most": ["largest of all heads"], "mean": []}
    return ["mean of all heads", *names[kinds]]


def reduced(step, T, n, k, kinds):
    """One step's maps: list of [H, S] -> float32 [layers + 1, kinds, T + n], earlier turns of a conversation left out."""
    rows = np.stack(step)  # [layers, H, S]
    held = rows.shape[-1] - T - k
    found = np.zeros((*rows.shape[:2], T + n), dtype=np.float32)
    found[..., : T + k] = rows[..., held:]
    mean = found.mean(axis=1, keepdims=True)
    more = {"all": found, "most": found.max(axis=1, keepdims=True), "mean": found[:, :0]}[kinds]
    found = np.concatenate([mean, more], axis=1)
    return np.concatenate([found.mean(axis=0, keepdims=True), found])


def scaled(maps, tops):
    """0 to the largest of each map as 0 to 255, uint8."""
    return np.rint(maps * (255 / np.where(tops > 0, tops, 1))[..., None]).astype(np.uint8)


def rounded(values):
    """Numbers that JSON writes short, in the order of the maps."""
    return [float(f"{value:.4g}") for value in values.reshape(-1)]
