"""Utilities that every folder uses: JSON files, atomic writes, sizes and times as text, tables.

Imports nothing from minivl except errors.py.
"""

import errno
import html
import importlib
import json
import math
import os
import re
import socket
import stat
import sys
import uuid
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

from minivl.errors import Error

STREAMS = re.compile(r"/dev/(std(in|out|err)$|fd/)|/proc/[^/]+/fd/")
OPERATIONS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3))


def read_json(path):
    """The object in a checkpoint's JSON file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as cause:
        raise Error(f"{path} is not valid JSON ({cause}). Download it again.") from None
    if not isinstance(stored, dict):
        raise Error(f"{path} holds a {type(stored).__name__}, not an object. Download it again.")
    return stored


def object_in(stored, field):
    """An object inside another; {} if it is missing or null."""
    value = stored.get(field)
    if not isinstance(value, (dict, type(None))):
        raise Error(f"{field} is {value!r}; it must be an object. Use the file that came with the weights.")
    return value or {}


def plain_number(value):
    """A NumPy scalar as Python's own number or bool; anything else as it is."""
    is_numpy = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if is_numpy else value


def check_kind(field, values, kind, what, least=None):
    """Raise an Error unless all values are of this kind, and at least `least`.

    subtle: JSON true is a Python int, so bool must be asked for explicitly.
    """
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise Error(f"{field} is {value!r}; it must be {what}.")
        if least is not None and not value >= least:
            raise Error(f"{field} is {value!r}; it must be {what}, at least {least}.")


def write_json(value, path):
    """Write plain values as JSON, whole or not at all."""
    with write_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


@contextmanager
def write_whole(path):
    """Write a file whole or not at all: yields the path of a new empty file next to it, renamed when the block ends.

        with write_whole("run.html") as partial:
            partial.write_text(text)

    If the block raises, or the process is killed, what was at `path` is untouched. Each writer has a file of its own
    (.NAME.HOST-PID-RANDOM.partial), so two writers of one path never mix: the last to finish wins. Partial files that
    killed writers of the same path left on this machine are removed. A symbolic link is followed, the permissions of an
    existing file are kept; a path that is not a regular file (a device, a pipe, a folder) is refused. An OSError becomes
    an Error.
    """
    try:
        target = _target_of(path)
        mode = _mode_of_regular_file(target)
        _remove_leftovers(target)
        partial = _create_partial(target)
    except OSError as cause:
        raise cannot_write(path, cause) from None
    try:
        with lock(partial):
            yield partial
            if mode is not None:
                os.chmod(partial, mode)
            _flush_to_disk(partial)
            os.replace(partial, target)
        with suppress(OSError):  # some systems cannot open a folder; the rename itself is done
            _flush_to_disk(target.parent)
    except OSError as cause:
        if cause.filename not in (None, str(partial)):
            raise  # from another file that the block opened
        raise cannot_write(path, cause) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def user_cache():
    """minivl's folder in the user's cache folder: in XDG_CACHE_HOME, or where the system keeps such files.

    Raises RuntimeError for a user without a home folder: os.path.expanduser would name a folder "~" here.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return (Path(home) if home else Path(usual).expanduser()) / "minivl"


def check_writable(path):
    """Raise an Error unless `write_whole` can write to `path`, before minutes are spent on its content."""
    try:
        target = _target_of(path)
        _mode_of_regular_file(target)
        _create_partial(target).unlink()
    except OSError as cause:
        raise cannot_write(path, cause) from None


def cannot_write(path, cause):
    """The Error for an OSError while writing."""
    advice = "Give a file in a folder that can be written."
    if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "Free some space, or give a file on another disk."
    elif cause.errno == errno.EISDIR:
        advice = "Give the name of a file."
    missing = cause.errno == errno.ENOENT and not Path(os.path.realpath(path)).parent.is_dir()
    reason = "its folder does not exist" if missing else cause.strerror or cause
    return Error(f"cannot write {path}: {reason}. {advice}")


def _target_of(path):
    """The file that is written: `path`, with symbolic links followed."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise Error(f"cannot write {text!r}: it is not the name of a file. Give one.")
    if STREAMS.match(text):  # subtle: /dev/stdout links to the file that the shell writes to
        raise Error(f"cannot write {path}: it is a device or a pipe, not a file. Give the name of a file.")
    return Path(os.path.realpath(path))


