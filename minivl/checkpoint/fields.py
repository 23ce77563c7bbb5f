"""Known fields of a checkpoint's JSON files: used, without effect, or refused; an unknown one gives a warning.

    warn_unknown_fields("Qwen2.5-VL-3B-Instruct")

OBEYED    read; a value that minivl cannot follow is an Error where it is read
NO_EFFECT on the numbers: fields for training, for bookkeeping, for other programs' memory and speed
REFUSED   would change the numbers and is not supported: an Error where it is read, unless its value changes nothing
The three are compared with transformers' own classes in tests/reference/test_fields_of_transformers.py.
"""

import json
import warnings
from pathlib import Path

from minivl.checkpoint.config_json import TEXT_OTHERS, TEXT_SIZES, VISION_ALIASES, VISION_OTHERS, VISION_SIZES, YARN
from minivl.checkpoint.presets import TOKEN_IDS
from minivl.errors import Error
from minivl.helpers import did_you_mean, object_in, read_json

_TEXT = " ".join([*TEXT_SIZES, *TEXT_OTHERS, "layer_types tie_word_embeddings rope_theta rope_scaling rope_parameters"])
_VISION = " ".join([*VISION_SIZES, *VISION_OTHERS, *VISION_ALIASES, "in_chans rope_parameters"])
_BOOKKEEPING = """_name_or_path architectures auto_map base_model_name_or_path commit_hash model_type transformers_version
    torch_dtype dtype transformers_weights unsloth_fixed unsloth_version use_cache gradient_checkpointing initializer_range
    attention_dropout attn_implementation _attn_implementation _attn_implementation_autoset pad_token_id output_attentions
    output_hidden_states return_dict is_encoder_decoder chunk_size_feed_forward id2label label2id problem_type
    vision_token_id use_return_dict task_specific_params torchscript ignore_keys_at_rope_validation"""
PIXELS = {  # the published values, which transformers takes where a file has none
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_PROCESSING = """do_convert_rgb processor_class auto_map image_processor_type video_processor_type feature_extractor_type
    crop_size do_center_crop do_pad pad_size default_to_square data_format input_data_format device disable_grouping
    return_tensors return_metadata model_input_names _valid_processor_keys num_image_tokens image_seq_length"""

OBEYED = {
    "config.json": f"{_TEXT} {' '.join(TOKEN_IDS)} model_type text_config vision_config transformers_weights",
    "text_config": f"{_TEXT} {' '.join(TOKEN_IDS)}",
    "vision_config": _VISION,
    "rope": f"type rope_type rope_theta mrope_section original_max_position_embeddings truncate {' '.join(YARN)}",
    "preprocessor_config.json": f"{' '.join(PIXELS)} min_pixels max_pixels size",
    "video_preprocessor_config.json": " ".join(PIXELS),
    "generation_config.json": "do_sample temperature top_k top_p repetition_penalty max_new_tokens max_length eos_token_id",
    "tokenizer_config.json": """chat_template added_tokens_decoder additional_special_tokens extra_special_tokens eos_token
        pad_token bos_token unk_token""",
}
NO_EFFECT = {
    "config.json": _BOOKKEEPING.replace(" model_type ", " ").replace(" transformers_weights ", " "),
    "text_config": _BOOKKEEPING,
    "vision_config": f"{_BOOKKEEPING} spatial_patch_size",
    "rope": "",
    "preprocessor_config.json": _PROCESSING,
    # in the published models qwen-vl-utils decides which frames are taken, and their limits: see docs/choices.md
    "video_preprocessor_config.json": f"""{_PROCESSING} size min_pixels max_pixels fps num_frames min_frames max_frames
        do_sample_frames video_metadata cap_pixels_per_frame max_video_tokens use_token_compression""",
    "generation_config.json": """transformers_version _from_model_config bos_token_id pad_token_id decoder_start_token_id
        use_cache cache_implementation cache_config max_cache_len use_mtp low_memory prefill_chunk_size compile_config
        disable_compile continuous_batching_config output_attentions output_hidden_states output_scores output_logits
        return_dict_in_generate is_assistant num_assistant_tokens num_assistant_tokens_schedule
        assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit
        assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type attn_implementation
        early_stopping length_penalty diversity_penalty renormalize_logits remove_invalid_values""",
    "tokenizer_config.json": """clean_up_tokenization_spaces errors model_max_length tokenizer_class processor_class auto_map
        padding_side truncation_side backend is_local use_fast legacy tokenizer_file vocab_file merges_file name_or_path
        special_tokens_map_file model_input_names extra_special_tokens_pattern response_schema image_token video_token
        vision_bos_token vision_eos_token cls_token sep_token mask_token pad_token_type_id model_specific_special_tokens
        local_files_only max_length pad_to_multiple_of stride truncation_strategy""",
}
REFUSED = {
    "config.json": "quantization_config head_dim partial_rotary_factor",
    "text_config": "quantization_config head_dim partial_rotary_factor",
    "vision_config": "",
    "rope": "partial_rotary_factor",
    "preprocessor_config.json": "",
    "video_preprocessor_config.json": "",
    "generation_config.json": """num_beams num_beam_groups num_return_sequences penalty_alpha dola_layers constraints
        force_words_ids min_p top_h typical_p epsilon_cutoff eta_cutoff encoder_repetition_penalty no_repeat_ngram_size
        encoder_no_repeat_ngram_size bad_words_ids forced_bos_token_id forced_eos_token_id
        exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias token_healing guidance_scale
        watermarking_config min_length min_new_tokens max_time stop_strings""",
    "tokenizer_config.json": "add_prefix_space split_special_tokens add_bos_token add_eos_token",
}


def known_fields(part):
    """All fields of a file, or of an object in config.json, that are in one of the three lists."""
    return {*OBEYED[part].split(), *NO_EFFECT[part].split(), *REFUSED[part].split()}


def warn_unknown_fields(folder):
    """Name all fields of a checkpoint's JSON files that are in none of the lists, in one warning."""
    unknown = []
    for part, stored in read_parts(folder):
        for field in [field for field in stored if field not in known_fields(part)]:
            unknown.append(f"{part}: {field:.60}{did_you_mean(field, known_fields(part), most=1, cutoff=0.85)}")
    if unknown:
        more = f", and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        warnings.warn(
            f"fields that minivl does not know, and does not obey, in {folder}: {', '.join(unknown[:10])}{more}",
            stacklevel=3,
        )


