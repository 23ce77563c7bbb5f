"""The tower's windows over an image: numbers, boxes, sizes, and colours that tell neighbours apart."""

from collections import namedtuple

import numpy as np

# number  counted through all images and videos;  box  (x0, y0, x1, y1) in pixels of the resized image
# tokens  how many it has;  partial  whether the image's edge cuts it smaller;  colour  see `window_colours`
Window = namedtuple("Window", "number box tokens partial colour")


def windows_on(maps, image=0, frame=0):
    """The windows of one image or pair of frames, in order: [Window, ...]."""
    vision, colours = maps.config.vision, window_colours(maps)
    full = (vision.window_size // vision.merged_size) ** 2
    counts = np.diff(maps.windows) // vision.merge_unit
    return [
        Window(k, tuple(maps.pixels_of_window(k).tolist()), int(counts[k]), bool(counts[k] < full), int(colours[k]))
        for k in np.unique(window_of_tokens(maps, image, frame)).tolist()
    ]


def window_of_tokens(maps, image=0, frame=0):
    """The window of each token of an image, int64 [token rows, token columns]."""
    return maps.window_of_patch(maps.patches_of_token(maps.raster("tokens", image, frame))[..., 0])


def window_colours(maps):
    """A number 0 to 7 for each window, int64 [windows]: windows that touch, or follow each other, have different ones.

    0 1 0      4 5 4
    2 3 2      6 7 6      of every second image or frame
    0 1 0      4 5 4
    """
    vision, starts = maps.config.vision, maps.windows[:-1]
    row, column = np.moveaxis(maps.places[maps.patch_of_slot(starts)][:, 2:], -1, 0)
    side = vision.window_size // vision.patch_size
    frame = np.searchsorted(maps.frames, starts, side="right") - 1
    return frame % 2 * 4 + row // side % 2 * 2 + column // side % 2
