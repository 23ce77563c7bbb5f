"""Solutions of notebooks 04 and 11. `minivl lab check positions.py` checks them."""

import numpy as np


def vision_rope(places, head_dim, theta):
    m = head_dim // 2
    f = theta ** -(np.arange(0, m, 2) / m)
    row, column = places[:, :1] * f, places[:, 1:] * f
    angles = np.concatenate([row, column, row, column], axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x, cos, sin):
    """Pairs j and j + K/2. x [N, K]"""
    half = x.shape[1] // 2
    return x * cos + np.concatenate([-x[:, half:], x[:, :half]], axis=1) * sin


def rotate_both(q, k, places, shift):
    cos, sin = vision_rope(places + shift, q.shape[1], 10000.0)
    return rotate(q, cos, sin), rotate(k, cos, sin)


def image_positions(input_ids, config, image_grid_thw):
    return prompt_positions(input_ids, config, image_grid_thw, [], [])


def mrope(position_ids, rope, head_dim):
    f = rope.rope_theta ** -(np.arange(0, head_dim, 2) / head_dim)
    axis = np.repeat([0, 1, 2], rope.mrope_section)  # which of t, h, w turns each frequency
    angles = np.tile(position_ids[axis].T * f, 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def prompt_positions(input_ids, config, image_grid_thw, video_grid_thw, second_per_grid_ts):
    images, videos, seconds = iter(image_grid_thw), iter(video_grid_thw), iter(second_per_grid_ts)
    columns, at, start = [], 0, 0
    while at < len(input_ids):
        if input_ids[at] == config.image_token_id:
            (t, h, w), step = next(images), 0.0
        elif input_ids[at] == config.video_token_id:
            (t, h, w), step = next(videos), next(seconds) * config.vision.tokens_per_second
        else:
            run, (t, h, w) = np.zeros((3, 1), dtype=np.int64), (1, 2, 2)
        if input_ids[at] in (config.image_token_id, config.video_token_id):
            run = np.indices((t, h // 2, w // 2)).reshape(3, -1)
            run[0] = (run[0].astype(np.float32) * np.float32(step)).astype(np.int64)
        columns.append(start + run)
        at += run.shape[1]
        start = columns[-1].max() + 1
    positions = np.concatenate(columns, axis=1)
    return positions, np.array([start - len(input_ids)])
