"""Mistakes in image preprocessing: size, filter, colours, order of patches and columns.

A trace does not hold the original image: mistakes in resizing are computed only if it is given, `compare(..., images=[...])`.
Without it, `guesses` concludes from the kind of difference.
"""

import math

import numpy as np
from PIL import Image

from minivl.compare.mistakes import Unknown
from minivl.compare.mistakes.any_tensor import fit_line
from minivl.processing.image_processor import smart_resize

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # the published mean and deviation
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILTERS = ("NEAREST", "BOX", "BILINEAR", "HAMMING", "LANCZOS", "BICUBIC")


def original(subject):
    number = int(subject.short.split(".")[1])
    if subject.short.startswith("video") or number >= len(subject.images):
        raise Unknown("image")
    return subject.images[number]


def patch_and_unit(subject):
    """(side of a patch, side of a token's patches) in pixels; the published 14 and 28 without a config."""
    try:
        return subject.config.vision.patch_size, subject.config.vision.merged_size
    except Unknown:
        return 14, 28


def resized(subject):
    yield "BGR", "red and blue are exchanged", subject.ours[..., ::-1]
    image = original(subject)
    if subject.theirs.ndim != 3 or not subject.theirs.size:
        raise Unknown("height and width")
    H, W = subject.theirs.shape[:2]
    for name in FILTERS:
        at = np.asarray(image.resize((W, H), Image.Resampling[name]))
        if (H, W) == subject.ours.shape[:2]:
            yield "wrong resize", f"the filter is {name.lower()} instead of bicubic", at
            continue
        why = size_rule(image.height, image.width, H, W, *patch_and_unit(subject))
        text = f"it is scaled to {H} x {W} instead of {subject.ours.shape[0]} x {subject.ours.shape[1]}{why}"
        yield "wrong resize", text + ("" if name == "BICUBIC" else f", and by {name.lower()}"), at
    flat = image.resize((W, H), Image.Resampling.BICUBIC, reducing_gap=1.0)
    yield "wrong resize", "it is first reduced by an integer factor (reducing_gap), then resized", np.asarray(flat)
    yield from not_antialiased(np.asarray(image), H, W)


def not_antialiased(pixels, H, W):
    """Bilinear without antialiasing, corners aligned or not, rounded or truncated."""
    for aligned in (False, True):
        y, x = (coordinates(n, m, aligned) for n, m in zip(pixels.shape, (H, W)))
        rows = interpolate(pixels.astype(np.float64), y)
        at = interpolate(rows.swapaxes(0, 1), x).swapaxes(0, 1)
        text = f"bilinear without antialiasing{', corners aligned' if aligned else ''}, instead of bicubic"
        yield "wrong resize", text, np.clip(np.round(at), 0, 255).astype(np.uint8)
        yield "wrong resize", f"{text}, and cut to integers", np.clip(at, 0, 255).astype(np.uint8)


def coordinates(size, to, aligned):
    at = np.arange(to)
    return at * (size - 1) / max(to - 1, 1) if aligned else np.clip((at + 0.5) * size / to - 0.5, 0, size - 1)


def interpolate(rows, at):
    low = np.floor(at).astype(np.int64)
    high, part = np.minimum(low + 1, len(rows) - 1), (at - low)[:, None, None]
    return rows[low] * (1 - part) + rows[high] * part


def size_rule(height, width, H, W, patch, unit):
    """The rule that makes H x W of these sides, as text after a colon; "" if none is known."""
    if (H, W) == (height, width):
        return ": it is not resized"
    for text, function in (("down", math.floor), ("up", math.ceil)):
        if (function(height / unit) * unit, function(width / unit) * unit) == (H, W):
            return f": sides are rounded {text} to multiples of {unit}, not to the nearest"
    if smart_resize(height, width, patch, 1, 10**9) == (H, W):
        return f": sides are rounded to multiples of {patch} (a patch), not of {unit} (a token)"
    for low, high in ((4, 16384), (4, 1280), (0, 10**6)):  # of transformers, of the paper's examples, none
        low, high = max(low * unit**2, 1), high * unit**2
        if smart_resize(height, width, unit, low, high) == (H, W):
            return f": the limits are {low} and {high} pixels"
    return ": width and height exchanged" if smart_resize(width, height, unit, 1, 10**9) == (H, W) else ""


