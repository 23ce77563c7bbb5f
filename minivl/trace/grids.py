"""Convert between pixels, patches and tokens, arrays at once. The part of maps.py that needs no prompt.

    grids = Grids(config, [(1, 4, 12)])                # or Maps, which are these and more
    grids.token_of_pixel(100, 50)                       # 9
    grids.pixels_of_token(9)                            # [84, 28, 112, 56]: x0, y0, x1, y1, the last two exclusive

    4 x 12 patches              tokens
     0  1   4  5   8 ...         0  1  2  3  4  5       of all images and then all videos, as the tower takes them:
     2  3   6  7  10 ...         6  7  8  9 10 11       image by image, frame by frame, token by token
    24 25  28 ...
    26 27  30 ...

Pixels are those of the resized image, x to the right, y down; pixel (3, 5) is 3 <= x < 4, 5 <= y < 6. Where a method takes
`image` it counts images, then videos; `frame` counts pairs of a video's frames and is 0 for an image. Integers and
arrays of them are taken alike; what lies outside is an Error.
"""

from functools import cached_property

import numpy as np

from minivl.errors import Error
from minivl.model.positions import patch_positions
from minivl.model.windows import unit_grid


class Grids:
    """The patches of images and videos.

    grids        int64 [images + videos, 3]: frames, patch rows, patch columns of each
    places       int64 [N, 4]: (image, frame, row, column) of each patch
    image_sizes  (height, width) of each image as it was given; () if unknown
    """

    def __init__(self, config, grids, image_sizes=()):
        self.config, self.grids = config, np.asarray(grids, dtype=np.int64).reshape(-1, 3)
        self.image_sizes = tuple(tuple(size) for size in image_sizes)

    @cached_property
    def places(self):
        if not len(self.grids):
            return np.zeros((0, 4), dtype=np.int64)
        vision = self.config.vision
        units = np.repeat(unit_grid(self.grids, vision.spatial_merge_size), vision.merge_unit, axis=0)
        return np.concatenate([units[:, :2], patch_positions(self.grids, vision.spatial_merge_size)], axis=1)

    @property
    def patches(self):
        """Number of patches of all images and videos."""
        return int(self.grids.prod(axis=1).sum())

    @property
    def tokens(self):
        return self.patches // self.config.vision.merge_unit

    # ---- pixels ----

    def size(self, image=0):
        """(height, width) of the resized image."""
        return tuple(int(n) * self.config.vision.patch_size for n in self.grids[self._image(image), 1:])

    def resized(self, x, y, image=0):
        """(x, y) on the image as it was given -> on the resized one. Corners stay corners; not rounded."""
        (h, w), (H, W) = self._original_size(image), self.size(image)
        return numbers(x) * (W / w), numbers(y) * (H / h)

    def original(self, x, y, image=0):
        """(x, y) on the resized image -> on the one that was given; not rounded. Source: as boxes, grounding.py."""
        (h, w), (H, W) = self._original_size(image), self.size(image)
        return numbers(x) * (w / W), numbers(y) * (h / H)

    def patch_of_pixel(self, x, y, image=0, frame=0):
        """The patch that holds a pixel of the resized image; x and y may have fractions."""
        P = self.config.vision.patch_size
        H, W = np.moveaxis(self.grids[self._image(image), 1:] * P, -1, 0)
        check_shapes(x=x, y=y, image=image)
        column, row = check_index(x, W, "x", "pixels", "iuf"), check_index(y, H, "y", "pixels", "iuf")
        return self.patch_at(row // P, column // P, image, frame)

    def pixels_of_patch(self, patch):
        """(x0, y0, x1, y1) on its resized image, the last two exclusive: int64 [..., 4]."""
        row, column = np.moveaxis(self.places[self._patch(patch)], -1, 0)[2:]
        corner = np.stack([column, row, column + 1, row + 1], axis=-1)
        return corner * self.config.vision.patch_size

    def token_of_pixel(self, x, y, image=0, frame=0):
        """The token that shows a pixel of the resized image; of one as it was given: token_of_pixel(*maps.resized(x, y))."""
        return self.token_of_patch(self.patch_of_pixel(x, y, image, frame))

    def pixels_of_token(self, token):
        """(x0, y0, x1, y1) on its resized image, the last two exclusive: int64 [..., 4]."""
        boxes = self.pixels_of_patch(self.patches_of_token(token))
        return np.concatenate([boxes[..., 0, :2], boxes[..., -1, 2:]], axis=-1)

    def tokens_of_box(self, box, image=0, frame=0):
        """All tokens that a box (x0, y0, x1, y1) on the resized image touches, row by row."""
        return np.unique(self.token_of_patch(self.patches_of_box(box, image, frame)))

    def patches_of_box(self, box, image=0, frame=0):
        """All patches that a box (x0, y0, x1, y1) on the resized image touches, in their order."""
        if np.shape(box) != (4,):
            raise Error(f"the box {box} is none: give one (x0, y0, x1, y1).")
        x0, y0, x1, y1 = box
        if not (x0 < x1 and y0 < y1):
            raise Error(f"the box {tuple(box)} is empty. Give (x0, y0, x1, y1) with x0 < x1 and y0 < y1.")
        last = np.nextafter(x1, x0), np.nextafter(y1, y0)  # the right and lower edges are not part of the box
        corners = self.patch_of_pixel([x0, last[0]], [y0, last[1]], image, frame)
        (top, left), (bottom, right) = self.places[corners, 2:]
        rows, columns = np.arange(top, bottom + 1), np.arange(left, right + 1)
        return np.sort(self.patch_at(rows[:, None], columns, image, frame).reshape(-1))

    # ---- patches and tokens ----

    def patch_at(self, row, column, image=0, frame=0):
        """The patch in a row and column of the grid of patches."""
        image = self._image(image)
        T, H, W = np.moveaxis(self.grids[image], -1, 0)
        m = self.config.vision.spatial_merge_size
        check_shapes(row=row, column=column, image=image, frame=frame)
        row, column = check_index(row, H, "row", "patch rows"), check_index(column, W, "column", "patch columns")
        frame = check_index(frame, T, "frame", "frames")
        patches = self.grids.prod(axis=1)
        unit = row // m * (W // m) + column // m
        return (np.cumsum(patches) - patches)[image] + frame * (H * W) + unit * m * m + row % m * m + column % m

    def token_of_patch(self, patch):
        return self._patch(patch) // self.config.vision.merge_unit

    def patches_of_token(self, token):
        """The four patches of a token, int64 [..., 4]: upper left, upper right, lower left, lower right."""
        unit = self.config.vision.merge_unit
        return self._token(token)[..., None] * unit + np.arange(unit)

    # ---- checked indices ----

    def _image(self, image):
        if np.size(image) and not len(self.grids):
            raise Error("there is no image or video in this prompt.")
        return check_index(image, len(self.grids), "image", "images and videos")

    def _patch(self, patch):
        return check_index(patch, self.patches, "patch", "patches")

    def _token(self, token):
        return check_index(token, self.tokens, "token", "tokens of images and videos")

    def _original_size(self, image):
        if self._image(image) >= len(self.image_sizes):
            raise Error(f"the original size of image {image} is unknown; videos and `Inputs` made by hand have none.")
        return self.image_sizes[image]


def numbers(values):
    """The values as an array of numbers."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise Error(f"{values!r} is no place on an image: give pixels, numbers or arrays of them.")
    return array


def check_shapes(**arrays):
    """Check that arrays broadcast with each other."""
    try:
        np.broadcast_shapes(*[np.shape(array) for array in arrays.values()])
    except ValueError:
        said = ", ".join(f"{name} {list(np.shape(array))}" for name, array in arrays.items())
        raise Error(f"arrays of these shapes do not go together: {said}. Give as many of each, or one.") from None


def check_index(values, count, what, things, kinds="iu"):
    """The values as int64, from 0 to count - 1, or an Error; floats, where they are allowed, are rounded down."""
    array = np.asarray(values)
    if array.size and (array.dtype.kind not in kinds or not np.all((array >= 0) & (array < count))):
        limits = f"numbers from 0, below {count}" if "f" in kinds else f"integers from 0 to {count - 1}"
        raise Error(f"{what} {values} is outside: there are {count} {things}; give {limits}.")
    return np.floor(array).astype(np.int64)
