"""Hooks on Hugging Face transformers (not on minivl): every tensor of its forward pass, under minivl's names.

Needs the [reference] extra.

    reference = load_reference(folder)                  # float32, eager attention
    tensors = run_reference(reference, **vars(inputs))         # of minivl.Inputs
    tensors["visual.blocks.0.attn.qkv"]                 # float32 [N, 3D], no batch axis

Module outputs come from forward hooks on *every* module. Other tensors are taken where transformers passes them on: the
inputs of a module (residuals, the MLP's product, positions), or the arguments of the attention function, which is wrapped
during the run. All are observed, none computed, but for attention scores, which transformers does not return: they are
q @ k.T of its rotated q and k.
"""

import contextlib
import os
from unittest import mock

import numpy as np

from minivl.errors import Error
from minivl.tensors.names import published_name

# transformers' leaf modules whose output has no tensor of that name in minivl, and the tensor that covers it
COVERED_BY = {
    "visual.patch_embed.proj": "visual.patch_embed",  # the Conv3d; patch_embed is its output without three axes of 1
    "visual.rotary_pos_emb": "visual.rope.cos",  # and .sin; compared after the permutation to window order
    "model.rotary_emb": "model.rope.cos",  # and .sin
    "{mlp}.act_fn": "{mlp}.act",  # silu(gate) alone; its product with up_proj, the input of down_proj, is compared
}
# outer modules whose output is that of their last part (proj, o_proj, down_proj, merger.mlp.2), compared under that name
SAME_AS_LAST_PART = ("attn", "self_attn", "mlp")


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
            f"transformers {transformers.__version__} is too old. Install 5.23 or later: pip install -U transformers."
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


def run_reference(model, input_ids, pixel_values, image_grid_thw, position_ids=None, **videos):
    """All tensors of the forward pass of one prompt, by minivl's names. The arguments are those of minivl.Inputs.

    position_ids  int64 [3, T], to run with other positions than transformers' own
    """
    torch, _ = import_torch()
    recorded = {"input_ids": input_ids}
    prompt = arguments(model.config, input_ids, pixel_values, image_grid_thw, **videos)
    if position_ids is not None:
        prompt["position_ids"] = torch.from_numpy(position_ids)[:, None]
    with contextlib.ExitStack() as watch, torch.no_grad():
        watch_media(model, recorded, watch)
        watch_modules(model, recorded, watch)
        watch_attention(model, recorded, watch)
        watch_windows(recorded, watch)
        model(**prompt, logits_to_keep=1, use_cache=False)
        if len(prompt) > 1 and position_ids is None:
            recorded["rope_delta"] = model.model.rope_deltas[0].numpy()
    return recorded


