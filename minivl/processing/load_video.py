"""Load frames of a video: from a list or array, an animated GIF, WebP, PNG or AVIF (Pillow), or mp4, webm, ... (PyAV).

    clip = open_video("clip.mp4")              # clip.total 300, clip.fps 30.0: counted, nothing is decoded yet
    for image in clip.frames([0, 16, 31]): ...     # PIL images in mode RGB

All frames up to the last one asked for are decoded, because later ones build on them. The rate is the mean over the times of
the frames, which may be uneven; if the file's own rate agrees with them, it is that one, exactly. A list has no rate: its fps
is None.
"""

import io
import itertools
import re
import struct
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from minivl.errors import Error
from minivl.processing.load_image import open_image, to_rgb
from minivl.processing.sources import describe_cause, describe_source, locate

ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # formats with animations; the images of a TIFF are pages
FILMS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv")
SHORTEST, UNTIMED = 10, 100  # milliseconds: browsers show a frame of at most SHORTEST for UNTIMED


@dataclass(frozen=True)
class Clip:
    """An opened video.

    total     how many frames it has
    fps       frames a second; None for a list or an array
    frames    function of ascending indices that yields these frames, PIL images in mode RGB
    """

    total: int
    fps: float | None
    frames: Callable


def open_video(source):
    """A `Clip`, from a path, file: or data: URI, base64 text, or bytes of a film or animation; a PIL image with frames; a list
    of images, each as in `open_image`; or an array of them, [F, H, W, 3], uint8 or floats from 0 to 1. A `Clip` is returned
    as it is."""
    if isinstance(source, Clip):
        return source
    with reading_errors(source):
        if isinstance(source, (list, tuple, np.ndarray)):
            return open_list(source)
        try:
            return open_animation(source)
        except UnidentifiedImageError:
            return open_film(source)


def is_video(path):
    """Whether a file is a film, by its suffix, or an animation, by its content."""
    if Path(path).suffix.lower() in FILMS:
        return True
    try:
        with Image.open(locate(path)) as image:
            return image.format in ANIMATED and getattr(image, "is_animated", False)
    except Exception:  # no image, or no file: opening it raises the error
        return False


@contextmanager
def reading_errors(source):
    """Turn whatever goes wrong while a video is read into an Error that names it."""
    try:
        yield
    except (Error, Warning):  # a warning that the caller has made an error of
        raise
    except FileNotFoundError:
        raise Error(f"the video {describe_source(source)} does not exist. Check the path.") from None
    except PermissionError:
        raise Error(f"the video {describe_source(source)} may not be read. Change its permissions.") from None
    except Exception as cause:  # of a damaged file: each format raises its own kinds
        raise Error(f"cannot read the video {describe_source(source)}: {describe_cause(cause)}. Is it whole?") from None


def to_file(source):
    """A path as text, or a file in memory."""
    if not isinstance(source, (str, Path, bytes, bytearray)):
        raise Error(f"a {type(source).__name__} is not a video. Give a path, bytes, a list or an array of frames.")
    place = locate(source, "video")
    return io.BytesIO(place) if isinstance(place, bytes) else str(place)


def warn_cut(source, frames, total):
    whole = f" of {total}" if total and total > frames else ""
    warnings.warn(
        f"the video {describe_source(source)} breaks off or is damaged: its first {frames} frames{whole} are used.",
        stacklevel=2,
    )


# ---- lists and arrays ----


def open_list(frames):
    """Open a list of images, or an array whose first axis counts them."""
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise Error(f"an array {list(frames.shape)} is not a video. Give [F, H, W, 3]: frames, rows, columns, colours.")
    if not len(frames):
        raise Error("a list of no frames is not a video. Give at least one.")
    return Clip(len(frames), None, lambda indices: (open_image(frames[i]) for i in indices))


# ---- animations ----


