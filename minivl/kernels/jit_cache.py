"""Where compiled kernels are kept: Numba's own choice, unless there is no such place.

Numba takes the folder NUMBA_CACHE_DIR, or __pycache__ beside the source, or the user's cache folder, the first that can be
written, and fails where none can (a read-only installation in a container without a home). Then they are compiled anew in
every run, in a folder that goes with the process.
"""

import atexit
import os
import shutil
import tempfile
import warnings
from pathlib import Path


def find_cache():
    """Before the first kernel is made."""
    if os.environ.get("NUMBA_CACHE_DIR") or writable(Path(__file__).parent / "__pycache__"):
        return
    import numba
    from numba.misc.appdirs import AppDirs

    if numba.config.CACHE_DIR or writable(Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)):
        return
    folder = tempfile.mkdtemp(prefix="minivl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = folder  # this process's Numba, and that of its children
    warnings.warn(
        "neither minivl's folder nor the user's cache folder can be written, so that the kernels are compiled anew in every "
        "run. Set NUMBA_CACHE_DIR to a folder that stays.",
        stacklevel=2,
    )


def writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