def arguments(
    config,
    input_ids,
    pixel_values,
    image_grid_thw,
    pixel_values_videos=(),
    video_grid_thw=(),
    second_per_grid_ts=(),
    **of_prepare,
):
    """Keyword arguments of transformers' forward and generate for one prompt. Without pictures and videos: text alone.

    of_prepare  the other fields of `Inputs`, such as image_sizes: the model does without
    """
    torch, _ = import_torch()
    ids = torch.from_numpy(input_ids)[None]
    given, media = {"input_ids": ids}, {}
    if len(pixel_values):
        media |= {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
    if len(pixel_values_videos):
        media |= {"pixel_values_videos": pixel_values_videos, "video_grid_thw": video_grid_thw}
        media |= {"second_per_grid_ts": second_per_grid_ts}
    if media:
        given["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    return given | {name: torch.from_numpy(array) for name, array in media.items()}


# ---- the tower, which transformers runs for the images, then for the videos ----


def watch_media(model, recorded, watch):
    """The tower's inputs, under the names of images or of videos."""

    def spy(function, names):
        original = getattr(model.model, function)

        def watched(*args, **kwargs):
            recorded.update({name: without_batch(tensor) for name, tensor in zip(names, args)})
            return original(*args, **kwargs)

        watch.enter_context(mock.patch.object(model.model, function, watched))

    spy("get_image_features", ["pixel_values", "image_grid_thw"])
    spy("get_video_features", ["pixel_values_videos", "video_grid_thw"])


def keep_tower(recorded, tensors):
    """Append the tensors of one run of the tower to those of an earlier one, as if it had run once."""
    for name, new in tensors.items():
        if name in recorded:
            old, index = recorded[name], recorded["visual.window_index"]
            if name == "visual.window_index":
                new = np.concatenate([old, new + len(index)])
            elif name.startswith("visual.cu_"):
                new = np.concatenate([old, new[1:] + old[-1]])
            else:
                new = np.concatenate([old, new])
        recorded[name] = new


# ---- modules: their outputs, and the inputs that are no other module's output ----


def watch_modules(model, recorded, watch):
    for name, module in model.named_modules():
        if name in ("", "model"):  # the wrappers around tower and decoder; the published "model" is the decoder
            continue
        hook = module.register_forward_hook(make_hook(published_name(name), recorded), with_kwargs=True)
        watch.callback(hook.remove)


def make_hook(name, recorded):
    """The forward hook of a module: keep its inputs and output under minivl's names."""

    def keep(module, args, kwargs, output):
        tensors = inputs_of(name, args, kwargs)
        if name == "visual":
            tensors["visual"] = output.pooler_output
        elif name == "model.rotary_emb":
            tensors["model.rope.cos"], tensors["model.rope.sin"] = output
        elif (
            hasattr(output, "detach")
            and covering_tensor(name) == name
            and name.rpartition(".")[2] not in SAME_AS_LAST_PART
        ):
            tensors[name] = output
        tensors = {name: without_batch(tensor) for name, tensor in tensors.items()}
        if name.startswith("visual"):
            keep_tower(recorded, tensors)
        else:
            recorded.update(tensors)

    return keep


def inputs_of(name, args, kwargs):
    """Tensors that are no module's output, from the inputs of the module `name`."""
    prefix, _, last = name.rpartition(".")
    if last in ("norm2", "post_attention_layernorm"):
        return {f"{prefix}.attn_residual": args[0]}
    if last == "down_proj":
        return {f"{prefix}.act": args[0]}
    if last == "o_proj" or name.endswith("attn.proj"):
        return {f"{prefix}.context": args[0]}
    if name == "visual.rotary_pos_emb":
        return {"visual.patch_positions": args[1]}
    if name == "visual.blocks.0":
        cos, sin = kwargs["position_embeddings"]
        return {"visual.window_order": args[0], "visual.rope.cos": cos, "visual.rope.sin": sin}
    if name == "model":
        return {"inputs_embeds": kwargs["inputs_embeds"]}
    if name == "model.rotary_emb":
        return {"position_ids": args[1][:, 0]}  # [3, 1, T] -> [3, T]
    return {}


def without_batch(tensor):
    """A NumPy copy without the batch axis."""
    if tensor.ndim == 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return to_numpy(tensor)


def to_numpy(tensor):
    """A NumPy copy; bfloat16, which NumPy does not have, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()


# ---- attention: arguments and results of transformers' own function ----


def watch_attention(model, recorded, watch):
    """Wrap the eager attention function: keep its arguments and results, piece by piece."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    names = {id(module): published_name(name) for name, module in model.named_modules()}
    eager, pieces = modeling.eager_attention_forward, {}

    def watched(module, query, key, value, attention_mask, scaling, **kwargs):
        context, probs = eager(module, query, key, value, attention_mask, scaling, **kwargs)
        scores = query @ modeling.repeat_kv(key, module.num_key_value_groups).transpose(2, 3) * scaling
        if attention_mask is not None:
            lowest = np.finfo(np.float16).min if str(scores.dtype) == "torch.float16" else -1e30
            scores = scores.masked_fill(attention_mask <= lowest, -np.inf)  # transformers adds its type's lowest number
        seen = {"q_rope": query, "k_rope": key, "scores": scores, "probs": probs}
        pieces.setdefault(names[id(module)], []).append({kind: to_numpy(tensor[0]) for kind, tensor in seen.items()})
        return context, probs

    watch.enter_context(mock.patch.object(modeling, "eager_attention_forward", watched))
    watch.callback(lambda: recorded.update(join_pieces(pieces)))


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


# ---- windows: the results of transformers' own functions ----


def watch_windows(recorded, watch):
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    def spy(function, names):
        original = getattr(modeling, function)

        def watched(*args, **kwargs):
            result = original(*args, **kwargs)
            keep_tower(recorded, {name: tensor.numpy() for name, tensor in zip(names, result)})
            return result

        watch.enter_context(mock.patch.object(modeling, function, watched))

    spy("get_vision_window_index", ["visual.window_index", "visual.cu_window_seqlens"])
    spy("get_vision_attention_seqlens", ["visual.cu_seqlens"])
