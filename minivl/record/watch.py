"""Shared by the recorders of modules: which tensors of a module's call are kept, under which names.

    watch = Watch(recording, to_numpy)
    watch.enter(module, "visual.blocks.0.norm2", args, kwargs)           # before the module runs
    watch.leave(module, "visual.blocks.0.norm2", args, kwargs, output)   # keeps it, and visual.blocks.0.attn_residual
    watch.attend(query, key)                                             # attention inside the innermost module

A module's output has the module's name. Tensors that are no module's output are taken where a module gets them as input: the
residual stream before a norm, the product before down_proj, the attention's result before its projection. All are observed,
none computed.
"""

import re

import numpy as np

from minivl.errors import Error
from minivl.tensors import catalogue

ARGUMENTS = ("input_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
WITHOUT_STEP = (*ARGUMENTS, "inputs_embeds")  # minivl has them for the prompt only
INPUTS = {  # last word of a module's name: the tensor beside it that is its input
    "norm2": "attn_residual",
    "post_attention_layernorm": "attn_residual",
    "down_proj": "act",
    "o_proj": "context",
    "proj": "context",
}
NO_TENSOR = re.compile(
    r"\b(act_fn|rotary_emb|rotary_pos_emb|dropout|drop_path|patch_embed\.proj)$"
)  # modules without one in minivl
BATCH = 3  # axes of a tensor whose first one, if it is 1, is the batch


class Watch:
    """An observer of module calls that names and keeps their tensors.

    to_numpy  function: a tensor of the framework -> NumPy array, bfloat16 as float32
    """

    def __init__(self, recording, to_numpy):
        self.recording, self.to_numpy = recording, to_numpy
        self.running, self.prefix = [], ""  # (module, name) of the modules that run now, the outermost first
        self.called, self.tokens = set(), 0  # names of the modules called in this pass, and its tokens
        self.step = self.chunk = 0
        self.pictures, self.is_tower_again = [], False  # inputs of the tower's runs; whether this run repeats one
        self.last, self.seen = None, set()  # the last tensor that a module returned; names kept in this pass
        self.widths, self.given = {}, None  # {attention: width of its k_proj}; ids or embeddings of this pass
        self.normed = None  # what the last norm returned

    def enter(self, module, name, args, kwargs):
        self.forget(module)
        if not self.running:
            self.begin_pass(name, args, kwargs)
        if name == "visual":
            self.begin_tower(args, kwargs)
        self.running.append((module, name))
        if not is_tower(name):
            self.called.add(name)

    def leave(self, module, name, args, kwargs, output):
        self.forget(module)
        inputs = inputs_of(name, args, kwargs)
        given = [*args, *kwargs.values()]
        has_ids = is_tensor(kwargs.get("inputs_embeds")) or any(is_tensor(one) and is_integer(one) for one in given)
        for own, tensor in {**inputs, **self.outputs_of(name, output, has_ids)}.items():
            if own.endswith("norm") and tensor is not None:
                self.normed = tensor
            if own.endswith(".k_proj"):
                self.widths[own.rpartition(".")[0]] = tensor.shape[-1]
            self.keep(own, tensor)

    def forget(self, module):
        """Drop a module and those inside it from the running ones, also after an exception in an earlier call."""
        at = next((i for i, (one, _) in enumerate(self.running) if one is module), len(self.running))
        del self.running[at:]

    # ---- passes ----

    def begin_pass(self, name, args, kwargs):
        """The prefix of what follows: none for the prompt, `steps.N.` for a token of the answer, `chunks.N.`."""
        if is_tower(name):  # runs once for the images, once for the videos
            return
        tokens, cached = count_tokens(args, kwargs), is_cache_filled(kwargs)
        given = self.read_given(args, kwargs)
        if name in self.called:
            if tokens == 1 or not cached and tokens == self.tokens + 1 and begins_with(given, self.given):
                self.step += 1
                self.prefix = f"steps.{self.step}."
            elif cached and not self.step:
                self.chunk += 1
                self.prefix = f"chunks.{self.chunk}."
            else:
                raise Error(
                    f"another prompt begins, of {tokens} tokens: a recording holds one. Record it in a `with` of its own."
                )
            self.called, self.seen = set(), set()
        if not self.called:
            self.tokens, self.given = tokens, given

    def read_given(self, args, kwargs):
        """Ids [T] or embeddings [T, D] of a pass of the model; None if its arguments do not tell."""
        tensor = first_given(args, kwargs)
        return None if tensor is None else without_batch("input_ids", np.array(self.to_numpy(tensor)))

    def begin_tower(self, args, kwargs):
        """Begin a run of the tower. It may repeat one: for each token of the answer without a cache, or alone as a warm-up.

        Two runs on equal patches are two images if a grid differs, or if nothing ran between them within one pass of the model.
        """
        given = [np.array(self.to_numpy(value)) for value in (*args, *kwargs.values()) if is_tensor(value)]
        is_later = self.step > 0 or any(name.startswith("model.layers.") for name in self.called) or not self.running
        self.is_tower_again = is_later and any(are_equal(given, earlier) for earlier in self.pictures)
        self.pictures += [] if self.is_tower_again else [given]

    # ---- tensors ----

    def outputs_of(self, name, output, has_ids):
        """{name: tensor}; has_ids: whether the module got ids or embeddings: a root without them is a part of the model."""
        last = name.rpartition(".")[2]
        if last == "rotary_emb" and is_pair(output):
            return {"model.rope.cos": output[0], "model.rope.sin": output[1]}
        # subtle: a decoder without a head returns what its norm returned
        is_whole = name == "" and has_ids and output is not self.normed
        logits = getattr(output, "logits", output if is_whole else None)
        if is_tensor(logits) and not name.startswith("visual") and self.prefix + "lm_head" not in self.seen:
            return {"lm_head": logits}  # a head that is no module, or tied
        tensor = first_tensor(output, "pooler_output" if name == "visual" else "last_hidden_state")
        is_last_part = tensor is self.last  # as mlp returns what mlp.down_proj returned
        self.last = tensor
        if tensor is None or not name or NO_TENSOR.search(name) or (is_last_part and catalogue.of(name) is None):
            return {}
        return {name: tensor}

    def keep(self, name, tensor):
        """Keep a tensor, by its name in this pass."""
        if is_tower(name) and self.is_tower_again:
            return
        full = name
        if self.prefix and not is_tower(name):
            if name in WITHOUT_STEP and self.step:
                return
            full = self.prefix + name
        self.seen.add(full)
        if not self.recording.wants(full):
            return
        if name == "lm_head":
            tensor = tensor[..., -1:, :] if tensor.ndim > 1 else tensor[None]
        array = without_batch(name, np.array(self.to_numpy(tensor)))
        if name == "position_ids" and self.step:
            array = array[..., -1:]  # subtle: rows are cut by `compare`, columns are not
        if is_tower(name):
            array = append_to_tower(self.recording, name, array)
        self.recording.add(full, array)

    def attend(self, query, key):
        """Keep queries and keys, [..., heads, rows, K], of an attention inside the module that runs now."""
        name = self.running[-1][1] if self.running else ""
        if "attn" not in name.rpartition(".")[2] or is_tower(name) and self.is_tower_again:
            return
        arrays = [np.array(self.to_numpy(tensor)) for tensor in (query, key)]
        while all(array.ndim > 3 and len(array) == 1 for array in arrays):
            arrays = [array[0] for array in arrays]
        if any(array.ndim != 3 for array in arrays):
            return
        q, k = arrays
        if not is_tower(name):
            q = q[:, -1:] if self.step else q
            k = k[:: self.repeats(name, k)][:, -q.shape[1] :]  # without the cached rows
        for own, array in ((f"{name}.q_rope", q), (f"{name}.k_rope", k)):
            full = own if is_tower(name) else self.prefix + own
            if not self.recording.wants(full):
                continue
            if full in self.seen:  # a further segment of the same run
                array = np.concatenate([self.recording[full], array], axis=1)
            self.seen.add(full)
            self.recording.add(full, array)

    def repeats(self, name, keys):
        """How many times in a row each key head stands in `keys`, [heads, rows, K]."""
        heads, _, K = keys.shape
        width = self.widths.get(name, 0)
        if width:
            return heads * K // width if heads * K % width == 0 else 1
        for times in range(heads, 1, -1):  # of one product for queries, keys and values: by the values
            if heads % times == 0 and np.array_equal(keys, np.repeat(keys[::times], times, axis=0)):
                return times
        return 1


def inputs_of(name, args, kwargs):
    """Tensors that are no module's output, from the inputs of the module `name`."""
    inputs = {own: kwargs[own] for own in ARGUMENTS if is_tensor(kwargs.get(own))}
    tensors = [tensor for tensor in args if is_tensor(tensor)]
    if name in ("", "model") and "input_ids" not in inputs and tensors and is_integer(tensors[0]):
        inputs["input_ids"] = tensors[0]
    block, _, last = name.rpartition(".")
    if last in INPUTS and "patch_embed" not in block and len(tensors) == 1:  # subtle: fused norms get two
        inputs[f"{block}.{INPUTS[last]}"] = tensors[0]
    hidden = tensors[0] if tensors else kwargs.get("hidden_states")
    if name in ("visual.blocks.0", "model.layers.0") and is_tensor(hidden):
        inputs["visual.window_order" if is_tower(name) else "inputs_embeds"] = hidden
    if name == "visual.blocks.0" and is_pair(kwargs.get("position_embeddings")):
        inputs["visual.rope.cos"], inputs["visual.rope.sin"] = kwargs["position_embeddings"]
    if last == "rotary_pos_emb" and len(tensors) == 2:
        inputs["visual.patch_positions"] = tensors[1]
    if last == "rotary_emb" and is_tensor(positions := kwargs.get("position_ids", (*args, None, None)[1])):
        if positions.ndim == 3 and len(positions) == 3:
            inputs["position_ids"] = positions[:, 0]  # [3, 1, T] -> [3, T]
    return inputs


def append_to_tower(recording, name, new):
    """Append a tensor of the tower to that of an earlier run of it, as if images and videos had been run at once."""
    if name not in recording:
        return new
    old = recording[name]
    if name == "visual.window_index":
        new = new + len(old)
    elif name.startswith("visual.cu_"):
        old, new = old, new[1:] + old[-1]
    return np.concatenate([old, new]) if old.shape[1:] == new.shape[1:] else new


def without_batch(name, array):
    if array.ndim == BATCH and len(array) == 1 or (name == "input_ids" and array.ndim == 2):
        return array[0]
    return array


def is_tower(name):
    return name == "visual" or name.startswith("visual.")


def is_tensor(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_integer(tensor):
    return "int" in str(tensor.dtype)


def is_pair(value):
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_tensor, value))