def check_video_processor(folder):
    """Check that videos are prepared as images are.

    What images need is in "image_processor" of processor_config.json, or else in preprocessor_config.json, as transformers 5
    takes it; what videos need is in "video_processor" there, and in video_preprocessor_config.json.
    """
    folder = Path(folder)
    whole, own, videos = (
        read_json(folder / f"{name}.json") if (folder / f"{name}.json").is_file() else {}
        for name in ("processor_config", "preprocessor_config", "video_preprocessor_config")
    )
    images = object_in(whole, "image_processor") or own
    for file, stored in (
        ("processor_config.json, video_processor", object_in(whole, "video_processor")),
        ("video_preprocessor_config.json", videos),
    ):
        for field, default in PIXELS.items() if stored else ():
            expected = default if images.get(field) is None else images[field]
            if stored.get(field) not in (None, expected):
                raise Error(
                    f"{folder / file}: {field} is {stored[field]!r}, and for images {expected!r}; minivl prepares both in the "
                    "same way. Make them equal."
                )


def read_parts(folder):
    """Yield (file, or object in config.json; its contents) of the files that are there and hold an object."""
    for file in (name for name in OBEYED if name.endswith(".json")):
        try:
            stored = json.loads((Path(folder) / file).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # absent, or an Error where it is read
        if not isinstance(stored, dict):
            continue
        yield file, stored
        if file == "config.json":
            yield from objects_in(stored)
    yield from processors_in(Path(folder) / "processor_config.json")


def processors_in(path):
    """The two processors that transformers 5 writes into one file, each as the contents of the file that it had before."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    for part, name in (
        ("image_processor", "preprocessor_config.json"),
        ("video_processor", "video_preprocessor_config.json"),
    ):
        if isinstance(stored, dict) and isinstance(stored.get(part), dict):
            yield name, stored[part]  # by the name that its fields are listed under


def objects_in(config):
    for part in ("text_config", "vision_config"):
        if isinstance(config.get(part), dict):
            yield part, config[part]
    for holder in (config, config.get("text_config")):
        for field in ("rope_scaling", "rope_parameters"):
            if isinstance(holder, dict) and isinstance(holder.get(field), dict):
                yield "rope", holder[field]
