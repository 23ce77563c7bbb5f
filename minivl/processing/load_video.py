"""Frames of a video: from a list or array, an animated GIF or WebP (Pillow), or mp4, webm and other films (PyAV).

    clip = open_video("clip.mp4")              # clip.total 300, clip.fps 30.0: counted, nothing is decoded yet
    for picture in clip.pictures([0, 16, 31]): ...     # PIL images in mode RGB

A frame that is not asked for is decoded, because the next ones build on it, and forgotten. A list knows no rate: its fps
is None. An animation's is the mean over its frames, which may each last as long as they like.
"""

import io
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from minivl.errors import Error
from minivl.processing.load_image import decode_data_uri, describe_source, open_image, to_rgb

ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # formats in which several pictures move; in a TIFF they are pages
FILMS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv")
UNTIMED = 100  # milliseconds of a frame that says 0: what browsers do


@dataclass(frozen=True)
class Clip:
    """An opened video.

    total     how many frames it has
    fps       frames a second; None for a list or an array
    pictures  function of rising indices that yields these frames, PIL images in mode RGB
    """

    total: int
    fps: float | None
    pictures: Callable


def open_video(source):
    """A `Clip`, from a path, file:// or data: URI, or bytes of a film or animation; a PIL image that moves; a list of
    pictures, each as in `open_image`; or an array of them, [F, H, W, 3], uint8 or floats from 0 to 1. A `Clip` is itself."""
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
    """Whether a file is a film, by its ending, or an animation, by what is in it."""
    if Path(path).suffix.lower() in FILMS:
        return True
    try:
        with Image.open(path) as image:
            return image.format in ANIMATED and getattr(image, "is_animated", False)
    except Exception:  # no picture, or no file: whoever opens it says so
        return False


@contextmanager
def reading_errors(source):
    """Whatever goes wrong while a video is read becomes an Error that names it."""
    try:
        yield
    except Error:
        raise
    except FileNotFoundError:
        raise Error(f"the video {describe_source(source)} does not exist. Check the path.") from None
    except Exception as cause:  # of a damaged file: each format raises its own kinds
        raise Error(f"cannot read the video {describe_source(source)}: {cause}. Is the file whole?") from None


def to_file(source):
    """A path, or a file in memory."""
    if isinstance(source, (bytes, bytearray)):
        return io.BytesIO(source)
    if not isinstance(source, (str, Path)):
        raise Error(
            f"a {type(source).__name__} is not a video. Give a path, bytes, a list of frames, or an array of them."
        )
    text = str(source)
    if text.startswith(("http://", "https://")):
        raise Error(f"{text}: minivl does not fetch from the network. Download the video and give its path.")
    return io.BytesIO(decode_data_uri(text)) if text.startswith("data:") else text.removeprefix("file://")


# ---- lists and arrays ----


def open_list(frames):
    """A list of pictures, or an array whose first axis counts them."""
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise Error(f"an array {list(frames.shape)} is not a video. Give [F, H, W, 3]: frames, rows, columns, colours.")
    if not len(frames):
        raise Error("a list of no frames is not a video. Give at least one.")
    return Clip(len(frames), None, lambda indices: (open_image(frames[i]) for i in indices))


# ---- animations ----


def open_animation(source):
    """An animated GIF, WebP, PNG or AVIF."""
    with open_pillow(source) as image:
        if image.format == "MPEG":  # Pillow knows the name and nothing more
            raise UnidentifiedImageError
        total = getattr(image, "n_frames", 1)
        if total == 1 or image.format not in ANIMATED:
            raise Error(
                f"the video {describe_source(source)} is a picture that does not move: give it in images=. A video made of "
                "several is a list of them: videos=[[first, second, ...]]."
            )
        milliseconds = sum(frame_milliseconds(image, i) for i in range(total))
    return Clip(total, 1000 * total / milliseconds, partial(decode_animation, source))


def frame_milliseconds(image, index):
    """How long a frame stands, in milliseconds."""
    image.seek(index)
    image.load()  # subtle: of a WebP it is known only then
    return image.info.get("duration") or UNTIMED


def decode_animation(source, indices):
    with reading_errors(source), open_pillow(source) as image:
        for i in indices:
            image.seek(int(i))
            yield to_rgb(image)


@contextmanager
def open_pillow(source):
    """Pillow's image of a file; or the one that was given, which shows the same frame afterwards as before."""
    if not isinstance(source, Image.Image):
        with Image.open(to_file(source)) as image:
            yield image
        return
    place = source.tell()
    try:
        yield source
    finally:
        source.seek(place)


# ---- films ----


def open_film(source):
    """mp4, webm and whatever FFmpeg reads. Frames are counted without decoding them."""
    with open_container(source) as (container, stream):
        total = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        fps = stream.average_rate or stream.guessed_rate
    if not total or not fps:
        lacks = "frame rate" if total else "frames"
        raise Error(
            f"the video {describe_source(source)} has no {lacks}. Convert it to mp4, or give its frames as a list."
        )
    return Clip(total, float(fps), partial(decode_film, source))


def decode_film(source, indices):
    wanted = [int(i) for i in indices]
    with reading_errors(source), open_container(source) as (container, stream):
        stream.thread_type = "AUTO"
        for i, frame in enumerate(container.decode(stream)):
            if i == wanted[0]:
                yield turn_upright(frame)
                wanted.pop(0)
            if not wanted:
                return
    raise Error(f"the video {describe_source(source)} breaks off before frame {wanted[0]}. Is the file whole?")


def turn_upright(frame):
    """PyAV's frame as a PIL image, turned as the file says: a telephone held upright writes lying frames."""
    picture, turn = frame.to_image(), round(frame.rotation)
    return picture.rotate(turn, expand=True) if turn % 90 == 0 else picture  # both count against the clock


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
