"""Record a question about pictures in Hugging Face transformers, from the picture on. Needs the [reference] extra.

    record_reference("Qwen/Qwen2.5-VL-3B-Instruct", "What is it?", ["photo.jpg"], "ref.safetensors")

The file has minivl's names, and what `trace.save` writes besides. No code of the preparation is shared with minivl's: it is
transformers' tokenizer, chat template and image processor, its model in float32.
"""

import contextlib
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np

from minivl import chat
from minivl.errors import Error
from minivl.hooks import installed, load_reference, oracle
from minivl.image_file import open_image
from minivl.json_file import read_json
from minivl.names import in_data_flow
from minivl.weights import resolve


def record_reference(source, question, images, path, dtype="float32"):
    """Run a question about pictures in transformers and write every tensor to a safetensors file. -> how many

    source  a checkpoint folder or hub id;  images  anything that `open_image` takes;  path  of the file
    """
    torch, transformers = installed()
    path = Path(path)
    if not path.parent.is_dir():
        raise Error(f"cannot write {path}: the folder {path.parent} does not exist. Make it before.")
    pictures = [open_image(image) for image in images]
    folder = resolve(source)
    prompt, tensors = prepared(folder, question, pictures)
    tensors |= oracle(load_reference(folder, dtype=dtype), **prompt)
    tensors["next_token"] = np.argmax(tensors["lm_head"], axis=1)
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in in_data_flow(tensors)}
    write(tensors, path, folder, {"torch": torch.__version__, "transformers": transformers.__version__})
    return len(tensors)


def write(tensors, path, folder, versions):
    from safetensors.numpy import save_file

    partial = path.with_name(f"{path.name}.partial")
    metadata = {"format": "minivl-reference", "names": json.dumps(list(tensors)), "versions": json.dumps(versions)}
    save_file(tensors, partial, metadata | {"config": json.dumps(read_json(folder / "config.json"))})
    os.replace(partial, path)


def prepared(folder, question, pictures):
    """(arguments of `oracle`, tensors of the preparation): chat template, tokenizer and image processor of transformers.

    Done as its Qwen2_5_VLProcessor does it, which cannot be made without torchvision.
    """
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(chat.user(question, pictures), tokenize=False, add_generation_prompt=True)
    found, prompt = (
        {},
        {"pixel_values": np.zeros((0, 0), dtype=np.float32), "image_grid_thw": np.zeros((0, 3), dtype=np.int64)},
    )
    if pictures:
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        with watched_processor(processor, found):
            made = processor(images=pictures, return_tensors="np")
        prompt = {name: np.asarray(made[name]) for name in ("pixel_values", "image_grid_thw")}
    for grid in prompt["image_grid_thw"]:
        text = text.replace(chat.IMAGE, "<|placeholder|>" * (int(grid.prod()) // 4), 1)
    ids = tokenizer(text.replace("<|placeholder|>", chat.IMAGE))["input_ids"]
    return {"input_ids": np.array(ids, dtype=np.int64), **prompt}, found


@contextlib.contextmanager
def watched_processor(processor, found):
    """What the image processor's own steps return, of each picture in turn."""
    steps = {"resize": ("resized", lambda x: x.transpose(1, 2, 0)), "normalize": ("normalized", np.asarray)}
    steps["patchify"] = ("patches", lambda result: result[0])
    with contextlib.ExitStack() as watch:
        for step, (word, shown) in steps.items():
            watch.enter_context(mock.patch.object(processor, step, spy(getattr(processor, step), word, shown, found)))
        yield


def spy(original, word, shown, found):
    def watched(*args, **kwargs):
        result = original(*args, **kwargs)
        number = sum(name.endswith(word) for name in found)
        found[f"image.{number}.{word}"] = np.array(shown(result))
        return result

    return watched
