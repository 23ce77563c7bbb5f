"""`minivl bench --growth`: how time and memory grow with the work, against what `minivl plan` says.

    report = measure_growth("3B-layers", repeats=3)     # a dict of plain values
    print(growth_table(report))                         # growth_report.py

One quantity grows at a time:

    pixels      an image of 224 x 224 to 1120 x 1120: the tower
    frames      a video of 2 to 32 frames of 224 x 224: the tower
    prompt      128 to 4096 tokens of text: the prefill
    cache       one more token after 128 to 8192 in the cache
    together    one more token for each of 1 to 8 sequences with 296 tokens

Time is the median of several runs; the plan's is computed from the speeds of the kernels, which are measured first. Memory is
what NumPy allocates at most during the work, without the weights and the memory used before, in a run of its own; the plan's
is its activations, the keys and values in the cache and the logits.
"""

import datetime
import gc
import statistics
import tracemalloc
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from minivl.bench.programs import time_stage
from minivl.bench.run import checkpoint, describe_machine, number_of_threads, versions
from minivl.bench.workloads import SIZES
from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.kernels import set_threads
from minivl.kernels.speeds import calibrate
from minivl.model.kv_cache import batch
from minivl.plan.cost import estimate_seconds
from minivl.plan.meta_model import MetaModel, dummy_inputs
from minivl.stream import run
from minivl.vlm import load

GROWING = {
    "pixels": (224, 448, 672, 896, 1120),
    "frames": (2, 4, 8, 16, 32),
    "prompt": (128, 512, 1024, 2048, 4096),
    "cache": (128, 1024, 2048, 4096, 8192),
    "together": (1, 2, 4, 8),
}
SIDE = 224  # pixels of a frame
PROMPT = 296  # tokens in the cache of each sequence that is decoded together with others
PIECE = 128  # tokens that are put into a cache at a time
LONG = 2.0  # seconds from which work is not repeated


@dataclass(frozen=True)
class Work:
    """One amount of work. stage: a function that returns a stage not yet run; begins: the tensor after which timing starts.

    planned  (seconds, bytes) of the plan, None for what it does not predict
    """

    quantity: str
    amount: int
    stage: object
    planned: tuple
    begins: str | None = None


def measure_growth(size="tiny", repeats=3, only=(), threads=None, folder=None):
    """Time and memory of growing work, and what the plan says. -> a dict of plain values

    size     as in `bench`;  repeats  runs of each work, of which the median counts
    only     names in GROWING; all if there is none
    threads, folder  as in `bench`
    """
    if size not in SIZES:
        raise Error(f"size={size!r} is unknown. Use one of {', '.join(SIZES)}.")
    unknown = [name for name in only if name not in GROWING]
    if unknown:
        raise Error(f"only={unknown[0]!r}: what grows is {', '.join(GROWING)}.{did_you_mean(unknown[0], GROWING)}")
    if repeats < 1:
        raise Error(f"repeats={repeats}: it must be at least 1.")
    threads = number_of_threads() if threads is None else threads
    set_threads(threads)
    with checkpoint(size, folder) as path:
        speeds = calibrate()  # compiles: the model that ships is then not loaded with the NumPy kernels
        vlm = load(path)
        works = list_works(vlm, only or tuple(GROWING), speeds)
        rows = [measure_work(work, repeats) for work in tqdm(works, desc="growing", leave=False, disable=None)]
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    report = {"date": date, "size": size, "repeats": repeats, "machine": describe_machine(threads)}
    return report | {"versions": versions(), "speeds": speeds, "results": rows}


def measure_work(work, repeats):
    """{quantity, amount, runs, seconds, memory, planned_seconds, planned_memory}; seconds: the median of `runs`"""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        times.append(time_stage(work.stage(), work.begins)[0])
        if times[-1] > LONG:
            break
    counted = times[1:] or times
    seconds, memory = statistics.median(counted), measure_memory(work)
    planned = dict(zip(("planned_seconds", "planned_memory"), work.planned))
    return {
        "quantity": work.quantity,
        "amount": work.amount,
        "runs": len(counted),
        "seconds": seconds,
        "memory": memory,
        **planned,
    }


