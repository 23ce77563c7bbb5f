"""Positions of patches and tokens, and their rotary cos/sin tables.

The tower rotates by (row, column) of the patch. The decoder rotates by three positions for each token, (t, h, w),
"M-RoPE": text counts up on all three at once; an image's tokens spread over a grid that starts where the text stopped;
the text after it continues from the largest position used so far, plus one:

    tokens   a  b  <v>  I I I I I I  </v>  c          an image of 2 x 3 tokens
    t        0  1  2    3 3 3 3 3 3  6     7
    h        0  1  2    3 3 3 4 4 4  6     7
    w        0  1  2    3 4 5 3 4 5  6     7

so an image of 1,000 tokens costs the text only as many positions as its longer side. Causality is by place in the
sequence, never by position. A video's frames (pairs of images) stand at t = 0, then as many positions later as seconds
have passed, times `tokens_per_second`; 4 frames of 1 x 2 tokens, 0.5 s apart, at 2 positions a second:

    tokens   a  <v>  V V  V V  V V  V V  </v>  b
    t        0  1    2 2  3 3  4 4  5 5  6     7
    h        0  1    2 2  2 2  2 2  2 2  6     7
    w        0  1    2 3  2 3  2 3  2 3  6     7          with "transformers5": 4 and 5 instead of 6 and 7

Versions disagree about the text after a video; VIDEO_POSITIONS names the two rules. Images are the same in both.
Source: `get_rope_index` of transformers 4.49, with which the model was launched, and of transformers 5.
"""

import math

import numpy as np

from minivl.errors import Error

# where the text continues after a video
VIDEO_POSITIONS = {
    "launch": "after the video's largest position, time included; what the model was trained with",
    "transformers5": "after its longer side, as after an image: a long video overlaps the text in time",
}


