"""Images to patches: resize, normalise, cut. The same bits as transformers' processor with Pillow.

    processor = ImageProcessor.read(folder)
    pixels = processor.resize(open_image("cat.png"))            # uint8 [H, W, 3], both sides multiples of 28
    patches, grid = processor.patchify(processor.normalize(pixels)[None])     # float32 [N, 1176], (1, H/14, W/14)

Where implementations differ, this is what is done here:
  size            smart_resize as in transformers 5 (no side below 28; very thin images may exceed max_pixels)
  resampling      the installed Pillow's bicubic. Pillow 13 changed the order of its two passes (vertical first where the
                  height shrinks the more), and with it some pixels
"""

import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
from PIL import Image

from minivl.errors import Error
from minivl.helpers import object_in, read_json

MOST_PIXELS = 10**9  # a larger image would take 12 GB as float32
LIMITS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}  # transformers' own, where the file gives none
EDGES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # their names inside `size`
MOST_LIMIT = 10**18  # upper limit on min_pixels and max_pixels in a file
COLOURS = ("image_mean", "image_std")
STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255}


def round_size(height, width):
    """The size that a message asks for, both sides rounded to multiples of 28: (H, W).

    Source: qwen-vl-utils, `fetch_image`, which does this before the processor resizes by its own limits.
    """
    if not all(type(n) is int and 0 < n <= MOST_PIXELS for n in (height, width)):
        raise Error(
            f"resized_height={height!r}, resized_width={width!r}: give both, integers in pixels, or neither."
        )
    return smart_resize(height, width, max_pixels=28 * 28 * 16384)


def smart_resize(height, width, factor=28, min_pixels=LIMITS["min_pixels"], max_pixels=LIMITS["max_pixels"]):
    """The size to scale to, (H, W): multiples of `factor`, near the same ratio, their product within the limits.

    smart_resize(1080, 1920, max_pixels=12845056) -> (1092, 1932). An Error if one side is more than 200 times the other.
    Source: transformers 5, `Qwen2VLImageProcessor`.
    """
    if max(height, width) / min(height, width) > 200:
        raise Error(f"an image of {width} x {height} pixels is more than 200 times as long as wide. Cut it up.")
    H, W = round(height / factor) * factor, round(width / factor) * factor  # subtle: halves go to the even multiple
    if H * W > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        H = max(factor, math.floor(height / beta / factor) * factor)
        W = max(factor, math.floor(width / beta / factor) * factor)
    elif H * W < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        H, W = math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return H, W


