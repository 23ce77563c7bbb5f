"""Every tensor of a Hugging Face transformers forward pass, under minivl's names. Needs the [reference] extra.

    reference = load_reference(folder)                  # float32, eager attention
    tensors = oracle(reference, **vars(inputs))         # of minivl.Inputs
    tensors["visual.blocks.0.attn.qkv"]                 # float32 [N, 3D], no batch axis

Module outputs come from forward hooks on *every* module. What is no module's output is caught where transformers
passes it on: the inputs of a module (residuals, the MLP's product, positions), or the arguments of the attention
function, which is wrapped for the time of the run. Nothing here computes what it claims to observe, with one
exception: attention scores, which transformers does not return, are q @ k.T from the q and k it rotated.
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


def installed():
    """(torch, transformers), or an Error that says how to get them."""
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
    """The checkpoint in transformers; "eager" attention is the one that hands out probabilities."""
    torch, transformers = installed()
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return model.eval()


def leaves(model):
    """Published names of all modules that have no modules inside: whatever computes something does it in one of these."""
    return [published_name(name) for name, module in model.named_modules() if not list(module.children())]


def covering(leaf):
    """The minivl tensor by which this leaf module's output is compared: its own name, or what COVERED_BY says."""
    mlp, _, last = leaf.rpartition(".")
    return COVERED_BY.get(leaf) or (COVERED_BY["{mlp}.act_fn"].format(mlp=mlp) if last == "act_fn" else leaf)


def oracle(model, input_ids, pixel_values, image_grid_thw, position_ids=None, **videos):
    """All tensors of the forward pass of one prompt, by minivl's names. The arguments are those of minivl.Inputs.

    position_ids  int64 [3, T], to run with other positions than transformers' own
    """
    torch, _ = installed()
    found = {"input_ids": input_ids}
    prompt = arguments(model.config, input_ids, pixel_values, image_grid_thw, **videos)
    if position_ids is not None:
        prompt["position_ids"] = torch.from_numpy(position_ids)[:, None]
    with contextlib.ExitStack() as watch, torch.no_grad():
        watch_media(model, found, watch)
        watch_modules(model, found, watch)
        watch_attention(model, found, watch)
        watch_windows(found, watch)
        model(**prompt, logits_to_keep=1, use_cache=False)
        if len(prompt) > 1 and position_ids is None:
            found["rope_delta"] = model.model.rope_deltas[0].numpy()
    return found


def arguments(
    config,
    input_ids,
    pixel_values,
    image_grid_thw,
    pixel_values_videos=(),
    video_grid_thw=(),
    second_per_grid_ts=(),
    image_sizes=(),
):
    """Keyword arguments of transformers' forward and generate for one prompt. Without pictures and videos: text alone.

    image_sizes  not passed on: they are for the boxes of an answer
    """
    torch, _ = installed()
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


# ---- the tower, which transformers runs for the pictures and once more for the videos ----


def watch_media(model, found, watch):
    """What the tower is given: under the names of pictures, or of videos."""

    def spy(function, names):
        original = getattr(model.model, function)

        def watched(*args, **kwargs):
            found.update({name: array(tensor) for name, tensor in zip(names, args)})
            return original(*args, **kwargs)

        watch.enter_context(mock.patch.object(model.model, function, watched))

    spy("get_image_features", ["pixel_values", "image_grid_thw"])
    spy("get_video_features", ["pixel_values_videos", "video_grid_thw"])


def keep_tower(found, tensors):
    """Tensors of one run of the tower, behind those of an earlier one: as if it had run once for all."""
    for name, new in tensors.items():
        if name in found:
            old, index = found[name], found["visual.window_index"]
            if name == "visual.window_index":
                new = np.concatenate([old, new + len(index)])
            elif name.startswith("visual.cu_"):
                new = np.concatenate([old, new[1:] + old[-1]])
            else:
                new = np.concatenate([old, new])
        found[name] = new


# ---- modules: their outputs, and those inputs that nothing else shows ----


