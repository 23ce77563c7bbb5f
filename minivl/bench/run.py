"""`minivl bench`: minivl against other programs on the same weights, and against the limits of the machine.

    report = bench("3B-layers", rounds=5)            # a dict of plain values, every single time included
    print(table(report))                             # report.py

A round measures the machine's limits (reading memory, NumPy's float32 matrix product, multiply-adds in registers) and then
every program on every workload in turn, in reverse in every other round, so that a machine that gets slower does so for all.
The first round warms up and is not counted; nor is, in each turn, a first run of less than a second. The least time for a
workload is

    max(operations / arithmetic, bytes of weights / read)     the "roofline"; workloads.py says what is counted

where arithmetic is NumPy's product ("sgemm") or the multiply-adds ("fma"), whichever is faster, and minivl's share of the limit
is that time over its own. A peer with bfloat16 arithmetic has another limit. Ratio and share are medians of those of each
round, which compare what was measured within seconds; a round counts as the median of its runs.
"""

import contextlib
import datetime
import importlib.metadata
import math
import os
import platform
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minivl.bench.peers import PEERS
from minivl.bench.programs import LIMITS, OURS, READ, Limits, Minivl, Process
from minivl.bench.workloads import (
    SIZES,
    SPARE,
    check_free,
    config_of_size,
    operations,
    random_checkpoint,
    tiny_workloads,
    weight_bytes,
    workloads,
)
from minivl.checkpoint.config import Config
from minivl.checkpoint.memory import system_memory
from minivl.checkpoint.parameters import parameter_shapes
from minivl.errors import Error
from minivl.kernels import runs_on_amx
from minivl.kernels.cache_blocks import read_caches
from minivl.kernels.matmul import blocks_of_machine
from minivl.kernels.records import processor_name
from minivl.tiny import CHECKPOINT
from minivl.vlm import load

CACHED = 256 << 20  # bytes of weights that a cache may hold from one run to the next


def bench(size="tiny", rounds=5, only=(), threads=None, folder=None, peers=True):
    """Run everything; returns the report.

    size     "tiny": the model that ships; "3B-layers": random weights of all the widths, 2 layers and blocks; "3B": all of it
    rounds   number of rounds that count
    only     globs for names of workloads and of peers, such as "vision*" or "*bfloat16"; if none matches a kind, all of it
    threads  of every program; default: NUMBA_NUM_THREADS, or as many as there are cores
    folder   keep the random checkpoint here, or use the one that is there; default: a temporary folder
    """
    if size not in SIZES:
        raise Error(f"size={size!r} is unknown. Use one of {', '.join(SIZES)}.")
    threads = number_of_threads() if threads is None else threads
    if rounds < 1 or threads < 1:
        raise Error(f"rounds={rounds}, threads={threads}: both must be at least 1.")
    config = Config.read(CHECKPOINT) if size == "tiny" else Config.from_dict(config_of_size(size))
    work, programs, left_out = choose_work(size, config, only, peers)
    needed = 2 * sum(math.prod(shape) for shape in parameter_shapes(config).values())
    check_free(system_memory(), needed + READ, "memory", "Use a smaller size=.")
    with checkpoint(size, folder) as path, contextlib.ExitStack() as stack:
        limits = stack.enter_context(Process(Limits, threads=threads))
        running = start_programs(stack, programs, left_out, path, work, threads, needed)
        measurements = run_rounds(limits, running, left_out, work, rounds, unable_pairs(work, programs))
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    report = {"date": date, "size": size, "rounds": rounds}
    report |= {"machine": describe_machine(threads), "versions": versions(), "left_out": left_out}
    return report | summarize(config, work, [*running], *measurements)


# ---- model, workloads, programs ----


@contextlib.contextmanager
def checkpoint(size, folder):
    """The folder of the model to measure; a temporary folder is deleted afterwards."""
    if size == "tiny":
        if folder is not None:
            raise Error("folder= is for random weights; the tiny model ships with its own. Leave it out.")
        yield CHECKPOINT
    elif folder is not None:
        random_checkpoint(folder, config_of_size(size))
        yield Path(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="minivl-bench-") as temporary:
            random_checkpoint(temporary, config_of_size(size))
            yield Path(temporary)


def choose_work(size, config, only, peers):
    """{name: Workload}, {name: Peer}, {peer: why it is left out}: those that `only` allows."""
    every = tiny_workloads(load(backend="numpy")) if size == "tiny" else workloads(config)
    work = {workload.name: workload for workload in every}
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in [*work, *PEERS]):
            raise Error(f"only={pattern!r}: there is no such name. There are: {', '.join([*work, *PEERS])}.")
    work, others, left_out = select(work, only), select(PEERS, only) if peers else {}, {}
    for name, peer in [*others.items()]:
        cannot = [item.name for item in work.values() if item.kind not in peer.kinds]
        if cannot:
            left_out[name] = f"{' and '.join(cannot)}: it has only the text decoder, one prompt at a time"
        if peer.missing():
            left_out[name] = f"{' and '.join(peer.missing())} not installed: {peer.advice}"
        if peer.missing() or len(cannot) == len(work):
            del others[name]
    return work, others, left_out


def select(items, only):
    """The items whose name matches a glob; all if there is none."""
    return {n: item for n, item in items.items() if any(fnmatchcase(n, glob) for glob in only)} or dict(items)


def unable_pairs(work, peers):
    """[(workload, peer)] for workloads that a peer cannot run."""
    return [(item.name, name) for item in work.values() for name, peer in peers.items() if item.kind not in peer.kinds]


