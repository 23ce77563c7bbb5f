"""How much memory there is, and how much this process has: of the machine, of its control group; amounts in words.

available()             # bytes that can still be had, by /proc/meminfo and by the limits of containers; None if unknown
amount("4GB")           # 4000000000
"""

import math
import mmap
import re
from pathlib import Path

from minivl.errors import Error

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def memory(kind="MemAvailable"):
    """Bytes of memory that can be had, or "MemTotal"; None where /proc/meminfo does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return 1024 * kilobytes[kind] if kind in kilobytes else None


def cgroup_room(root="/sys/fs/cgroup", groups="/proc/self/cgroup"):
    """Bytes that the control groups of this process (containers, services) leave it; None if none of them has a limit."""
    try:
        lines = Path(groups).read_text().splitlines()
    except OSError:
        return None
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = Path(root, "memory") if controllers else Path(root)  # version 1 or 2
        folder = top / path.lstrip("/")
        rooms += [_room_in(one) for one in (folder, *folder.parents) if one.is_relative_to(top)]
    return min((room for room in rooms if room is not None), default=None)


def _room_in(folder):
    """What one control group leaves: its limit, less what is used and cannot be given back as file pages can."""
    names = {
        "memory.max": ("memory.current", "file", "shmem"),
        "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_cache", "total_shmem"),
    }
    for limit, (used, files, shared) in names.items():
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(stat[files]) + int(stat[shared])
            return int((folder / limit).read_text()) - taken
        except (OSError, ValueError, KeyError):  # no such file here; or no number but "max": no limit
            continue
    return None


def available():
    """Bytes of memory that this process can still have: of the machine, and of its control group. None if unknown."""
    return min((room for room in (memory(), cgroup_room()) if room is not None), default=None)


def resident():
    """Bytes of this process in memory, mapped files included; None where /proc does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return None


def check_upcast(needed, memory_limit, why):
    """That so many bytes of upcast weights, which are in memory all the time, will fit."""
    room = available() if memory_limit is None else amount(memory_limit) - (resident() or 0)
    if room is not None and needed > max(room, 0):
        raise Error(
            f"{why} takes {gigabytes(needed)} of memory, and there are {gigabytes(max(room, 0))} for it. Weights as they are "
            'stored (weights="bfloat16", of a bfloat16 or float32 checkpoint) are mapped from the file, and only those in use '
            "have to be in memory."
        )


# ---- amounts in words ----


def amount(value, what="memory_limit"):
    """Bytes that `value` says: a number of them, or text such as "4GB", "1.5 GiB", "800M"."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?)(I?)B?\s*", value.upper())
        if found and (found[2] or not found[3]):
            unit = 1024 ** " KMGT".index(found[2]) if found[3] else UNITS[found[2]]
            return int(float(found[1]) * unit)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return int(value)
    raise Error(f'{what}={value!r} is no amount of memory. Give bytes, or text such as "4GB" or "512MiB".')


def gigabytes(number):
    """ "7.51 GB", or "7.5 MB" of what would be none"""
    return f"{number / 1e9:.2f} GB" if number >= 1e7 else f"{number / 1e6:.1f} MB"
