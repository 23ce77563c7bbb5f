"""Hooks on Hugging Face transformers (not on minivl): every tensor of its forward pass, under minivl's names.

Needs the [reference] extra.

    reference = load_reference(folder)                  # float32, eager attention
    tensors = run_reference(reference, **vars(inputs))         # of minivl.Inputs
    tensors["visual.blocks.0.attn.qkv"]                 # float32 [N, 3D], no batch axis

Outputs and inputs of modules come from the recorder of any port in torch, `minivl.record.torch`. Here is what only the
reference has: transformers' eager attention function is wrapped during the run for its arguments and results. All are
observed, none computed, except attention scores, which transformers does not return: they are q @ k.T of its rotated q
and k.
"""

import contextlib
import os
from unittest import mock

import numpy as np

from minivl.errors import Error
from minivl.record.torch_modules import record_modules, to_numpy
from minivl.tensors import catalogue
from minivl.tensors.names import published_name

# transformers' leaf modules whose output has no tensor of that name in minivl, and the tensor that covers it
COVERED_BY = {
    "visual.patch_embed.proj": "visual.patch_embed",  # the Conv3d; patch_embed is its output without three axes of 1
    "visual.rotary_pos_emb": "visual.rope.cos",  # and .sin; compared after the permutation to window order
    "model.rotary_emb": "model.rope.cos",  # and .sin
    "{mlp}.act_fn": "{mlp}.act",  # silu(gate) alone; its product with up_proj, the input of down_proj, is compared
}


def import_torch():
    """(torch, transformers). Raises an Error that says how to install them."""
    # subtle: torch brings its own OpenMP. Let it spin, and minivl's and OpenBLAS's threads starve.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import torch
        import transformers
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
    except ImportError as cause:
        raise Error(
            f"the reference is Hugging Face transformers 5 with torch, and {cause.name} is missing. "
            'Install both: pip install "minivl[reference]", or pip install ".[reference]" in minivl\'s folder.'
        ) from None
    if not hasattr(modeling_qwen2_5_vl, "get_vision_window_index"):
        raise Error(
            f"transformers {transformers.__version__} is too old; 5.23 is the oldest: pip install -U transformers."
        )
    return torch, transformers


def load_reference(folder, attention="eager", dtype="float32"):
    """The checkpoint in transformers; only "eager" attention returns probabilities."""
    torch, transformers = import_torch()
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return model.eval()


def leaves(model):
    """Published names of all modules without submodules: every computation is in one of these."""
    return [published_name(name) for name, module in model.named_modules() if not list(module.children())]


def covering_tensor(leaf):
    """The minivl tensor by which the output of a leaf module is compared: its own name, or that in COVERED_BY."""
    mlp, _, last = leaf.rpartition(".")
    return COVERED_BY.get(leaf) or (COVERED_BY["{mlp}.act_fn"].format(mlp=mlp) if last == "act_fn" else leaf)


def run_reference(model, input_ids, position_ids=None, **inputs):
    """All tensors of the forward pass of one prompt, by minivl's names. The arguments are those of minivl.Inputs.

    position_ids  int64 [3, T], to run with other positions than transformers' own
    """
    torch, _ = import_torch()
    prompt = arguments(model.config, input_ids, **inputs)
    if position_ids is not None:
        prompt["position_ids"] = torch.from_numpy(position_ids)[:, None]
    with torch.no_grad(), record_modules(model) as recording, watch_attention(model) as pieces:
        model(**prompt, logits_to_keep=1, use_cache=False)
    recorded = {name: tensor for name, tensor in recording.items() if catalogue.of(name)} | join_pieces(pieces)
    if len(prompt) > 1 and position_ids is None:
        recorded["rope_delta"] = model.model.rope_deltas[0].numpy()
    return recorded


def arguments(config, input_ids, **inputs):
    """Keyword arguments of transformers' forward and generate for one prompt: the fields of `Inputs` that it takes."""
    torch, _ = import_torch()
    ids, names = torch.from_numpy(input_ids)[None], []
    if len(inputs.get("pixel_values", ())):
        names += ["pixel_values", "image_grid_thw"]
    if len(inputs.get("pixel_values_videos", ())):
        names += ["pixel_values_videos", "video_grid_thw", "second_per_grid_ts"]
    is_media = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    kinds = {"mm_token_type_ids": is_media} if names else {}
    return {"input_ids": ids, **kinds, **{name: torch.from_numpy(inputs[name]) for name in names}}


# ---- attention: arguments and results of transformers' own function ----


@contextlib.contextmanager
def watch_attention(model):
    """Wrap the eager attention function: yields {module: its arguments and results, piece by piece}."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    names = {id(module): published_name(name) for name, module in model.named_modules()}
    eager, pieces = modeling.eager_attention_forward, {}

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        context, probs = eager(module, query, key, value, attention_mask, scaling, **kwargs)
        scores = query @ modeling.repeat_kv(key, module.num_key_value_groups).transpose(2, 3) * scaling
        if attention_mask is not None:
            lowest = np.finfo(np.float16).min if str(scores.dtype) == "torch.float16" else -1e30
            scores = scores.masked_fill(attention_mask <= lowest, -np.inf)  # transformers adds its type's lowest number
        seen = {"q_rope": query, "k_rope": key, "scores": scores, "probs": probs}
        seen = {kind: to_numpy(tensor[0]).copy() for kind, tensor in seen.items()}
        pieces.setdefault(names[id(module)], []).append(seen)
        return context, probs

    with mock.patch.object(modeling, "eager_attention_forward", attend):
        yield pieces


def join_pieces(pieces):
    """The decoder's attention is one piece; the tower's is one for each segment, joined along the rows."""
    whole = {}
    for name, parts in pieces.items():
        longest = max(part["probs"].shape[2] for part in parts)
        for kind in ("q_rope", "k_rope"):
            whole[f"{name}.{kind}"] = np.concatenate([part[kind] for part in parts], axis=1)
        for kind, empty in (("scores", -np.inf), ("probs", 0)):
            whole[f"{name}.{kind}"] = np.concatenate([pad(part[kind], longest, empty) for part in parts], axis=1)
    return whole


def pad(piece, length, empty):
    """[H, n, l] -> [H, n, length]"""
    return np.pad(piece, ((0, 0), (0, 0), (0, length - piece.shape[2])), constant_values=empty)
