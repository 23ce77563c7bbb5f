"""Videos to patches: sample frames, resize them, cut them into patches, by the rules of `qwen-vl-utils`.

    smart_nframes(300, 30.0)                                  # 20 of 300 frames: 2 a second
    linspace_indices(300, 20)                                 # which: [0, 16, 31, ...]
    run(prepare_video("clip.mp4", processor, fps=1))          # patches [N, 1176], grid (5, H/14, W/14), 2.0 seconds

A patch is two frames deep, so two frames are one step of the grid's time. A file is sampled: `fps` frames a second, or
`nframes` in all, evenly from the first to the last, always an even number. A list or an array is sampled already: all of it is
taken, an odd last frame twice.
"""

import math
from functools import partial
from numbers import Integral, Real

import numpy as np
from tqdm import tqdm

from minivl.errors import Error
from minivl.helpers import plain_number
from minivl.processing.load_video import open_video

FPS = 2.0  # frames to take a second
FRAME_FACTOR = 2  # their number is a multiple of this
MIN_FRAMES, MAX_FRAMES = 4, 768
VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS = 128 * 28 * 28, 768 * 28 * 28  # of each frame
TOTAL_PIXELS = int(128_000 * 28 * 28 * 0.9)  # of all pairs of frames: 90 % of a context of 128,000 tokens


def prepare_video(source, processor, fps=None, nframes=None, min_frames=None, max_frames=None, **sizes):
    """Stage: a video -> patches float32 [N, 1176], their grid (F/2, rows, columns), and seconds from pair to pair.

    fps, nframes, min_frames, max_frames   which frames: see `smart_nframes`. Of a list, fps is the rate of its frames
    sizes                                  see `resize_options`
    """
    clip = open_video(source)
    indices = yield "frame_indices", sample_frames(clip, fps, nframes, min_frames, max_frames)
    seconds = yield "second_per_grid_t", seconds_per_grid(clip, len(indices), processor.temporal_patch_size, fps)
    fit = partial(processor.resize, **resize_options(processor, clip, len(indices), **sizes))
    resized = yield "resized", resize_frames(clip, indices, fit)  # [F, H, W, 3] uint8
    pixels = yield "normalized", np.stack([processor.normalize(frame) for frame in resized])  # [F, 3, H, W] float32
    patches, grid = processor.patchify(pixels)
    return (yield "patches", patches), grid, float(seconds[0])


# ---- sampling ----


def sample_frames(clip, fps=None, nframes=None, min_frames=None, max_frames=None):
    """Indices of the frames that the model sees: int64 [F], ascending."""
    if clip.fps is not None:
        return linspace_indices(clip.total, smart_nframes(clip.total, clip.fps, fps, nframes, min_frames, max_frames))
    if (nframes, min_frames, max_frames) != (None, None, None):
        raise Error("nframes, min_frames and max_frames choose frames of a file. Of a list, leave out frames yourself.")
    return np.arange(clip.total, dtype=np.int64)


