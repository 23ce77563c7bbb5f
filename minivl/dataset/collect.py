"""Run many prompts and keep chosen rows of chosen tensors on disk, block by block.

    prompts ──▶ blocks of a fixed number of prompts ──▶ one folder each, renamed into place when it is whole

    store.zarr/
        collection.json          model and prompts (digests), tensors, rows, options, versions
        blocks/000012/           zarr group: an array [rows, ...] for each tensor
        index/prompt/000012.parquet     a line for each of these rows: prompt, kind, number, text, pixels; patch, token too
        prompts/000012.parquet   a line for each prompt: question, answer, labels, error

A block is there whole or not at all, so a run that was killed goes on where it was, and several processes can share the work.
Which process ran a block, and how many there were, changes no bit.
"""

import json
import os
import shutil
import sys
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minivl.dataset.cluster import run_on_workers
from minivl.dataset.digest import digest_model, digest_prompts
from minivl.dataset.pictures import thumbnail
from minivl.dataset.prompts import check_places, read_prompts
from minivl.dataset.rows import OF_LAST_TOKEN, Selector, choose_tensors, in_set_order, parse_choices, text_pieces
from minivl.errors import Error
from minivl.helpers import format_bytes, format_seconds, write_json, write_whole
from minivl.stream import run, value_of
from minivl.tensors.names import parse
from minivl.tensors.tokens import token_text
from minivl.trace.maps import Maps
from minivl.trace.metadata import has_tokenizer, versions

FORMAT = 1
BLOCK_SECONDS, MOST, BLOCK_BYTES = 30, 256, 256 << 20  # of a block, at most: time, prompts, bytes of rows
REDUCTIONS = {"mean": np.mean, "max": np.max}
NEEDED = 'pip install "minivl[dataset]"'
INFO = "collection.json"
PREPARE_OPTIONS = ("min_pixels", "max_pixels", "add_vision_id", "fps", "nframes")


@dataclass(frozen=True)
class Job:
    """What a worker needs to run any block.

    tensors  {name: set};  choices  of rows;  model  arguments of `minivl.load`;  options  of `VLM.prepare`
    """

    out: str
    tensors: dict
    choices: tuple
    reduce: str | None
    dtype: str
    max_new_tokens: int
    block: int
    model: dict
    options: dict = field(default_factory=dict)