def measure_memory(work):
    """Peak bytes that NumPy holds during the work, in addition to those before it."""
    gc.collect()
    tracemalloc.start()
    try:
        stage = work.stage()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        run(stage)
        return max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


# ---- the work ----


def list_works(vlm, names, speeds):
    """All `Work` of these quantities, as far as the model's context goes."""
    context = vlm.config.text.max_position_embeddings
    makers = {
        "pixels": grow_image,
        "frames": grow_video,
        "prompt": grow_prompt,
        "cache": grow_cache,
        "together": add_sequences,
    }
    return [
        makers[name](vlm, MetaModel(vlm.config), amount, speeds)
        for name in names
        for amount in GROWING[name]
        if name not in ("prompt", "cache") or amount < context
    ]


def grow_image(vlm, model, side, speeds):
    return tower_work(vlm, model, "pixels", side, (1, *[side // vlm.config.vision.patch_size] * 2), speeds)


def grow_video(vlm, model, frames, speeds):
    vision = vlm.config.vision
    grid = (frames // vision.temporal_patch_size, *[SIDE // vision.patch_size] * 2)
    return tower_work(vlm, model, "frames", frames, grid, speeds)


def tower_work(vlm, model, quantity, amount, grid, speeds):
    inputs = dummy_inputs(vlm.config, [grid], 40, array=random_rows)
    costs = model.costs(model.inputs([grid], 40), tokens=1)["vision"]
    seconds, peak = estimate_seconds(costs, speeds), max(cost.peak for cost in costs)
    return Work(
        quantity,
        amount,
        lambda: vlm.embed_image(inputs.pixel_values, inputs.image_grid_thw),
        (seconds, peak - inputs.pixel_values.nbytes),
    )


def grow_prompt(vlm, model, tokens, speeds):
    inputs = dummy_inputs(vlm.config, [], tokens, array=random_rows)
    costs = model.costs(model.inputs([], tokens), tokens=1)["prefill"]
    planned = estimate_seconds(costs, speeds), max(cost.peak for cost in costs) + cache_bytes(vlm.config.text, tokens)
    return Work("prompt", tokens, lambda: vlm.prefill(inputs, vlm.new_cache()), planned)


def grow_cache(vlm, model, tokens, speeds):
    costs = model.costs(model.inputs([], tokens), tokens=2)["decode"]
    planned = (
        estimate_seconds(costs, speeds, decoding=True),
        cache_bytes(vlm.config.text, tokens + 1) + logit_bytes(vlm.config.text),
    )
    return Work("cache", tokens, lambda: decode(vlm, [tokens]), planned, begins="position_ids")


def add_sequences(vlm, model, count, speeds):
    """`Work` of `count` sequences. The plan knows one sequence at a time: for more, only the bytes are planned."""
    seconds = None
    if count == 1:
        costs = model.costs(model.inputs([], PROMPT), tokens=2)["decode"]
        seconds = estimate_seconds(costs, speeds, decoding=True)
    planned = seconds, count * cache_bytes(vlm.config.text, PROMPT + 1) + logit_bytes(vlm.config.text, count)
    return Work("together", count, lambda: decode(vlm, [PROMPT] * count), planned, begins="position_ids")


def decode(vlm, lengths):
    """Stage: one more token for each sequence, whose cache holds random tokens, as many as `lengths` says."""
    caches = [filled_cache(vlm, length) for length in lengths]
    return (yield from vlm.decode(np.ones(len(lengths), dtype=np.int64), batch(caches)))


def filled_cache(vlm, length):
    """A cache with random keys and values, which affect neither time nor memory."""
    cache, text = vlm.new_cache(), vlm.config.text
    cache.reserve(length + 1)
    rows = random_rows((text.num_key_value_heads, PIECE, text.head_dim))
    for start in range(0, length, PIECE):
        piece = rows[:, : length - start]
        for layer in range(text.num_hidden_layers):
            cache.extend(layer, piece, piece)
        cache.commit(np.ones(piece.shape[1], dtype=np.int64), start + piece.shape[1])
    return cache


def random_rows(shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def logit_bytes(text, rows=1):
    return 4 * rows * text.vocab_size


def cache_bytes(text, tokens):
    return 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens
