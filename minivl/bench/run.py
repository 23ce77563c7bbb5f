"""`minivl bench`: minivl beside others on the same weights, and beside what the machine allows.

    report = bench("3B-layers", rounds=5)            # a dict of plain values, every single time included
    print(table(report))                             # report.py

A round measures the machine's limits (reading memory, multiplying float32 matrices) and then every program on every
workload, in turn, every other round in reverse, so that a machine that gets slower or busier does so for all. The first
round warms up and is not counted; nor is, in each turn, a first run of less than a second. The time that the machine needs
at least for a workload is

    max(operations / sgemm, bytes of weights / read)     the "roofline"; workloads.py says what is counted

and minivl's share of the limit is that time over its own. A peer with bfloat16 arithmetic has another limit than sgemm.
llama.cpp reads a GGUF file, which is written for it and deleted as soon as it has read it.
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
    operations,
    random_checkpoint,
    stored_config,
    tiny_workloads,
    weight_bytes,
    workloads,
)
from minivl.checkpoint.config import Config
from minivl.checkpoint.memory import system_memory
from minivl.checkpoint.parameters import parameter_shapes
from minivl.errors import Error
from minivl.kernels import runs_on_amx
from minivl.tiny import CHECKPOINT
from minivl.vlm import load


def bench(size="tiny", rounds=5, only=(), threads=None, folder=None, peers=True):
    """Run everything; returns the report.

    size     "tiny": the model that ships; "3B-layers": random weights of all the widths, 2 layers and blocks; "3B": all of it
    rounds   how many are counted
    only     patterns for names of workloads and of peers, such as "vision*" or "*bfloat16"; of each kind, those named
    threads  of every program; default: NUMBA_NUM_THREADS, or as many as there are cores
    folder   keep the random checkpoint here, or use the one that is there; default: a temporary one, deleted at the end
    """
    if size not in SIZES:
        raise Error(f"size {size!r} is unknown. There are: {', '.join(SIZES)}.")
    threads = number_of_threads() if threads is None else threads
    if rounds < 1 or threads < 1:
        raise Error(f"{rounds} rounds and {threads} threads: both must be at least 1.")
    config = Config.read(CHECKPOINT) if size == "tiny" else Config.from_dict(stored_config(size))
    work, programs, left_out = chosen(size, config, only, peers)
    needed = 2 * sum(math.prod(shape) for shape in parameter_shapes(config).values())
    check_free(system_memory(), needed + READ, "memory", "Use a smaller --size.")
    with checkpoint(size, folder) as path, contextlib.ExitStack() as stack:
        limits = stack.enter_context(Process(Limits, threads=threads))
        running = started(stack, programs, left_out, path, work, threads, needed)
        seen = interleaved(limits, running, left_out, work, rounds, unable(work, programs))
    report = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "size": size,
        "rounds": rounds,
    }
    report |= {"machine": machine(threads), "versions": versions(), "left_out": left_out}
    return report | summary(config, work, [*running], *seen)


# ---- what is measured ----


@contextlib.contextmanager
def checkpoint(size, folder):
    """The folder of the model to measure; a temporary one is deleted afterwards."""
    if size == "tiny":
        if folder is not None:
            raise Error("--folder is for random weights; the tiny model ships with its own. Leave it out.")
        yield CHECKPOINT
    elif folder is not None:
        random_checkpoint(folder, stored_config(size))
        yield Path(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="minivl-bench-") as temporary:
            random_checkpoint(temporary, stored_config(size))
            yield Path(temporary)


def chosen(size, config, only, peers):
    """{name: Workload}, {name: Peer} and {peer: why it is left out}, after `only`."""
    if size == "tiny":
        found = tiny_workloads(load(backend="numpy"))
    else:
        found = workloads(config)
    work = {one.name: one for one in found}
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in [*work, *PEERS]):
            raise Error(f"--only {pattern}: there is no such name. There are: {', '.join([*work, *PEERS])}.")
    work, others, left_out = named(work, only), named(PEERS, only) if peers else {}, {}
    for name, peer in [*others.items()]:
        cannot = [workload for workload, who in unable(work, others) if who == name]
        if cannot:
            left_out[name] = f"{' and '.join(cannot)}: it is given the text decoder only, one prompt at a time"
        if peer.missing():
            left_out[name] = f"{' and '.join(peer.missing())} not installed: {peer.advice}"
        if peer.missing() or len(cannot) == len(work):
            del others[name]
    return work, others, left_out


def named(things, only):
    """Those that a pattern names; all if none is."""
    kept = {name: thing for name, thing in things.items() if any(fnmatchcase(name, pattern) for pattern in only)}
    return kept or dict(things)


def unable(work, peers):
    """[(workload, peer)] of what a peer cannot do."""
    return [(one.name, name) for one in work.values() for name, peer in peers.items() if one.kind not in peer.kinds]


def started(stack, peers, left_out, path, work, threads, needed):
    """{name: Process} of minivl and of the peers that fit into memory beside it."""
    running = {OURS: stack.enter_context(Process(Minivl, path, work, threads=threads))}
    for name, peer in sorted(peers.items(), key=lambda item: item[1].size):
        try:
            # what is mapped from the file counts as available, and has to stay in memory for minivl's sake
            check_free(system_memory(), needed + needed // 2 * peer.size + SPARE, "memory beside minivl", "")
            with peer.files(path, None if path == CHECKPOINT else path) as files:
                process = Process(peer.make, path, work, *peer.arguments, *files, threads=threads)
                running[name] = stack.enter_context(process)
        except Error as cause:
            left_out[name] = str(cause).strip()
    return running


def number_of_threads():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("NUMBA_NUM_THREADS") or cores)


# ---- the rounds ----


def interleaved(limits, running, left_out, work, rounds, skipped=()):
    """({limit: times}, {(workload, program): times}, {...: first result}, {program: peak memory}); times: a list a round.

    skipped  (workload, program) pairs that are not asked for
    """
    of_limits, times, results, peaks = {name: [] for name in LIMITS}, {}, {}, {}
    total = (rounds + 1) * sum((name, program) not in skipped for name in work for program in running)
    with tqdm(total=total, desc="bench", leave=False, disable=None) as bar:
        for number in range(rounds + 1):
            for name in LIMITS:
                of_limits[name].append(limits.time(name)[0])
            for name in work:
                for program in order(running, number):
                    if (name, program) in skipped:
                        continue
                    bar.set_postfix_str(f"{name}, {program}")
                    try:
                        took, result, peaks[program] = running[program].time(name)
                    except Error as cause:
                        drop(program, str(cause), running, left_out)
                        continue
                    times.setdefault((name, program), []).append(took)
                    results.setdefault((name, program), result)
                    bar.update()
    return {n: t[1:] for n, t in of_limits.items()}, {n: t[1:] for n, t in times.items()}, results, peaks


def order(running, number):
    """Forwards, and every other round backwards."""
    return [*running][:: -1 if number % 2 else 1]


def drop(program, why, running, left_out):
    """A peer that fails is left out; minivl must not fail."""
    if program == OURS:
        raise Error(why)
    left_out[program] = why
    del running[program]


# ---- the report ----


def summary(config, work, programs, limit_times, times, results, peaks):
    limits = {name: {"rate": LIMITS[name] / middle(t)[1], "times": t} for name, t in limit_times.items()}
    done = [(work[name], program) for name in work for program in programs if (name, program) in times]
    rows = [row(config, workload, program, limits, times, results) for workload, program in done]
    return {"limits": limits, "peak_memory": {program: peaks[program] for program in programs}, "results": rows}


def row(config, workload, program, limits, times, results):
    """One line of the table, in seconds, bytes, operations, and those for each second.

    times       every one, a list for each round; median and quartiles are over all of them
    ratio       median over minivl's
    bound       which of the two limits is the nearer one: "read" or "sgemm"
    share       of what that limit allows; None for others than minivl
    difference  largest one between the first result and minivl's, over minivl's largest value
    """
    name, size = workload.name, PEERS[program].size if program in PEERS else 2
    low, median, high = middle(times[name, program])
    costs = {"sgemm": operations(config, workload), "read": weight_bytes(config, workload, size)}
    least = {limit: cost / limits[limit]["rate"] for limit, cost in costs.items()}
    bound = max(least, key=least.get)
    ours = results[name, OURS]
    return {
        "workload": name,
        "program": program,
        "median": median,
        "quartiles": [low, high],
        "ratio": median / middle(times[name, OURS])[1],
        "operations": costs["sgemm"],
        "weight_bytes": costs["read"],
        "bound": bound,
        "rate": costs[bound] / median,
        "share": least[bound] / median if program == OURS else None,
        "difference": float(np.max(np.abs(results[name, program] - ours)) / np.max(np.abs(ours))),
        "times": times[name, program],
    }


def middle(rounds):
    """Lower quartile, median and upper quartile of all times."""
    return [float(value) for value in np.percentile(np.concatenate(rounds), [25, 50, 75])]


def machine(threads):
    return {
        "processor": processor(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory": system_memory("MemTotal"),
        "matmul": "float32 on AMX" if runs_on_amx() else "float32",
    }


def processor():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def versions():
    """Of what matters here; None for what is not installed."""
    from minivl import __version__

    found = {"python": platform.python_version(), "minivl": __version__}
    for name in ("numpy", "numba", "torch", "transformers", "llama-cpp-python", "gguf"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
