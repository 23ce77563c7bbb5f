"""Sources of images and videos: a path, a file: or data: URI, base64 text, or bytes.

locate("photo.png"), locate("file:///my%20photo.png"), locate(path)     # a Path, of a regular file
locate("data:image/png;base64,iVBOR..."), locate("iVBOR..."), locate(data)     # bytes
"""

import base64
import binascii
import re
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from minivl.errors import Error

LONGEST = 200  # characters of a source that an error message repeats
SIGNATURES = (  # the first bytes of images and videos, by which base64 is told from a path
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\x1aE\xdf\xa3",
    b"OggS",
    b"FLV",
)
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def locate(source, noun="image"):
    """The Path of a regular file, or bytes. noun: "image" or "video", for errors. May raise a FileNotFoundError."""
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    if isinstance(source, Path):
        return check_regular(source, noun)
    scheme, colon, _ = source.partition(":")
    scheme = scheme.lower() if colon else ""
    if scheme in ("http", "https"):
        raise Error(
            f"{describe_source(source)}: minivl fetches nothing from the network. Give the path of a downloaded {noun}."
        )
    if scheme == "data":
        return decode_data_uri(source, noun)
    if scheme == "file":
        return check_regular(path_of_uri(source), noun)
    try:
        return check_regular(Path(source), noun)
    except (FileNotFoundError, OSError, ValueError) as cause:  # base64 is too long for a file name
        data = decode_base64(source)
        if data is not None:
            return data
        if isinstance(cause, FileNotFoundError) or not isinstance(cause, OSError) or len(source) > LONGEST:
            raise FileNotFoundError from None
        raise


def check_regular(path, noun):
    """The path, if it is a regular file: a pipe would block, and a device such as /dev/zero never ends."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in KINDS if test(mode)), "a device")
        raise Error(f"the {noun} {path} is {kind}, not a file. Give the path of a file.")
    return path


def path_of_uri(uri):
    """The path of a file: URI (RFC 8089), percent-encoded or not; a relative one too, as some programs write it."""
    parts = urlsplit(uri.replace("?", "%3F").replace("#", "%23"))
    host = "" if parts.netloc.lower() == "localhost" else unquote(parts.netloc)
    encoded, path = Path(host + parts.path), Path(host + unquote(parts.path))
    if host and not path.exists():
        raise Error(f"{uri} names the machine {host}. Give a path, or a URI such as file:///home/me/a.png.")
    return encoded if encoded.exists() and not path.exists() else path


def decode_data_uri(text, noun):
    head, _, body = text.partition(",")
    if not head.lower().endswith(";base64"):
        raise Error(
            f"the data URI of the {noun} must be base64: data:{'image/png' if noun == 'image' else 'video/mp4'};base64,..."
        )
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as cause:
        raise Error(f"the data URI of the {noun} is not valid base64 ({cause}). Was it cut?") from None


def decode_base64(text):
    """The bytes of an image or video in base64; None if the text is none."""
    text = "".join(text.split())
    if len(text) < 40 or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", text):
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if data.startswith(SIGNATURES) or data[4:8] == b"ftyp" else None


def describe_source(source):
    """A source as an error message names it, never at length."""
    if not isinstance(source, (str, Path)):
        return f"given as {type(source).__name__}"
    text = str(source)
    if text[:5].lower() == "data:":
        return "from a data URI"
    return text if len(text) <= LONGEST else f"{text[:60]}... ({len(text):,} characters)"


def describe_cause(cause):
    """The message of an exception, cut to a line, without the file name that Python adds."""
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return text[:LONGEST]
