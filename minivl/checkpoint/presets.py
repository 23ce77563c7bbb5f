"""The config.json of the published sizes, made from the few numbers in which they differ."""

PUBLISHED = {
    "3B": dict(
        hidden=2048, layers=36, heads=16, kv=2, inner=11008, vocab=151936, vision_inner=3420, windows=70, tied=True
    ),
    "7B": dict(hidden=3584, layers=28, heads=28, kv=4, inner=18944, vocab=152064, vision_inner=3420, windows=28),
    "32B": dict(hidden=5120, layers=64, heads=40, kv=8, inner=27648, vocab=152064, vision_inner=3456, windows=64),
    "72B": dict(hidden=8192, layers=80, heads=64, kv=8, inner=29568, vocab=152064, vision_inner=3456, windows=80),
}

TOKEN_IDS = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}

VISION_THETA = 10000.0  # of the tower's rotary positions; transformers 5 stores it, the published files do not

# preprocessor_config.json of all of them: limits on a resized image, in pixels
PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}


def published_config(hidden, layers, heads, kv, inner, vocab, vision_inner, windows, tied=False):
    """config.json as published for one size."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 128000,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": windows,
        "tie_word_embeddings": tied,
        **TOKEN_IDS,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": vision_inner,
            "num_heads": 16,
            "in_chans": 3,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": hidden,
            "tokens_per_second": 2,
        },
    }