def open_animation(source):
    """Open an animated GIF, WebP, PNG or AVIF."""
    with open_pillow(source) as image:
        if image.format == "MPEG":  # Pillow knows the name and nothing more
            raise UnidentifiedImageError
        # subtle: the default image of a PNG, for programs that know no animations, may be none of its frames
        first = int(bool(getattr(image, "default_image", False)))
        total = count_declared_frames(image)
        if total is not None and total - first < 2 or image.format not in ANIMATED:
            raise Error(
                f"the video {describe_source(source)} is an image that does not move: give it in images=. A video made of "
                "several is a list of them: videos=[[first, second, ...]]."
            )
        milliseconds, cut = [], image.format == "GIF" and not has_trailer(source)
        for i in itertools.count(first) if total is None else range(first, total):
            try:
                milliseconds.append(frame_milliseconds(image, i))
            except Exception:  # each format raises its own kinds
                if len(milliseconds) < 2:
                    raise
                cut = True
                break
        if cut:
            warn_cut(source, len(milliseconds), total and total - first)
    count = len(milliseconds)
    return Clip(count, 1000 * count / sum(milliseconds), partial(decode_animation, source, first=first))


def count_declared_frames(image):
    """Number of frames, the default image of a PNG included; None if the file is cut off so that it cannot be told."""
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # a GIF has no count: Pillow goes through the file, and each damage raises its own kind
        return None


def has_trailer(source):
    """Whether a GIF ends as it should, with ";": nothing else tells whether it was cut off between two frames."""
    if isinstance(source, Image.Image):
        return True
    file = to_file(source)
    data = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
    return data.rstrip(b"\0\r\n").endswith(b";")


def frame_milliseconds(image, index):
    """How long a frame is shown."""
    image.seek(index)
    image.load()  # subtle: of a WebP it is known only then
    milliseconds = image.info.get("duration") or 0
    return milliseconds if milliseconds > SHORTEST else UNTIMED


def decode_animation(source, indices, first=0):
    with reading_errors(source), open_pillow(source) as image:
        for i in indices:
            image.seek(first + int(i))
            yield to_rgb(image)


@contextmanager
def open_pillow(source):
    """Pillow's image of a file; or the one that was given, which shows the same frame afterwards as before."""
    if not isinstance(source, Image.Image):
        with Image.open(to_file(source)) as image:
            yield image
        return
    frame = source.tell()
    try:
        yield source
    finally:
        source.seek(frame)


# ---- films ----


def open_film(source):
    """Open mp4, webm or whatever FFmpeg reads. Frames are counted and timed without decoding, unless the file is damaged."""
    with open_container(source) as (container, stream):
        times, damaged, is_counted = packet_times(container, stream)
        header_rate, tick, listed = stream.average_rate or stream.guessed_rate, float(stream.time_base), stream.frames
        seconds = (stream.duration or 0) * tick
        if container.format.name in ("matroska,webm", "flv"):  # their duration is that of the whole file, from time 0
            alone = len(container.streams) == 1  # sound may be longer than the picture
            whole = seconds_of_tag(stream.metadata.get("DURATION")) or (container.duration or 0) / 1e6 * alone
            seconds = max(seconds, whole - (times[0] or 0 if times else 0))
    if not times:
        raise Error(f"the video {describe_source(source)} has no frames. Convert it to mp4, or give a list of frames.")
    fps = frame_rate(times, tick, header_rate)
    if not fps:
        raise Error(
            f"the video {describe_source(source)} has no frame rate and no times. Convert it to mp4, or give its frames as a "
            "list."
        )
    damaged |= times[0] is not None and times[-1] - times[0] + 1.5 / fps + 0.05 * seconds < seconds
    # an edit list may leave frames out, so that fewer than listed need not be damage
    total = count_frames(source) if damaged or len(times) < listed or not is_counted else len(times)
    damaged |= total < len(times) and is_counted
    if not total:
        raise Error(f"no frame of the video {describe_source(source)} can be decoded. Is the file whole?")
    if damaged:
        warn_cut(source, total, listed)
    return Clip(total, frame_rate(times[:total], tick, header_rate) or fps, partial(decode_film, source))


def packet_times(container, stream):
    """(seconds at which frames are shown, ascending, None if unknown; whether there is damage; whether each packet is one)

    subtle: VP8 has packets that show none, and what was cut out of a broadcast begins with frames that need an earlier one:
    these are dropped if they come before the first key frame, and shown by no decoder.
    """
    times, damaged, key = [], False, None
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:  # an edit list may leave frames out
                moment = packet.dts if packet.pts is None else packet.pts
                times.append(None if moment is None else float(moment * packet.time_base))
                damaged |= packet.is_corrupt
                key = times[-1] if key is None and packet.is_keyframe else key
    except Exception:  # FFmpeg's errors: what comes before the damage counts
        damaged = True
    known = sorted(t for t in times if t is not None)
    if len(known) < len(times):
        return [None] * len(times), damaged, stream.codec_context.name != "vp8"
    shown = [t for t in known if key is None or t >= key]
    return shown, damaged, stream.codec_context.name != "vp8" and len(shown) == len(known)


