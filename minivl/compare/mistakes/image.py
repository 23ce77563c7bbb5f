"""Pictures done wrong: another size or filter, colours, patches cut in another order.

The picture itself is not in a trace: what was done wrong in resizing can be computed only if somebody gives it again
(`compare(..., pictures=[...])`, `--image`). Without it, `guesses` says what kind of difference it is.
"""

import math

import numpy as np
from PIL import Image

from minivl.compare.mistakes import Unknown
from minivl.processing.image_processor import smart_resize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILTERS = ("NEAREST", "BOX", "BILINEAR", "HAMMING", "LANCZOS", "BICUBIC")


def original(step):
    number = int(step.short.split(".")[1])
    if step.short.startswith("video") or number >= len(step.pictures):
        raise Unknown("picture")
    return step.pictures[number]


def resized(step):
    yield "BGR", "red and blue are exchanged", step.ours[..., ::-1]
    picture = original(step)
    H, W = step.theirs.shape[:2]
    for name in FILTERS:
        at = np.asarray(picture.resize((W, H), Image.Resampling[name]))
        if (H, W) == step.ours.shape[:2]:
            yield "wrong resize", f"the filter is {name.lower()} instead of bicubic", at
            continue
        why = size_rule(picture.height, picture.width, H, W)
        text = f"it is scaled to {H} x {W} instead of {step.ours.shape[0]} x {step.ours.shape[1]}{why}"
        yield "wrong resize", text + ("" if name == "BICUBIC" else f", and by {name.lower()}"), at
    flat = picture.resize((W, H), Image.Resampling.BICUBIC, reducing_gap=1.0)
    yield "wrong resize", "it is first reduced by whole numbers (reducing_gap), then resized", np.asarray(flat)
    yield from plain(np.asarray(picture), H, W)


def plain(pixels, H, W):
    """Bilinear without antialiasing, corners aligned or not, rounded or cut."""
    for aligned in (False, True):
        y, x = (coordinates(n, m, aligned) for n, m in zip(pixels.shape, (H, W)))
        rows = mixed(pixels.astype(np.float64), y)
        at = mixed(rows.swapaxes(0, 1), x).swapaxes(0, 1)
        text = f"bilinear without antialiasing{', corners aligned' if aligned else ''}, instead of bicubic"
        yield "wrong resize", text, np.clip(np.round(at), 0, 255).astype(np.uint8)
        yield "wrong resize", f"{text}, and cut to whole numbers", np.clip(at, 0, 255).astype(np.uint8)


def coordinates(size, to, aligned):
    places = np.arange(to)
    return places * (size - 1) / max(to - 1, 1) if aligned else np.clip((places + 0.5) * size / to - 0.5, 0, size - 1)


def mixed(rows, places):
    low = np.floor(places).astype(np.int64)
    high, part = np.minimum(low + 1, len(rows) - 1), (places - low)[:, None, None]
    return rows[low] * (1 - part) + rows[high] * part


def size_rule(height, width, H, W):
    """ ": why", if it is known which rule gives that size."""
    if (H, W) == (height, width):
        return ": it is not resized"
    for text, function in (("down", math.floor), ("up", math.ceil)):
        if (function(height / 28) * 28, function(width / 28) * 28) == (H, W):
            return f": sides are rounded {text} to multiples of 28, not to the nearest"
    if smart_resize(height, width, 14, 1, 10**9) == (H, W):
        return ": sides are rounded to multiples of 14 (a patch), not of 28 (a token)"
    for low, high in ((3136, 12845056), (3136, 1003520), (1, 10**9)):
        if smart_resize(height, width, 28, low, high) == (H, W):
            return f": the limits are {low} and {high} pixels"
    return ": width and height exchanged" if smart_resize(width, height, 28, 1, 10**9) == (H, W) else ""


def guesses(step):
    """(name, sentence) of what no mistake gives exactly, but what the kind of difference tells."""
    x, y = step.ours, step.theirs
    if step.word == "resized":
        if x.shape != y.shape and x.ndim == y.ndim == 3:
            odd = [n for n in y.shape[:2] if n % 28]
            why = f"; {odd[0]} is no multiple of 28" if odd else "; is it smart_resize, with these limits?"
            yield (
                "wrong resize",
                f"it is scaled to {y.shape[0]} x {y.shape[1]} instead of {x.shape[0]} x {x.shape[1]}{why}",
            )
        elif x.shape == y.shape and alike(x, y):
            off = np.abs(x.astype(np.float64) - y)
            yield (
                "wrong resize",
                (
                    f"it is the same picture resized otherwise: off by {off.mean():.2g} of 255 levels in the mean, "
                    f"{off.max():.0f} at most. Is it bicubic, antialiased, by the same Pillow? Give the picture (--image)"
                ),
            )
    elif step.word in ("normalized", "patches", "pixel_values") and x.shape == y.shape and alike(x, y):
        yield "wrong resize", "it is a similar picture: was it resized or compressed otherwise?"