@dataclass(frozen=True)
class ImageProcessor:
    """preprocessor_config.json. Limits in pixels of the resized image; mean and std of colours in 0..1."""

    min_pixels: int = LIMITS["min_pixels"]
    max_pixels: int = LIMITS["max_pixels"]
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def read(cls, folder):
        """Read the settings of a checkpoint folder (`read_fields`); without a file, transformers' defaults."""
        stored = read_fields(Path(folder)) if folder is not None else {}
        check_steps(stored)
        fields = {name: stored[name] for name in cls.__dataclass_fields__ if stored.get(name) is not None}
        fields |= parse_limits(stored)
        if {*LIMITS} <= fields.keys() and all(isinstance(fields[name], Real) for name in LIMITS):
            if fields["min_pixels"] > fields["max_pixels"] >= 1:
                raise Error(
                    f"image processor: min_pixels ({fields['min_pixels']}) is above max_pixels ({fields['max_pixels']}). Use "
                    "the file that came with the weights."
                )
        fields |= {name: tuple(fields[name]) for name in COLOURS if isinstance(fields.get(name), list)}
        return cls(**fields)

    def __post_init__(self):
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise Error(f"image processor: {name} is {getattr(self, name)!r}; it must be an integer above 0.")
        for name in LIMITS:
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not 1 <= value <= MOST_LIMIT:
                raise Error(f"image processor: {name} is {value!r}; it must be a number of pixels, from 1.")
        for name in COLOURS:
            colour = getattr(self, name)
            is_colour = isinstance(colour, tuple) and len(colour) == 3 and all(isinstance(v, Real) for v in colour)
            if not is_colour or not all(math.isfinite(v) and (v > 0 or name == "image_mean") for v in colour):
                raise Error(
                    f"image processor: {name} is {colour!r}; it must be three finite numbers, for red, green and blue; those "
                    "of image_std above 0."
                )

    def check_matches(self, vision):
        """Raise an Error unless the tower (a VisionConfig) expects such patches."""
        for field, expected in (
            ("patch_size", vision.patch_size),
            ("temporal_patch_size", vision.temporal_patch_size),
            ("merge_size", vision.spatial_merge_size),
        ):
            if getattr(self, field) != expected:
                raise Error(
                    f"{field} is {getattr(self, field)} in preprocessor_config.json and {expected} in config.json's "
                    "vision_config. Use both files from one checkpoint."
                )

    @property
    def merged_size(self):
        """Side of one token in pixels: 28."""
        return self.patch_size * self.merge_size

    def resize(self, image, min_pixels=None, max_pixels=None, resized_height=None, resized_width=None):
        """A PIL image scaled to `smart_resize` of its size, or of the one that is asked for: uint8 [H, W, 3]."""
        if resized_height is not None or resized_width is not None:
            height, width = round_size(resized_height, resized_width)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        height, width = self.size(image.height, image.width, min_pixels, max_pixels)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))

    def size(self, height, width, min_pixels=None, max_pixels=None, resized_height=None, resized_width=None):
        """The size to which `resize` scales an image of this size, (H, W)."""
        if resized_height is not None or resized_width is not None:
            height, width = round_size(resized_height, resized_width)
        return smart_resize(height, width, self.merged_size, *self.limits(min_pixels, max_pixels))

    def limits(self, min_pixels, max_pixels):
        """(min_pixels, max_pixels) of one call. If only one is given, the stored other one gives way where they conflict."""
        token = self.merged_size**2
        low = self.min_pixels if min_pixels is None else min_pixels
        high = self.max_pixels if max_pixels is None else max_pixels
        numbers = all(isinstance(n, Real) for n in (low, high))
        if numbers and min_pixels is None:
            low = min(low, high)
        if numbers and max_pixels is None:
            high = max(low, high)
        if not numbers or not (1 <= low <= high and high >= token and low <= MOST_PIXELS):
            raise Error(
                f"min_pixels={low!r}, max_pixels={high!r}: they must be numbers, the first not above the second, from 1 to "
                f"{MOST_PIXELS}, max_pixels at least {token}, one token. Qwen recommends 256 * 784 to 1280 * 784."
            )
        return low, high

    def normalize(self, pixels):
        """Colours / 255, minus mean, over std, of each channel: uint8 [H, W, 3] -> float32 [3, H, W]."""
        values = np.arange(256, dtype=np.float64) * (1 / 255)  # double here and then rounded, as in the reference
        mean, std = (np.array(v, dtype=np.float32) for v in (self.image_mean, self.image_std))
        table = (values.astype(np.float32)[:, None] - mean) / std  # [256, 3]: there are only so many colours
        return np.stack([table[:, c][pixels[:, :, c]] for c in range(3)])

    def patchify(self, frames):
        """Frames float32 [T, 3, H, W] -> patches float32 [N, 3*2*14*14], and their grid (T/2, H/14, W/14).

        The last of an odd number of frames counts twice. Rows: frame by frame, in 2x2 blocks, inside a block (0,0) (0,1)
        (1,0) (1,1). Columns: channel, time, y, x.
        """
        if len(frames) % self.temporal_patch_size:
            missing = self.temporal_patch_size - len(frames) % self.temporal_patch_size
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        T, C, H, W = frames.shape
        P, M, t = self.patch_size, self.merge_size, T // self.temporal_patch_size
        x = frames.reshape(t, T // t, C, H // P // M, M, P, W // P // M, M, P)
        x = x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)  # "(t f) c (R r y) (S s x) -> t R S r s c f y x"
        return np.ascontiguousarray(x).reshape(-1, C * (T // t) * P * P), (t, H // P, W // P)

    def unpatchify(self, patches, grid):
        """The inverse of `patchify`: patches of one image and its grid -> frames [T, C, H, W]."""
        t, h, w = grid
        P, M, F = self.patch_size, self.merge_size, self.temporal_patch_size
        C = patches.shape[1] // (F * P * P)
        x = patches.reshape(t, h // M, w // M, M, M, C, F, P, P)
        return x.transpose(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * F, C, h * P, w * P)


def prepare_image(image, processor, **sizes):
    """Stage: a PIL image -> patches float32 [N, 1176] and its grid (1, rows, columns). sizes: as in `resize`."""
    resized = yield "resized", processor.resize(image, **sizes)  # [H, W, 3] uint8
    pixels = yield "normalized", processor.normalize(resized)  # [3, H, W] float32
    patches, grid = processor.patchify(pixels[None])
    return (yield "patches", patches), grid


def read_fields(folder):
    """The image processor's fields: inside processor_config.json, or preprocessor_config.json.

    subtle: in this order, as in transformers 5, which writes the first and leaves an older second as it was.
    """
    files = (folder / "processor_config.json", folder / "preprocessor_config.json")
    whole, own = (read_json(path) if path.is_file() else {} for path in files)
    return object_in(whole, "image_processor") or own


def parse_limits(stored):
    """{"min_pixels": ..., "max_pixels": ...} of preprocessor_config.json: two fields, or the edges of `size`.

    transformers 5 writes them as edges, which count pixels all the same; the fields win. Any other `size` is refused, as
    there: version 4.49 ignored it, so it may hold anything.
    """
    limits = {name: stored[name] for name in LIMITS if stored.get(name) is not None}
    if stored.get("size") is None:
        return limits
    size = {name: value for name, value in object_in(stored, "size").items() if value is not None}
    if not size.keys() <= {*EDGES.values(), *LIMITS} or not all(n in limits or EDGES[n] in size for n in LIMITS):
        raise Error(
            f"image processor: size is {size!r}; it must give shortest_edge and longest_edge, both in pixels of area. Replace "
            "it by min_pixels and max_pixels; Qwen2.5-VL's are 3136 and 12845056."
        )
    return {name: limits.get(name, size.get(EDGES[name])) for name in LIMITS}


def check_steps(stored):
    """Raise an Error if the file omits or changes a step that is always done here."""
    for field, done in STEPS.items():
        setting = stored.get(field)
        if setting is not None and setting != done:
            raise Error(
                f"image processor: {field} is {setting!r}; minivl prepares images as all published Qwen2.5-VL do, with "
                f"{done!r}. Use the preprocessor_config.json that came with the weights."
            )
