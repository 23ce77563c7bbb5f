"""The folder for compiled kernels: Numba's own choice if that works, else a temporary folder, else none.

Numba takes the first of these folders that can be written: NUMBA_CACHE_DIR, __pycache__ beside the source, the user's
cache folder. It fails if none can (a read-only installation in a container without a home). Kernels are decorated with
`cache=CACHE`.
"""

import atexit
import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import numba
from numba.misc.appdirs import AppDirs

SPACE = 1 << 20  # bytes that a folder must have room for


def choose_cache():
    """Find a folder for compiled code before the first kernel is made. -> whether there is one"""
    chosen = numba.config.CACHE_DIR
    usual = [chosen] if chosen else [Path(__file__).parent / "__pycache__", user_cache()]
    if any(is_writable(folder) for folder in usual):
        return True
    try:
        folder = tempfile.mkdtemp(prefix="minivl-")
    except OSError:
        folder = None
    if folder is not None and is_writable(folder):
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = folder  # for this process and its children
    where = f"NUMBA_CACHE_DIR={chosen}" if chosen else "neither minivl's folder nor the user's cache folder"
    verb = "cannot be written" if chosen else "can be written"
    warnings.warn(
        f"{where} {verb}, so the kernels are compiled in every run. Set NUMBA_CACHE_DIR to a folder that can be written.",
        stacklevel=2,
    )
    return folder is not None


def user_cache():
    return AppDirs(appname="numba", appauthor=False).user_cache_dir


def is_writable(folder):
    """Whether files can be written there, and the disk is not full."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(SPACE))
    except OSError:
        return False
    return True


def remove_compiled(function):
    """Remove the compiled code in this function's folder, which a full or faulty disk may have damaged."""
    folder = function.stats.cache_path
    for path in [] if folder is None else [*Path(folder).glob("*.nbi"), *Path(folder).glob("*.nbc")]:
        with suppress(OSError):
            path.unlink()


CACHE = choose_cache()