def start_programs(stack, peers, left_out, path, work, threads, needed):
    """{name: Process} of minivl and of the peers that fit into memory with it."""
    running = {OURS: stack.enter_context(Process(Minivl, path, work, threads=threads))}
    for name, peer in sorted(peers.items(), key=lambda item: item[1].size):
        try:
            # weights mapped from the file count as available memory, but minivl needs them to stay there
            check_free(system_memory(), needed + needed // 2 * peer.size + SPARE, "memory beside minivl", "")
            running[name] = stack.enter_context(Process(peer.make, path, work, *peer.arguments, threads=threads))
        except Error as cause:
            left_out[name] = str(cause).strip()
    return running


def number_of_threads():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("NUMBA_NUM_THREADS") or cores)


# ---- the rounds ----


def run_rounds(limits, running, left_out, work, rounds, skipped=()):
    """({limit: times}, {(workload, program): times}, {...: first result}, {program: peak memory}); times: a list per round.

    skipped  (workload, program) pairs that are not run
    """
    of_limits, times, results, peaks = {name: [] for name in LIMITS}, {}, {}, {}
    total = (rounds + 1) * sum((name, program) not in skipped for name in work for program in running)
    with tqdm(total=total, desc="bench", leave=False, disable=None) as bar:
        for number in range(rounds + 1):
            for name in LIMITS:
                of_limits[name].append(limits.time(name)[0])
            for name in work:
                for program in program_order(running, number):
                    if (name, program) in skipped:
                        continue
                    bar.set_postfix_str(f"{name}, {program}")
                    try:
                        took, result, peaks[program] = running[program].time(name)
                    except Error as cause:
                        leave_out(program, str(cause), running, left_out)
                        continue
                    times.setdefault((name, program), []).append(took)
                    results.setdefault((name, program), result)
                    bar.update()
    return {n: t[1:] for n, t in of_limits.items()}, {n: t[1:] for n, t in times.items()}, results, peaks


def program_order(running, number):
    """Forwards, and every other round backwards."""
    return [*running][:: -1 if number % 2 else 1]


def leave_out(program, why, running, left_out):
    """Leave out a peer that failed; if minivl failed, raise."""
    if program == OURS:
        raise Error(why)
    left_out[program] = why
    del running[program]


# ---- the report ----


def summarize(config, work, programs, limit_times, times, results, peaks):
    limits = {name: {"rate": LIMITS[name] / quartiles(t)[1], "times": t} for name, t in limit_times.items()}
    pairs = [(work[name], program) for name in work for program in programs if (name, program) in times]
    rows = [row(config, workload, program, limits, times, results) for workload, program in pairs]
    return {"limits": limits, "peak_memory": {program: peaks[program] for program in programs}, "results": rows}


def row(config, workload, program, limits, times, results):
    """One row of the table, in seconds, bytes, operations, and bytes or operations per second.

    times       a list per round; median and quartiles are those of the rounds' medians
    ratio       to minivl's time, median of the rounds'
    bound       the limit that takes longer: "read", or of "sgemm" and "fma" the faster one
    share       of that limit, median of the rounds'; None for other programs than minivl, and where memory is the limit but
                the weights are few enough to stay in a cache
    difference  largest difference of the first result from minivl's, over minivl's largest value
    """
    name, size = workload.name, PEERS[program].size if program in PEERS else 2
    low, median, high = quartiles(times[name, program])
    arithmetic = max(("sgemm", "fma"), key=lambda limit: limits[limit]["rate"])
    costs = {arithmetic: operations(config, workload), "read": weight_bytes(config, workload, size)}
    least = {limit: cost / limits[limit]["rate"] for limit, cost in costs.items()}
    bound = max(least, key=least.get)
    ours, own = results[name, OURS], medians(times[name, program])
    shares = [costs[bound] / LIMITS[bound] * limit / mine for limit, mine in zip(medians(limits[bound]["times"]), own)]
    measurable = program == OURS and (bound != "read" or costs["read"] >= CACHED)
    return {
        "workload": name,
        "program": program,
        "median": median,
        "quartiles": [low, high],
        "ratio": float(np.median([mine / theirs for mine, theirs in zip(own, medians(times[name, OURS]))])),
        "operations": costs[arithmetic],
        "weight_bytes": costs["read"],
        "bound": bound,
        "rate": costs[bound] / median,
        "share": float(np.median(shares)) if measurable else None,
        "difference": float(np.max(np.abs(results[name, program] - ours)) / np.max(np.abs(ours))),
        "times": times[name, program],
    }


def medians(rounds):
    """The median of each round's times."""
    return [float(np.median(times)) for times in rounds]


def quartiles(rounds):
    """Lower quartile, median and upper quartile of the rounds' medians: a fast round, which runs more often, counts once."""
    return [float(value) for value in np.percentile(medians(rounds), [25, 50, 75])]


def describe_machine(threads):
    return {
        "processor": processor_name() or platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory": system_memory("MemTotal"),
        "matmul": "float32 on AMX" if runs_on_amx() else "float32",
        "caches": read_caches(),
        "blocks": blocks_of_machine()._asdict(),
    }


def versions():
    """{package: version}; None if it is not installed."""
    from minivl import __version__

    numbers = {"python": platform.python_version(), "minivl": __version__}
    for name in ("numpy", "numba", "torch", "transformers", "llama-cpp-python", "gguf"):
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = None
    return numbers