def guesses(subject):
    """(name, sentence) of mistakes that cannot be computed, concluded from the kind of difference."""
    x, y, (_, unit) = subject.ours, subject.theirs, patch_and_unit(subject)
    if subject.word == "resized":
        if x.shape != y.shape and x.ndim == y.ndim == 3:
            odd = [n for n in y.shape[:2] if n % unit]
            why = f"; {odd[0]} is no multiple of {unit}" if odd else "; is it smart_resize, with these limits?"
            text = f"it is scaled to {y.shape[0]} x {y.shape[1]} instead of {x.shape[0]} x {x.shape[1]}{why}"
            yield "wrong resize", text
        elif x.shape == y.shape and is_similar(x, y):
            off = np.abs(x.astype(np.float64) - y)
            mean, most = f"{off.mean():.2g}", f"{off.max():.0f}"
            text = f"it is the same image resized otherwise: off by {mean} of 255 levels in the mean, {most} at most. "
            yield "wrong resize", text + "Is it bicubic, antialiased, by the same Pillow? Give the image (images=)"
    elif subject.word in ("normalized", "patches", "pixel_values") and x.shape == y.shape and is_similar(x, y):
        yield "wrong resize", "it is a similar image: was it resized or compressed otherwise?"


def is_similar(x, y):
    a, b = (v.astype(np.float64).reshape(-1) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) > 0.8 * math.sqrt(float(a @ a) * float(b @ b)) > 0


def mean_and_deviation(subject):
    """image_mean and image_std of our run, two [3, 1], from an image before and after; the published ones if not recorded."""
    lead = subject.short.split(".")[0] if "." in subject.short else "video" if "video" in subject.short else "image"
    try:
        before, after = subject.at(f"{lead}.0.resized"), subject.at(f"{lead}.0.normalized")
    except Unknown:
        return tuple(np.array(values)[:, None] for values in CLIP)
    before = np.moveaxis(before, -1, -3) / 255.0
    line = [fit_line(before[..., c, :, :], after[..., c, :, :].astype(np.float64)) for c in range(3)]
    if any(abs(a) < 1e-3 for a, _ in line):  # a channel of one value
        return tuple(np.array(values)[:, None] for values in CLIP)
    return np.array([[-b / a] for a, b in line]), np.array([[1 / a] for a, _ in line])


def colours(subject):
    """Mistakes in normalisation, of every tensor with separate channels."""
    x = subject.ours.astype(np.float64)
    channels = x.reshape(3, -1) if x.ndim == 3 else x.reshape(len(x), 3, -1)  # [C, H, W]; frames of a video, or patches
    mean, std = mean_and_deviation(subject)
    unit = channels * std + mean  # 0..1
    for name, sentence, values in renormalised(unit, mean, std):
        yield name, sentence, values.reshape(x.shape)
    yield "BGR", "red and blue are exchanged, before normalising", ((unit[..., ::-1, :] - mean) / std).reshape(x.shape)
    text = "the channels are exchanged after normalising: blue, green, red"
    yield "BGR", text, channels[..., ::-1, :].reshape(x.shape)


def renormalised(unit, mean, std):
    """(name, sentence, values) from colours in 0..1, [..., 3, pixels]."""
    yield "not normalised", "colours lie in 0..1: mean and deviation are left out", unit
    yield "not rescaled", "colours lie in 0..255: neither divided by 255 nor normalised", unit * 255
    text = "colours are not divided by 255 before mean and deviation are applied"
    yield "not rescaled", text, (unit * 255 - mean) / std
    yield "rescaled twice", "colours are divided by 255 twice", (unit / 255 - mean) / std
    yield "other mean and deviation", "mean and deviation are 0.5: colours lie in -1..1", unit * 2 - 1
    m, s = (np.array(v)[:, None] for v in IMAGENET)
    yield "other mean and deviation", "mean and deviation are those of ImageNet", (unit - m) / s
    yield "other mean and deviation", "mean and deviation are exchanged", (unit - std) / mean
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


