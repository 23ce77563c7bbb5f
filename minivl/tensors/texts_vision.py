"""Paragraphs on the tensors from the image to its tokens, with the sizes of a run to be filled in.

{n}, {m}, {l} are the tensor's own sizes, the first, second and third; the others are those of the model: see explain.py.
Source: arXiv:2502.13923, section 2.1, and the reference's code where the paper is silent.
"""

PICTURE = {
    "image.{i}.resized": (
        "Image {i} is scaled with Pillow's bicubic filter to {n} x {m} pixels, {l} colours of 0..255: each side "
        "becomes round(side / {unit})·{unit}; if the two then multiply to more than max_pixels, each is side / β "
        "instead, rounded down, with β = sqrt(height·width / max_pixels) (below min_pixels: enlarged, rounded up). "
        "Sides must be multiples of {unit} because a token is 2 x 2 patches of {p} x {p} pixels; the image is never "
        "cropped or padded, so boxes in an answer are in these pixels. The result is {rows} x {columns} = {tokens} "
        "tokens."
    ),
    "image.{i}.normalized": (
        "Each colour c of the three becomes (x/255 - mean_c) / std_c, float32, and the axes turn from [rows, columns, "
        "colours] to {shape}. mean and std are those of CLIP's training images, from preprocessor_config.json: the "
        "weights were trained on values near 0 with deviation near 1. A port that forgets this, or swaps red and "
        "blue, still answers, only worse."
    ),
    "image.{i}.patches": (
        "The image is cut into {n} patches of {p} x {p} pixels, {m} = 3 colours · {frames} frames · {p} · {p} "
        "values each: reshape to (R, r, S, s) unit and patch rows and columns, transpose, flatten, so that row 4u + "
        "2r + s is patch (r, s) of unit u. The order is unit by unit (2 x 2 patches), not row by row, so that the "
        "merger finds its four patches side by side. Columns run (colour, time, y, x); a still image stands "
        "{frames} times in time, because the same weights also read pairs of a video's frames."
    ),
    "video.{i}.frame_indices": (
        "Of the video's frames these {n} are taken: n = seconds · fps, between 4 and 768, even; index_k = "
        "round(k·(total - 1)/(n - 1)), from the first frame to the last. (A list of frames is taken whole.) An even "
        "number, since two frames share a patch."
    ),
    "video.{i}.second_per_grid_t": (
        "Seconds between one pair of frames and the next: {frames} / (frames taken a second). M-RoPE multiplies it by "
        "tokens_per_second ({tps:g}), so that position in time means time and not frame number: the model can tell "
        "fast from slow."
    ),
    "video.{i}.resized": (
        "All {n} frames, scaled like images to {m} x {l} pixels, one size for all. The limits are those of videos: "
        "the frames share a budget of pixels, two at a time, so a longer film has smaller frames."
    ),
    "video.{i}.normalized": (
        "(x/255 - mean_c) / std_c for each colour c, float32, axes [frames, colours, rows, columns] = {shape}: "
        "exactly as for an image."
    ),
    "video.{i}.patches": (
        "Each pair of consecutive frames is cut like an image: {n} patches of 3 colours · {frames} frames · {p} · "
        "{p} = {m} values, pair by pair, unit by unit inside. Here the two slots in time hold two different frames "
        "(an odd last frame stands twice), so a patch sees motion."
    ),
}

PROMPT = {
    "input_ids": (
        "The chat template writes the conversation as text, with <|vision_start|><|image_pad|><|vision_end|> for each "
        "image; each <|image_pad|> is repeated once for each token of its image (t·h·w / 4 of the grid), and the "
        "byte-level BPE of tokenizer.json turns all of it into {n} ids. The placeholders only hold places: their "
        "embeddings will be replaced by what the tower makes of the image."
    ),
}

