"""How much memory the machine, its control groups and this process have.

available_memory()      # bytes that are available, by /proc/meminfo and by the limits of containers; None if unknown
"""

import mmap
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import format_bytes, parse_bytes


def system_memory(field="MemAvailable"):
    """A field of /proc/meminfo in bytes, such as "MemTotal"; None where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return 1024 * kilobytes[field] if field in kilobytes else None


def cgroup_memory(root="/sys/fs/cgroup", groups="/proc/self/cgroup"):
    """Bytes that the control groups of this process (containers, services) leave it; None if none of them has a limit."""
    try:
        lines = Path(groups).read_text().splitlines()
    except OSError:
        return None
    free = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = Path(root, "memory") if controllers else Path(root)  # version 1 or 2
        group = top / path.lstrip("/")
        free += [_free_in_group(folder) for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return min((number for number in free if number is not None), default=None)


def _free_in_group(folder):
    """The limit of one control group, less what is used; file pages do not count, since they can be given back."""
    names = {
        "memory.max": ("memory.current", "file", "shmem"),
        "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_cache", "total_shmem"),
    }
    for limit, (usage, files, shared) in names.items():
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage).read_text()) - int(stat[files]) + int(stat[shared])
            return int((folder / limit).read_text()) - used
        except (OSError, ValueError, KeyError):  # no such file here; or "max", which is no limit
            continue
    return None


def available_memory():
    """Bytes that are available to this process: of the machine, and of its control groups. None if unknown."""
    return min((number for number in (system_memory(), cgroup_memory()) if number is not None), default=None)


def resident_memory():
    """Bytes of this process in memory, mapped files included; None where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return None


STORED = (
    'Weights as they are stored (weights="bfloat16", of a bfloat16 or float32 checkpoint) are mapped from the file, and only '
    "those in use have to be in memory."
)


def check_upcast(needed, memory_limit, why, advice=STORED):
    """Raise an Error unless `needed` bytes of upcast weights, which stay in memory, fit."""
    if memory_limit is None:
        free = available_memory()
    else:
        free = parse_bytes(memory_limit, "memory_limit") - (resident_memory() or 0)
    if free is not None and needed > max(free, 0):
        raise Error(
            f"{why} takes {format_bytes(needed)} of memory, and {format_bytes(max(free, 0))} are free for it. {advice}"
        )
