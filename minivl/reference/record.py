"""Record a question about images and videos in Hugging Face transformers, from the image file on. Needs the [reference] extra.

    record_reference("Qwen/Qwen2.5-VL-3B-Instruct", "What is it?", ["photo.jpg"], "ref.safetensors")

The file has minivl's names and metadata. Tokenizer, chat template, image processor and model are transformers' own, the model
in float32. One exception: sampling of video frames and the limits of their size are not in transformers but in qwen-vl-utils;
here they are minivl.processing.video_processor's. Each frame goes through the image processor, as in the transformers that the
model was launched with; transformers 5 has a second processor for videos, which resizes by torchvision instead of Pillow and
differs by some levels of 255.
"""

import contextlib
import json
from pathlib import Path
from unittest import mock

import numpy as np

from minivl.checkpoint.hub import resolve
from minivl.checkpoint.safetensors import bytes_to_reserve, write_tensors
from minivl.errors import Error
from minivl.helpers import check_writable, read_json
from minivl.processing.chat_template import plain_messages
from minivl.processing.image_processor import ImageProcessor
from minivl.processing.load_image import open_image
from minivl.processing.load_video import open_video
from minivl.processing.messages import IMAGE, VIDEO, build_messages, find_media
from minivl.processing.video_processor import frame_limits, sample_frames, seconds_per_grid
from minivl.reference.hooks import import_torch, load_reference, run_reference
from minivl.tensors.catalogue import in_data_flow


def record_reference(source, question, images, path, dtype="float32", videos=None, fps=None, nframes=None):
    """Run a question in transformers and write every tensor to a safetensors file. -> number of tensors

    source    a checkpoint folder or hub id;  question  text, or messages, which name their images and videos themselves
    images    an image or a list of them, as in `open_image`;  videos  as in `open_video`;  path  of the file
    fps, nframes  which frames to take, as in `VLM.ask`

    subtle: after a video transformers 5 counts positions by another rule than minivl's default (positions.py). To compare
    with it, load the model with video_positions="transformers5".
    """
    torch, transformers = import_torch()
    path = Path(path)
    check_writable(path)
    messages = build_messages(question, images or None, videos) if isinstance(question, str) else question
    images, clips = open_media(messages, {"fps": fps, "nframes": nframes})
    folder = resolve(source)
    prompt, tensors = prepare_prompt(folder, messages, images, clips)
    tensors |= run_reference(load_reference(folder, dtype=dtype), **prompt)
    tensors["next_token"] = np.argmax(tensors["lm_head"], axis=1)
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in in_data_flow(tensors)}
    write(tensors, path, folder, {"torch": torch.__version__, "transformers": transformers.__version__})
    return len(tensors)


def open_media(messages, sampling):
    """(images as PIL images, (`Clip`, which frames, how) of each video), in the order of their placeholders."""
    images, videos = find_media(messages, sampling=sampling)
    for _, _, asked in images + videos:
        if more := [name for name, value in asked.items() if value is not None and name not in sampling]:
            raise Error(f"record-reference does not take {more[0]}: give the image in the size that you want.")
    clips = [(open_video(source), asked) for _, source, asked in videos]
    clips = [(clip, sample_frames(clip, **asked), asked) for clip, asked in clips]
    return [open_image(source) for _, source, _ in images], clips


def write(tensors, path, folder, versions):
    metadata = {"format": "minivl-reference", "names": json.dumps(list(tensors)), "versions": json.dumps(versions)}
    metadata["config"] = json.dumps(read_json(folder / "config.json"))
    with write_tensors(path, bytes_to_reserve(tensors, metadata)) as file:
        file.metadata = metadata
        for name, tensor in tensors.items():
            file.add(name, tensor)


