"""Run many prompts and keep chosen rows of chosen tensors on disk, block by block.

    prompts ──▶ blocks of a fixed number of prompts ──▶ one folder each, renamed into place when it is whole

    store.zarr/
        collection.json          model and prompts (digests), tensors, rows, options, versions
        blocks/000012/           zarr group: an array [rows, ...] for each tensor
        index/prompt/000012.parquet     a line for each of these rows: prompt, kind, number, text, pixels; patch, token too
        prompts/000012.parquet   a line for each prompt: question, answer, labels, error

A block is there whole or not at all, so a killed run resumes where it stopped, and several processes can share the work.
Which process ran a block, and how many there were, changes no bit.
"""

import json
import os
import re
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from minivl.dataset.block import REDUCTIONS, Job, run_block, write_block
from minivl.dataset.cluster import run_on_workers
from minivl.dataset.digest import digest_model, digest_prompts
from minivl.dataset.estimate import announce, block_size, check_space, estimate
from minivl.dataset.prompts import check_places, read_prompts
from minivl.dataset.rows import choose_tensors, parse_choices
from minivl.errors import Error
from minivl.helpers import is_locked, is_running, writer_name
from minivl.trace.metadata import versions
from minivl.vlm import PREPARE_OPTIONS, VLM, load

FORMAT = 2  # 2: a reduced row lies in the box around its rows
NEEDED = 'pip install "minivl[dataset]"'
INFO = "collection.json"


def collect(
    prompts, keep, out, rows="answer", reduce=None, dtype="float32", model=None, max_new_tokens=1, workers=1, scheduler=None,
    block=None, **options,
):  # fmt: skip
    """Run prompts and keep rows of their tensors. -> `store.Store`. Resumes where an earlier call with these arguments stopped.

    prompts  a list of prompts, or a file of JSON lines: see prompts.py
    keep     name of a tensor, a glob, or "model.layers.{i}" for the outputs of all layers; or several of these. Tensors of a
             glob that cannot be collected (attention scores and probs) are left out
    out      folder of the store
    rows     which rows: "answer", "box", "word:red", ..., or several: see rows.py
    reduce   None: each row; "mean" or "max": one row for each choice and prompt
    dtype    "float32" or "float16"
    model    a VLM of `minivl.load`, or its source: a folder or a hub id; None: the model that ships
    max_new_tokens  of each answer, which is kept beside the rows; 0: no answer, a prompt ends after the last tensor kept
    workers  processes on this machine; "auto": as many as cores and memory allow
    scheduler  address of a Dask scheduler, "tcp://...", whose workers see `out` and the prompts' files under the same paths
    block    prompts in a block, the unit of work; by default of about 30 seconds
    options  min_pixels, max_pixels, fps, nframes, add_vision_id, as in `VLM.ask`

    A prompt whose image or video cannot be read is recorded with its error, and the others run. Needs zarr and pyarrow.
    """
    check_libraries()
    check_arguments(reduce, dtype, max_new_tokens, workers, block, options)
    prompts, choices = read_prompts(prompts), parse_choices(rows)
    check_places(prompts, choices)
    vlm, arguments = load_model(model, needs_source=scheduler is not None or workers != 1)
    tensors = choose_tensors(vlm.config, keep, choices)
    job = Job(str(out), tensors, choices, reduce, dtype, max_new_tokens, block or 0, arguments, options)
    identity = {"format": FORMAT, "model": digest_model(vlm), "prompts": digest_prompts(prompts), "count": len(prompts)}
    job, todo = open_or_create(vlm, prompts, job, identity)
    blocks = {number: prompts[number * job.block : (number + 1) * job.block] for number in todo}
    with tqdm(total=len(prompts), desc="collecting", unit="prompt", disable=None) as bar:
        bar.update(len(prompts) - sum(map(len, blocks.values())))
        if scheduler is None and workers == 1:
            for number, part in blocks.items():
                write_block(job, number, *run_block(job, vlm, part, bar))
        else:
            run_on_workers(job, blocks, bar, scheduler, workers, vlm)
    from minivl.dataset.store import Store

    return Store(out)


# ---- arguments ----


def check_libraries():
    try:
        import pyarrow  # noqa: F401
        import zarr
    except ImportError as cause:
        raise Error(f"collecting needs zarr and pyarrow ({cause}): {NEEDED}, with Python 3.11 or newer.") from None
    if int(zarr.__version__.split(".")[0]) < 3:
        raise Error(f"zarr {zarr.__version__} is too old: {NEEDED}, with Python 3.11 or newer.")


