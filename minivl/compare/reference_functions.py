"""The function in transformers to look at, for a tensor and a mistake.

    find_functions("model.layers.3.self_attn.context", "no causal mask")
    # (Function("Qwen2_5_VLTextModel.forward", "models/qwen2_5_vl/modeling_qwen2_5_vl.py"),)

tests/reference/test_reference_functions.py looks each up in the sources of transformers.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from minivl.tensors.names import parse

VERSION = "5.24"  # of transformers, whose names these are


@dataclass(frozen=True)
class Function:
    """A function of transformers.

    name  "Class.method" or "function";  file  its path in the package;  older  its name in transformers 4, "" if the same
    """

    name: str
    file: str
    older: str = ""

    def __str__(self):
        older = f" (transformers 4: {self.older})" if self.older else ""
        return f"{self.name} in {self.file.rpartition('/')[2]}{older}"


TOWER, TOWER_ROPE = "Qwen2_5_VisionTransformerPretrainedModel", "Qwen2_5_VLVisionRotaryEmbedding"
SORT = f"{TOWER}.permute_input_for_window_attn"
ROPE, IMAGE, VIDEO = "Qwen2_5_VLRotaryEmbedding", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"

FILES = {  # the beginning of a name: where it is; all others are in the file of the model
    "load_image": "image_utils.py",
    IMAGE: "models/qwen2_vl/image_processing_qwen2_vl.py",
    VIDEO: "models/qwen2_vl/video_processing_qwen2_vl.py",
    "ProcessorMixin": "processing_utils.py",
    "Qwen2_5_VLProcessor": "models/qwen2_5_vl/processing_qwen2_5_vl.py",
    "get_vision_": "vision_utils.py",
    "GenerationMixin": "generation/utils.py",
    "": "models/qwen2_5_vl/modeling_qwen2_5_vl.py",
}

OLDER = {
    f"{IMAGE}.resize": f"{IMAGE}._preprocess",
    f"{IMAGE}.patchify": f"{IMAGE}._preprocess",
    "Qwen2_5_VLProcessor.replace_image_token": "Qwen2_5_VLProcessor.__call__",
    "get_vision_window_index": f"{TOWER}.get_window_index",
    "get_vision_cu_seqlens": f"{TOWER}.forward",
    "get_vision_position_ids": f"{TOWER}.rot_pos_emb",
    f"{TOWER}.permute_input_for_window_attn": f"{TOWER}.forward",
    f"{TOWER_ROPE}.compute_axial_rope_parameters": "Qwen2_5_VisionRotaryEmbedding.__init__",
    f"{TOWER_ROPE}.recomposition_frequencies": f"{TOWER}.forward",
    f"{TOWER_ROPE}.forward": f"{TOWER}.rot_pos_emb",
    "Qwen2_5_VLRMSNorm.forward": "Qwen2RMSNorm.forward",
    f"{ROPE}.recomposition_frequencies": "apply_multimodal_rotary_pos_emb",
    "apply_rotary_pos_emb": "apply_multimodal_rotary_pos_emb",
    "Qwen2_5_VLModel.compute_3d_position_ids": "Qwen2_5_VLModel.forward",
}

COLOUR_MISTAKES = "BGR; not normalised; not rescaled; rescaled twice; other mean and deviation"
PLACEHOLDERS = "placeholders not expanded; placeholders for patches; another number of placeholders"
TEMPLATE = "no system prompt; no generation prompt; no vision_start and vision_end"
ORDER = (
    "not in window order; already in window order; window order twice; inverse of the window order; "
    "positions not in window order"
)
PATCHES = (
    "height and width swapped; raster order of patches; places of units; counted from 1; 1-D positions; baked-in grid"
)
LAYOUT = "rows and columns interleaved; halves laid out wrong; wrong mrope sections"
ROTATION = "interleaved RoPE; rotated backwards; no rotation; rotated twice"
FREQUENCIES = "wrong theta; frequencies of the whole head; no YaRN"
IN_INIT = "unscaled scores; scores scaled twice; scale of the whole width; no bias"
WINDOWS = "no window attention; window attention everywhere"
GELU = "tanh GELU; quick GELU; SiLU for GELU; ReLU for GELU; no activation; no bias"
CAUSAL = "no causal mask; mask off by one; no causal mask in images"
FROM_POSITIONS = (
    "1-D positions; height and width swapped; rows of positions exchanged; time only; baked-in grid; truncated "
    "second_per_grid; no second_per_grid; second_per_grid of another video; time in frames; wrong "
    "tokens_per_second; images from 0; another rule after a video; text continues by tokens; images at one "
    "place; off by one after images; text continues by patches; text continues by one"
)

# (tensors, mistakes, function): of the rows whose tensors fit, those with the mistake count, else the first without mistakes
TABLE = (
    ("image.*.resized", "BGR", "load_image"),
    ("image.*.resized", "", f"{IMAGE}.resize"),
    ("image.*.patches pixel_values", "wrong resize", f"{IMAGE}.resize"),
    ("image.*.patches pixel_values", COLOUR_MISTAKES, f"{IMAGE}._preprocess"),
    ("image.*.patches pixel_values", "", f"{IMAGE}.patchify"),
    ("image.*.normalized image_grid_thw", "", f"{IMAGE}._preprocess"),
    ("video.*.frame_indices", "", f"{VIDEO}.sample_frames"),
    ("video.*.second_per_grid_t", "", "Qwen2_5_VLProcessor._process_videos"),
    ("video.*.resized", "", f"{VIDEO}.resize"),
    ("video.*.patches pixel_values_videos", COLOUR_MISTAKES, f"{VIDEO}._preprocess"),
    ("video.*.patches pixel_values_videos", "", f"{VIDEO}.patchify"),
    ("video.*.normalized video_grid_thw", "", f"{VIDEO}._preprocess"),
    ("input_ids", PLACEHOLDERS, "Qwen2_5_VLProcessor.replace_image_token"),
    ("input_ids", TEMPLATE, "ProcessorMixin.apply_chat_template"),
    ("input_ids", "", "ProcessorMixin.__call__"),
    ("visual.window_index visual.cu_window_seqlens", "", "get_vision_window_index"),
    ("visual.cu_seqlens", "", "get_vision_cu_seqlens"),
    ("visual.patch_positions", "", "get_vision_position_ids"),
    ("visual.rope.* visual.*.attn.*", PATCHES, "get_vision_position_ids"),
    ("visual.rope.* visual.*.attn.*", FREQUENCIES, f"{TOWER_ROPE}.compute_axial_rope_parameters"),
    ("visual.rope.* visual.*.attn.*", LAYOUT, f"{TOWER_ROPE}.recomposition_frequencies"),
    ("visual.rope.*", "interleaved RoPE", f"{TOWER_ROPE}.recomposition_frequencies"),
    ("visual.patch_embed visual.rope.* visual.blocks.* visual.merger*", ORDER, SORT),
    ("visual.rope.*", "", f"{TOWER_ROPE}.forward"),
    ("visual.window_order", "", SORT),
    ("visual.patch_embed", "", "Qwen2_5_VisionPatchEmbed.forward"),
    ("visual.blocks.*.norm? visual.merger.ln_q", "", "Qwen2_5_VLRMSNorm.forward"),
    ("visual.*.attn.*", WINDOWS, f"{TOWER}.forward"),
    ("visual.*.attn.*", "attention across images", "get_vision_cu_seqlens"),
    ("visual.*.attn.*", ROTATION, "apply_rotary_pos_emb_vision"),
    ("visual.*.attn.*", IN_INIT, "Qwen2_5_VLVisionAttention.__init__"),
    ("visual.*.attn.[qk]_rope", "", "apply_rotary_pos_emb_vision"),
    ("visual.*.attn.*", "", "Qwen2_5_VLVisionAttention.forward"),
    ("visual.*.mlp.*_proj", "no bias", "Qwen2_5_VLMLP.__init__"),
    ("visual.blocks.*.mlp.*", "", "Qwen2_5_VLMLP.forward"),
    ("visual.blocks.*", "", "Qwen2_5_VLVisionBlock.forward"),
    ("visual.merger*", GELU, "Qwen2_5_VLPatchMerger.__init__"),
    ("visual.merger*", "", "Qwen2_5_VLPatchMerger.forward"),
    ("inputs_embeds", "window order not undone; inverse of the window order", f"{TOWER}.forward"),
    ("visual", "", f"{TOWER}.forward"),
    ("model.embed_tokens inputs_embeds", "", "Qwen2_5_VLModel.forward"),
    ("position_ids", "wrong rope delta", "Qwen2_5_VLModel.compute_3d_position_ids"),
    ("position_ids rope_delta", "", "Qwen2_5_VLModel.get_rope_index"),
    ("model.rope.* model.*.self_attn.*", FROM_POSITIONS, "Qwen2_5_VLModel.get_rope_index"),
    ("model.rope.* model.*.self_attn.*", LAYOUT, f"{ROPE}.recomposition_frequencies"),
    ("model.rope.* model.*.self_attn.*", FREQUENCIES, f"{ROPE}.__init__"),
    ("model.rope.*", "interleaved RoPE", f"{ROPE}.recomposition_frequencies"),
    ("model.rope.*", "", f"{ROPE}.forward"),
    ("model.*.self_attn.*", ROTATION, "apply_rotary_pos_emb"),
    ("model.*.self_attn.*", CAUSAL, "Qwen2_5_VLTextModel.forward"),
    ("model.*.self_attn.*", "key heads dealt out wrong", "repeat_kv"),
    ("model.*.self_attn.*", IN_INIT, "Qwen2_5_VLAttention.__init__"),
    ("model.*.self_attn.[qk]_rope", "", "apply_rotary_pos_emb"),
    ("model.*.self_attn.*", "", "Qwen2_5_VLAttention.forward"),
    ("model.layers.*norm model.norm", "", "Qwen2_5_VLRMSNorm.forward"),
    ("model.layers.*.mlp.*", "", "Qwen2MLP.forward"),
    ("model.layers.*", "", "Qwen2_5_VLDecoderLayer.forward"),
    ("lm_head", "", "Qwen2_5_VLForConditionalGeneration.forward"),
    ("next_token", "", "GenerationMixin._sample"),
)


def functions_of(row):
    """(Function, ...) to look at for a row of a comparison that is wrong: those of its causes, else the one that makes it."""
    pairs = [(name, cause.name) for cause in row.causes for name in cause.where or (row.name,)]
    return tuple(dict.fromkeys(found for pair in pairs or [(row.name, "")] for found in find_functions(*pair)))


def find_functions(tensor, cause=""):
    """(Function, ...) of a mistake that is made in this tensor, or of two, "no bias and wrong theta"; () if it is unknown."""
    own = parse(tensor).own
    rows = [row for row in TABLE if any(fnmatchcase(own, pattern) for pattern in row[0].split())]
    chosen = [row for row in rows if any(has_mistake(cause, mistake) for mistake in row[1].split("; "))]
    chosen = chosen or [row for row in rows if not row[1]][:1]
    return tuple(function(row[2]) for row in chosen)


def has_mistake(cause, mistake):
    return bool(mistake) and set(mistake.split(" and ")) <= set(cause.split(" and "))


def function(name):
    """The `Function` of this name."""
    return Function(name, next(file for start, file in FILES.items() if name.startswith(start)), OLDER.get(name, ""))
