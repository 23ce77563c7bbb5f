"""Attention maps of the report: the rows that chose each token of the answer, packed for the page; page.js draws them.

A map is one byte a token, 255 for its largest: one scale for the tokens of images and one for those of text, since the first
token of a prompt often takes most of the attention and would leave the image dark.
"""

import base64

import numpy as np

from minivl.errors import Error
from minivl.kernels.attention import causal_scores, softmax
from minivl.stream import Lazy, value_of
from minivl.studies.attention import attention_of_row

MOST = 2_400_000  # values of all maps: bytes in the page, a third more as text
# reductions of a step's maps [layers, heads, tokens], each made of the one before, and what the page says of each
REDUCTIONS = {
    "every head": (None, ""),
    "mean and largest": (
        lambda maps: np.stack([maps.mean(axis=1), maps.max(axis=1)], axis=1),
        "This run is too long for each head's own map: their mean is kept, and the largest of them.",
    ),
    "mean": (
        lambda maps: maps[:, :1].copy(),
        "This run is too long for the maps of single heads: each layer's mean is kept.",
    ),
    "one map": (
        lambda maps: maps.mean(axis=0, keepdims=True),
        "This run is too long for the maps of single layers and heads: their mean is kept.",
    ),
}


class AttentionMaps:
    """For each step of the answer, the attention of its last row in each layer, float32 [layers, heads, T + step].

    As steps are added, fewer maps of each are kept: never more than MOST values.
    """

    def __init__(self, text):
        self.text = text  # the TextConfig
        self.steps, self.T, self.reduction = [], 0, "every head"
        self._layers, self._rows_of, self._keys, self._query = [], {}, {}, None

    def __len__(self):
        return len(self.steps)

    def add_rope(self, layer, name, tensor):
        """Keep what `last_row` needs of q_rope [H, rows, K] and k_rope [KV, rows, K] of the prompt."""
        if name == "q_rope":
            self._query = np.array(tensor[:, -1:])
        else:
            self._keys.setdefault(layer, []).append(np.array(tensor))

    def add_probs(self, step, layer, probs, T):
        """probs [H, rows, S] of one layer, layers in order; a long prompt comes in chunks. T: tokens of the prompt."""
        self.T = T
        self._rows_of[layer] = self._rows_of.get(layer, 0) + probs.shape[1]
        if step == 0 and self._rows_of[layer] < T:
            return  # the row that chooses the first token is in the last chunk
        if step != len(self.steps) or layer != len(self._layers):
            raise Error("the trace lacks the attention of some steps: keep *model.layers.*.self_attn.probs of all.")
        row = last_row(probs, self._query, self._keys.pop(layer, []), self.text.layer_window(layer))
        self._layers.append(attention_of_row(row, 0, T + step))
        if len(self._layers) == self.text.num_hidden_layers:
            self._add_step(np.stack(self._layers))

    def _add_step(self, maps):
        names = list(REDUCTIONS)
        for name in names[1 : names.index(self.reduction) + 1]:
            maps = REDUCTIONS[name][0](maps)
        self.steps.append(maps)
        self._layers = []
        while self.size() > MOST:
            if self.reduction == names[-1]:
                raise Error(
                    f"the attention of {len(self)} tokens of the answer to {self.T} of the prompt is more than a page should "
                    "hold. Lower max_new_tokens, or max_pixels, which makes the image fewer tokens."
                )
            self.reduction = names[names.index(self.reduction) + 1]
            self.steps = [REDUCTIONS[self.reduction][0](maps) for maps in self.steps]

    def size(self):
        """Number of values of all maps, means included, if this were the last step."""
        layers, heads, _ = self.steps[0].shape
        maps = layers + (layers > 1), heads + (self.reduction == "every head")
        return len(self) * maps[0] * maps[1] * (self.T + len(self))

    def pack(self, media):
        """The maps as base64, with what is needed to read them. media: int [U], prompt positions of the images' tokens.

        A map has U + (T - U) + n columns: images, the prompt's text in order, the answer of n tokens so far. `layers` and
        `heads` are their names, the mean first.
        """
        maps = np.stack([self._with_means(step) for step in self.steps])  # [n, layers + 1, heads + 1, C]
        C, U = maps.shape[-1], len(media)
        pictures, others = maps[..., media], maps[..., np.setdiff1d(np.arange(C), media)]
        tops = [part.max(axis=-1, initial=0) for part in (pictures, others)]
        packed = np.concatenate([to_bytes(part, top) for part, top in zip((pictures, others), tops)], axis=-1)
        return {
            "layers": ["mean of all layers", *(f"layer {i}" for i in range(maps.shape[1] - 1))],
            "heads": ["mean of all heads", *self._head_names(maps.shape[2] - 1)],
            "omitted": REDUCTIONS[self.reduction][1],
            "tokens": U,
            "columns": C,
            "bytes": base64.b64encode(packed.tobytes()).decode(),
            "tops": [round_values(top) for top in tops],
            "shares": round_values(pictures.sum(axis=-1)),
        }

    def _head_names(self, count):
        if self.reduction == "mean and largest":
            return ["largest of all heads"]
        return [f"head {h}" for h in range(count)]

    def _with_means(self, step):
        """A step's maps with their means in front, padded with zeros for later tokens."""
        maps = np.pad(step, ((0, 0), (0, 0), (0, self.T + len(self) - step.shape[-1])))
        if self.reduction == "every head":
            maps = np.concatenate([maps.mean(axis=1, keepdims=True), maps], axis=1)
        return maps if len(maps) == 1 else np.concatenate([maps.mean(axis=0, keepdims=True), maps])


def last_row(probs, query, keys, window):
    """The last row of probs [H, rows, S] -> [H, 1, S], without the others: for a long prompt they take a GB per layer.

    query [H, 1, K]  the last row's;  keys  arrays [KV, rows, K] of this layer;  window  as in `TextConfig.layer_window`
    """
    if isinstance(probs, Lazy) and sum(part.shape[1] for part in keys) == probs.shape[-1]:
        return softmax(causal_scores(query, np.concatenate(keys, axis=1), window))
    return value_of(probs)[:, -1:]


def to_bytes(maps, tops):
    """0 to the largest of each map as 0 to 255, uint8."""
    return np.rint(maps * (255 / np.where(tops > 0, tops, 1))[..., None]).astype(np.uint8)


def round_values(values):
    """Numbers that JSON writes short, in the order of the maps."""
    return [float(f"{value:.4g}") for value in values.reshape(-1)]