def check_arguments(reduce, dtype, max_new_tokens, workers, block, options):
    if reduce not in (None, *REDUCTIONS):
        raise Error(f'reduce={reduce!r} is unknown. Use "mean" or "max", or leave it out for each row.')
    if dtype not in ("float32", "float16"):
        raise Error(f'dtype={dtype!r} is unknown. Use "float32" or "float16".')
    if workers != "auto" and (type(workers) is not int or workers < 1):
        raise Error(f'workers={workers!r}: give a number of processes, or "auto".')
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise Error(f"max_new_tokens={max_new_tokens!r}: give an integer, 0 for no answer.")
    if block is not None and (type(block) is not int or block < 1):
        raise Error(f"block={block!r}: give an integer, at least 1: the number of prompts in a block.")
    unknown = [name for name in options if name not in PREPARE_OPTIONS]
    if unknown:
        raise Error(f"{unknown[0]}= is unknown. Options of the prompts are {', '.join(PREPARE_OPTIONS)}.")


def load_model(model, needs_source=False):
    """(VLM, arguments with which a worker loads the same)"""
    if not isinstance(model, VLM):
        arguments = {"source": None if model is None else str(model), "backend": "numba"}
        return load(**arguments), arguments
    model.use_compiled_kernels()
    if needs_source and model.folder is None:
        raise Error(
            "model= was made in memory; several workers load it from a folder. Give workers=1, or a checkpoint."
        )
    if needs_source and getattr(model, "parts", None):
        raise Error("model= has parts of your own, which no worker would load. Give workers=1.")
    weights = {str(model.weights[name].dtype) for name in model.weights.names() if model.weights[name].ndim > 1}
    arguments = {
        "source": None if model.source is None else str(model.source),
        "backend": model.kernels.name,
        "video_positions": model.video_positions,
        "weights": "float32" if weights == {"float32"} else "bfloat16",
        "matmul": "bf16x2" if model.kernels.matmul.startswith("bf16x2") else "float32",
    }
    return model, arguments


# ---- the store, made or opened ----


def open_or_create(vlm, prompts, job, identity):
    """(the job with its size of blocks, numbers of blocks that are to be run)"""
    path = Path(job.out)
    described = describe(job, identity)
    if not (path / INFO).is_file():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise Error(f"{path} is there already and is no store of minivl. Give the name of a new folder.")
        nbytes, seconds = estimate(vlm, prompts, job)
        check_space(path, nbytes * len(prompts))
        announce(prompts, nbytes, seconds)
        create(path, {**described, "block": job.block or block_size(nbytes, seconds)})
    kept = read_info(path)  # another process may have made it meanwhile, with blocks of another size
    check_same(path, kept, described, bool(job.block))
    job = Job(**{**asdict(job), "block": kept["block"], "choices": job.choices})
    remove_leftovers(path)
    done = finished_blocks(path)
    return job, [number for number in range(-(-len(prompts) // job.block)) if number not in done]


def describe(job, identity):
    return {
        **identity,
        "tensors": job.tensors,
        "rows": list(job.choices),
        "reduce": job.reduce,
        "dtype": job.dtype,
        "max_new_tokens": job.max_new_tokens,
        "options": job.options,
        "block": job.block,
        "versions": versions(),
    }


def create(path, described):
    """Make the folders, and then collection.json, unless another process was faster."""
    import zarr

    for folder in ("index/prompt", "index/patch", "index/token", "prompts"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    zarr.open_group(path, mode="a").require_group("blocks")
    partial = path / f".{INFO}.{writer_name()}-{uuid.uuid4().hex[:8]}.partial"
    partial.write_text(json.dumps(described, indent=1, ensure_ascii=False), encoding="utf-8")
    try:
        os.link(partial, path / INFO)  # subtle: a rename would replace what the other process has written
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(partial, path / INFO)
    finally:
        partial.unlink(missing_ok=True)


def read_info(path):
    try:
        return json.loads((Path(path) / INFO).read_bytes())
    except (OSError, ValueError) as cause:
        raise Error(f"{path} is no store of minivl, or a damaged one: {INFO} cannot be read ({cause}).") from None


def check_same(path, kept, asked, block_given):
    """Raise an Error if a store was made by another model, from other prompts, or with other options."""
    meanings = {
        "format": "by another version of minivl's format",
        "model": "by another model",
        "prompts": "from other prompts, or their files have changed",
        "versions": "with other versions of the libraries",
    }
    for name, value in json.loads(json.dumps(asked)).items():
        if name == "block" and not block_given:
            continue
        if kept.get(name) != value:
            how = meanings.get(name, f"with {name}={kept.get(name)!r}, not {value!r}")
            raise Error(f"{path} was made {how}. A store holds one collection: give another out=, or remove it.")


def remove_leftovers(path):
    """Remove what killed processes of this machine left of blocks."""
    host = writer_name().rpartition("-")[0]
    for partial in (path / "blocks").glob(".*.partial"):
        match = re.fullmatch(rf"\.\d+-{re.escape(host)}-(\d+)-[0-9a-f]{{8}}\.partial", partial.name)
        if match and not is_running(int(match[1])) and not is_locked(partial):
            shutil.rmtree(partial, ignore_errors=True)


def finished_blocks(path):
    """Numbers of the blocks that are whole, ascending."""
    return sorted(int(folder.name) for folder in (Path(path) / "blocks").iterdir() if folder.name.isdecimal())