def first_tensor(output, field):
    """The tensor of a module's output: itself, the first in a tuple, or a field of transformers' and MLX's outputs."""
    if is_tensor(output):
        return output
    for name in (field, "last_hidden_state"):
        if is_tensor(getattr(output, name, None)):
            return getattr(output, name)
    if isinstance(output, (tuple, list)):
        return next((first_tensor(one, field) for one in output[:1]), None)
    return None


def first_given(args, kwargs):
    """The token ids or embeddings of a pass of the model, or of a part of it."""
    given = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args, *kwargs.values()]
    return next((value for value in given if is_tensor(value) and value.ndim), None)


def are_equal(some, others):
    """Whether two lists hold equal arrays."""
    return len(some) == len(others) and all(map(np.array_equal, some, others))


def begins_with(given, earlier):
    """Whether the ids or embeddings of a pass begin with those of an earlier one."""
    if given is None or earlier is None or given.shape[1:] != earlier.shape[1:]:
        return True  # nothing tells that they do not
    if is_integer(given):
        return np.array_equal(given[: len(earlier)], earlier)
    rounding = 0.03  # of bfloat16, layer by layer
    return np.allclose(given[: len(earlier)], earlier, rounding, rounding * np.abs(earlier).max(initial=0))


def count_tokens(args, kwargs):
    """Tokens of a pass of the model, or of a part of it; 0 if its arguments do not tell."""
    tensor = first_given(args, kwargs)
    if tensor is None:
        return 0
    if is_integer(tensor):
        if tensor.ndim == 2 and len(tensor) > 1:
            raise Error(f"a recording holds one prompt; this batch has {len(tensor)}. Run one of them.")
        return tensor.shape[-1]
    return tensor.shape[-2] if tensor.ndim > 1 else 1


def is_cache_filled(kwargs):
    """Whether a pass gets keys and values of earlier tokens, as transformers and MLX hand them on."""
    names = ("past_key_values", "cache", "kv_cache")
    cache = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
    if hasattr(cache, "get_seq_length"):
        return cache.get_seq_length() > 0
    if isinstance(cache, (list, tuple)):  # of each layer
        cache = cache[0] if cache else None
    return cache is not None and getattr(cache, "offset", 1) > 0
