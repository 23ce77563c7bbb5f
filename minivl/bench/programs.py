"""The programs that `minivl bench` times, each in a process of its own.

    with Process(Minivl, folder, workloads, threads=2) as program:
        times, result, peak = program.time("decode")

Thread pools wait by spinning: in one process, the pools of two programs would slow each other down. Peak memory, too, is a
property of a process. A program is a class, made from a checkpoint folder and {name: Workload}, with run(name) -> (seconds,
result). Here are the engine and the limits of the machine; other programs are in peers.py.
"""

import contextlib
import mmap
import multiprocessing
import os
import time
from pathlib import Path
from unittest import mock

import numpy as np

from minivl.bench.workloads import TOGETHER
from minivl.errors import Error
from minivl.model.kv_cache import batch
from minivl.stream import drive, run
from minivl.vlm import VLM, load

OURS = "minivl"  # its name in reports
LEAST = 0.1  # least seconds of a measurement: short work is repeated
LONG = 1.0  # seconds from which the first run counts too
PAUSE = 0.05  # seconds before a measurement, in which the threads of other programs go to sleep
READ = 1 << 30  # bytes to read: much more than any cache
TRIES = 3  # of each way to read
SIDE = 2048  # of the matrices to multiply
LIMITS = {"read": READ, "sgemm": 2 * SIDE**3, "fma": 2 * SIDE**3}  # bytes, and operations
THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


# ---- the programs ----


class Minivl:
    """The engine's own stages, timed."""

    def __init__(self, folder, workloads):
        self.vlm, self.workloads, self.caches = (vlm := load(folder)), workloads, {}
        self.model = WithFeatures(vlm.config, vlm.weights, vlm.kernels, vlm.folder)

    def run(self, name):
        workload = self.workloads[name]
        return getattr(self, workload.kind)(workload)

    def vision(self, workload):
        return time_stage(self.vlm.embed_image(workload.inputs.pixel_values, workload.inputs.image_grid_thw))

    def prefill(self, workload):
        self.model.features = workload.features
        return time_stage(self.model.prefill(workload.inputs, self.model.new_cache()), after="inputs_embeds")

    def decode(self, workload, prompts=1):
        self.model.features = workload.features
        if workload.name not in self.caches:
            self.caches[workload.name] = [self.prompt_cache(workload) for _ in range(prompts)]
        caches = self.caches[workload.name]
        for cache in caches:
            cache.truncate(len(workload.inputs.input_ids))
            cache.next_position = cache.after
        token = np.repeat(workload.inputs.input_ids[-1:], prompts)
        return time_stage(self.model.decode(token, batch(caches)))

    def together(self, workload):
        return self.decode(workload, TOGETHER)

    def prompt_cache(self, workload):
        """A KV cache that holds the prompt."""
        cache = self.model.new_cache()
        run(self.model.prefill(workload.inputs, cache))
        cache.after = cache.next_position
        return cache


class WithFeatures(VLM):
    """A model whose tower returns given `features`, so that a prefill starts from embeddings."""

    features = None

    def embed_image(self, pixel_values, image_grid_thw, pixel_values_videos=(), video_grid_thw=()):
        yield from ()  # a stage is a generator
        return self.features


def time_stage(stage, after=None):
    """(seconds, result) of a stage, timed from its start, or from the tensor named `after`."""
    steps, began = drive(stage), time.perf_counter()
    while True:
        try:
            name, _ = next(steps)
        except StopIteration as finished:
            return time.perf_counter() - began, finished.value
        if name == after:
            began = time.perf_counter()


class Limits:
    """Limits of the machine: "read" READ bytes of memory, "sgemm" multiply two float32 matrices [SIDE, SIDE] with NumPy,
    "fma" multiply and add as often in registers.

    Memory is read in the fastest of several ways, tried out at the start: one stream or several at once, small or large pages.
    """

    def __init__(self):
        from minivl.kernels.speeds import READERS, multiply_add

        self.multiply_add = multiply_add
        rng = np.random.default_rng(0)
        ways = [(read, words) for words in memory_to_read() for read in READERS]
        self.sum, self.words = min(ways, key=lambda way: min(time_call(*way) for _ in range(TRIES + 1)))
        self.a, self.b = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
        self.product = np.empty((SIDE, SIDE), dtype=np.float32)

    def run(self, name):
        began = time.perf_counter()
        result = getattr(self, name)()
        seconds = time.perf_counter() - began
        return seconds * (LIMITS["fma"] / result if name == "fma" else 1), np.ravel(result)[:1]

    def read(self):
        return self.sum(self.words)

    def sgemm(self):
        return np.matmul(self.a, self.b, out=self.product)

    def fma(self):
        return self.multiply_add(LIMITS["fma"])


def memory_to_read():
    """Arrays uint64 of READ bytes: as NumPy makes them, and where the system offers them, with pages of 2 MB.

    subtle: no two pages are equal. A host may store equal pages of a virtual machine once, and reads them from its caches.
    """
    values = np.arange(READ // 8, dtype=np.uint64) * np.uint64(2654435761)
    yield values
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            space = mmap.mmap(-1, READ)
            space.madvise(mmap.MADV_HUGEPAGE)
            words = np.frombuffer(space, dtype=np.uint64)
            words[:] = values
            yield words


def time_call(function, *arguments):
    """Seconds that a call takes."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


# ---- a process for each ----


class Process:
    """A program in a process of its own; `time(name)` runs a workload there. An Error if it fails or dies."""

    def __init__(self, make, *arguments, threads):
        context = multiprocessing.get_context("spawn")
        self.make, (self.connection, theirs) = make, context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, arguments), daemon=True)
        with mock.patch.dict(
            os.environ, dict.fromkeys(THREADS, str(threads))
        ):  # libraries read them when they are loaded
            self.process.start()
        theirs.close()

    def __enter__(self):
        try:
            self.answer()  # it is ready
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()

    def time(self, name):
        """([seconds, ...], result of the last run as an array, peak memory of the process in bytes or None)"""
        self.connection.send(name)
        return self.answer()

    def answer(self):
        try:
            value, failure = self.connection.recv()
        except EOFError:
            raise Error(f"the process of {self.make.__name__} ended: it probably ran out of memory.") from None
        if failure is not None:
            raise Error(failure)
        return value


def serve(connection, make, arguments):
    """The child's side: make the program, then time workloads by name until the connection is closed."""
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        try:
            program = make(*arguments)
            connection.send((None, None))
            while True:
                connection.send(((*measure(program, connection.recv()), peak_memory()), None))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as cause:
            connection.send((None, f"{make.__name__} failed: {type(cause).__name__}: {cause}"))


def measure(program, name):
    """([seconds, ...], last result): one run, or as many as fit into LEAST seconds.

    The first run starts with sleeping threads and caches full of other programs' data: 4 to 54 % slower where it takes 50 ms.
    It does not count unless it is long; otherwise quick programs, which run several times a turn, would have an advantage.
    """
    time.sleep(PAUSE)
    seconds, result = program.run(name)
    times = [seconds] if seconds >= LONG else []
    while sum(times) < LEAST:
        seconds, result = program.run(name)
        times.append(seconds)
    return times, result


def peak_memory():
    """Peak memory of this process in bytes, mapped files included; None without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
