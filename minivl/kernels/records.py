"""Small files on disk that record what was found out about this machine: that kernels are compiled, that AMX works.

They lie beside the compiled code: in NUMBA_CACHE_DIR, in __pycache__ beside the source, or in the user's cache folder. A record
is valid for the code, the versions and the processor that it was made with; one that cannot be read is ignored.
"""

import json
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from minivl.helpers import user_cache, write_json

FOLDER = Path(__file__).parent


def read_record(name, *more):
    """Read the value that `write_record` stored under this name with the same `more`; None if there is none."""
    for folder in _folders():
        try:
            record = json.loads((folder / name).read_bytes())
            if record["for"] == [*_key(), *more]:
                return record["value"]
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None


def write_record(name, value, *more):
    """Store a value that JSON can hold; more: what it depends on in addition to code, versions and processor."""
    folder = find_folder()
    with suppress(OSError):
        if folder is not None and read_record(name, *more) != value:
            write_json({"for": [*_key(), *more], "value": value}, folder / name)


def find_folder():
    """The first folder for records that can be written, or None."""
    for folder in _folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return None


def _folders():
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen)]
    folders = [FOLDER / "__pycache__"]
    with suppress(RuntimeError):  # there is no home folder
        folders.append(user_cache())
    return folders


def _key():
    """Everything that compiled code depends on: the kernels' source, the versions, the processor."""
    source = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(FOLDER.glob("*.py"))]
    versions = [sys.version, *(version(name) for name in ("numba", "llvmlite", "numpy"))]
    settings = [os.environ.get(name) for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    return [source, versions, settings, platform.machine(), processor_name()]


def processor_name():
    """The processor's name, such as "AMD EPYC 7763"; on ARM the number of its part."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.processor()
