"""Fuzz the readers of files and answers, guided by coverage: anything but a minivl.Error is a find.

pip install atheris
PYTHONPATH=. python tests/fuzz_readers.py places 100000        # one reader; or all, 20000 each

PYTHONPATH=. python tests/fuzz_readers.py places 100000     # one reader; without arguments: all, 20000 each
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["minivl"]):
    from minivl import Error
    from minivl.answer import grounding
    from minivl.checkpoint.config import Config
    from minivl.checkpoint.safetensors import read_tensors
    from minivl.checkpoint.weights import read_index
    from minivl.compare.recordings import open_recording
    from minivl.model.sampling import Sampling
    from minivl.processing import template_sandbox
    from minivl.processing.image_processor import ImageProcessor
    from minivl.processing.tokenizer_files import read_added_tokens, read_token_names
    from minivl.tiny import CHECKPOINT
    from minivl.trace.trace import Trace

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
template_sandbox.MOST_SECONDS, template_sandbox.MOST_LINES = 0.2, 20_000
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]


def put(name, data):
    (FOLDER / name).write_bytes(data)
    return FOLDER / name


def safetensors(data):
    tensors, _ = read_tensors(put("a.safetensors", data))
    for name in tensors:
        np.asarray(tensors[name]).sum()


def trace(data):
    read = Trace.load(put("a.safetensors", data))
    read.table()
    if read.config is not None and "input_ids" in read.info:
        read.maps  # noqa: B018


def config(data):
    Config.read(put("config.json", data))


def generation(data):
    put("generation_config.json", data)
    Sampling.read(FOLDER, (7,))


def processor(data):
    put("preprocessor_config.json", data)
    ImageProcessor.read(FOLDER)


def tokens(data):
    put("tokenizer_config.json", data)
    read_added_tokens(FOLDER)
    read_token_names(FOLDER)


def index(data):
    read_index(put("model.safetensors.index.json", data))


def template(data):
    try:
        program = template_sandbox.compile_template(data.decode("utf-8", "replace"), "a")
    except Error:
        return
    try:
        program(messages=MESSAGES, add_generation_prompt=True, eos_token="e", tools=None)
    except Exception as cause:  # what Template.render turns into an Error; a crash or a hang is the find
        str(cause)


def places(data):
    text = data.decode("utf-8", "surrogatepass" if data[:1] == b"\xed" else "replace")
    for place in grounding.places(text, (112, 224), (100, 200)):
        assert len(place.original) in (2, 4) and place.label.encode() is not None


def npz(data):
    open_recording(put("a.npz", data))


def pt(data):
    open_recording(put("a.pt", data))


def seeds(reader):
    """Inputs to begin with."""
    checkpoint = Path(CHECKPOINT)
    files = {"config": "config.json", "generation": "generation_config.json", "processor": "preprocessor_config.json",
             "tokens": "tokenizer_config.json"}  # fmt: skip
    if reader in files:
        return [(checkpoint / files[reader]).read_bytes()]
    header = {"a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
              "b": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]}}  # fmt: skip
    metadata = {"format": "minivl-trace", "names": '["a", "chunks.1.a"]', "input_ids": "[1, 510]", "answer": "a", "raw": '"a"',
                "generated_ids": "[1]", "prompt_tokens": "2", "finished": "true", "image_grid_thw": "[[1, 2, 2]]",
                "config": (checkpoint / "config.json").read_text()}  # fmt: skip
    if reader in ("safetensors", "trace"):
        text = json.dumps(({"__metadata__": metadata} if reader == "trace" else {}) | header).encode()
        return [len(text).to_bytes(8, "little") + text + bytes(12)]
    if reader == "index":
        put("shard.safetensors", b"")
        return [b'{"weight_map": {"a": "shard.safetensors", "b": "../x"}}']
    if reader == "template":
        return [json.loads((checkpoint / "chat_template.json").read_text())["chat_template"].encode(),
                b"{{ 'a' * 10**10 }}{{ 'a'|center(99) }}{{ '%9d' % 1 }}{{ [1]|join('b') }}{{ x.format_map({}) }}"]  # fmt: skip
    if reader == "places":
        return [b'```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a \\"b\\""}, {"point_2d": [5, 6.5]}]```',
                b'<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>',
                b'<points x1="1" y1="2" alt="a">b</points><p data-bbox="1 2 3 4">t</p>{"coordinate": [1, 2]}']  # fmt: skip
    file = io.BytesIO()
    if reader == "npz":
        np.savez(file, **{"a": np.ones(3, np.float32), "chunks.1.a": np.zeros((2, 2), np.int64)})
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00b]u.")
    return [file.getvalue()]


READERS = {
    f.__name__: f for f in (safetensors, trace, config, generation, processor, tokens, index, template, places, npz, pt)
}


def fuzz(reader, executions):
    found = set()

    def once(data):
        try:
            READERS[reader](data)
        except Error:
            pass
        except Exception as cause:
            place = next(
                (f for f in reversed(traceback.extract_tb(cause.__traceback__)) if "minivl" in f.filename),
                traceback.extract_tb(cause.__traceback__)[-1],
            )
            if (type(cause), place.filename, place.lineno) not in found:
                found.add((type(cause), place.filename, place.lineno))
                print(
                    f"FOUND in {reader}: {place.filename}:{place.lineno} {cause!r:.300}\n  {data!r:.2000}", flush=True
                )

    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for i, data in enumerate(seeds(reader)):
        (corpus / str(i)).write_bytes(data)
    atheris.Setup(
        [sys.argv[0], f"-runs={executions}", "-max_len=4096", "-timeout=20", "-verbosity=0", str(corpus)], once
    )
    atheris.Fuzz()


def main(names, executions):
    status = 0
    for name in names:
        command = [sys.executable, __file__, "--one", name, str(executions)]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace")
        failed = "FOUND" in run.stdout or run.returncode != 0
        print(f"{name}: {executions} executions, {'' if failed else 'nothing found'}", flush=True)
        if failed:
            status = 1
            print(run.stdout, run.stderr[-2000:], flush=True)
    return status


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--one"]:
        fuzz(arguments[1], int(arguments[2]))
    else:
        numbers = [int(a) for a in arguments if a.isdecimal()]
        sys.exit(main([a for a in arguments if a in READERS] or list(READERS), numbers[0] if numbers else 20_000))