def alike(x, y):
    a, b = (v.astype(np.float64).reshape(-1) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) > 0.8 * math.sqrt(float(a @ a) * float(b @ b)) > 0


def colours(step):
    """Normalisation, of anything in which the channels can be told apart."""
    x = step.ours.astype(np.float64)
    if step.word == "normalized":
        channels = x.reshape(*x.shape[:-3], 3, -1) if x.ndim == 3 else x.reshape(len(x), 3, -1)
    else:
        channels = x.reshape(len(x), 3, -1)
    mean, std = (np.array(v)[:, None] for v in (MEAN, STD))
    unit = channels * std + mean  # 0..1
    for name, sentence, values in recoloured(unit, mean, std):
        yield name, sentence, values.reshape(x.shape)
    yield (
        "BGR",
        "red and blue are exchanged, before normalising",
        (((unit[..., ::-1, :] - mean) / std).reshape(x.shape)),
    )
    yield (
        "BGR",
        "the channels are exchanged after normalising: blue, green, red",
        channels[..., ::-1, :].reshape(x.shape),
    )


def recoloured(unit, mean, std):
    """(name, sentence, values) from colours in 0..1, [..., 3, pixels]."""
    yield "not normalised", "colours lie in 0..1: mean and deviation are left out", unit
    yield "not rescaled", "colours lie in 0..255: neither divided by 255 nor normalised", unit * 255
    yield (
        "not rescaled",
        "colours are not divided by 255 before mean and deviation are applied",
        (unit * 255 - mean) / std,
    )
    yield "rescaled twice", "colours are divided by 255 twice", (unit / 255 - mean) / std
    yield "other mean and deviation", "mean and deviation are 0.5: colours lie in -1..1", unit * 2 - 1
    m, s = (np.array(v)[:, None] for v in IMAGENET)
    yield "other mean and deviation", "mean and deviation are those of ImageNet, not of CLIP", (unit - m) / s
    text = "mean and deviation of red and blue are exchanged (BGR), the colours are not"
    yield "BGR", text, (unit - mean[::-1]) / std[::-1]
    yield "other mean and deviation", "the mean is subtracted, but not divided by the deviation", unit - mean
    yield "other mean and deviation", "it is divided by the deviation, but the mean is not subtracted", unit / std


COLUMNS = {
    (0, 2, 3, 4, 1): "(time, y, x, channel)",
    (0, 3, 4, 2, 1): "(y, x, time, channel)",
    (0, 3, 4, 1, 2): "(y, x, channel, time)",
    (0, 2, 1, 3, 4): "(time, channel, y, x)",
    (0, 1, 2, 4, 3): "(channel, time, x, y)",
    (0, 1, 3, 4, 2): "(channel, y, x, time)",
}


def patches(step):
    """Cut, or laid out, otherwise: rows in another order, columns in another."""
    x, P = step.ours, step.config.vision.patch_size
    F, M, C = (
        step.config.vision.temporal_patch_size,
        step.config.vision.spatial_merge_size,
        step.config.vision.in_channels,
    )
    cut = x.reshape(len(x), C, F, P, P)
    for axes, text in COLUMNS.items():
        yield (
            "columns in another order",
            f"a patch's columns are {text}, not (channel, time, y, x)",
            cut.transpose(axes).reshape(x.shape),
        )
    blank = cut.copy()
    blank[:, :, 1:] = 0
    yield "second frame empty", "the second frame is zero: a still picture counts twice", blank.reshape(x.shape)
    yield from rows_of_patches(step, x, M)


def rows_of_patches(step, x, M):
    plain, turned = [], []
    for part, (t, h, w) in zip(np.split(x, np.cumsum(grids_of(step).prod(axis=1))[:-1]), grids_of(step)):
        units = part.reshape(t, h // M, w // M, M, M, -1)
        plain.append(units.transpose(0, 1, 3, 2, 4, 5).reshape(part.shape))
        turned.append(units.transpose(0, 2, 1, 4, 3, 5).reshape(part.shape))
    text = "patches are in plain raster order, where they belong unit by unit (2 x 2)"
    yield "raster order of patches", text, np.concatenate(plain)
    yield "height and width swapped", "patches are cut column by column, not row by row", np.concatenate(turned)


def grids_of(step):
    if step.word == "patches":
        H, W = step.at(f"{step.room}.normalized").shape[-2:]
        t = len(step.ours) // (H * W // step.config.vision.patch_size**2)
        return np.array([[t, H // step.config.vision.patch_size, W // step.config.vision.patch_size]])
    return step.at("video_grid_thw" if step.word == "pixel_values_videos" else "image_grid_thw")


PIXELS = ("*.patches", "pixel_values", "pixel_values_videos")
MISTAKES = (
    ("image.*.resized", resized), ("video.*.resized", resized), ("*.normalized", colours),
    *[(name, colours) for name in PIXELS], *[(name, patches) for name in PIXELS],
)  # fmt: skip
