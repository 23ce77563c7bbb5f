"""What the commands that run a model share: their options, the model, the messages of a question."""

import os
import sys

from minivl.errors import Error
from minivl.helpers import format_bytes

PROMPT_OPTIONS = ("min_pixels", "max_pixels", "fps", "nframes")
ANSWER_OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", *PROMPT_OPTIONS)
TOKENS = "say on stderr how many tokens each picture, the text and the answer had, and how long it took"


def add_run_options(command):
    """Options of every command that runs a model on a prompt; returns the command."""
    add_model_options(command)
    add_answer_options(command)
    return command


def add_model_options(command):
    group = command.add_argument_group("model")
    group.add_argument("--model", metavar="PATH", help="a checkpoint folder, a .safetensors file, or a hub id org/name")
    group.add_argument(
        "--weights",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="keep weights as stored (default) or upcast them at load: twice the memory",
    )
    group.add_argument(
        "--backend",
        choices=["numba", "numpy"],
        default="numba",
        help="compiled kernels (default) or the plain NumPy reference",
    )
    group.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="keep resident memory below this, such as 4GB: weights that do not fit are read from disk as they are needed",
    )


def add_answer_options(command):
    group = command.add_argument_group("answer (what is not given comes from the model's generation_config.json)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens in the answer")
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="draw tokens, the more at random the larger; 0 always takes the likeliest",
    )
    group.add_argument("--top-k", type=int, metavar="N", help="draw among the N likeliest tokens")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the likeliest that together have probability P"
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1: avoid tokens that occurred before"
    )
    group.add_argument(
        "--seed", type=int, metavar="N", help="make random draws repeatable (there are none without sampling)"
    )
    group.add_argument(
        "--min-pixels", type=int, metavar="N", help="enlarge pictures and frames with fewer pixels than this"
    )
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help="shrink pictures and frames with more pixels than this"
    )
    group.add_argument("--fps", type=float, metavar="X", help="frames to take of a second of video (2)")
    group.add_argument("--nframes", type=int, metavar="N", help="or how many frames to take of a video")


def answer_options(options):
    return {name: getattr(options, name) for name in ANSWER_OPTIONS}


def load_model(options):
    from minivl.vlm import load

    vlm = load(options.model, options.weights, options.backend, memory_limit=options.memory_limit)
    if vlm.resident is not None and options.memory_limit is None:
        print(
            f"minivl: the weights, {format_bytes(vlm.weights.nbytes)}, do not fit in memory; they are read from disk when they "
            f"are needed. The program keeps to {format_bytes(vlm.resident.limit)}; --memory-limit sets another limit.",
            file=sys.stderr,
        )
    return vlm


def check_question(options):
    if os.path.isfile(options.question):  # Path.is_file fails on long questions
        raise Error(f'{options.question} is a file: put a question behind it, such as "What is in the picture?".')


def asked(options):
    """Messages of the files and the question."""
    return messages_of([item(file) for file in options.files], options.question)


def messages_of(items, question):
    """Messages of one question, with items before its text."""
    return [{"role": "user", "content": [*items, {"type": "text", "text": question}]}]


def item(file):
    """A file of the command line as part of a message: a video or a picture."""
    from minivl.processing.load_video import is_video

    kind = "video" if is_video(file) else "image"
    return {"type": kind, kind: file}
