"""Answer at once if the kernels are not compiled yet: with the NumPy kernels, while another process compiles.

Compilation takes 12 to 16 seconds on two cores, once per version of minivl, Numba and Python on a machine. A record on
disk says that it has been done, so that a program can find out without loading the compiled code, which takes longer
than a small answer.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from minivl.kernels import choose
from minivl.kernels.records import find_folder, read_record, write_record

RECORD, RUNNING = "minivl-compiled.json", "minivl-compiling"
TOO_OLD = 180  # seconds after which a process that compiles is considered dead
COMPILE = """
import os
if hasattr(os, "nice"):
    os.nice(10)
from minivl.kernels.warm_up import compile_kernels
compile_kernels()
"""
MESSAGE = (
    "minivl: the kernels are compiled in the background, once (12 to 16 s); until then the plain NumPy kernels run, and "
    "results differ by float32 rounding."
)


class Compilation:
    """The kernels that another process is compiling; `take` returns them once they are ready."""

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
    folder = None if is_compiled() or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0" else find_folder()
    if folder is None or not _start(folder):
        return choose("numba"), None
    plain = choose("numpy")
    return plain, Compilation(plain, folder)


def is_compiled():
    """Whether the kernels were compiled with these versions on this machine, and the files are still there."""
    files = read_record(RECORD)
    return isinstance(files, list) and all(os.path.isfile(path) for path in files)


def record_compiled(cache_path):
    """Record that all kernels are compiled; cache_path: the folder that Numba keeps them in, or None."""
    folder = find_folder()
    if cache_path is None or folder is None:
        return
    with suppress(OSError):
        (folder / RUNNING).unlink(missing_ok=True)
    files = sorted(str(path) for path in Path(cache_path).glob("*.nbi"))
    if files and not is_compiled():
        write_record(RECORD, files)


def _start(folder):
    """Start the process that compiles, unless one is running. -> whether one is running now"""
    running = folder / RUNNING
    with suppress(OSError):
        if time.time() - running.stat().st_mtime < TOO_OLD:
            return True
        running.unlink()
    try:
        running.touch()
    except OSError:
        return False
    if start_python(COMPILE, start_new_session=True) is None:
        return False
    if sys.stderr is not None:
        print(MESSAGE, file=sys.stderr, flush=True)
    return True


def start_python(code, *arguments, **settings):
    """Run code that imports minivl in another process, without input and output unless settings ask for them.

    -> the process; None if it cannot start
    arguments  are sys.argv[2:] there;  settings  of Popen
    """
    if not sys.executable:
        return None
    code = f"import sys; sys.path.insert(0, sys.argv[1])\n{code}"
    settings = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL), **settings}
    try:
        return subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parents[2]), *arguments], **settings)
    except OSError:
        return None
