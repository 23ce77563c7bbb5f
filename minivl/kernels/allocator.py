"""Reuse the memory of large arrays.

The C library asks the system for every array over 32 MB, and returns it as soon as it is freed. The system provides
memory page by page, when it is first touched, and clears each page: for a tower's largest tensors that takes longer
than the arithmetic on them. glibc can be told to keep freed memory, up to a limit, and to return it on request; on
other systems nothing is done.
"""

import ctypes
import functools
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 1 << 29  # bytes of freed memory that stay with the process


@functools.cache
def keep_freed_memory():
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, KEPT)
        mallopt(TRIM_THRESHOLD, KEPT)


def give_back_freed_memory():
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
