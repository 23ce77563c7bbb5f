"""One block of prompts: run it, choose its rows, describe them, write it so that it counts only when it is whole."""

import json
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minivl.dataset.pictures import thumbnail
from minivl.dataset.rows import OF_LAST_TOKEN, Selector, in_set_order, text_pieces
from minivl.errors import Error
from minivl.helpers import lock, write_whole, writer_name
from minivl.stream import run, value_of
from minivl.tensors.names import parse
from minivl.tensors.tokens import token_text
from minivl.trace.maps import Maps
from minivl.trace.metadata import has_tokenizer

REDUCTIONS = {"mean": np.mean, "max": np.max}
TEXT_COLUMNS = (
    "id",
    "kind",
    "text",
    "question",
    "answer",
    "labels",
    "sources",
    "sizes",
    "error",
)  # others hold integers


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
            "sizes": [json.dumps(sizes)], "thumbnail": [small], "thumbnail_image": [prompt.image], "error": [error],
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
    """Whether all rows of a tensor have arrived; those of a decoder tensor arrive chunk by chunk."""
    return started.get(name, len(maps.input_ids)) >= len(maps.input_ids)


def finish(parts, job, name):
    """The rows of all choices, [rows, ...], reduced and in the type of the store."""
    if job.reduce:  # a choice may have no rows, such as "image" in a prompt of text
        parts = [REDUCTIONS[job.reduce](part, axis=0, keepdims=True) if len(part) else part for part in parts]
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
        append(columns, merge_lines(lines) if reduce and count else lines)
    return columns


def merge_lines(lines):
    """The line of one reduced row: its pixels are the smallest box around those of the rows that it was made of.

    Of several rows no token, text or position is the row's own: -1, and "".
    """
    count = len(lines["rows"])
    merged = {name: values[:1] for name, values in lines.items()} | {"number": [-1], "rows": [count]}
    if count > 1:
        merged |= {name: [-1] for name in ("token", *"thw") if name in lines} | (
            {"text": [""]} if "text" in lines else {}
        )
    image, frame = np.array(lines["image"]), np.array(lines["frame"])
    shown = np.flatnonzero(image >= 0)
    if len(shown):
        same = (image == image[shown[0]]) & (frame == frame[shown[0]])  # of rows of several images, the first one's
        merged |= {"image": [int(image[shown[0]])], "frame": [int(frame[shown[0]])]}
        for name, outermost in (("x0", min), ("y0", min), ("x1", max), ("y1", max)):
            merged[name] = [int(outermost(np.array(lines[name])[same]))]
    return merged


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
    partial = path / "blocks" / f".{name}-{writer_name()}-{uuid.uuid4().hex[:8]}.partial"
    whole = {tensor: parts for tensor, parts in arrays.items() if any(map(len, parts))}
    try:
        for own, columns in index.items():
            write_table(columns, path / "index" / own / f"{name}.parquet")
        write_table(table, path / "prompts" / f"{name}.parquet")
        group = zarr.open_group(partial, mode="w-")
        with lock(partial):
            for tensor, parts in whole.items():
                rows = np.concatenate(parts)
                group.create_array(tensor, data=rows, chunks=rows.shape, compressors=None)
            if sorted(zarr.open_group(partial, mode="r").array_keys()) != sorted(whole):
                raise OSError("another program removed a part of it")
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

    # the types are given: those of an empty column, or of nothing but None, would be unknown
    kinds = dict.fromkeys(TEXT_COLUMNS, pyarrow.string()) | {"thumbnail": pyarrow.binary()}
    table = pyarrow.table({n: pyarrow.array(values, kinds.get(n, pyarrow.int64())) for n, values in columns.items()})
    with write_whole(path) as partial:
        pyarrow.parquet.write_table(table, partial)
