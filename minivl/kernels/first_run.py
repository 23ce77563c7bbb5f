"""Answer at once where the kernels are not compiled yet: on the NumPy kernels, while another process compiles.

Compilation takes 12 to 16 seconds on two cores, once for a version of minivl, Numba and Python on a machine. A record on disk
says that it has been done, so that a program can find out without importing Numba, which takes longer than a small answer.
"""

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from minivl.helpers import write_json
from minivl.kernels import choose

FOLDER = Path(__file__).parent
RECORD, RUNNING = "minivl-compiled.json", "minivl-compiling"
TOO_OLD = 180  # seconds after which a process that compiles is taken for dead
COMPILE = (
    "import os, sys\n"
    "if hasattr(os, 'nice'): os.nice(10)\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "from minivl.kernels.warm_up import compile_kernels\n"
    "compile_kernels()\n"
)
MESSAGE = (
    "minivl: the kernels are compiled in the background, once (12 to 16 s); until then the plain NumPy kernels run, and "
    "results differ by float32 rounding."
)


class Compilation:
    """The kernels in compilation by another process; `take` returns them when they are there."""

    def __init__(self, kernels, folder):
        self.plain, self.running, self.kernels = kernels, folder / RUNNING, None

    def take(self):
        """The compiled `Kernels` if they are on disk by now, else the NumPy ones."""
        if self.kernels is None and is_compiled():
            self.kernels = choose("numba")
        return self.kernels or self.plain


def choose_at_once():
    """(`Kernels`, None) if the compiled ones are on disk, else the NumPy ones and the `Compilation` that has been started.

    Without a folder to keep compiled code in, they are compiled here, in every process.
    """
    folder = None if is_compiled() or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0" else _writable_folder()
    if folder is None or not _start(folder):
        return choose("numba"), None
    plain = choose("numpy")
    return plain, Compilation(plain, folder)


def is_compiled():
    """Whether the record of compiled code is of this version and machine, and the files that it names are there."""
    for folder in _folders():
        try:
            record = json.loads((folder / RECORD).read_bytes())
            if record["for"] == _key() and all(os.path.isfile(path) for path in record["files"]):
                return True
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return False


def record_compiled(cache_path):
    """Record that all kernels are compiled; cache_path: the folder that Numba keeps them in, or None."""
    folder = _writable_folder()
    if cache_path is None or folder is None:
        return
    files = sorted(str(path) for path in Path(cache_path).glob("*.nbi"))
    with suppress(OSError):
        (folder / RUNNING).unlink(missing_ok=True)
        if files and not is_compiled():
            write_json({"for": _key(), "files": files}, folder / RECORD)


def _start(folder):
    """Start the process that compiles, unless one is at it. -> whether one is"""
    running = folder / RUNNING
    with suppress(OSError):
        if time.time() - running.stat().st_mtime < TOO_OLD:
            return True
        running.unlink()
    if not sys.executable:
        return False
    nowhere = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        running.touch()
        subprocess.Popen([sys.executable, "-c", COMPILE, str(FOLDER.parents[1])], start_new_session=True, **nowhere)
    except OSError:
        return False
    if sys.stderr is not None:
        print(MESSAGE, file=sys.stderr, flush=True)
    return True


def _folders():
    """Where records may lie: beside the compiled code, or in the user's cache folder."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen)]
    folders = [FOLDER / "__pycache__"]
    with suppress(RuntimeError):  # there is no home
        folders.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minivl")
    return folders


def _writable_folder():
    for folder in _folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return None


def _key():
    """What compiled code depends on: the kernels' source, the versions, the processor."""
    source = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(FOLDER.glob("*.py"))]
    versions = [sys.version, *(version(name) for name in ("numba", "llvmlite", "numpy"))]
    settings = [os.environ.get(name) for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    return [source, versions, settings, platform.machine(), _processor()]


def _processor():
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.processor()
