"""Pictures and videos of a prompt once they are prepared: in a conversation once, not again at every turn.

    media = yield from prepared("image", sources, prepare, known)       # a `Prepared` of each, most of them from `known`
    media = yield from with_patches("image", sources, media, first, prepare)      # those from the first one that is run

The messages of a turn hold all pictures from the first on, but what the cache holds of them needs no patches any more. So the
cache remembers the grid, the size and a digest of each picture, a few hundred bytes, by a digest of what it was made of: the
content of its file, and the options. Patches, 24 bytes for each pixel, are kept for nobody; where the conversation was changed
before a picture, that is prepared again. A file that has changed meanwhile is another picture.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from minivl.stream import under

PART = 1 << 20  # bytes of a file that are read at a time


@dataclass(frozen=True)
class Prepared:
    """A picture or a video as the model takes it.

    patches  float32 [N, 1176]; None if they were made once and are not kept
    grid     frames, patch rows, patch columns
    digest   what it shows: of the patches, the grid and the seconds
    size     (height, width) of a picture before it was resized
    seconds  of a video, from one pair of frames to the next
    """

    patches: np.ndarray | None
    grid: tuple
    digest: str
    size: tuple | None = None
    seconds: float = 0.0


def digest(patches, grid, seconds=0.0):
    """What a picture or video shows, as 64 letters.

    subtle: pages of one colour differ in their grids only, and a video played faster in its seconds only
    """
    found = hashlib.sha256(np.asarray(grid, dtype=np.int64).tobytes() + np.float32(seconds).tobytes())
    found.update(np.ascontiguousarray(patches))
    return found.hexdigest()


def prepared(kind, sources, prepare, known=None):
    """Stage: a `Prepared` for each (source, options), a list. Names are "image.0.patches" and so on, by the kind.

    prepare  function of a source and its options: a stage that returns a `Prepared`
    known    {origin: Prepared} of a conversation, which grows; what it has is not made again. None: there is none
    """
    media = []
    for i, (source, asked) in enumerate(sources):
        made_of = None if known is None else origin(kind, source, asked)
        if known is None or made_of not in known:
            one = yield from under(f"{kind}.{i}", prepare(source, asked))
            if made_of is not None:
                known[made_of] = replace(one, patches=None)
        else:
            one = known[made_of]
        media.append(one)
    return media


def with_patches(kind, sources, media, first, prepare):
    """Stage: the same media; those from the first one on, counted from 0, have patches."""
    media = list(media)
    for i in range(first, len(media)):
        if media[i].patches is None:
            media[i] = yield from under(f"{kind}.{i}", prepare(*sources[i]))
    return media


def origin(kind, source, asked):
    """The content and options of a picture or video, as 64 letters; None if they are not known without opening it."""
    found = hashlib.sha256(repr((kind, sorted(asked.items()))).encode())
    try:
        for part in content(source):
            found.update(part)
    except Exception:  # whoever opens it says what is wrong
        return None
    return found.hexdigest()


def content(source):
    """The bytes of a source, part by part. A TypeError where they are not to be had."""
    if isinstance(source, (bytes, bytearray)):
        yield source
    elif isinstance(source, str) and source.startswith("data:"):
        yield source.encode()
    elif isinstance(source, (str, Path)):
        with open(str(source).removeprefix("file://"), "rb") as file:
            while part := file.read(PART):
                yield part
    elif isinstance(source, Image.Image) and not getattr(source, "is_animated", False):
        yield repr((source.mode, source.size, source.getpalette(), source.info.get("transparency"))).encode()
        yield source.tobytes()
    elif isinstance(source, np.ndarray) and source.dtype.kind in "uif":
        yield repr((source.shape, source.dtype.str)).encode()
        yield np.ascontiguousarray(source)
    elif isinstance(source, (list, tuple)):
        for frame in source:
            one = origin("frame", frame, {})
            yield one.encode()  # None has no encode: the list is as unknown as its frame
    else:
        raise TypeError(source)
