"""Solutions of notebook 01. `minivl lab check pixels.py` checks them."""

import math

import numpy as np
from PIL import Image

from minivl.tiny.scenes import task_of


def smart_resize(height, width, min_pixels, max_pixels):
    H, W = round(height / 28) * 28, round(width / 28) * 28
    if H * W > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        H, W = (max(28, math.floor(side / beta / 28) * 28) for side in (height, width))
    elif H * W < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        H, W = (math.ceil(side * beta / 28) * 28 for side in (height, width))
    return H, W


def patchify(frames):
    T, C, H, W = frames.shape
    R, S = H // 28, W // 28
    x = frames.reshape(T // 2, 2, C, R, 2, 14, S, 2, 14)  # pair, frame, channel, R, r, y, S, s, x
    x = x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)  # pair, R, S, r, s, channel, frame, y, x
    return x.reshape(-1, C * 2 * 14 * 14)


def locate(x, y, grid_thw, first):
    columns = int(grid_thw[0, 2]) // 2  # of tokens
    token = y // 28 * columns + x // 28
    patch = 4 * token + 2 * (y // 14 % 2) + x // 14 % 2
    return patch, token, first + token


def bgr_effect(vlm, scenes):
    asked, changed = {}, {}
    for scene in scenes:
        exchanged = Image.fromarray(np.ascontiguousarray(np.asarray(scene.image)[..., ::-1]))
        for question, truth in scene.questions:
            task = task_of(question, truth)
            if task == "where":
                continue
            differs = vlm.ask(question, images=scene.image) != vlm.ask(question, images=exchanged)
            asked[task] = asked.get(task, 0) + 1
            changed[task] = changed.get(task, 0) + differs
    return {task for task in asked if changed[task] >= asked[task] / 2}
