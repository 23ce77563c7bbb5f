"""The programs that `minivl bench` times. Each runs in a process of its own, with its own threads and memory.

    with Process(Minivl, folder, workloads, threads=2) as program:
        times, result, peak = program.time("decode")

Apart, because thread pools wait by spinning: two of them in one process take turns at starving each other, and whoever is
measured second would pay for the first. And because peak memory belongs to a process.
A program is a class: made from a checkpoint folder and {name: Workload}; run(name) -> (seconds, result). Here are the engine
and the limits of the machine; those of others are in peers.py.
"""

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

from minivl.bench.workloads import TOGETHER
from minivl.errors import Error
from minivl.model.kv_cache import batch
from minivl.stream import drive, run
from minivl.vlm import VLM, load

OURS = "minivl"  # what this program is called in reports
LEAST = 0.1  # seconds that a measurement takes at least: short work is repeated
LONG = 1.0  # seconds from which on the first run counts, too
PAUSE = 0.05  # seconds of rest before it, for the threads of others to go to sleep
READ = 1 << 30  # bytes that the machine is asked to read: much more than any cache
SIDE = 2048  # of the matrices that it is asked to multiply
LIMITS = {"read": READ, "sgemm": 2 * SIDE**3}  # bytes, and operations
THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


# ---- the programs ----


class Minivl:
    """The engine's own stages, consumed by a clock."""

    def __init__(self, folder, workloads):
        self.vlm, self.workloads, self.caches = load(folder), workloads, {}
        vlm = self.vlm
        self.seen = Seen(vlm.config, vlm.weights, vlm.kernels, vlm.folder)

    def run(self, name):
        workload = self.workloads[name]
        return getattr(self, workload.kind)(workload)

    def vision(self, workload):
        return clocked(self.vlm.embed_image(workload.inputs.pixel_values, workload.inputs.image_grid_thw))

    def prefill(self, workload):
        self.seen.features = workload.features
        return clocked(self.seen.prefill(workload.inputs, self.seen.new_cache()), after="inputs_embeds")

    def decode(self, workload, prompts=1):
        self.seen.features = workload.features
        if workload.name not in self.caches:
            self.caches[workload.name] = [self.cache(workload) for _ in range(prompts)]
        caches = self.caches[workload.name]
        for cache in caches:
            cache.truncate(len(workload.inputs.input_ids))
            cache.next_position = cache.after
        token = np.repeat(workload.inputs.input_ids[-1:], prompts)
        return clocked(self.seen.decode(token, batch(caches)))

    def together(self, workload):
        return self.decode(workload, TOGETHER)

    def cache(self, workload):
        """One that holds the prompt."""
        cache = self.seen.new_cache()
        run(self.seen.prefill(workload.inputs, cache))
        cache.after = cache.next_position
        return cache


class Seen(VLM):
    """A model that has seen the pictures: its tower hands out `features`, and a prefill starts from embeddings."""

    features = None

    def embed_image(self, pixel_values, image_grid_thw, pixel_values_videos=(), video_grid_thw=()):
        return self.features
        yield  # a stage is a generator


def clocked(stage, after=None):
    """(seconds, result) of a stage. The clock starts when the tensor called `after` has passed; without it, at once."""
    steps, began = drive(stage), time.perf_counter()
    while True:
        try:
            name, _ = next(steps)
        except StopIteration as finished:
            return time.perf_counter() - began, finished.value
        if name == after:
            began = time.perf_counter()


class Limits:
    """What the machine can do: "read" READ bytes of memory, "sgemm" multiply two float32 matrices [SIDE, SIDE]."""

    def __init__(self):
        from minivl.kernels.speeds import read_sum_numba

        rng = np.random.default_rng(0)
        self.sum, self.words = read_sum_numba, np.ones(READ // 8, dtype=np.uint64)
        self.a, self.b = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
        self.product = np.empty((SIDE, SIDE), dtype=np.float32)

    def run(self, name):
        began = time.perf_counter()
        result = self.sum(self.words) if name == "read" else np.matmul(self.a, self.b, out=self.product)
        return time.perf_counter() - began, np.ravel(result)[:1]


# ---- a process for each ----


class Process:
    """A program in a process of its own; `time(name)` asks it. An Error if it fails or dies."""

    def __init__(self, make, *arguments, threads):
        context = multiprocessing.get_context("spawn")
        self.make, (self.connection, theirs) = make, context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, arguments), daemon=True)
        with environment(dict.fromkeys(THREADS, str(threads))):
            self.process.start()
        theirs.close()

    def __enter__(self):
        try:
            self.answer()  # that it is ready
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
            raise Error(f"the process of {self.make.__name__} ended: probably memory was too small.") from None
        if failure is not None:
            raise Error(failure)
        return value


def serve(connection, make, arguments):
    """The child's side: make the program, then time what it is asked for, until the parent hangs up."""
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        try:
            program = make(*arguments)
            connection.send((None, None))
            while True:
                connection.send(((*measured(program, connection.recv()), peak_memory()), None))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as cause:
            connection.send((None, f"{make.__name__} failed: {type(cause).__name__}: {cause}"))


def measured(program, name):
    """([seconds, ...], last result): one run, or as many as LEAST takes.

    The first one finds sleeping threads and caches full of other programs' data: 4 to 54 % slower where it takes 50 ms. Unless
    it is long it does not count; otherwise quick programs, which run several times a turn, would have an advantage.
    """
    time.sleep(PAUSE)
    seconds, result = program.run(name)
    times = [seconds] if seconds >= LONG else []
    while sum(times) < LEAST:
        seconds, result = program.run(name)
        times.append(seconds)
    return times, result


def peak_memory():
    """Most bytes that this process has held, mapped files included; None where /proc does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


@contextlib.contextmanager
def environment(changes):
    """Environment variables for the processes that are started meanwhile: libraries read them when they are loaded."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
