"""Ready-made edits: what `vlm.trace(..., edit=...)` puts in a tensor's place.

    other = vlm.trace("What colour is the ring?", images="blue.png", keep=["model.layers.2", "*.probs"])
    vlm.trace(question, images="red.png", edit=patch_from(other, "model.layers.2"))             # that run's values
    vlm.trace(question, images="red.png", edit=freeze(other, "model.layers.*"))                 # its attention patterns
    vlm.trace(question, images="red.png", edit=ablate_head(vlm, "model.layers.3", [0, 4]))      # two heads ablated
    vlm.trace(question, images="red.png", edit=steer("*model.layers.2", direction, 4.0))        # in the answer's steps, too
    ... | ...                                                                                   # one, then the other

Each returns `Edits`, a dict {glob: array or function of the tensor}. It acts only in the run that it is given to. An edit
applies to the names that its glob matches: "model.layers.2" is the prompt's, "*model.layers.2" also that of all later steps and
of all chunks of a long prompt.
`rows` are counted from 0 in the order of that tensor (docs/tensors.md), or a mask such as `trace.maps.shown`.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np

from minivl.errors import Error
from minivl.tensors.catalogue import row_axis
from minivl.trace.recorder import apply_edit
from minivl.trace.trace import close_names


class Edits(dict):
    """{glob: array or function}. `a | b` applies the edits of a, then those of b, also to the same tensor."""

    def __or__(self, other):
        both = Edits({**self, **other})
        for name in self.keys() & other.keys():
            both[name] = chain(self[name], other[name])
        return both

    def __ror__(self, other):
        return Edits(other) | self


def chain(first, second):
    """Apply one change of a tensor after the other."""
    if not callable(second):
        return second
    return lambda tensor: second(first(tensor) if callable(first) else np.asarray(first))


def as_observer(edit):
    """An observer for `stream.run` that applies these edits to any stage."""

    def see(name, tensor):
        for pattern, change in edit.items():
            if fnmatchcase(name, pattern):
                tensor = apply_edit(name, tensor, change)
        return tensor

    return see


# ---- from another run ----


def patch_from(trace, pattern, rows=None):
    """Activation patching: take the values of another run. Both runs must have tensors of one shape.

    pattern  glob of tensors that the trace has kept
    rows     only these; None for all
    Source: Vig et al. 2020 (arXiv:2004.12265), Meng et al. 2022 (arXiv:2202.05262).
    """
    if not isinstance(trace, Mapping) or not isinstance(pattern, str):
        raise Error('patch_from takes a trace and a glob of its tensors: patch_from(vlm.trace(...), "model.layers.5").')
    names = [name for name in trace if fnmatchcase(name, pattern)]
    if not names:
        raise Error(f"the trace has no {pattern!r}: record it with keep={pattern!r}{close_names(pattern, trace.names)}")
    if rows is None:
        return Edits({name: trace[name] for name in names})
    return Edits({name: copy_rows(name, trace[name], rows) for name in names})


def copy_rows(name, source, rows):
    """A change that copies these rows from `source`."""

    def change(tensor):
        if tensor.shape != source.shape:
            raise Error(
                f"{name} is {list(tensor.shape)} here and {list(source.shape)} in the run that it is patched from. "
                "Give both runs prompts of one length with images of one size."
            )
        index, tensor = row_index(name, tensor, rows), tensor.copy()
        tensor[index] = source[index]
        return tensor

    return change


def freeze(trace, layers):
    """Freeze attention to the patterns of another run: its probs, in the layers or blocks of the glob ("model.layers.*")."""
    return patch_from(trace, f"{layers}.*attn.probs")


# ---- changes ----


def ablate(pattern, rows=None):
    """Zero these rows, or the whole tensor."""

    def change(tensor):
        tensor = tensor.copy()
        tensor[... if rows is None else row_index(pattern, tensor, rows)] = 0
        return tensor

    return Edits({pattern: change})


def steer(pattern, direction, strength=1.0, rows=None):
    """Add a vector to rows: x + strength * direction. direction [D] has the width of the tensor [rows, D].

    Source: Turner et al. 2023 (arXiv:2308.10248).
    """
    try:
        direction = np.asarray(direction, dtype=np.float32) * np.float32(strength)
    except (TypeError, ValueError):
        raise Error(
            f"steer needs numbers: a direction [D], not {direction!r:.60}, and one strength, not {strength!r:.60}."
        ) from None

    def change(tensor):
        if direction.shape != tensor.shape[-1:]:
            raise Error(
                f"the direction is {list(direction.shape)} and the rows of {pattern} have {tensor.shape[-1]} numbers. "
                "Give one for each."
            )
        tensor = tensor.copy()
        tensor[... if rows is None else row_index(pattern, tensor, rows)] += direction
        return tensor

    return Edits({pattern: change})


def ablate_head(vlm, layer, heads, mean_of=None):
    """Ablate attention heads: zero their columns of `context`, in the prompt and in all later steps.

    layer    "model.layers.3" or "visual.blocks.0";  heads  one or several, counted from 0
    mean_of  a trace with this layer's `context`: use its mean row instead of zeros ("mean ablation")
    Source: Michel et al. 2019 (arXiv:1905.10650).
    """
    name, columns = head_columns(vlm.config, layer, heads)
    if mean_of is not None and (not isinstance(mean_of, Mapping) or name not in mean_of):
        raise Error(f"the trace of mean_of= holds no {name}. Record it with keep={name!r}.")
    value = np.float32(0) if mean_of is None else mean_of[name][:, columns].mean(axis=0)

    def change(context):
        context = context.copy()
        context[:, columns] = value
        return context

    return Edits({name if name.startswith("visual") else f"*{name}": change})


def head_columns(config, layer, heads):
    """(name of a layer's `context`, its columns that belong to these heads, int64)"""
    text, vision = config.text, config.vision
    halves = {
        "model.layers": ("self_attn", text.num_hidden_layers, text.num_attention_heads, text.head_dim),
        "visual.blocks": ("attn", vision.depth, vision.num_heads, vision.head_dim),
    }
    half, _, number = str(layer).rpartition(".")
    if half not in halves or not number.isdecimal() or int(number) >= halves[half][1]:
        raise Error(
            f'layer {layer!r}: this model has "model.layers.0" to "model.layers.{text.num_hidden_layers - 1}" and '
            f'"visual.blocks.0" to "visual.blocks.{vision.depth - 1}".'
        )
    attention, _, H, K = halves[half]
    heads = np.atleast_1d(np.asarray(heads))
    if heads.dtype.kind not in "iu" or heads.ndim != 1 or not np.all((heads >= 0) & (heads < H)):
        raise Error(f"heads {heads.tolist()}: {layer} has {H} heads. Give integers from 0 to {H - 1}.")
    return f"{layer}.{attention}.context", (heads[:, None] * K + np.arange(K)).reshape(-1)


def row_index(name, tensor, rows):
    """Index of these rows of a tensor; the catalogue knows which axis counts rows."""
    axis = row_axis(name, tensor.ndim)
    rows, count = np.atleast_1d(np.asarray(rows)), tensor.shape[axis]
    if rows.dtype == bool and rows.shape == (count,):
        rows = np.flatnonzero(rows)
    if rows.dtype.kind not in "iu" or not np.all((rows >= 0) & (rows < count)):
        raise Error(
            f"rows {rows.tolist()} of {name}: it has {count} rows. Give integers from 0 to {count - 1}, or a "
            "mask of them."
        )
    return (slice(None),) * axis + (rows,)
