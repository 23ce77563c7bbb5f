"""The programs that `minivl bench` times. Each runs in a process of its own, with its own threads and memory.

    with Process(Minivl, folder, workloads, threads=2) as program:
        times, result, peak = program.time("decode")

Apart, because thread pools wait by spinning: two of them in one process take turns at starving each other, and whoever is
measured second would pay for the first. And because peak memory belongs to a process.
A program is a class: made from a checkpoint folder and {name: Workload}; run(name) -> (seconds, result). PEERS lists those of
others; another is one more class and one more line there.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivl.config import Config
from minivl.errors import Error
from minivl.model import VLM, load
from minivl.positions import prompt_positions
from minivl.stream import drive, run

OURS = "minivl"  # what this program is called in reports
LEAST = 0.1  # seconds that a measurement takes at least: short work is repeated
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

    def decode(self, workload):
        self.seen.features = workload.features
        if workload.name not in self.caches:
            cache = self.caches[workload.name] = self.seen.new_cache()
            run(self.seen.prefill(workload.inputs, cache))
            cache.after = cache.next_position
        cache = self.caches[workload.name]
        cache.truncate(len(workload.inputs.input_ids))
        cache.next_position = cache.after
        return clocked(self.seen.decode(workload.inputs.input_ids[-1:], cache))


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


class Transformers:
    """Hugging Face transformers, with the same patches, embeddings and positions. dtype "float32" or "bfloat16"."""

    def __init__(self, folder, workloads, dtype):
        os.environ.pop("OMP_WAIT_POLICY", None)  # minivl's choice for its own threads, not torch's
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()  # minivl's own is on the screen
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.torch, self.dtype, self.workloads, self.caches = torch, getattr(torch, dtype), workloads, {}
        self.config = Config.read(folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=self.dtype, attn_implementation="sdpa"
        ).eval()

    def run(self, name):
        workload = self.workloads[name]
        with self.torch.inference_mode():
            seconds, result = getattr(self, workload.kind)(workload)
            return seconds, result.float().numpy()

    def vision(self, workload):
        pixels = self.torch.from_numpy(workload.inputs.pixel_values).to(self.dtype)
        grid = self.torch.from_numpy(workload.inputs.image_grid_thw)
        began = time.perf_counter()
        output = self.model.model.visual(pixels, grid_thw=grid)
        return time.perf_counter() - began, output.pooler_output

    def prefill(self, workload):
        return self.read(workload)[:2]

    def read(self, workload):
        """(seconds, logits, cache) of the prompt, from its embeddings on."""
        embeds, (positions, _) = self.embeds(workload), self.positions(workload)
        began = time.perf_counter()
        output = self.model(inputs_embeds=embeds, position_ids=positions, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began, output.logits[0], output.past_key_values

    def decode(self, workload):
        if workload.name not in self.caches:
            self.caches[workload.name] = self.read(workload)[2]
        cache = self.caches[workload.name]
        token = self.torch.from_numpy(workload.inputs.input_ids[None, -1:])
        position = self.torch.full((3, 1, 1), self.positions(workload)[1])
        began = time.perf_counter()
        output = self.model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True)
        seconds = time.perf_counter() - began
        cache.crop(-1)
        return seconds, output.logits[0]

    def embeds(self, workload):
        """[1, T, D]"""
        ids = self.torch.from_numpy(workload.inputs.input_ids)
        x = self.model.get_input_embeddings()(ids)
        x[ids == self.config.image_token_id] = self.torch.from_numpy(workload.features).to(self.dtype)
        return x[None]

    def positions(self, workload):
        """[3, 1, T], and the position of the token after them."""
        inputs = workload.inputs
        positions, after = prompt_positions(inputs.input_ids, self.config, inputs.image_grid_thw)
        return self.torch.from_numpy(positions)[:, None], int(after)


class Limits:
    """What the machine can do: "read" READ bytes of memory, "sgemm" multiply two float32 matrices [SIDE, SIDE]."""

    def __init__(self):
        from minivl.kernels.machine import read_sum_numba

        rng = np.random.default_rng(0)
        self.sum, self.words = read_sum_numba, np.ones(READ // 8, dtype=np.uint64)
        self.a, self.b = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
        self.product = np.empty((SIDE, SIDE), dtype=np.float32)

    def run(self, name):
        began = time.perf_counter()
        result = self.sum(self.words) if name == "read" else np.matmul(self.a, self.b, out=self.product)
        return time.perf_counter() - began, np.ravel(result)[:1]


# ---- those of others ----


@dataclass(frozen=True)
class Peer:
    """make: its class; arguments: for it, after folder and workloads; size: bytes of a weight in memory; needs: modules."""

    make: type
    arguments: tuple
    size: int
    needs: tuple

    def missing(self):
        """The modules that are not installed."""
        return [module for module in self.needs if importlib.util.find_spec(module) is None]


PEERS = {
    "transformers float32": Peer(Transformers, ("float32",), 4, ("torch", "transformers")),
    "transformers bfloat16": Peer(Transformers, ("bfloat16",), 2, ("torch", "transformers")),
}


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
    """([seconds, ...], last result): one run, or as many as LEAST takes."""
    time.sleep(PAUSE)
    times = []
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
