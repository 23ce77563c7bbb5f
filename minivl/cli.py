"""The command line: `minivl walk`, `ask`, `bench`, `plan`, `summary`. Results on stdout; progress, advice, errors on stderr."""

import argparse
import os
import sys
from pathlib import Path

from minivl.errors import Error

DESCRIPTION = """\
Qwen2.5-VL on the CPU, in NumPy and Numba, made to be understood.

  minivl walk                              draw a scene, ask about it, and show every step to the answer
  minivl walk photo.jpg "What is this?"    the same for your picture and question
  minivl ask photo.jpg "What is this?"     only the answer
  minivl ask clip.mp4 "What happens?"      the same of a video: mp4, webm, animated GIF or WebP
  minivl bench                             how fast it is, beside transformers, llama.cpp and what the machine allows
  minivl plan 72B --image 1080x1920        what a run of any size takes: operations, memory, seconds, without weights
  minivl summary 7B                        the module tree and the table of parameters

Without --model walk and ask use the small trained model that ships with minivl: it knows coloured shapes and digits.
"""


def main(arguments=None):
    """Run one command; returns the exit status."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" for what it lacks
    try:
        options.run(options)
    except Error as error:
        print(f"minivl: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `minivl walk | head`: nobody reads on
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("minivl: interrupted", file=sys.stderr)
        return 130
    return 0


def parser():
    top = argparse.ArgumentParser(
        "minivl", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    walk = commands.add_parser("walk", help="show every step from a picture or video to an answer")
    walk.add_argument("image", nargs="?", metavar="IMAGE", help="a picture or a video; without one, a scene is drawn")
    walk.add_argument("question", nargs="?", metavar="QUESTION", help='default: "Describe the picture."')
    walk.add_argument("--scene", type=int, metavar="N", help="which scene to draw, if none is given (default 0)")
    walk.set_defaults(run=run_walk)
    ask = commands.add_parser("ask", help="answer a question about pictures and videos")
    ask.add_argument(
        "files", nargs="*", metavar="FILE", help="pictures and videos, in the order in which the model sees them"
    )
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument(
        "--draw", metavar="FILE.png", help="draw boxes and points of the answer on the picture, and list them"
    )
    ask.add_argument(
        "--draw-on", type=int, metavar="N", help="which picture they lie in: 1 is the first (default: the last)"
    )
    ask.set_defaults(run=run_ask)
    for command in (walk, ask):
        add_model_options(command)
        add_answer_options(command)
    add_bench(commands)
    add_plan(commands)
    add_summary(commands)
    return top


def add_bench(commands):
    bench = commands.add_parser("bench", help="time it beside other programs and the machine's limits")
    bench.add_argument(
        "--size",
        choices=["tiny", "3B-layers", "3B"],
        default="tiny",
        help="the model that ships (default); random weights with all widths of the 3B and 2 layers; the whole 3B "
        "(7.5 GB of disk, for llama.cpp 6.2 GB more)",
    )
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds that count, after one to warm up (5)")
    bench.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help='workloads or peers, such as decode "vision*" "llama*"'
    )
    bench.add_argument("--threads", type=int, metavar="N", help="of every program (default: one for each core)")
    bench.add_argument("--folder", metavar="DIR", help="keep the random weights here, or use those that are there")
    bench.add_argument("--json", metavar="FILE", help="write everything, every single time included")
    bench.add_argument("--picture", metavar="FILE.png", help="draw the roofline; needs matplotlib")
    bench.add_argument("--no-peers", action="store_true", help="minivl alone")
    bench.set_defaults(run=run_bench)


def add_plan(commands):
    plan = commands.add_parser("plan", help="what a run takes on this machine, from a config.json alone")
    add_source(plan)
    plan.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="HxW",
        help="a picture's height x width in pixels, such as 1080x1920, or a picture file; may be given several times",
    )
    plan.add_argument(
        "--prompt-tokens", type=int, default=40, metavar="N", help="tokens of text, the chat template's included (40)"
    )
    plan.add_argument("--tokens", type=int, default=100, metavar="N", help="tokens in the answer (100)")
    plan.add_argument("--min-pixels", type=int, metavar="N", help="enlarge pictures with fewer pixels than this")
    plan.add_argument("--max-pixels", type=int, metavar="N", help="shrink pictures with more pixels than this")
    plan.add_argument("--weights", choices=["bfloat16", "float32"], default="bfloat16", help="as in `minivl ask`")
    plan.add_argument(
        "--tensors", action="store_true", help="list instead every tensor of that run: name, shape, dtype"
    )
    plan.add_argument("--no-seconds", action="store_true", help="measure nothing")
    plan.add_argument("--json", metavar="FILE", help="write the numbers too")
    plan.set_defaults(run=run_plan)


def add_summary(commands):
    summary = commands.add_parser("summary", help="the module tree and the parameters, from a config.json alone")
    add_source(summary)
    summary.add_argument("--depth", type=int, metavar="N", help="levels of the tree that are shown (default: all)")
    summary.set_defaults(run=run_summary)


def add_source(command):
    command.add_argument(
        "source",
        nargs="?",
        metavar="MODEL",
        help="3B, 7B, 32B, 72B, a folder with a config.json, or such a file; default: the model that ships",
    )


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


ANSWER_OPTIONS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
    "min_pixels",
    "max_pixels",
    "fps",
    "nframes",
)


def answer_options(options):
    return {name: getattr(options, name) for name in ANSWER_OPTIONS}


def load_model(options):
    from minivl.model import load

    return load(options.model, options.weights, options.backend)


def run_ask(options):
    if not options.files and os.path.isfile(options.question):  # Path.is_file fails on long questions
        raise Error(f'{options.question} is a file: put a question behind it, such as "What is in the picture?".')
    check_drawing(options)
    vlm = load_model(options)
    content = [item(file) for file in options.files] + [{"type": "text", "text": options.question}]
    pieces = vlm.stream([{"role": "user", "content": content}], **answer_options(options))
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as finished:
            answer = finished.value
            break
    print()
    if options.draw is not None:
        show_places(answer if options.draw_on is None else answer.on(options.draw_on - 1), options)


def check_drawing(options):
    """That what is asked for can be drawn, before a model is loaded."""
    from minivl.drawing import picture_format

    if options.draw is None and options.draw_on is not None:
        raise Error("--draw-on chooses the picture to draw on: give --draw FILE.png too.")
    if options.draw is None:
        return
    pictures = picture_files(options)
    if not pictures:
        raise Error("--draw needs a picture to draw on (a video will not do): give one before the question.")
    if options.draw_on is not None and not 1 <= options.draw_on <= len(pictures):
        raise Error(f"--draw-on {options.draw_on}: the pictures are numbered from 1 to {len(pictures)}.")
    picture_format(options.draw)
    if any(Path(options.draw).resolve() == Path(file).resolve() for file in options.files):
        raise Error(f"--draw {options.draw} would overwrite a file that the question is about. Give another file.")


def show_places(answer, options):
    """List boxes and points, in pixels of the picture as the model saw it and as it was given, and write it with them."""
    from minivl.drawing import write

    name, picture, places = picture_files(options)[answer.image], answer.pictures[answer.image], answer.places
    (H, W), (h, w) = picture.resized_size, picture.original_size
    rows = [("", "", f"as the model saw it, {W} x {H}", f"{name}, {w} x {h}")]
    for place in places:
        resized, original = (
            ", ".join(f"{v:.1f}".removesuffix(".0") for v in seen) for seen in (place.resized, place.original)
        )
        beyond = "" if place.inside else "   (beyond the picture)"
        rows.append((type(place).__name__.lower(), " ".join(place.label.split()), resized, original + beyond))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows if places else []:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]))
    write(answer.draw(), options.draw)
    if not places:
        print(f"minivl: there are no boxes or points in the answer; {options.draw} has none.", file=sys.stderr)


def picture_files(options):
    from minivl.frames import is_video

    return [file for file in options.files if not is_video(file)]


def item(file):
    """A file of the command line as part of a message: a video or a picture."""
    from minivl.frames import is_video

    kind = "video" if is_video(file) else "image"
    return {"type": kind, kind: file}


def run_walk(options):
    from minivl.frames import open_video
    from minivl.image import open_image
    from minivl.walk import narrate

    shown, question, truth = options.image, options.question or "Describe the picture.", None
    if shown is None:
        picture, question, truth = drawn_scene(0 if options.scene is None else options.scene)
        shown = {"type": "image", "image": picture}
    elif options.scene is not None:
        raise Error(f"--scene {options.scene} draws a picture, and {shown} is one: leave one of them out.")
    else:
        shown = item(shown)
        check = open_video if shown["type"] == "video" else open_image
        check(options.image)  # before anything is printed
    vlm = load_model(options)
    print(f"Question: {question}\n")
    content = [shown, {"type": "text", "text": question}]
    lines = narrate(vlm, [{"role": "user", "content": content}], **answer_options(options))
    while True:
        try:
            print(next(lines), flush=True)
        except StopIteration as finished:
            answer = finished.value
            break
    print(f"\nAnswer: {answer}")
    if truth is not None:
        print(f"Truth:  {truth}   ({'right' if answer == truth else 'wrong'})")


def run_bench(options):
    from minivl.bench import bench
    from minivl.report import check_files, draw, table, write

    check_files(options.json, options.picture)
    report = bench(
        options.size, options.rounds, options.only, options.threads, options.folder, peers=not options.no_peers
    )
    print(table(report))
    if options.json is not None:
        write(report, options.json)
    if options.picture is not None:
        draw(report, options.picture)


def run_plan(options):
    from minivl.kernels.machine import calibrate
    from minivl.plan import plan, size_of, tensors, text
    from minivl.report import check_files, write

    if options.tensors and options.json is not None:
        raise Error("--tensors prints names and shapes only: leave --json out, or --tensors.")
    check_files(options.json, None)
    asked = {name: getattr(options, name) for name in ("prompt_tokens", "tokens", "min_pixels", "max_pixels")}
    asked |= {"source": options.source, "pictures": [size_of(image) for image in options.image]}
    if options.tensors:
        for name, shape, dtype in tensors(**asked):
            print(f"{name:<45} {str(list(shape)):<22} {dtype}")
        return
    asked["weights"] = options.weights
    found = plan(**asked)  # whatever is wrong shows before anything is measured
    if not options.no_seconds:
        found = plan(**asked, speeds=calibrate())
    print(text(found))
    if options.json is not None:
        write(found, options.json)


def run_summary(options):
    from minivl.plan import outlined
    from minivl.summary import table, tree

    if options.depth is not None and options.depth < 0:
        raise Error(f"--depth {options.depth}: it must be at least 0.")
    config = outlined(options.source).config
    print(f"{tree(config, options.depth)}\n\n{table(config)}")


def drawn_scene(seed):
    """A picture of coloured shapes, a question about it, and the true answer."""
    from minivl.tiny import scene

    if seed < 0:
        raise Error(f"--scene {seed}: scenes are numbered from 0.")
    drawn = scene(seed)
    question, truth = drawn.questions[0]
    width, height = drawn.image.size
    print(f"Scene {seed}: {width} x {height} pixels. Draw another with --scene {seed + 1}.")
    return drawn.image, question, truth


if __name__ == "__main__":
    sys.exit(main())
