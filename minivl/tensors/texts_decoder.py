"""Paragraphs on the tensors from the prompt to the next token; see texts_vision.py.

Source: arXiv:2412.15115 (Qwen2.5), arXiv:2409.12191 (M-RoPE), and the reference's code.
"""

TEXTS = {
    "model.embed_tokens": (
        "Each token id looks up its row of the embedding table [{v}, {m}]: {shape}. Nothing is scaled or "
        "added. Placeholders get a row too, all the same one, which is thrown away in the next step."
    ),
    "inputs_embeds": (
        "x[input_ids == image_token_id] = visual, and likewise for videos: {shape}. This is all there is to fusing "
        "vision and language: the tower's rows stand where words would, and from here on the decoder treats them "
        "alike. Their number must equal that of the placeholders."
    ),
    "position_ids": (
        "M-RoPE gives each token three positions, the rows t, h, w of {shape}. Text counts up on all three at "
        "once; an image that starts at position s has t = s, h = s + row, w = s + column; the text behind it continues "
        "from the largest position so far + 1. In a video the pair of frames number k has t = s + k · seconds · {tps:g}, "
        "rounded down. An image of 1,000 tokens costs the text only as many positions as its longer side."
    ),
    "rope_delta": (
        "Position of the next token minus the number of tokens: never above 0 for images, whose tokens share "
        "positions. While decoding, token number c stands at c + delta. Counting tokens instead is a classic bug: the "
        "first token is right, the later ones drift."
    ),
    "model.rope.cos": (
        "cos of the angles of the new tokens, {shape}: f_j = {theta:g}^(-2j/{k}) for the {khalf} pairs j of a "
        "head; the first {s0} pairs turn with t, the next {s1} with h, the last {s2} with w (mrope_section), in "
        "chunks, not interleaved; then all of it stands twice. Where t = h = w, as in text, this is ordinary "
        "RoPE.{yarn}"
    ),
    "model.rope.sin": (
        "sin of the same angles as model.rope.cos, {shape}: a pair (a, b) becomes (a·cos - b·sin, b·cos + a·sin). The "
        "same two tables serve all {depth} layers and all heads."
    ),
    "model.layers.{i}.input_layernorm": (
        "RMSNorm: y = w · x / sqrt(mean(x²) + {eps:g}), mean over the {m} channels of each token, {shape}. Here eps "
        "comes from config.json; the tower's is fixed."
    ),
    "model.layers.{i}.self_attn.q_proj": (
        "q = h · W_qᵀ + b, {shape}: {h} heads of {k}. Queries, keys and values have biases, o_proj and the MLP have "
        "none, as in all of Qwen2."
    ),
    "model.layers.{i}.self_attn.k_proj": (
        "k = h · W_kᵀ + b, {shape}: only {kv} heads of {k}. Each serves {group} query heads (grouped-query "
        "attention), which makes the cache {group} times smaller."
    ),
    "model.layers.{i}.self_attn.v_proj": (
        "v = h · W_vᵀ + b, {shape}: {kv} heads of {k}, like the keys, but never rotated. What a token looks at is "
        "decided by q and k; what it then takes from there is v."
    ),
    "model.layers.{i}.self_attn.q_rope": (
        "The queries by heads, {shape}, turned by their three positions: dimension j is paired with j + {khalf}, q'_j "
        "= q_j·cos - q_(j+{khalf})·sin, q'_(j+{khalf}) = q_(j+{khalf})·cos + q_j·sin. Different dimensions feel the "
        "distance in time, in rows and in columns."
    ),
    "model.layers.{i}.self_attn.k_rope": (
        "The keys by heads, {shape}, turned in the same way. They go into the cache after they are turned, so that "
        "they never have to be turned again."
    ),
    "model.layers.{i}.self_attn.scores": (
        "scores = q'·k'ᵀ / sqrt({k}), {shape} = [heads, new tokens, all tokens]; query head a reads key head a // "
        "{group}. A token sees itself and what came before; -inf stands at later ones. Before means earlier in the "
        "sequence, not a smaller position: the tokens of an image, too, see only those before them in raster order. "
        "Computed only on request."
    ),
    "model.layers.{i}.self_attn.probs": (
        "probs = softmax(scores) over the {l} tokens so far: each row of each of the {n} heads adds up to 1. The last "
        "row says what the next word rests on; its columns at the image's tokens say where the model looks. Computed "
        "only on request."
    ),
    "model.layers.{i}.self_attn.context": (
        "context = probs · v, heads side by side: {shape}. With v of key head a // {group} for query head a. The "
        "fused kernel goes from q, k, v to here without storing scores."
    ),
    "model.layers.{i}.self_attn.o_proj": (
        "context · W_oᵀ, {shape}, no bias. Each of the {h} heads has worked on its own so far; this matrix mixes what "
        "they found and brings it back to the width of the residual stream."
    ),
    "model.layers.{i}.attn_residual": (
        "x + attention(norm(x)), {shape}: the residual stream after attention. What a layer finds is added to what is "
        "there, never put in its place, so that later layers can still read what earlier ones wrote."
    ),
    "model.layers.{i}.post_attention_layernorm": (
        "RMSNorm of the sum, y = w · x / sqrt(mean(x²) + {eps:g}), {shape}. By its name it comes after attention; "
        "what it does is to come before the MLP."
    ),
    "model.layers.{i}.mlp.gate_proj": (
        "gate = h · W_gateᵀ, {d} -> {m} channels, {shape}. The three matrices of the MLP hold most of the decoder's "
        "weights, and decoding spends most of its time reading them."
    ),
    "model.layers.{i}.mlp.up_proj": (
        "up = h · W_upᵀ, {d} -> {m} channels, {shape}, no bias: what the gate will let through, or not."
    ),
    "model.layers.{i}.mlp.act": (
        "act = silu(gate) · up, element by element, silu(g) = g / (1 + e^(-g)): {shape}. A gate far below 0 shuts its "
        "channel for this token. The largest values of the whole model often stand here, in a few channels: see the "
        "outlier channels of its statistics."
    ),
    "model.layers.{i}.mlp.down_proj": (
        "act · W_downᵀ, from the MLP's width back to {m} channels: {shape}. Each token is worked on alone here; only "
        "attention moves anything from one token to another."
    ),
    "model.layers.{i}": (
        "Layer {i} of {depth} is done: attn_residual + mlp(norm(attn_residual)), {shape}. Tokens of text and of "
        "images went through the very same weights."
    ),
    "model.norm": (
        "The final RMSNorm, eps {eps:g}: {shape}. Only its last row is used: what the last token holds decides the "
        "next one."
    ),
    "lm_head": (
        "logits = h_last · Wᵀ: a score for each of {m} tokens, {shape}{tied}. Only the last row is computed, the "
        "others would predict tokens that are there already. softmax(logits) are the probabilities of the next token."
    ),
    "next_token": (
        "The token that is taken. The scores of ids that occurred, in the prompt too, are lowered by the repetition "
        "penalty (s / p if positive, s · p if negative); then the largest wins, or, when sampling, one is drawn after "
        "temperature, top-k, top-p. Put another one in its place and the answer continues from that."
    ),
}