def collect(
    prompts, keep, out, rows="answer", reduce=None, dtype="float32", model=None, max_new_tokens=1, workers=1, scheduler=None,
    block=None, **options,
):  # fmt: skip
    """Run prompts and keep rows of their tensors. -> `store.Store`. Goes on where an earlier call with these arguments stopped.

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
    options  min_pixels, max_pixels, fps, nframes, add_vision_id, as of `VLM.ask`

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
        raise Error(f"max_new_tokens={max_new_tokens!r}: give a whole number, 0 for no answer.")
    if block is not None and (type(block) is not int or block < 1):
        raise Error(f"block={block!r}: give a whole number of prompts.")
    unknown = [name for name in options if name not in PREPARE_OPTIONS]
    if unknown:
        raise Error(f"{unknown[0]}= is unknown. Options of the prompts are {', '.join(PREPARE_OPTIONS)}.")


def load_model(model, needs_source=False):
    """(VLM, arguments with which a worker loads the same)"""
    from minivl.vlm import VLM, load

    if not isinstance(model, VLM):
        arguments = {"source": None if model is None else str(model), "backend": "numba"}
        return load(**arguments), arguments
    model.use_compiled_kernels()
    if needs_source and model.folder is None:
        raise Error(
            "model= was made in memory; several workers load it from a folder. Give workers=1, or a checkpoint."
        )
    weights = {str(model.weights[name].dtype) for name in model.weights.names() if model.weights[name].ndim > 1}
    arguments = {
        "source": None if model.folder is None else str(model.folder),
        "backend": model.kernels.name,
        "video_positions": model.video_positions,
        "weights": "float32" if weights == {"float32"} else "bfloat16",
    }
    return model, arguments


# ---- the store, made or opened ----


def open_or_create(vlm, prompts, job, identity):
    """(the job with its size of blocks, numbers of blocks that are to be run)"""
    path = Path(job.out)
    described = describe(job, identity)
    if (path / INFO).is_file():
        kept = read_info(path)
        check_same(path, kept, described, bool(job.block))
        job = Job(**{**asdict(job), "block": kept["block"], "choices": job.choices})
        remove_leftovers(path)
    else:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise Error(f"{path} is there already and is no store of minivl. Give the name of a new folder.")
        nbytes, seconds = estimate(vlm, prompts, job)
        job = Job(**{**asdict(job), "block": job.block or block_size(nbytes, seconds), "choices": job.choices})
        check_space(path, nbytes * len(prompts))
        announce(prompts, nbytes, seconds)
        create(path, {**described, "block": job.block})
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
    import zarr

    for folder in ("index/prompt", "index/patch", "index/token", "prompts"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    zarr.open_group(path, mode="w-" if not (path / "zarr.json").exists() else "r+").require_group("blocks")
    write_json(described, path / INFO)


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
    """Remove what killed processes of this machine left of blocks; those of running ones are younger than a day."""
    for partial in (path / "blocks").glob(".*.partial"):
        process = partial.name.split("-")[-2]
        if not (process.isdecimal() and Path(f"/proc/{process}").exists()):
            shutil.rmtree(partial, ignore_errors=True)


def finished_blocks(path):
    """Numbers of the blocks that are whole, ascending."""
    return sorted(int(folder.name) for folder in (Path(path) / "blocks").iterdir() if folder.name.isdecimal())


# ---- time and size ----


def estimate(vlm, prompts, job):
    """(bytes, seconds) of a prompt: of up to 8 of them, their rows counted and their runs planned."""
    from minivl.kernels.speeds import calibrate
    from minivl.plan.cost import estimate_seconds
    from minivl.plan.meta_model import MetaModel

    chosen = [prompts[int(i)] for i in np.unique(np.linspace(0, len(prompts) - 1, 8).round())]
    planner, speeds = MetaModel(vlm.config, None, 2), calibrate(1.0)
    sizes, times = [], []
    for prompt in chosen:
        try:
            inputs = prepare(vlm, prompt, job.options)
            selector = Selector(prompt, build_maps(vlm, inputs), pieces_of(vlm, inputs))
            sizes.append(bytes_of(vlm.config, selector, job))
        except (Error, OSError):
            continue
        costs = planner.costs(inputs, max(1, job.max_new_tokens))
        times.append(sum(estimate_seconds(part, speeds, name == "decode") for name, part in costs.items()))
    return (np.mean(sizes), np.mean(times)) if sizes else (0.0, 1.0)


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
        f"{len(prompts):,} prompts: about {format_bytes(nbytes * len(prompts))} and, without preparing images, "
        f"{format_seconds(seconds * len(prompts))} of one process",
        file=sys.stderr,
    )


# ---- one block ----


def run_block(job, vlm, prompts, bar=None):
    """Run prompts. -> ({tensor: [rows, ...]}, {set: columns of the index}, columns of the prompts)"""
    arrays = {name: [] for name in job.tensors}
    index = {own: {} for own in set(job.tensors.values())}
    table = {}
    for prompt in prompts:
        answer, error, sizes, small = "", "", [], None
        try:
            taken, lines, answer, sizes = run_prompt(job, vlm, prompt)
            small = thumbnail(prompt)
        except (Error, OSError) as cause:
            if getattr(cause, "stops", False):
                raise
            error = str(cause)
        else:
            for name, rows in taken.items():
                arrays[name].append(rows)
            for own, columns in lines.items():
                append(index[own], columns)
        append(table, {
            "prompt": [prompt.number], "id": [prompt.id], "question": [prompt.question], "answer": [str(answer)],
            "labels": [json.dumps(prompt.labels, ensure_ascii=False, default=plain)],
            "sources": [json.dumps([str(s) if isinstance(s, (str, Path)) else None for s in prompt.sources])],
            "sizes": [json.dumps(sizes)], "thumbnail": [small], "error": [error],
        })  # fmt: skip
        if bar is not None:
            bar.update()
    return arrays, index, table


def plain(value):
    """A NumPy number of the labels as JSON has it."""
    return value.item() if isinstance(value, np.generic) else str(value)


def append(columns, more):
    for name, values in more.items():
        columns.setdefault(name, []).extend(values)


def run_prompt(job, vlm, prompt):
    """({tensor: rows}, {set: columns}, answer, (height, width) of each resized image and video) of one prompt."""
    inputs = prepare(vlm, prompt, job.options)
    maps = build_maps(vlm, inputs)
    selector = Selector(prompt, maps, pieces_of(vlm, inputs))
    chosen = {
        own: {choice: numbers for choice in job.choices if (numbers := selector.numbers(choice, own)) is not None}
        for own in dict.fromkeys(job.tensors.values())
    }
    taken, started = {}, {}  # chunks of a long prompt continue where the one before ended

    def see(name, tensor):
        own_name = parse(name).own
        if parse(name).step or own_name not in job.tensors:
            return
        rows = in_set_order(own_name, value_of(tensor), maps)
        start = 0
        if job.tensors[own_name] == "prompt" and own_name not in OF_LAST_TOKEN:
            start = started.get(own_name, 0)
            started[own_name] = start + len(rows)
        parts = taken.setdefault(own_name, {})
        for choice in choices_of(own_name, job.choices):
            numbers = chosen[job.tensors[own_name]].get(choice)
            if own_name in OF_LAST_TOKEN:
                parts[choice] = [rows[-1:]]
            elif numbers is not None:
                here = numbers[(numbers >= start) & (numbers < start + len(rows))] - start
                parts.setdefault(choice, []).append(rows[here])

    last = next(reversed(job.tensors))
    stop = (
        (lambda name: parse(name).own == last and is_last_chunk(started, last, maps))
        if not job.max_new_tokens
        else None
    )
    answer = run(vlm.answer(inputs, max_new_tokens=max(1, job.max_new_tokens), seed=prompt.number), see, stop)
    text = "" if answer is None or not has_tokenizer(vlm) else vlm.tokenizer.decode(answer.ids)
    tensors = {
        name: finish([np.concatenate(part) for part in parts.values()], job, name) for name, parts in taken.items()
    }
    lines = {own: describe_rows(vlm, prompt, maps, own, choices, job.reduce) for own, choices in chosen.items()}
    return tensors, lines, text, [maps.size(image) for image in range(len(maps.grids))]


def choices_of(name, choices):
    return [choice for choice in choices if choice == "answer" or name not in OF_LAST_TOKEN]


def is_last_chunk(started, name, maps):
    """Whether all rows of a tensor have come; a decoder's come chunk by chunk."""
    return started.get(name, len(maps.input_ids)) >= len(maps.input_ids)


