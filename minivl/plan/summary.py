"""`minivl summary`: the module tree, as PyTorch prints it for the published model, and the table of parameters.

    print(tree(config))           # every module with its shapes and its number of parameters
    print(table(config))          # parameters and bytes, module by module

The leaves are those of parameters.py, the list of a checkpoint's weights; here is only what a checkpoint does not contain:
class names, the order in which PyTorch defines the submodules, and the modules without parameters. The tree has the published
names, with `visual` and `model` side by side, as weights and tensors have; class names are those of transformers at launch,
without the word for the attention's backend ("Sdpa").
"""

import math

from minivl.checkpoint.parameters import parameter_shapes
from minivl.helpers import format_bytes
from minivl.model.vision import EPS

# {module: (class, its submodules in order)}; block 0 stands for all blocks, layer 0 for all layers
MODULES = {
    "": ("Qwen2_5_VLForConditionalGeneration", "visual model lm_head"),
    "visual": ("Qwen2_5_VisionTransformerPretrainedModel", "patch_embed rotary_pos_emb blocks merger"),
    "visual.patch_embed": ("Qwen2_5_VisionPatchEmbed", "proj"),
    "visual.blocks": ("ModuleList", "0"),
    "visual.blocks.0": ("Qwen2_5_VLVisionBlock", "norm1 norm2 attn mlp"),
    "visual.blocks.0.attn": ("Qwen2_5_VLVisionAttention", "qkv proj"),
    "visual.blocks.0.mlp": ("Qwen2_5_VLMLP", "gate_proj up_proj down_proj act_fn"),
    "visual.merger": ("Qwen2_5_VLPatchMerger", "ln_q mlp"),
    "visual.merger.mlp": ("Sequential", "0 1 2"),
    "model": ("Qwen2_5_VLModel", "embed_tokens layers norm rotary_emb"),
    "model.layers": ("ModuleList", "0"),
    "model.layers.0": ("Qwen2_5_VLDecoderLayer", "self_attn mlp input_layernorm post_attention_layernorm"),
    "model.layers.0.self_attn": ("Qwen2_5_VLAttention", "q_proj k_proj v_proj o_proj"),
    "model.layers.0.mlp": ("Qwen2MLP", "gate_proj up_proj down_proj act_fn"),
}
WITHOUT_PARAMETERS = {
    "visual.rotary_pos_emb": "Qwen2_5_VisionRotaryEmbedding()",
    "visual.blocks.0.mlp.act_fn": "SiLU()",
    "visual.merger.mlp.1": "GELU(approximate='none')",
    "model.layers.0.mlp.act_fn": "SiLU()",
    "model.rotary_emb": "Qwen2_5_VLRotaryEmbedding()",
}
REPEATED = ("visual.blocks.0", "model.layers.0")


# ---- the tree ----


def tree(config, depth=None):
    """The module tree as text. depth: levels to show below the whole model; None: all."""
    return "\n".join(tree_lines(config, "", parameter_shapes(config), depth, ""))


def tree_lines(config, module, shapes, depth, indent):
    """The lines of one module: its head, its submodules, its closing bracket."""
    head, note = heading(config, module), note_of(config, module, shapes)
    if module not in MODULES:
        return [f"{indent}{head}{leaf(config, module, shapes)}{note}"]
    name, children = MODULES[module]
    if depth == 0:
        return [f"{indent}{head}{name}(...){note}"]
    inner = []
    for child in children.split():
        path = f"{module}.{child}" if module else child
        inner += tree_lines(config, path, shapes, None if depth is None else depth - 1, indent + "  ")
    return [f"{indent}{head}{name}({note}", *inner, f"{indent})"]


def heading(config, module):
    """ "(norm1): ", or "(0-31): 32 x " for equal blocks; nothing for the whole model."""
    times = repeats(config, module)
    if module in REPEATED and times > 1:
        return f"(0-{times - 1}): {times} x "
    return f"({module.split('.')[-1]}): " if module else ""


def repeats(config, module):
    """Number of equal modules."""
    if module.startswith("visual.blocks."):
        return config.vision.depth
    return config.text.num_hidden_layers if module.startswith("model.layers.") else 1


def leaf(config, module, shapes):
    """A module without submodules, as PyTorch prints it."""
    if module in WITHOUT_PARAMETERS:
        return WITHOUT_PARAMETERS[module]
    if module == "lm_head":
        return f"Linear(in_features={config.text.hidden_size}, out_features={config.text.vocab_size}, bias=False)"
    shape = shapes[f"{module}.weight"]
    if len(shape) == 1:
        eps = EPS if module.startswith("visual.") else config.text.rms_norm_eps
        return f"Qwen2RMSNorm(({shape[0]},), eps={eps})"
    bias = f"{module}.bias" in shapes
    if len(shape) == 5:
        size = tuple(shape[2:])
        return f"Conv3d({shape[1]}, {shape[0]}, kernel_size={size}, stride={size}, bias={bias})"
    if module == "model.embed_tokens":
        return f"Embedding({shape[0]}, {shape[1]})"
    return f"Linear(in_features={shape[1]}, out_features={shape[0]}, bias={bias})"


def note_of(config, module, shapes):
    """The comment of a line: parameters of one module, and of all if there are several equal ones."""
    if module == "lm_head" and config.tie_word_embeddings:
        return "  # tied: the weight of model.embed_tokens"
    number = count_parameters(module, shapes)
    times = repeats(config, module) if module in REPEATED else 1
    if not number:
        return ""
    return f"  # {number:,} each, {number * times:,} together" if times > 1 else f"  # {number:,}"


def count_parameters(module, shapes):
    """Parameters of a module, including its submodules."""
    return sum(math.prod(s) for name, s in shapes.items() if not module or f"{name}.".startswith(f"{module}."))


# ---- the table ----


def counts(config):
    """{row of the table: number of parameters}: the modules of tower and decoder, each of the two, the whole."""
    shapes = parameter_shapes(config)
    rows = ["visual.patch_embed", "visual.blocks.0", "visual.blocks", "visual.merger", "visual", "model.embed_tokens"]
    rows += ["model.layers.0", "model.layers", "model.norm", "model", "lm_head"]
    return {row: count_parameters(row, shapes) for row in rows} | {"total": count_parameters("", shapes)}


LABELS = {"visual.blocks.0": "  each of {depth} blocks", "model.layers.0": "  each of {layers} layers"}
LINE = "{:<26} {:>16} {:>12} {:>12} {:>7}"


def table(config):
    """The table as text: parameters, bytes as bfloat16 and as float32, share of the whole."""
    numbers = counts(config)
    text = [LINE.format("module", "parameters", "bfloat16", "float32", "share")]
    for row, number in numbers.items():
        label = LABELS.get(row, row).format(depth=config.vision.depth, layers=config.text.num_hidden_layers)
        if row == "lm_head" and config.tie_word_embeddings:
            text.append(f"{label:<26} {'tied':>16}    the weight of model.embed_tokens, counted there")
            continue
        share = f"{number / numbers['total']:.1%}"
        text.append(LINE.format(label, f"{number:,}", format_bytes(2 * number), format_bytes(4 * number), share))
    return "\n".join(text)
