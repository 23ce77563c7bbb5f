"""Load an image from a path, URI, bytes or array: mode RGB, upright, transparency over white.

Where implementations differ, this is what is done here:
  transparency    composited over white, whatever the mode
  EXIF rotation   applied to files, bytes and URIs, as transformers' loader does; a PIL image is taken as it is
  16 bits         the high byte, as the PNG specification has it (13.12) and Pillow does for 16-bit colours
"""

import io
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minivl.errors import Error
from minivl.processing.sources import describe_cause, describe_source, locate

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")  # subtle: the A of LAB is none
ORIENTATION = 274  # EXIF tag
GREY_BITS, WHITE_IS_ZERO = 258, 262  # TIFF tags: BitsPerSample; PhotometricInterpretation, which is 0 where 0 is white


def open_image(source):
    """A PIL image in mode RGB, from a path, file: or data: URI, base64 text, bytes, PIL image, or array.

    Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], uint8, or floating point from 0 to 1.
    """
    try:
        with open_pillow(source) as image:
            if isinstance(source, (Image.Image, np.ndarray)):
                return to_rgb(image)
            if image.mode in SIXTEEN_BITS:  # subtle: of what comes turned, nothing tells the bits any more
                image = grey_with_orientation(image)
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format
            return to_rgb(upright)
    except Error:
        raise
    except FileNotFoundError:
        raise Error(f"the image {describe_source(source)} does not exist. Check the path.") from None
    except UnidentifiedImageError:
        raise Error(
            f"{describe_source(source)} is not an image that Pillow can read. Convert it to PNG; a film is a video."
        ) from None
    except Image.DecompressionBombError as cause:
        raise Error(f"the image {describe_source(source)} is too large to open ({cause}). Scale it down.") from None
    except PermissionError:
        raise Error(f"the image {describe_source(source)} may not be read. Change its permissions.") from None
    except Exception as cause:  # of a damaged file: each of Pillow's formats raises its own kinds
        raise Error(f"cannot read the image {describe_source(source)}: {describe_cause(cause)}. Is it whole?") from None


@contextmanager
def open_pillow(source):
    """Pillow's image of a source, whatever its mode; not loaded yet, if it is a file."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        yield Image.fromarray(to_uint8(source))
    elif isinstance(source, (bytes, bytearray, str, Path)):
        place = locate(source)
        with Image.open(io.BytesIO(place) if isinstance(place, bytes) else place) as image:
            scale_transparent_colour(image)
            yield image
    else:
        raise Error(f"a {type(source).__name__} is not an image. Give a path, bytes, a PIL image or a NumPy array.")


def to_uint8(array):
    """Pixels of an array as uint8 [H, W] or [H, W, 3 or 4]."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise Error(f"an array of shape {list(array.shape)} is not an image. Give [H, W], [H, W, 3] or [H, W, 4].")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise Error(f"an array of {array.dtype} is not an image. Give uint8 from 0 to 255, or floats from 0 to 1.")
    if not (np.all(np.isfinite(array)) and array.min() >= 0 and array.max() <= 1):
        raise Error(f"floats of an image must lie in 0..1; these are {array.min()} to {array.max()}. Divide by 255?")
    return np.round(array * 255).astype(np.uint8)


def to_rgb(image):
    """Mode RGB, transparency over white."""
    image.load()
    if 0 in image.size:
        raise Error(f"the image has {image.width} x {image.height} pixels. Give one with at least 1 x 1.")
    if image.mode in (*SIXTEEN_BITS, "I", "F"):
        image = grey_to_8_bits(image)
    if image.mode == "La":  # premultiplied grey, which Pillow converts to this alone
        image = image.convert("LA")
    has_alpha = image.mode in WITH_ALPHA or (image.mode == "P" and image.palette.mode.endswith("A"))
    if not has_alpha and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def scale_transparent_colour(image):
    """Scale the transparent colour of a PNG of 2, 4 or 3 x 16 bits to 8 bits, as Pillow scales its pixels when it loads them.

    Of 16 bits Pillow keeps the upper 8, so a colour that differs only in the lower ones is transparent too.
    """
    sample, raw = image.info.get("transparency"), image.tile[0][3] if getattr(image, "tile", None) else ""
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    if image.format == "PNG" and isinstance(sample, int) and raw in ("L;2", "L;4"):
        scaled = sample * 255 // (3 if raw == "L;2" else 15)
    elif image.format == "PNG" and isinstance(sample, tuple) and raw == "RGB;16B":
        scaled = tuple(value >> 8 for value in sample)
    else:
        return
    image.load()  # which reads the stored one once more
    image.info["transparency"] = scaled


def grey_with_orientation(image):
    """`grey_to_8_bits` of a file, with the orientation of its EXIF data."""
    image.load()
    grey, exif = grey_to_8_bits(image), Image.Exif()
    exif[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    grey.info["exif"] = exif.tobytes()
    return grey


def grey_to_8_bits(image):
    """Grey of more than 8 bits in mode L, or LA if one value is transparent.

    subtle: Pillow's own conversion clips at 255, so that nearly all of a scan or an X-ray turns white
    """
    values, transparent = np.asarray(image), image.info.get("transparency")
    if image.mode in SIXTEEN_BITS or image.format in ("PNG", "PPM"):  # 16 bits, in mode I of older Pillows
        tags = getattr(image, "tag_v2", {})  # subtle: Pillow leaves 12 bits as they are, and inverts 8 bits alone
        bits = 12 if tags.get(GREY_BITS) in (12, (12,)) else 16
        grey = (values.astype(np.int64) >> (bits - 8)).astype(np.uint8)
        grey = 255 - grey if tags.get(WHITE_IS_ZERO) == 0 else grey
    else:
        low, high = values.min(), values.max()
        if not (0 <= low and high <= 255) or (image.mode == "F" and 0 < high <= 1):
            raise Error(
                f"the image has grey values from {low} to {high} (mode {image.mode}), and nothing says which is white. Give "
                "values from 0 to 255 in mode L, or an array of floats from 0 to 1."
            )
        grey = values.astype(np.uint8)
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