def patches(subject):
    """Rows or columns of patches in another order."""
    x, vision = subject.ours, subject.config.vision
    P = vision.patch_size
    cut = x.reshape(len(x), vision.in_channels, vision.temporal_patch_size, P, P)
    for axes, text in COLUMNS.items():
        text = f"a patch's columns are {text}, not (channel, time, y, x)"
        yield "columns in another order", text, cut.transpose(axes).reshape(x.shape)
    blank = cut.copy()
    blank[:, :, 1:] = 0
    yield "second frame empty", "the second frame is zero: an image counts twice", blank.reshape(x.shape)
    yield from rows_of_patches(subject, x, vision.spatial_merge_size)


def rows_of_patches(subject, x, M):
    plain, turned = [], []
    for part, (t, h, w) in zip(np.split(x, np.cumsum(patch_grids(subject).prod(axis=1))[:-1]), patch_grids(subject)):
        units = part.reshape(t, h // M, w // M, M, M, -1)
        plain.append(units.transpose(0, 1, 3, 2, 4, 5).reshape(part.shape))
        turned.append(units.transpose(0, 2, 1, 4, 3, 5).reshape(part.shape))
    text = "patches are in plain raster order, where they belong unit by unit (2 x 2)"
    yield "raster order of patches", text, np.concatenate(plain)
    yield "height and width swapped", "patches are cut column by column, not row by row", np.concatenate(turned)


def patch_grids(subject):
    if subject.word == "patches":
        P = subject.config.vision.patch_size
        h, w = (side // P for side in subject.at(f"{subject.prefix}.normalized").shape[-2:])
        return np.array([[len(subject.ours) // (h * w), h, w]])
    return subject.at("video_grid_thw" if subject.word == "pixel_values_videos" else "image_grid_thw")


def resized_patches(subject):
    """Patches of the originals, resized by each filter to the sides that the grid has."""
    vision, mean_std = subject.config.vision, mean_and_deviation(subject)
    P, grids = vision.patch_size, patch_grids(subject)
    if len(subject.images) != len(grids) or subject.ours.shape != subject.theirs.shape:
        raise Unknown("images")
    pixels = [np.asarray(image) for image in subject.images]
    sizes = [(int(w) * P, int(h) * P) for _, h, w in grids]
    for name in FILTERS:
        if name != "BICUBIC":
            turned = [np.asarray(i.resize(to, Image.Resampling[name])) for i, to in zip(subject.images, sizes)]
            text = f"the filter is {name.lower()} instead of bicubic"
            yield "wrong resize", text, cut_patches(turned, *mean_std, vision)
    aligned = [next(iter(not_antialiased(image, h * P, w * P)))[2] for image, (_, h, w) in zip(pixels, grids)]
    yield "wrong resize", "bilinear without antialiasing, instead of bicubic", cut_patches(aligned, *mean_std, vision)


def cut_patches(images, mean, std, vision):
    """Images [H, W, 3] of 0..255 -> [N, C*T*P*P], unit by unit, each image twice."""
    P, M, rows = vision.patch_size, vision.spatial_merge_size, []
    for image in images:
        H, W, C = image.shape
        x = ((image.reshape(-1, C).T / 255 - mean) / std).reshape(C, H // P // M, M, P, W // P // M, M, P)
        x = x.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, C, 1, P, P)
        rows.append(np.repeat(x, vision.temporal_patch_size, axis=2).reshape(len(x), -1))
    return np.concatenate(rows)


def rounded_patches(subject):
    """Patches in float16, as ggml's convolution has them; for recorded patches, `any_tensor.rounded` reports the rounding."""
    if subject.ours is subject.theirs:
        with np.errstate(over="ignore"):
            low = subject.ours.astype(np.float16).astype(np.float32)
        yield (
            "float16 rounding",
            "patches are rounded to float16 before they are multiplied by the patch embedding",
            low,
        )


PIXELS = ("*.patches", "pixel_values", "pixel_values_videos")
MISTAKES = (
    ("image.*.resized", resized), ("video.*.resized", resized), ("*.normalized", colours),
    *[(name, colours) for name in PIXELS], *[(name, patches) for name in PIXELS], ("pixel_values", resized_patches),
    *[(name, rounded_patches) for name in PIXELS[1:]],
)  # fmt: skip