def seconds_of_tag(tag):
    """Matroska's "00:00:02.000000000" in seconds; None for another text, or for none."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)\s*", tag or "")
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) if match else None


def frame_rate(times, tick, header_rate):
    """Frames a second by their times; the header's rate, exactly, where both agree within the times' rounding. None if unknown.

    A rate in the header may be a guess, above all for frames of unequal duration: a browser's recording, slides.
    """
    header_rate = float(header_rate or 0)
    span = times[-1] - times[0] if len(times) > 1 and times[0] is not None else 0
    if span <= 0:
        return header_rate
    if header_rate and abs((len(times) - 1) / header_rate - span) <= max(2 * tick, 1e-3 * span):
        return header_rate
    return (len(times) - 1) / span


def decode_film(source, indices):
    """Yield the images at ascending indices; a warning if the decoder had to patch up frames, an Error if it has to give up."""
    wanted, patched = [int(i) for i in indices], []
    waiting = iter(wanted)
    index = next(waiting, None)
    with reading_errors(source), open_container(source) as (container, stream):
        for i, frame in enumerate(decode_stream(container, stream)):
            if index is None:
                break
            if frame.is_corrupt:
                patched.append(i)
            if i == index:
                yield turn_upright(frame)
                index = next(waiting, None)
    if index is not None:
        raise Error(
            f"the video {describe_source(source)} is damaged: frame {index} cannot be decoded. Give the frames before it as a "
            "list, or write those that can be decoded to a new file: ffmpeg -i damaged.mp4 repaired.mp4"
        )
    if patched:
        frames = f"frame {patched[0]} is" if len(patched) == 1 else f"{len(patched)} frames from {patched[0]} on are"
        warnings.warn(
            f"the video {describe_source(source)} is damaged: {frames} patched up by the decoder, and later ones may build on "
            "that.",
            stacklevel=2,
        )


def count_frames(source):
    """How many frames can be decoded, one after the other from the first."""
    with open_container(source) as (container, stream):
        return sum(1 for _ in decode_stream(container, stream))


def decode_stream(container, stream):
    """Yield PyAV's frames, up to the first that cannot be decoded."""
    import av

    decoder = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ("vp8", "vp9"):  # FFmpeg's own decoders drop it
        decoder = av.CodecContext.create("libvpx" if decoder.name == "vp8" else "libvpx-vp9", "r")
        decoder.extradata = stream.codec_context.extradata
    decoder.thread_type = "AUTO"
    try:
        for packet in container.demux(stream):
            yield from decoder.decode(packet)
    except av.FFmpegError:
        with suppress(av.FFmpegError):
            yield from decoder.decode(None)  # frames that wait in the decoder


def turn_upright(frame):
    """PyAV's frame as a PIL image in mode RGB, turned and mirrored as the file says: a telephone held upright records sideways.

    The matrix of a track is [a b; c d]: a stored pixel (x, y) is shown at (a x + c y, b x + d y). Source: ISO 14496-12, tkhd.
    """
    has_alpha = any(component.is_alpha for component in frame.format.components)
    image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba"))) if has_alpha else frame.to_image()
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return image
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    pixels = np.asarray(image)
    if a == d == 0 and b and c:
        pixels, flip_columns, flip_rows = pixels.swapaxes(0, 1), c < 0, b < 0
    elif b == c == 0 and a and d:
        flip_columns, flip_rows = a < 0, d < 0
    else:  # by an angle: players do not turn it either
        return image
    return Image.fromarray(np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]))


@contextmanager
def open_container(source):
    """PyAV's container and its video stream."""
    try:
        import av
    except ImportError:
        raise Error(
            f"{describe_source(source)} is no animated GIF or WebP, and other videos are read through PyAV, which is not "
            "installed: pip install 'minivl[video]'. Or give a list of frames."
        ) from None
    with av.open(to_file(source)) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise Error(f"{describe_source(source)} holds no video, only sound or other streams.")
        yield container, stream