def smart_nframes(total, video_fps, fps=None, nframes=None, min_frames=None, max_frames=None):
    """Number of frames to take from a video of `total` frames, `video_fps` a second. It is even.

    fps      frames a second (2), with min_frames (4) and max_frames (768) in all
    nframes  or frames in all, rounded to even
    smart_nframes(300, 30.0) -> 20;  smart_nframes(300, 30.0, nframes=7) -> 8.  Source: qwen-vl-utils, `smart_nframes`.
    """
    if nframes is not None:
        if (fps, min_frames, max_frames) != (None, None, None):
            raise Error(
                "nframes is the number of frames to take; fps, min_frames and max_frames give it too. Choose one."
            )
        count = round(positive_integer("nframes", nframes) / FRAME_FACTOR) * FRAME_FACTOR
    else:
        least = math.ceil(positive_integer("min_frames", min_frames, MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
        most = positive_integer("max_frames", max_frames, min(MAX_FRAMES, total)) // FRAME_FACTOR * FRAME_FACTOR
        count = min(max(total / video_fps * positive_number("fps", fps, FPS), least), most, total)
        count = math.floor(count / FRAME_FACTOR) * FRAME_FACTOR
    if total < FRAME_FACTOR:
        raise Error(f"a video needs at least {FRAME_FACTOR} frames; this one has {total}. Give a single frame as an image.")
    if not FRAME_FACTOR <= count <= total:
        raise Error(
            f"of {total} frames, {count} would be taken; their number is even, at least {FRAME_FACTOR}, and no more than "
            "there are. Choose it with nframes=, or give a single frame as an image."
        )
    return count


def linspace_indices(total, count):
    """`count` indices from 0 to total - 1, evenly: int64. linspace_indices(25, 4) -> [0, 8, 16, 24]

    subtle: in float32, counted from both ends, halves to even: as torch.linspace(0, total - 1, count).round().
    """
    step = np.float32(total - 1) / np.float32(count - 1)
    index = np.arange(count, dtype=np.float32)
    indices = np.where(index < count // 2, step * index, np.float32(total - 1) - step * index[::-1])
    return np.round(indices).astype(np.int64)


def seconds_per_grid(clip, taken, depth, fps=None):
    """Seconds from one step of the grid, `depth` frames, to the next: float32 [1]. Never rounded: 0.7 stays 0.7."""
    rate = positive_number("fps", fps, FPS) if clip.fps is None else taken / clip.total * clip.fps
    return np.array([depth / rate], dtype=np.float32)


def positive_integer(name, number, default=None):
    """The number, or the default for None; an Error unless it is an integer above 0."""
    return positive_number(name, number, default, Integral, "an integer")


def positive_number(name, number, default=None, kind=Real, what="a number"):
    """The number, or the default for None; an Error unless it is finite and above 0."""
    number = plain_number(default if number is None else number)
    if not isinstance(number, kind) or isinstance(number, bool) or not 0 < number < math.inf:
        raise Error(f"{name}={number!r}: it must be {what} above 0.")
    return number


# ---- sizes ----


def measure_video(source, processor, fps=None, nframes=None, min_frames=None, max_frames=None, **sizes):
    """(frames, H, W) of what `prepare_video` makes of a video; only its first frame is decoded."""
    clip = open_video(source)
    taken = len(sample_frames(clip, fps, nframes, min_frames, max_frames))
    first = next(clip.frames([0]))
    return taken, *processor.size(first.height, first.width, **resize_options(processor, clip, taken, **sizes))


def resize_options(
    processor, clip, taken, min_pixels=None, max_pixels=None, total_pixels=None, resized_height=None, resized_width=None
):
    """Options of `processor.resize` for each of `taken` frames.

    min_pixels, max_pixels, total_pixels   limits on each, and on all together: see `frame_limits`
    resized_height, resized_width          or the size of each, rounded to multiples of 28
    """
    if resized_height is None and resized_width is None:
        low, high = frame_limits(processor, clip, taken, min_pixels, max_pixels, total_pixels)
        return {"min_pixels": low, "max_pixels": high}
    given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    return given | {"resized_height": resized_height, "resized_width": resized_width}


def frame_limits(processor, clip, taken, min_pixels=None, max_pixels=None, total_pixels=None):
    """(fewest, most) pixels of each of `taken` frames, which share `total_pixels`, two at a time.

    A file's frames have the published limits of videos, inside the checkpoint's own; those of a list the limits of
    images. Source: qwen-vl-utils, `fetch_video`.
    """
    low, high = processor.limits(min_pixels, max_pixels)
    share = positive_number("total_pixels", total_pixels, TOTAL_PIXELS) / taken * FRAME_FACTOR
    if clip.fps is not None:
        share = min(VIDEO_MAX_PIXELS, share)
        # a smaller max_pixels overrides the published minimum, as it does a stored one
        if min_pixels is None and high >= 1.05 * VIDEO_MIN_PIXELS:
            low = max(low, VIDEO_MIN_PIXELS)
    return low, min(high, max(share, int(low * 1.05)))


def resize_frames(clip, indices, fit):
    """The frames with these indices, each resized by `fit`: uint8 [F, H, W, 3]. A bar on stderr if it takes long."""
    if not len(indices) or indices[0] < 0 or indices[-1] >= clip.total or np.any(np.diff(indices) <= 0):
        raise Error(f"frame_indices must rise, from 0 to {clip.total - 1} at most; these are {indices.tolist()}.")
    frames = clip.frames(indices)
    bar = tqdm(frames, total=len(indices), desc="frames", unit="frame", leave=False, delay=1, disable=None)
    resized = [fit(frame) for frame in bar]
    sizes = sorted({frame.shape[:2] for frame in resized})
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sizes)
        raise Error(f"the frames of a video must have one size; these, when scaled, have {listed}. Scale them before.")
    return np.stack(resized)
