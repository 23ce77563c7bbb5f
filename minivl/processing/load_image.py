"""A picture from wherever it comes: a path, a URI, bytes, an array. In mode RGB, upright, transparency over white.

Where implementations differ, this is what is done here:
  transparency    composited over white, whatever the mode
  EXIF rotation   applied to files, bytes and URIs, as transformers' loader does; a PIL image is taken as it is
"""

import base64
import binascii
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minivl.errors import Error


def open_image(source):
    """A PIL image in mode RGB, from a path, file:// or data: URI, bytes, PIL image, or array.

    Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], uint8, or floating point from 0 to 1.
    """
    try:
        image = decode(source)
        given = isinstance(source, (Image.Image, np.ndarray))
        return to_rgb(image if given else ImageOps.exif_transpose(image))
    except Error:
        raise
    except FileNotFoundError:
        raise Error(f"the picture {describe_source(source)} does not exist. Check the path.") from None
    except UnidentifiedImageError:
        raise Error(
            f"{describe_source(source)} is not a picture that Pillow can read. Convert it to PNG or JPEG; a film is a video."
        ) from None
    except Image.DecompressionBombError as cause:
        raise Error(
            f"the picture {describe_source(source)} is too large to open ({cause}). Scale it down before."
        ) from None
    except Exception as cause:  # of a damaged file: each of Pillow's formats raises its own kinds
        raise Error(f"cannot read the picture {describe_source(source)}: {cause}. Is the file whole?") from None


def decode(source):
    """A PIL image of whatever mode."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return Image.fromarray(to_uint8(source))
    if isinstance(source, (bytes, bytearray)):
        return Image.open(io.BytesIO(source))
    if not isinstance(source, (str, Path)):
        raise Error(f"a {type(source).__name__} is not a picture. Give a path, bytes, a PIL image or a NumPy array.")
    text = str(source)
    if text.startswith(("http://", "https://")):
        raise Error(f"{text}: minivl does not fetch from the network. Download the picture and give its path.")
    if text.startswith("data:"):
        return Image.open(io.BytesIO(decode_data_uri(text)))
    return Image.open(io.BytesIO(Path(text.removeprefix("file://")).read_bytes()))  # leaves no file open


def decode_data_uri(text):
    head, _, body = text.partition(",")
    if not head.endswith(";base64"):
        raise Error("a data URI of a picture must be base64: data:image/png;base64,...")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error as cause:
        raise Error(f"the data URI of the picture is not valid base64 ({cause}). Was it cut?") from None


def to_uint8(array):
    """Pixels of an array as uint8 [H, W] or [H, W, 3 or 4]."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise Error(f"an array of shape {list(array.shape)} is not a picture. Give [H, W], [H, W, 3] or [H, W, 4].")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise Error(f"an array of {array.dtype} is not a picture. Give uint8 from 0 to 255, or floats from 0 to 1.")
    if not (np.all(np.isfinite(array)) and array.min() >= 0 and array.max() <= 1):
        raise Error(
            f"floats of a picture must lie in 0..1; these go from {array.min()} to {array.max()}. Divide by 255?"
        )
    return np.round(array * 255).astype(np.uint8)


def to_rgb(image):
    """Mode RGB, transparency over white."""
    image.load()
    if 0 in image.size:
        raise Error(f"the picture has {image.width} x {image.height} pixels. Give one with at least 1 x 1.")
    if image.mode == "La":  # premultiplied grey, which Pillow converts to this alone
        image = image.convert("LA")
    if not {"A", "a"} & set(image.getbands()) and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def describe_source(source):
    """A source as an error message names it."""
    if isinstance(source, (str, Path)) and not str(source).startswith("data:"):
        return str(source)
    return "from a data URI" if isinstance(source, str) else f"given as {type(source).__name__}"
