"""Shared by the commands: tables of options, the model, the messages of a question, checks of files.

A row of a table is (name and metavar, type, help), and further keywords of argparse if needed. In addition to types of one
value, bool is a switch, list may be given several times, and of a tuple of choices the first is the default. A row that is
a string starts a group of this title.
"""

import os
import re
import sys
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import check_writable, format_bytes

PIXELS = (
    ("--min-pixels N", int, "enlarge images and frames with fewer pixels than this"),
    ("--max-pixels N", int, "shrink images and frames with more pixels than this"),
)
FRAMES = (
    ("--fps X", float, "frames to take per second of video (2)"),
    ("--nframes N", int, "or the number of frames to take of a video"),
)
WEIGHTS = (
    "--weights",
    ("bfloat16", "float32", "resident"),
    "weights as stored (default); upcast: twice the memory; or as stored, copied into memory",
)
BACKEND = (
    "--backend",
    (None, "numba", "numpy"),
    "compiled kernels or the plain NumPy reference; default: numba, and numpy for one answer of the small model",
)
MODEL = (
    ("--model PATH", str, "a checkpoint folder, a .safetensors file, or a hub id org/name"),
    WEIGHTS,
    BACKEND,
    ("--memory-limit SIZE", str, "upper limit, such as 4GB: weights that do not fit are read when they are needed"),
)
ANSWER = (
    ("--max-new-tokens N", int, "upper limit on the tokens of the answer"),
    ("--temperature X", float, "sample tokens, the more randomly the larger; 0 always takes the likeliest"),
    ("--top-k N", int, "sample among the N likeliest tokens"),
    ("--top-p P", float, "sample among the likeliest tokens that together have probability P"),
    ("--repetition-penalty X", float, "above 1: avoid tokens that occurred before"),
    ("--seed N", int, "make sampling repeatable"),
    *PIXELS,
    *FRAMES,
)
RUN = ("model", *MODEL, "answer (default: the model's generation_config.json)", *ANSWER)
SCENE = ("--scene N", int, "a drawn scene of coloured shapes, minivl.tiny.scene(N), as the image")
PROMPT = (
    ("files FILE", str, "images and videos, in the order in which the model sees them", {"nargs": "*"}),
    ("question QUESTION", str, None),
    SCENE,
)
DEFAULT_QUESTION = "Describe the picture."
IMAGE_AND_QUESTION = (
    ("image IMAGE", str, "an image or a video; without one, a scene is drawn", {"nargs": "?"}),
    ("question QUESTION", str, f'default: "{DEFAULT_QUESTION}"; walk asks for a colour in a scene', {"nargs": "?"}),
    SCENE,
)
SIZES = "3B, 7B, 32B, 72B, a folder with a config.json, or such a file; default: the model that ships"
CONFIG_SOURCE = ("source MODEL", str, SIZES, {"nargs": "?"})
TOKENS = ("--tokens", bool, "print on stderr the tokens of each image, of text and answer, and the time they took")


def add_options(parser, rows):
    """Add the arguments and options of a table to a parser."""
    group = None
    for row in rows:
        if isinstance(row, str):
            group = parser.add_argument_group(row)
            continue
        names, kind, text, *keywords = row
        flags = [name for name in names.split() if name.startswith("-")] or names.split()[:1]
        settings = {} if names.endswith(flags[-1]) else {"metavar": names.split()[-1]}
        if kind is bool:
            settings["action"] = "store_true"
        elif kind is list:
            settings |= {"action": "append", "default": []}
        elif isinstance(kind, tuple):
            settings |= {"choices": [choice for choice in kind if choice is not None], "default": kind[0]}
        else:
            settings["type"] = kind
        (group or parser).add_argument(*flags, help=text, **settings, **dict(*keywords))


def values(options, rows):
    """{argument of the library: value} of the options in a table."""
    names = [row[0].split()[0].removeprefix("--").replace("-", "_") for row in rows]
    return {name: getattr(options, name) for name in names}


def answer_options(options):
    return values(options, ANSWER)