def _mode_of_regular_file(path):
    """Permission bits of the file at `path`, None if there is none."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise Error(f"cannot write {path}: it is a device or a pipe, not a file. Give the name of a file.")
    return stat.S_IMODE(mode)


def _create_partial(target):
    """The path of a new empty file beside `target`, which no other writer uses."""
    partial = target.with_name(f".{_short_name(target)}.{writer_name()}-{uuid.uuid4().hex[:8]}.partial")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return partial


def _short_name(path):
    """The start of a file's name, short enough for what is added to it: file systems allow 255 bytes."""
    return path.name.encode(errors="ignore")[:100].decode(errors="ignore")


def writer_name():
    """HOST-PID of this process, as in the names of partial files and folders."""
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:40] or "host"
    return f"{host}-{os.getpid()}"


def _remove_leftovers(target):
    """Remove partial files of the same path whose process, on this machine, has ended.

    subtle: containers may share a folder and a host name but not process ids, so a writer also holds a lock.
    """
    host = writer_name().rpartition("-")[0]
    pattern = re.compile(rf"\.{re.escape(_short_name(target))}\.{host}-(\d+)-[0-9a-f]{{8}}\.partial")
    for name in os.listdir(target.parent):
        match = pattern.fullmatch(name)
        if match and not is_running(int(match[1])) and not is_locked(target.with_name(name)):
            with suppress(OSError):
                os.unlink(target.with_name(name))


@contextmanager
def lock(path):
    """Hold a lock on a file or folder, where the system has such locks; see `is_locked`."""
    descriptor = None
    with suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_locked(path):
    """Whether another writer holds a lock on a file or folder; False where the system has none."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def is_running(pid):
    """Whether a process with this id runs on this machine, as far as that can be told."""
    if pid == os.getpid():
        return True
    if os.name == "nt":
        return True  # subtle: os.kill(pid, 0) ends a process on Windows; better to keep a file too many
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _flush_to_disk(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_bytes(value, argument):
    """Number of bytes from a number, or from text such as "4GB", "1.5 GiB", "800M"; the error names `argument`."""
    value = plain_number(value)
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?)(I?)B?\s*", value.upper(), re.ASCII)
        if match and (match[2] or not match[3]) and len(match[1]) < 100:
            return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " "))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return int(value)
    raise Error(f'{argument}={value!r} is not an amount of memory. Give bytes, or text such as "4GB" or "512MiB".')


def format_bytes(number):
    """Bytes as text, such as "7.51 GB": three digits; a GB is 10^9 bytes."""
    power = min(max(int(math.log10(max(number, 1)) // 3), 1), 4)
    value = number / 1000**power
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def format_seconds(value):
    """Seconds as text: "5.0 min", "1.50 s", "12.5 ms"."""
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def format_operations(number):
    """A number of operations as text, such as "16.50 TFLOP"; "" for none."""
    for unit, one in OPERATIONS:
        if number >= one:
            return f"{number / one:,.2f} {unit}"
    return f"{number} FLOP" if number else ""


def format_table(rows, right=(), gap=2):
    """Lines of a table of text, columns aligned; `right` lists the columns that are aligned to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(max(map(len, rows), default=0))]
    return [
        (" " * gap).join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


class Text(str):
    """A string that consoles and notebooks show as plain text, without quotes."""

    def __repr__(self):
        return str(self)

    def _repr_html_(self):
        return f"<pre>{html.escape(self)}</pre>"


def shorten(value):
    """The repr of a value for an error message, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        text = f"{value:#x}" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)"


def did_you_mean(name, names, most=3, cutoff=0.5):
    """The text " Did you mean a or b?" with the most similar names; "" if there are none."""
    close = get_close_matches(str(name), [str(one) for one in names], most, cutoff)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def lazy_names(package, **homes):
    """(__getattr__, __dir__, __all__) of a package whose public names are imported when they are first used.

    homes  public name -> the module inside the package that defines it
    """

    def __getattr__(name):
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    def __dir__():
        return sorted(homes)

    return __getattr__, __dir__, list(homes)
