"""How much time and space a collection takes, from the rows and the plan of a few of its prompts."""

import shutil
import sys
import time

import numpy as np
from tqdm import tqdm

from minivl.dataset.block import build_maps, choices_of, pieces_of, prepare, run_prompt
from minivl.dataset.rows import Selector
from minivl.errors import Error
from minivl.helpers import format_bytes, format_seconds

BLOCK_SECONDS, MOST, BLOCK_BYTES = 30, 256, 256 << 20  # of a block, at most: time, prompts, bytes of rows
QUICK = 0.25  # seconds of a planned run below which prompts are run and timed: a plan leaves out the time of Python


def estimate(vlm, prompts, job):
    """(bytes, seconds) of a prompt, from up to 8 of them: their rows counted, their images prepared, their runs planned.

    Runs of a small model, whose time is that of Python more than that of the kernels, are timed instead.
    """
    chosen = [prompts[int(i)] for i in np.unique(np.linspace(0, len(prompts) - 1, 8).round())]
    ready, sizes, preparing = [], [], []
    for prompt in chosen:
        began = time.perf_counter()
        try:
            inputs = prepare(vlm, prompt, job.options)
            selector = Selector(prompt, build_maps(vlm, inputs), pieces_of(vlm, inputs))
            sizes.append(bytes_of(vlm.config, selector, job))
        except (Error, OSError):
            continue
        preparing.append(time.perf_counter() - began)
        ready.append((prompt, inputs))
    if not ready:
        return 0.0, 1.0
    seconds = np.median(preparing) + plan_seconds(vlm, [inputs for _, inputs in ready], job)
    if seconds < QUICK:
        seconds = time_prompts(vlm, [prompt for prompt, _ in ready], job) or seconds
    return float(np.mean(sizes)), float(seconds)


def plan_seconds(vlm, inputs, job):
    """Seconds of a run by `minivl plan`, the mean over prepared prompts."""
    from minivl.kernels.speeds import calibrate
    from minivl.plan.cost import estimate_seconds
    from minivl.plan.meta_model import MetaModel

    planner, speeds = MetaModel(vlm.config, None, 2), calibrate(1.0)
    costs = [planner.costs(one, max(1, job.max_new_tokens)) for one in inputs]
    return np.mean([
        sum(estimate_seconds(part, speeds, name == "decode") for name, part in cost.items()) for cost in costs
    ])  # fmt: skip


def time_prompts(vlm, prompts, job):
    """Seconds of a prompt, the mean over those that can be run, after one that is not counted; None if none can."""
    times = []
    for prompt in (prompts[0], *prompts):
        began = time.perf_counter()
        try:
            run_prompt(job, vlm, prompt)
        except (Error, OSError):
            continue  # the collection itself says so
        times.append(time.perf_counter() - began)
    return np.mean(times[1:] or times) if times else None


def bytes_of(config, selector, job):
    """Bytes of a prompt's rows."""
    total = 0
    for name, own in job.tensors.items():
        count = 0
        for choice in choices_of(name, job.choices):
            numbers = selector.numbers(choice, own)
            count += 0 if numbers is None else 1 if job.reduce else len(numbers)
        total += count * width_of(config, name) * np.dtype(job.dtype).itemsize
    return total


def width_of(config, name):
    """Numbers in a row of a tensor."""
    from minivl.tensors import catalogue

    part = config.vision if name.startswith("visual") else config.text
    width, heads = part.hidden_size, getattr(part, "num_attention_heads", None) or part.num_heads
    keys, per_head = getattr(part, "num_key_value_heads", heads), width // heads
    sizes = {
        "D": width, "O": config.text.hidden_size, "3D": 3 * width, "4D": 4 * width, "I": part.intermediate_size,
        "P": config.vision.patch_dim, "K": per_head, "H": heads, "KV": keys, "H*K": heads * per_head,
        "KV*K": keys * per_head, "V": config.text.vocab_size,
    }  # fmt: skip
    tensor = catalogue.of(name)
    return int(np.prod([sizes.get(axis, 1) for axis in tensor.axes]))


def block_size(nbytes, seconds):
    """Prompts in a block: about BLOCK_SECONDS, at most BLOCK_BYTES."""
    return int(min(MOST, max(1, BLOCK_SECONDS / max(seconds, 1e-3)), max(1, BLOCK_BYTES / max(nbytes, 1))))


def check_space(path, nbytes):
    folder = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise Error(
            f"the rows take about {format_bytes(nbytes)}, and {folder} has {format_bytes(free)} free. Keep fewer tensors or "
            'rows, reduce them, use dtype="float16", or give another disk.'
        )


def announce(prompts, nbytes, seconds):
    tqdm.write(
        f"{len(prompts):,} prompts: about {format_bytes(nbytes * len(prompts))} and "
        f"{format_seconds(seconds * len(prompts))} of one process",
        file=sys.stderr,
    )