def watch_modules(model, found, watch):
    for name, module in model.named_modules():
        if name in ("", "model"):  # the wrappers around tower and decoder; the published "model" is the decoder
            continue
        hook = module.register_forward_hook(keeper(published_name(name), found), with_kwargs=True)
        watch.callback(hook.remove)


def keeper(name, found):
    """The hook of one module: when it has run, keep what went in and out of it under minivl's names."""

    def keep(module, args, kwargs, output):
        tensors = inputs_of(name, args, kwargs)
        if name == "visual":
            tensors["visual"] = output.pooler_output
        elif name == "model.rotary_emb":
            tensors["model.rope.cos"], tensors["model.rope.sin"] = output
        elif hasattr(output, "detach") and covering(name) == name and name.rpartition(".")[2] not in SAME_AS_LAST_PART:
            tensors[name] = output
        tensors = {name: array(tensor) for name, tensor in tensors.items()}
        if name.startswith("visual"):
            keep_tower(found, tensors)
        else:
            found.update(tensors)

    return keep


def inputs_of(name, args, kwargs):
    """Tensors that are no module's output, from the module `name` that they are handed to."""
    room, _, last = name.rpartition(".")
    if last in ("norm2", "post_attention_layernorm"):
        return {f"{room}.attn_residual": args[0]}
    if last == "down_proj":
        return {f"{room}.act": args[0]}
    if last == "o_proj" or name.endswith("attn.proj"):
        return {f"{room}.context": args[0]}
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


def array(tensor):
    """A NumPy copy without the batch axis."""
    if tensor.ndim == 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return numpy_of(tensor)


def numpy_of(tensor):
    """A NumPy copy; bfloat16, which NumPy does not have, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()


# ---- attention: the arguments and results of transformers' own attention function ----


def watch_attention(model, found, watch):
    """Wrap the eager attention function: what goes in and out of it is kept, piece by piece."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    names = {id(module): published_name(name) for name, module in model.named_modules()}
    eager, pieces = modeling.eager_attention_forward, {}

    def watched(module, query, key, value, attention_mask, scaling, **kwargs):
        context, probs = eager(module, query, key, value, attention_mask, scaling, **kwargs)
        scores = query @ modeling.repeat_kv(key, module.num_key_value_groups).transpose(2, 3) * scaling
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask < -1e30, -np.inf)  # transformers adds the lowest float32 instead
        seen = {"q_rope": query, "k_rope": key, "scores": scores, "probs": probs}
        pieces.setdefault(names[id(module)], []).append({kind: numpy_of(tensor[0]) for kind, tensor in seen.items()})
        return context, probs

    watch.enter_context(mock.patch.object(modeling, "eager_attention_forward", watched))
    watch.callback(lambda: found.update(assembled(pieces)))


def assembled(pieces):
    """The decoder's attention is one piece; the tower's is one for each segment, laid below each other."""
    whole = {}
    for name, parts in pieces.items():
        longest = max(part["probs"].shape[2] for part in parts)
        for kind in ("q_rope", "k_rope"):
            whole[f"{name}.{kind}"] = np.concatenate([part[kind] for part in parts], axis=1)
        for kind, empty in (("scores", -np.inf), ("probs", 0)):
            whole[f"{name}.{kind}"] = np.concatenate([padded(part[kind], longest, empty) for part in parts], axis=1)
    return whole


def padded(piece, length, empty):
    """[H, n, l] -> [H, n, length]"""
    return np.pad(piece, ((0, 0), (0, 0), (0, length - piece.shape[2])), constant_values=empty)


# ---- windows: what transformers' own functions return while the tower runs ----


def watch_windows(found, watch):
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    def spy(function, names):
        original = getattr(modeling, function)

        def watched(*args, **kwargs):
            result = original(*args, **kwargs)
            keep_tower(found, {name: tensor.numpy() for name, tensor in zip(names, result)})
            return result

        watch.enter_context(mock.patch.object(modeling, function, watched))

    spy("get_vision_window_index", ["visual.window_index", "visual.cu_window_seqlens"])
    spy("get_vision_attention_seqlens", ["visual.cu_seqlens"])