def patch_positions(grid_thw, merge_size):
    """Row and column of each patch within its frame: int64 [N, 2], in the image processor's order.

    That order is unit by unit, each unit's patches (0,0) (0,1) (1,0) (1,1):  a 4 x 4 grid starts
    (0,0) (0,1) (1,0) (1,1)   (0,2) (0,3) (1,2) (1,3)   (2,0) ...
    """
    m = merge_size
    places = []
    for t, h, w in grid_thw:
        row_col = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)  # [h, w, 2]
        units = row_col.reshape(h // m, m, w // m, m, 2).swapaxes(1, 2)  # "(R r) (C c) -> R C r c"
        places.append(np.tile(units.reshape(-1, 2), (t, 1)))
    return np.concatenate(places).astype(np.int64)


def vision_rope(places, head_dim, theta):
    """cos and sin for the tower: float32 [N, head_dim] each, from int [N, 2] rows and columns.

    Half of the frequencies turn with the row, half with the column; the angles are repeated: [row*f, col*f, row*f, col*f].
    """
    N, _ = places.shape
    angles = places.astype(np.float32)[:, :, None] * inverse_frequencies(theta, head_dim // 2)
    # [N, 2, head_dim/4]
    angles = angles.reshape(N, head_dim // 2)
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles), np.sin(angles)


def inverse_frequencies(theta, dim):
    """theta^(-2j/dim) for j = 0 .. dim/2 - 1, float32: radians by which a pair turns from one position to the next."""
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # subtle: NumPy's float32 power depends on the processor, in the last place; float64's does too, and is rounded away
    power = np.power(np.float64(np.float32(theta)), exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1) / power


def prompt_positions(
    input_ids, config, image_grid_thw=(), video_grid_thw=(), second_per_grid_ts=(), video_positions="launch"
):
    """M-RoPE positions of a prompt: int64 [3, T], rows t, h, w; and the position of the first token after it.

    second_per_grid_ts  seconds from one frame of each video's grid to the next (2 / fps); 1.0 if not given
    video_positions     one of VIDEO_POSITIONS
    """
    check_rule(video_positions)
    images, videos = list(image_grid_thw), list(video_grid_thw)
    seconds = list(second_per_grid_ts) or [1.0] * len(videos)
    runs, start = [], 0
    for kind, length in _runs(input_ids, config, images, videos):
        if kind == "text":
            run = np.tile(np.arange(length, dtype=np.int64), (3, 1))
        elif kind == "image":
            run = _grid_positions(images.pop(0), config, 0.0)
        else:
            run = _grid_positions(videos.pop(0), config, seconds.pop(0))
        runs.append(run + start)
        # subtle: in transformers 5 the rows and columns alone decide where the text continues
        start += int(run.max() if video_positions == "launch" else run[1:].max()) + 1
    if images or videos:
        raise Error(
            f"{len(images)} images and {len(videos)} videos have no placeholder in the prompt. "
            "Give each one its <|vision_start|><|image_pad|><|vision_end|> (a video: <|video_pad|>), as the chat template does."
        )
    return np.concatenate(runs, axis=1), start


def check_rule(video_positions):
    """Raise an Error unless it is one of VIDEO_POSITIONS."""
    if video_positions not in VIDEO_POSITIONS:
        raise Error(f"video_positions={video_positions!r}: choose one of {', '.join(map(repr, VIDEO_POSITIONS))}.")


def _runs(input_ids, config, images, videos):
    """Cut the prompt into runs: ("text", 5), ("image", 12), ... A vision run is as long as its own grid says."""
    media = (input_ids == config.image_token_id) | (input_ids == config.video_token_id)
    at, merge = 0, config.vision.merge_unit
    grids = {"image": iter(list(images)), "video": iter(list(videos))}
    while at < len(input_ids):
        if not media[at]:
            after = np.flatnonzero(media[at:])
            kind, length = "text", int(after[0]) if len(after) else len(input_ids) - at
        else:
            kind = "image" if input_ids[at] == config.image_token_id else "video"
            grid = next(grids[kind], None)
            length = 0 if grid is None else int(np.prod(grid)) // merge
            if grid is None or not np.all(input_ids[at : at + length] == input_ids[at]) or at + length > len(input_ids):
                raise Error(_placeholder_message(kind, at, length, grid))
        yield kind, length
        at += length


def _placeholder_message(kind, at, length, grid):
    if grid is None:
        return f"the prompt has more {kind} placeholders (one at token {at}) than {kind}s. Pass one {kind} for each."
    return (
        f"the {kind} placeholders that start at token {at} do not fit the {kind}'s grid {list(map(int, grid))}: "
        f"it needs {length} of them in a row. Expand each placeholder to grid_t * grid_h * grid_w / 4 copies."
    )


def _grid_positions(grid, config, seconds):
    """Positions inside one image or video, counted from 0: int64 [3, t*h*w/4] in raster order, frame by frame."""
    t, h, w = (int(n) for n in grid)
    m = config.vision.spatial_merge_size
    # subtle: the product is float32 and truncated once, at the end; truncating `seconds` first stops time at fps > 2
    step = np.float32(seconds) * np.float32(config.vision.tokens_per_second)
    time = (np.arange(t, dtype=np.float32) * step).astype(np.int64)
    return (
        np.stack(np.meshgrid(time, np.arange(h // m), np.arange(w // m), indexing="ij")).reshape(3, -1).astype(np.int64)
    )


def mrope(position_ids, rope, head_dim):
    """cos and sin for the decoder: float32 [T, head_dim] each, from int [3, T] positions.

    The head_dim/2 frequencies are split into three chunks, `mrope_section` long (16, 24, 24 in the published models):
    the first turns with t, the second with h, the third with w. Not interleaved. The result is then repeated.
    """
    frequencies, scale = rope_frequencies(rope, head_dim)
    row = np.repeat(np.arange(3), rope.mrope_section)  # [head_dim/2]: which of t, h, w turns frequency j
    angles = np.ascontiguousarray(position_ids.T[:, row]).astype(np.float32) * frequencies  # [T, head_dim/2]
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles) * scale, np.sin(angles) * scale


def rope_frequencies(rope, head_dim):
    """The decoder's frequencies, float32 [head_dim/2], and the factor on cos and sin (1 unless YaRN).

    YaRN (arXiv:2309.00071): fast pairs stay, slow pairs turn `factor` times slower, a linear ramp lies between.
    """
    frequencies = inverse_frequencies(rope.rope_theta, head_dim)
    if rope.rope_type == "default":
        return frequencies, np.float32(1)
    low, high = (_turns_to_pair(turns, rope, head_dim) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = 0.001 if low == high else high - low
    ramp = np.clip(
        (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1, dtype=np.float32
    )
    slow = frequencies / np.float32(rope.factor)
    scale = rope.attention_factor or 0.1 * math.log(rope.factor) + 1.0
    return slow * ramp + frequencies * (1 - ramp), np.float32(scale)


def _turns_to_pair(turns, rope, head_dim):
    """Index of the pair (a real number) that makes this many turns over the length the model was trained on."""
    length = rope.original_max_position_embeddings
    return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))
