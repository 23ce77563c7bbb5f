"""The parameters of a model: every tensor that its checkpoint must have, with its shape."""


def parameter_shapes(config):
    """Every tensor of the checkpoint by its published name, in the order of the data flow: {name: shape}."""
    text, vision = config.text, config.vision
    shapes = vision_shapes(vision, text.hidden_size)
    shapes["model.embed_tokens.weight"] = (text.vocab_size, text.hidden_size)
    for i in range(text.num_hidden_layers):
        shapes |= layer_shapes(f"model.layers.{i}", text)
    shapes["model.norm.weight"] = (text.hidden_size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
    return shapes


def vision_shapes(vision, out):
    W, M = vision.hidden_size, vision.hidden_size * vision.merge_unit
    P = vision.patch_size
    shapes = {"visual.patch_embed.proj.weight": (W, vision.in_channels, vision.temporal_patch_size, P, P)}
    for i in range(vision.depth):
        block, inner = f"visual.blocks.{i}", vision.intermediate_size
        shapes[f"{block}.norm1.weight"] = (W,)
        shapes |= linear_shapes(f"{block}.attn.qkv", 3 * W, W) | linear_shapes(f"{block}.attn.proj", W, W)
        shapes[f"{block}.norm2.weight"] = (W,)
        shapes |= linear_shapes(f"{block}.mlp.gate_proj", inner, W) | linear_shapes(f"{block}.mlp.up_proj", inner, W)
        shapes |= linear_shapes(f"{block}.mlp.down_proj", W, inner)
    shapes["visual.merger.ln_q.weight"] = (W,)
    return shapes | linear_shapes("visual.merger.mlp.0", M, M) | linear_shapes("visual.merger.mlp.2", out, M)


def layer_shapes(layer, text):
    D, F, KV = text.hidden_size, text.intermediate_size, text.num_key_value_heads * text.head_dim
    shapes = {f"{layer}.input_layernorm.weight": (D,)}
    for name, rows in (("q_proj", D), ("k_proj", KV), ("v_proj", KV)):
        shapes |= linear_shapes(f"{layer}.self_attn.{name}", rows, D)
    shapes[f"{layer}.self_attn.o_proj.weight"] = (D, D)
    shapes[f"{layer}.post_attention_layernorm.weight"] = (D,)
    shapes |= {f"{layer}.mlp.{name}.weight": (F, D) for name in ("gate_proj", "up_proj")}
    return shapes | {f"{layer}.mlp.down_proj.weight": (D, F)}


def linear_shapes(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