TOWER = {
    "pixel_values": (
        "The patches of all images, one image after the other: {shape}. The tower runs once over all of them; "
        "image_grid_thw says where one ends."
    ),
    "image_grid_thw": (
        "For each image, {n} in all: frames (always 1), patch rows h, patch columns w. Its patches are t·h·w, its "
        "tokens t·h·w / 4. All that follows, windows, rotary angles, M-RoPE, is computed from these three numbers, "
        "never from pixels."
    ),
    "pixel_values_videos": (
        "The patches of all videos, one after the other: {shape}. They go through the tower after those of the "
        "images, with the same weights."
    ),
    "video_grid_thw": (
        "For each video, {n} in all: pairs of frames, patch rows, patch columns. Attention in the tower never crosses "
        "from one pair of frames to another; time is the decoder's business."
    ),
    "visual.window_index": (
        "An order of the {n} units (2 x 2 patches), window by window: entry i is the raster index of the unit that "
        "stands i-th. It is a stable sort by (image, frame, window row, window column), a window being {window} "
        "pixels, {w} x {w} units. Most blocks attend inside windows only, and after this sort a window is one run of "
        "rows: no mask, no gather. The decoder wants raster order, so the merger's output is sorted back with "
        "argsort(window_index)."
    ),
    "visual.cu_window_seqlens": (
        "Where each of the {windows} windows starts and ends, counted in patches of the window order: window k holds "
        "rows cu[k] to cu[k+1]. A full window has {full} patches; those at the right and bottom edge are smaller, and "
        "are not padded. Attention then costs N · (patches of a window) instead of N²."
    ),
    "visual.cu_seqlens": (
        "Where each frame starts and ends, in patches: the segments of the few blocks with full attention ({blocks} "
        "of {depth}). 'Full' is full inside a frame: two images, or two pairs of frames of a video, never see each "
        "other in the tower."
    ),
    "visual.patch_positions": (
        "Row and column of each of the {n} patches in its frame, in the order of the patches, unit by unit: (0,0) "
        "(0,1) (1,0) (1,1) (0,2) ... They will turn queries and keys; the tower has no learnt position embedding, "
        "which is why it takes images of any size."
    ),
    "visual.patch_embed": (
        "x = patches · Wᵀ: [N, {patch}] · [{patch}, {m}] = {shape}, without a bias. The checkpoint stores W as a "
        "Conv3d kernel [{m}, 3, {frames}, {p}, {p}]; a convolution whose stride equals its kernel is just this "
        "product. From here on a patch is {m} numbers."
    ),
    "visual.window_order": (
        "The rows of patch_embed in window order: x[window_index], moved four rows (a unit) at a time. Nothing is "
        "computed; the numbers only change places. To find the patch of row r: unit window_index[r // 4] of the "
        "raster, patch r % 4 in it."
    ),
    "visual.rope.cos": (
        "cos of the rotary angles, {shape}. Of the {k} dimensions of a head, a quarter of the angles is row·f_j, a "
        "quarter column·f_j, with f_j = 10000^(-2j/{khalf}), and then both stand again: [row·f, column·f, row·f, "
        "column·f]. So the dot product of a rotated query and key depends on the difference in rows and in columns "
        "only."
    ),
    "visual.rope.sin": (
        "sin of the same angles as visual.rope.cos, {shape}: rotating a pair (a, b) by the angle gives (a·cos - "
        "b·sin, b·cos + a·sin). All heads and all blocks share one table."
    ),
    "visual.blocks.{i}.norm1": (
        "RMSNorm: y = w · x / sqrt(mean(x²) + 1e-6), mean over the {m} channels of each row. Unlike LayerNorm it "
        "subtracts no mean and has no bias. Normalising before attention (pre-norm) leaves the residual stream itself "
        "untouched, which keeps {depth} blocks trainable."
    ),
    "visual.blocks.{i}.attn.qkv": (
        "One matrix product makes queries, keys and values at once: h · Wᵀ + b, {n} rows of {m} = 3 · {d}. The "
        "columns are all of q, then k, then v, each head by head ({h} heads of {k}). Ports that read them interleaved "
        "(q, k, v of head 0, then of head 1) get noise."
    ),
    "visual.blocks.{i}.attn.q_rope": (
        "The queries by heads, {shape}, each turned by the angle of its row and column: dimension j is paired with j "
        "+ {khalf}, q'_j = q_j·cos - q_(j+{khalf})·sin, q'_(j+{khalf}) = q_(j+{khalf})·cos + q_j·sin. This is how "
        "attention learns which patch is left of which."
    ),
    "visual.blocks.{i}.attn.k_rope": (
        "The keys by heads, {shape}, turned in the same way as the queries. q'·k' then depends on how far apart two "
        "patches are, not on where they are: an image may be larger than any in training. Values are not turned."
    ),
    "visual.blocks.{i}.attn.scores": (
        "scores = q'·k'ᵀ / sqrt({k}), {shape} = [heads, patches, keys of its segment]: attention is {kind} here, so a "
        "patch is compared with at most {l} patches of {segment}. Column c of row r is the c-th patch of r's segment; "
        "behind the end of a shorter segment stands -inf. The division keeps the softmax from saturating. The fused "
        "kernel never builds these: they are computed only on request."
    ),
    "visual.blocks.{i}.attn.probs": (
        "probs = softmax(scores), over the last axis: e^(s - max) / sum, so that each row of each of the {n} heads "
        "adds up to 1. It says which patches of {segment} this patch listens to; both directions, no causal mask, "
        "since an image has no before and after. Computed only on request."
    ),
    "visual.blocks.{i}.attn.context": (
        "context = probs · v for each head, heads side by side again: [{h} heads, N, {k}] -> {shape}. Each patch now "
        "holds a mean of the values of the patches it listened to, one for each head."
    ),
    "visual.blocks.{i}.attn.proj": (
        "context · Wᵀ + b, {shape}. Each of the {h} heads has worked on its own so far; this matrix mixes what they "
        "found and brings it back to the width of the residual stream."
    ),
    "visual.blocks.{i}.attn_residual": (
        "x + attn(norm1(x)), {shape}. The block adds to what was there and does not replace it: the sum through all "
        "blocks is the residual stream."
    ),
    "visual.blocks.{i}.norm2": (
        "RMSNorm of the sum, y = w · x / sqrt(mean(x²) + 1e-6), {shape}, before the MLP: the MLP, too, reads a "
        "normalised copy, and adds its result to the stream itself."
    ),
    "visual.blocks.{i}.mlp.gate_proj": (
        "gate = h · W_gateᵀ + b, {n} rows from {d} to {m} channels. With up_proj it makes the SwiGLU: one half "
        "decides how much of the other passes. The tower's MLP has biases, the decoder's has none."
    ),
    "visual.blocks.{i}.mlp.up_proj": (
        "up = h · W_upᵀ + b, {d} -> {m} channels, {shape}: what the gate will let through, or not."
    ),
    "visual.blocks.{i}.mlp.act": (
        "act = silu(gate) · up, element by element, silu(g) = g / (1 + e^(-g)): {shape}. Where the gate is far below "
        "0 nothing passes, far above 0 it passes times g. Outlier channels show here first."
    ),
    "visual.blocks.{i}.mlp.down_proj": (
        "act · W_downᵀ + b, back from the MLP's width to {m} channels. Each patch was worked on alone: only attention "
        "moves information from patch to patch."
    ),
    "visual.blocks.{i}": (
        "Block {i} of {depth} is done: attn_residual + mlp(norm2(attn_residual)), {shape}. Its attention was {kind}: "
        "patches saw those of {segment}. Windows keep the cost linear in the number of patches; the {blocks} full "
        "blocks between carry information from window to window."
    ),
    "visual.merger.ln_q": (
        "RMSNorm (eps 1e-6) of each patch on its own, {shape}, before four of them become one. Despite its name it is "
        "no norm of queries."
    ),
    "visual.merger.mlp.0": (
        "The four patches of a unit are laid side by side, {d} · 4 = {m} numbers, and go through a linear layer: "
        "{shape}. That works by a mere reshape, because the patches have come unit by unit since they were cut."
    ),
    "visual.merger.mlp.1": (
        "GELU, the exact one: x/2 · (1 + erf(x / sqrt 2)), {shape}. The tanh approximation differs in the fourth "
        "digit, which a comparison shows."
    ),
    "visual.merger.mlp.2": (
        "The second linear layer, h · Wᵀ + b, takes {merged} numbers to {m}, the decoder's width: {shape}. With it "
        "the four patches have become one token."
    ),
    "visual.merger": (
        "One vector for each unit of {unit} x {unit} pixels, as wide as a word's embedding, {shape}. A quarter of the "
        "rows: the decoder's cost grows with them. No language has been seen so far: this depends on the image "
        "alone."
    ),
    "visual": (
        "The units back in raster order: merger[argsort(window_index)], {shape}, row by row, image after image, "
        "video after video. These rows take the places of the placeholders in the prompt, in this order."
    ),
}

TEXTS = {**PICTURE, **PROMPT, **TOWER}