def prepare_prompt(folder, messages, images, clips):
    """(arguments of `run_reference`, tensors of the preparation), by the processors of transformers.

    Done as its Qwen2_5_VLProcessor does it, which cannot be made without torchvision.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(plain_messages(messages), tokenize=False, add_generation_prompt=True)
    recorded = {}
    still = [prepare_image(folder, image, f"image.{i}", recorded) for i, image in enumerate(images)]
    moving = [prepare_video(folder, *clip, f"video.{i}", recorded) for i, clip in enumerate(clips)]
    prompt = {"pixel_values": np.zeros((0, 0), dtype=np.float32), "image_grid_thw": np.zeros((0, 3), dtype=np.int64)}
    for media, pixels, grids in (
        (still, "pixel_values", "image_grid_thw"), (moving, "pixel_values_videos", "video_grid_thw"),
    ):  # fmt: skip
        if media:
            prompt[pixels] = np.concatenate([patches for patches, _ in media])
            prompt[grids] = np.array([grid for _, grid in media])
    if moving:
        seconds = [recorded[f"video.{i}.second_per_grid_t"] for i in range(len(clips))]
        prompt["second_per_grid_ts"] = np.concatenate(seconds)
    unit = processor_of(folder).merge_size ** 2
    for placeholder, media in ((IMAGE, still), (VIDEO, moving)):
        for _, grid in media:
            text = text.replace(placeholder, "<|placeholder|>" * (int(np.prod(grid)) // unit), 1)
        text = text.replace("<|placeholder|>", placeholder)
    return {"input_ids": np.array(tokenizer(text)["input_ids"], dtype=np.int64), **prompt}, recorded


def processor_of(folder):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil.from_pretrained(folder)


def prepare_image(folder, image, name, recorded, **limits):
    """(patches, grid) of an image or a frame; `recorded` gets the results of the processor's own steps."""
    processor = processor_of(folder)
    with watch_processor(processor, name, recorded):
        made = processor(images=[image], return_tensors="np", **limits)
    return np.asarray(made["pixel_values"]), np.asarray(made["image_grid_thw"])[0]


def prepare_video(folder, clip, indices, asked, name, recorded):
    """(patches, grid) of a video: the processor doubles each frame; a pair takes one copy of each of its two frames."""
    processor = ImageProcessor.read(folder)
    low, high = frame_limits(processor, clip, len(indices))
    frames, singles = {}, []
    for i, frame in enumerate(clip.frames(indices)):
        size = {"shortest_edge": int(low), "longest_edge": int(high)}
        patches, (_, h, w) = prepare_image(folder, frame, f"frame.{i}", frames, size=size)
        singles.append(patches.reshape(h * w, 3, 2, -1))
    singles += singles[-1:] * (len(singles) % 2)
    pairs = [np.stack([a[:, :, 0], b[:, :, 1]], axis=2).reshape(h * w, -1) for a, b in zip(singles[::2], singles[1::2])]
    recorded[f"{name}.frame_indices"] = indices
    recorded[f"{name}.second_per_grid_t"] = seconds_per_grid(clip, len(indices), 2, asked.get("fps"))
    for word in ("resized", "normalized"):
        recorded[f"{name}.{word}"] = np.stack([frames[f"frame.{i}.{word}"] for i in range(len(indices))])
    recorded[f"{name}.patches"] = np.concatenate(pairs)
    return recorded[f"{name}.patches"], [len(pairs), h, w]


@contextlib.contextmanager
def watch_processor(processor, name, recorded):
    """Keep the results of the image processor's own steps, under this name."""
    steps = {"resize": ("resized", lambda x: x.transpose(1, 2, 0)), "normalize": ("normalized", np.asarray)}
    steps["patchify"] = ("patches", lambda result: result[0])
    with contextlib.ExitStack() as watch:
        for step, (word, shown) in steps.items():
            watch.enter_context(
                mock.patch.object(processor, step, spy(getattr(processor, step), word, shown, name, recorded))
            )
        yield


def spy(original, word, shown, name, recorded):
    def run_step(*args, **kwargs):
        result = original(*args, **kwargs)
        recorded[f"{name}.{word}"] = np.array(shown(result))
        return result

    return run_step