def finish(parts, job, name):
    """The rows of all choices, [rows, ...], reduced and in the type of the store."""
    if job.reduce:
        parts = [REDUCTIONS[job.reduce](part, axis=0, keepdims=True) for part in parts]
    rows = np.concatenate(parts)
    if rows.dtype.kind != "f":
        return rows
    with np.errstate(over="ignore"):
        stored = rows.astype(job.dtype)
    if not np.array_equal(np.isfinite(stored), np.isfinite(rows)):
        error = Error(f'{name} has values up to {np.abs(rows).max():.3g}, beyond float16. Use dtype="float32".')
        error.stops = True
        raise error
    return stored


def prepare(vlm, prompt, options):
    return run(vlm.read(prompt.messages, **options))


def build_maps(vlm, inputs):
    return Maps.of(inputs, vlm.config, vlm.video_positions)


def pieces_of(vlm, inputs):
    return text_pieces(vlm.tokenizer, inputs.input_ids) if has_tokenizer(vlm) else [""] * len(inputs.input_ids)


def describe_rows(vlm, prompt, maps, own, choices, reduce):
    """Columns of the index for one prompt's rows of a set, in the order in which they are stored."""
    columns = {}
    for choice, numbers in choices.items():
        count = len(numbers)
        lines = {"prompt": [prompt.number] * count, "id": [prompt.id] * count, "kind": [choice] * count}
        lines |= {"number": numbers.tolist(), "rows": [1] * count}
        media = numbers if own != "prompt" else np.where(maps.shown[numbers], numbers, -1)
        lines |= places_of(maps, own, media)
        if own == "prompt":
            ids = maps.input_ids[numbers]
            lines |= {"token": ids.tolist(), "text": [token_text(vlm, token) for token in ids]}
            lines |= dict(zip("thw", maps.position_of_prompt(numbers).T.tolist()))
        if reduce:
            lines = {name: values[:1] for name, values in lines.items()} | {"number": [-1], "rows": [count]}
        append(columns, lines)
    return columns


def places_of(maps, own, numbers):
    """Where rows lie: image, frame and pixels of the resized image; -1 for text."""
    shown = numbers >= 0
    result = {name: np.full(len(numbers), -1) for name in ("image", "frame", "x0", "y0", "x1", "y1")}
    if shown.any():
        inner = numbers[shown]
        if own == "prompt":
            inner = maps.token_of_prompt(inner)
        patches = inner if own == "patch" else maps.patches_of_token(inner)[:, 0]
        boxes = maps.pixels_of_patch(inner) if own == "patch" else maps.pixels_of_token(inner)
        for name, values in zip(result, [*maps.places[patches, :2].T, *boxes.T]):
            result[name][shown] = values
    return {name: values.tolist() for name, values in result.items()}


def write_block(job, number, arrays, index, table):
    """Write a block: first what describes it, then its arrays, then the rename that makes it count."""
    import zarr

    path, name = Path(job.out), f"{number:06d}"
    partial = path / "blocks" / f".{name}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    try:
        for own, columns in index.items():
            write_table(columns, path / "index" / own / f"{name}.parquet")
        write_table(table, path / "prompts" / f"{name}.parquet")
        group = zarr.open_group(partial, mode="w-")
        for tensor, parts in arrays.items():
            if parts:
                rows = np.concatenate(parts)
                group.create_array(tensor, data=rows, chunks=rows.shape, compressors=None)
        try:
            os.rename(partial, path / "blocks" / name)
        except OSError:
            if not (path / "blocks" / name).is_dir():
                raise
    except OSError as cause:
        raise Error(
            f"cannot write block {number} of {path}: {cause.strerror or cause}. What was collected before is whole; free some "
            "space if the disk is full, and run the same again."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_table(columns, path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(columns)
    if "thumbnail" in columns:  # of a column of nothing but None the type would be unknown
        at = table.column_names.index("thumbnail")
        table = table.set_column(at, "thumbnail", pyarrow.array(columns["thumbnail"], pyarrow.binary()))
    with write_whole(path) as partial:
        pyarrow.parquet.write_table(table, partial)
