"""`minivl collect`: rows of tensors of many prompts, into a store."""

import sys

from minivl.cli.options import FRAMES, PIXELS
from minivl.errors import Error

HELP = "keep rows of tensors of many prompts in a store on disk"
OPTIONS = (
    ("prompts PROMPTS.jsonl", str, 'lines such as {"question": "...", "images": "photo.jpg"}'),
    ("-o STORE.zarr", str, "folder of the store; the same command completes one that is not complete"),
    ("--keep NAME", list, "a tensor, a glob, or model.layers.{i} for all layers; may be given several times"),
    ("--rows CHOICES", str, "which rows, with commas: answer (default), text, word, image, box, mask, window:N, all"),
    ("--reduce", (None, "mean", "max"), "one row for each choice and prompt"),
    ("--dtype", ("float32", "float16"), "numbers in the store (default float32)"),
    ("--model PATH", str, "a checkpoint folder or a hub id org/name (default: the model that ships)"),
    ("--max-new-tokens N", int, "tokens of each answer, kept beside the rows (default 1); 0: none"),
    ("--workers N", str, 'processes on this machine (default 1), or "auto"'),
    ("--scheduler ADDRESS", str, "tcp://... of a Dask scheduler: its workers run the prompts"),
    ("--block N", int, "prompts in a block, the unit of work (default: about 30 seconds)"),
    *PIXELS,
    *FRAMES,
)


def run(options):
    from minivl.dataset.collect import PREPARE_OPTIONS, collect

    if options.o is None:
        raise Error("name the folder of the store: -o store.zarr.")
    if not options.keep:
        raise Error('name the tensors to keep: --keep "model.layers.{i}".')
    given = {name: getattr(options, name, None) for name in PREPARE_OPTIONS}
    rows = "answer" if options.rows is None else options.rows
    workers = "1" if options.workers is None else options.workers
    store = collect(
        options.prompts, options.keep, options.o, rows.split(","), options.reduce, options.dtype,
        options.model, 1 if options.max_new_tokens is None else options.max_new_tokens,
        int(workers) if workers.isdecimal() else workers, options.scheduler, options.block,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    failed = [(id, error) for id, error in zip(store.prompts["id"], store.prompts["error"]) if error]
    for tensor in store.tensors:
        print(f"{tensor}  {store[tensor].dtype} {list(store[tensor].shape)}")
    for id, error in failed[:10]:
        print(f"minivl: prompt {id} did not run: {error}", file=sys.stderr)
    if len(failed) > 10:
        print(f"minivl: ... and {len(failed) - 10:,} more", file=sys.stderr)
