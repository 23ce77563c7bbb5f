"""Where each token of the answer looked: attention of the row that chose it, small enough to stand in a page.

A map is one byte a token, 255 for its largest: one scale for the tokens of pictures and one for those of text, for the first
token of a prompt often takes most of the attention and would leave the picture black.
"""

import base64

import numpy as np

from minivl.errors import Error
from minivl.kernels.attention import causal_scores, softmax
from minivl.stream import Lazy, value_of

MOST = 2_400_000  # values of all maps: bytes in the page, a third more as text
LESS = {  # what is kept of a step's layers and heads, and how it is made of the one before
    "every head": None,
    "mean and largest": lambda rows: np.stack([rows.mean(axis=1), rows.max(axis=1)], axis=1),  # [layers, H, C] -> 2
    "mean": lambda rows: rows[:, :1].copy(),
    "one map": lambda rows: rows.mean(axis=0, keepdims=True),
}
OMITTED = dict(
    zip(
        LESS,
        (
            "",
            "This run is too long for each head's own map: their mean is kept, and the largest of them.",
            "This run is too long for the maps of single heads: each layer's mean is kept.",
            "This run is too long for the maps of single layers and heads: their mean is kept.",
        ),
    )
)


class Looks:
    """Of each step of the answer, the attention of its last row in each layer, float32 [layers, heads, T + step].

    While steps come, fewer and fewer maps of each are kept: never more than MOST values.
    """

    def __init__(self, text):
        self.text = text  # the TextConfig
        self.steps, self.T, self.kept = [], 0, "every head"
        self._now, self._read, self._keys, self._query = [], {}, {}, None

    def __len__(self):
        return len(self.steps)

    def see_rope(self, layer, name, tensor):
        """q_rope [H, rows, K] and k_rope [KV, rows, K] of a layer of the prompt, for `last_row`."""
        if name == "q_rope":
            self._query = np.array(tensor[:, -1:])
        else:
            self._keys.setdefault(layer, []).append(np.array(tensor))

    def see(self, step, layer, probs, T):
        """probs [H, rows, S] of one layer, layers in order; a long prompt comes in parts. T: tokens of the prompt."""
        self.T = T
        self._read[layer] = self._read.get(layer, 0) + probs.shape[1]
        if step == 0 and self._read[layer] < T:
            return  # the row that chooses the first token is that of the last part
        if step != len(self.steps) or layer != len(self._now):
            raise Error(
                "the trace holds the attention of some steps only: keep *model.layers.*.self_attn.probs of all of them."
            )
        keys = self._keys.pop(layer, [])
        row = last_row(probs, self._query, keys, self.text.layer_window(layer))
        earlier = row.shape[1] - T - step  # turns of the conversation
        self._now.append(row[:, earlier:].astype(np.float32))
        if len(self._now) == self.text.num_hidden_layers:
            self._add(np.stack(self._now))

    def _add(self, rows):
        kinds = list(LESS)
        for kind in kinds[1 : kinds.index(self.kept) + 1]:
            rows = LESS[kind](rows)
        self.steps.append(rows)
        self._now = []
        while self.size() > MOST:
            if self.kept == kinds[-1]:
                raise Error(
                    f"the attention of {len(self)} tokens of the answer to {self.T} of the prompt is more than a page should "
                    "hold. Lower max_new_tokens, or max_pixels, which makes the picture fewer tokens."
                )
            self.kept = kinds[kinds.index(self.kept) + 1]
            self.steps = [LESS[self.kept](rows) for rows in self.steps]

    def size(self):
        """Values of all maps, the means among them, were this the last step."""
        layers, heads, _ = self.steps[0].shape
        maps = layers + (layers > 1), heads + (self.kept == "every head")
        return len(self) * maps[0] * maps[1] * (self.T + len(self))

    def packed(self, media):
        """The maps as text, and what to read them by. media, int [U]: where the pictures' tokens stand in the prompt, in order.

        A map has U + (T - U) + n columns: pictures, the prompt's text in order, the answer of n tokens so far. `heads` and
        `layers` are their names, the mean first.
        """
        maps = np.stack([self._whole(rows) for rows in self.steps])  # [n, layers + 1, heads + 1, C]
        C, U = maps.shape[-1], len(media)
        pictures, others = maps[..., media], maps[..., np.setdiff1d(np.arange(C), media)]
        tops = [part.max(axis=-1, initial=0) for part in (pictures, others)]
        bytes_ = np.concatenate([scaled(part, top) for part, top in zip((pictures, others), tops)], axis=-1)
        return {
            "layers": ["mean of all layers", *(f"layer {i}" for i in range(maps.shape[1] - 1))],
            "heads": ["mean of all heads", *self._heads(maps.shape[2] - 1)],
            "omitted": OMITTED[self.kept],
            "tokens": U,
            "columns": C,
            "bytes": base64.b64encode(bytes_.tobytes()).decode(),
            "tops": [rounded(top) for top in tops],
            "shares": rounded(pictures.sum(axis=-1)),
        }

    def _heads(self, count):
        return ["largest of all heads"] if self.kept == "mean and largest" else [f"head {h}" for h in range(count)]

    def _whole(self, rows):
        """A step's maps with their means in front, and zeros for what came after it."""
        found = np.zeros((*rows.shape[:2], self.T + len(self)), dtype=np.float32)
        found[..., : rows.shape[-1]] = rows
        if self.kept == "every head":
            found = np.concatenate([found.mean(axis=1, keepdims=True), found], axis=1)
        return found if len(found) == 1 else np.concatenate([found.mean(axis=0, keepdims=True), found])


def last_row(probs, query, keys, window):
    """Of probs [H, rows, S] -> [H, S]. What was never made is not made now: of a long prompt it takes a gigabyte a layer.

    query [H, 1, K]  the last row's;  keys  arrays [KV, rows, K] of this layer;  window  as of `TextConfig.layer_window`
    """
    if isinstance(probs, Lazy) and sum(part.shape[1] for part in keys) == probs.shape[-1]:
        return softmax(causal_scores(query, np.concatenate(keys, axis=1), window))[:, 0]
    return value_of(probs)[:, -1]


def scaled(maps, tops):
    """0 to the largest of each map as 0 to 255, uint8."""
    return np.rint(maps * (255 / np.where(tops > 0, tops, 1))[..., None]).astype(np.uint8)


def rounded(values):
    """Numbers that JSON writes short, in the order of the maps."""
    return [float(f"{value:.4g}") for value in values.reshape(-1)]