def prepare_run(options):
    """(model, messages, options of the answer). Errors of the question and of files come before the model is loaded."""
    messages = build_messages(options)
    return load_model(options), messages, answer_options(options)


def load_model(options, one_answer=False):
    """The model of the options.

    one_answer  true: the small model runs on the NumPy kernels, which answer before the compiled ones are loaded
    """
    from minivl.vlm import load

    backend = options.backend or ("numpy" if one_answer and options.model is None else None)
    vlm = load(options.model, options.weights, backend, memory_limit=options.memory_limit)
    if vlm.offloader is not None and options.memory_limit is None:
        print(
            f"minivl: the weights, {format_bytes(vlm.weights.nbytes)}, do not fit in memory; they are read from disk when "
            f"they are needed. Memory is limited to {format_bytes(vlm.offloader.limit)}; --memory-limit sets another limit.",
            file=sys.stderr,
        )
    return vlm


# ---- files ----


def check_output(option, path, inputs, model=None):
    """Check that a result can be written to `path` and overwrites nothing that this command reads, before minutes are spent.

    option  its name for messages;  inputs  files that are read;  model  the --model, a file or a folder
    """
    if path is None:
        return
    check_writable(path)
    target = Path(path)
    if any(is_same_file(target, Path(name)) for name in inputs):
        raise Error(f"{option} {path} would overwrite a file that is read. Give another file.")
    if model is not None and target.exists() and is_part_of(target, Path(model)):
        raise Error(f"{option} {path} would overwrite a file of the model. Give another file.")


def is_same_file(a, b):
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False


def is_part_of(path, model):
    """Whether a path is the model's file, or lies in its folder."""
    return is_same_file(path, model) or (model.is_dir() and path.resolve().is_relative_to(model.resolve()))


# ---- messages ----


def build_messages(options):
    """Messages of the files, or of the scene of --scene, and the question."""
    if os.path.isfile(options.question):  # Path.is_file fails on long questions
        raise Error(f'{options.question} is a file: put a question behind it, such as "What is in the picture?".')
    if options.scene is None:
        return messages_of([media_item(file) for file in options.files], options.question)
    if options.files:
        raise two_images(options.scene, ", ".join(options.files))
    return messages_of([{"type": "image", "image": draw_scene(options.scene).image}], options.question)


def image_and_question(options, ask=None):
    """(part of a message, question, `Scene` or None) of IMAGE, QUESTION and --scene; without an image, of scene 0.

    With --scene, a lone argument is the question, unless it looks like a file. ask: a function that words a question about
    a scene if none was given; DEFAULT_QUESTION is used if it is None or returns None.
    """
    image, question = options.image, options.question
    is_file = image is not None and (os.path.isfile(image) or re.fullmatch(r"\S+\.\w{2,5}", image) is not None)
    if image is not None and options.scene is not None:
        if question is not None or is_file:
            raise two_images(options.scene, image)
        image, question = None, image
    if image is not None:
        if question is None and " " in image and not is_file:
            raise Error(f"there is no image {image}. To ask that about a drawn scene, add --scene 0.")
        return media_item(image), question or DEFAULT_QUESTION, None
    scene = draw_scene(options.scene or 0)
    question = question or (ask and ask(scene)) or DEFAULT_QUESTION
    return {"type": "image", "image": scene.image}, question, scene


def draw_scene(seed):
    """The `Scene` of --scene."""
    from minivl.tiny import scene

    if seed < 0:
        raise Error(f"--scene {seed}: scenes are numbered from 0.")
    return scene(seed)


def two_images(seed, image):
    return Error(f"--scene {seed} draws an image, and {image} is one: leave one of them out.")


def messages_of(items, question):
    """Messages of one question, with items before its text."""
    return [{"role": "user", "content": [*items, {"type": "text", "text": question}]}]


def media_item(file):
    """A file of the command line as a part of a message: an opened video or image."""
    from minivl.processing.load_image import open_image
    from minivl.processing.load_video import is_video, open_video

    return (
        {"type": "video", "video": open_video(file)} if is_video(file) else {"type": "image", "image": open_image(file)}
    )
