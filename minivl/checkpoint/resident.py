"""Copy weights into memory of their own, in large pages: `weights="resident"`.

A decoded token reads every weight once, and the address of each page that it touches has to be looked up. Files are mapped in
pages of 4 KB; memory can have pages of 2 MB where the system offers them (Linux, transparent huge pages), of which the
processor keeps many more addresses at hand. Elsewhere the copy is in ordinary pages. It takes as much memory as the weights
have bytes, and cannot be dropped and read again as a mapped file can.
"""

import contextlib
import mmap

import numpy as np

from minivl.checkpoint.safetensors import align

ALIGNMENT = 64  # bytes: a line of the caches


class ResidentCopies:
    """Memory for copies of arrays of these sizes in bytes, one after the other."""

    def __init__(self, sizes):
        self._space, self._used = allocate(sum(align(nbytes, ALIGNMENT) for nbytes in sizes)), 0

    def copy(self, array):
        """A copy of an array in this space, of the same shape and dtype."""
        start, self._used = self._used, self._used + align(array.nbytes, ALIGNMENT)
        copy = self._space[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        copy.flags.writeable = False
        return copy


def allocate(nbytes):
    """uint8 [nbytes] in large pages, where the system has them."""
    space = mmap.mmap(-1, max(nbytes, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            space.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(space, dtype=np.uint8)
