"""The command line: `minivl walk`, `ask`, `chat`, `trace`, `compare`, `bench`, ...

Results on stdout; progress, advice, errors on stderr.
"""

import argparse
import sys
import warnings

from minivl import commands, console
from minivl.errors import Error

DESCRIPTION = """\
Qwen2.5-VL on the CPU, in NumPy and Numba, made to be understood.

  minivl walk                              draw a scene, ask about it, and show every step to the answer
  minivl walk photo.jpg "What is this?"    the same for your picture and question
  minivl ask photo.jpg "What is this?"     only the answer
  minivl ask clip.mp4 "What happens?"      the same of a video: mp4, webm, animated GIF or WebP
  minivl chat                              a conversation: questions line by line, with @photo.jpg wherever you like
  minivl walk --step                       wait at every step: look, explain, change something, go on, go back
  minivl trace photo.jpg "What is this?" -o run.safetensors     record every tensor of a run
  minivl compare a.safetensors b.npz       two recordings of one prompt: where they part first, and why
  minivl what-if no-window-attention       a known bug of ports: what moves, what becomes of the answer
  minivl record-reference photo.jpg "?"    such a recording from Hugging Face transformers
  minivl report photo.jpg "What is this?" -o run.html           a page to browse the run: where it looked, layer by layer
  minivl bench                             how fast it is, beside transformers, llama.cpp and what the machine allows
  minivl plan 72B --image 1080x1920        what a run of any size takes: operations, memory, seconds, without weights
  minivl summary 7B                        the module tree and the table of parameters

Without --model walk, ask, chat, trace and report use the small trained model that ships with minivl: it knows coloured
shapes and digits.
"""
TOKENS = "say on stderr how many tokens each picture, the text and the answer had, and how long it took"


def main(arguments=None):
    """Run one command; returns the exit status."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" for what it lacks
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"minivl: {message}", file=sys.stderr)
            return options.run(options) or 0
    except Error as error:
        print(f"minivl: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `minivl walk | head`: nobody reads on
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("minivl: interrupted", file=sys.stderr)
        return 130


def parser():
    top = argparse.ArgumentParser(
        "minivl", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")
    walk = subparsers.add_parser("walk", help="show every step from a picture or video to an answer")
    walk.add_argument("image", nargs="?", metavar="IMAGE", help="a picture or a video; without one, a scene is drawn")
    walk.add_argument("question", nargs="?", metavar="QUESTION", help='default: "Describe the picture."')
    walk.add_argument("--scene", type=int, metavar="N", help="which scene to draw, if none is given (default 0)")
    walk.add_argument("--step", action="store_true", help="wait at every step: look, explain, change, go on, go back")
    walk.set_defaults(run=commands.run_walk)
    ask = subparsers.add_parser("ask", help="answer a question about pictures and videos")
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
    ask.add_argument("--tokens", action="store_true", help=TOKENS)
    ask.set_defaults(run=commands.run_ask)
    talk = subparsers.add_parser("chat", help="a conversation about pictures and videos, question by question")
    talk.add_argument("files", nargs="*", metavar="FILE", help="pictures and videos before the first question")
    talk.add_argument("--system", metavar="TEXT", help="the system prompt (default: that of the model's chat template)")
    talk.add_argument("--tokens", action="store_true", help=TOKENS)
    talk.set_defaults(run=console.run_chat)
    trace, report, what_if = add_trace(subparsers), add_report(subparsers), add_what_if(subparsers)
    for command in (walk, ask, talk, trace, report, what_if):
        add_model_options(command)
        add_answer_options(command)
    add_compare(subparsers)
    add_reference(subparsers)
    add_bench(subparsers)
    add_plan(subparsers)
    add_summary(subparsers)
    return top


def add_trace(subparsers):
    trace = subparsers.add_parser("trace", help="run and record tensors: to a safetensors file, or as a table")
    trace.add_argument("files", nargs="*", metavar="FILE", help="pictures and videos, as of `minivl ask`")
    trace.add_argument("question", metavar="QUESTION")
    trace.add_argument(
        "-o", "--output", metavar="FILE.safetensors", help="write the tensors here while the run goes on"
    )
    trace.add_argument(
        "--keep", action="append", metavar="GLOB", help='names, such as "visual.blocks.*"; several times for more (all)'
    )
    trace.add_argument("--stop", metavar="GLOB", help="end after the first tensor that matches")
    trace.add_argument(
        "--table", action="store_true", help="print shape, range, NaN and outlier channels of each tensor"
    )
    trace.set_defaults(run=commands.run_trace)
    return trace


def add_report(subparsers):
    report = subparsers.add_parser("report", help="run, and write one HTML file to browse what happened")
    report.add_argument("files", nargs="*", metavar="IMAGE", help="pictures and videos, as of `minivl ask`")
    report.add_argument("question", metavar="QUESTION")
    report.add_argument("-o", "--output", metavar="FILE.html", default="run.html", help="the page (default: run.html)")
    report.set_defaults(run=commands.run_report)
    return report


def add_what_if(subparsers):
    what_if = subparsers.add_parser("what-if", help="a known bug of ports: what moves, what becomes of the answer")
    what_if.add_argument("fault", nargs="?", metavar="FAULT", help='without one, all are listed; "all" with --scenes')
    what_if.add_argument(
        "image", nargs="?", metavar="IMAGE", help="a picture or a video; without one, a scene is drawn"
    )
    what_if.add_argument("question", nargs="?", metavar="QUESTION", help='default: "Describe the picture."')
    what_if.add_argument("--scenes", type=int, metavar="N", help="ask about N drawn scenes instead, right and with it")
    what_if.set_defaults(run=commands.run_what_if)
    return what_if


def add_compare(subparsers):
    compare = subparsers.add_parser(
        "compare",
        help="two recordings of one prompt: where they part first, and why",
        epilog="Exit status: 0 if all that was compared agrees, 2 if something differs, 1 on an error.",
    )
    compare.add_argument(
        "ours", metavar="OURS", help=".safetensors or .npz with minivl's names, as trace.save writes it"
    )
    compare.add_argument("theirs", metavar="THEIRS", help=".safetensors or .npz of the other program")
    compare.add_argument(
        "--names", metavar="MAP.json", help='{"ffn_out-{}": "model.layers.{}.mlp.down_proj"}: theirs to ours'
    )
    compare.add_argument(
        "--tolerance", type=float, metavar="X", help="largest error, relative to a tensor's largest value (2e-5)"
    )
    compare.add_argument("--all", action="store_true", help="every row of the table")
    compare.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture of the prompt, to explain a resize"
    )
    compare.add_argument(
        "--model",
        metavar="PATH",
        help="the model: if tensors between were not recorded, it is run with each known mistake",
    )
    compare.add_argument(
        "--config", metavar="PATH", help="config.json, if the first file does not say it and --model is not given"
    )
    compare.set_defaults(run=commands.run_compare)


def add_reference(subparsers):
    reference = subparsers.add_parser(
        "record-reference", help="record a prompt's tensors from Hugging Face transformers"
    )
    reference.add_argument(
        "files", nargs="*", metavar="FILE", help="pictures, in the order in which the model sees them"
    )
    reference.add_argument("question", metavar="QUESTION")
    reference.add_argument("--image", action="append", default=[], metavar="FILE", help="another picture, behind those")
    reference.add_argument("--model", metavar="PATH", help="a checkpoint folder (default: the model that ships)")
    reference.add_argument("-o", "--output", required=True, metavar="FILE.safetensors", help="what to write")
    reference.set_defaults(run=commands.run_reference)


def add_bench(subparsers):
    bench = subparsers.add_parser("bench", help="time it beside other programs and the machine's limits")
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
    bench.set_defaults(run=commands.run_bench)


def add_plan(subparsers):
    plan = subparsers.add_parser("plan", help="what a run takes on this machine, from a config.json alone")
    add_source(plan)
    plan.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="HxW",
        help="a picture's height x width in pixels, such as 1080x1920, or a picture file; may be given several times",
    )
    plan.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="HxWxFRAMES[@RATE]",
        help="a video's height x width in pixels x frames, at 30 a second or RATE, such as 720x1280x900@25, or a video file",
    )
    plan.add_argument("--fps", type=float, metavar="X", help="frames to take of a second of video (2)")
    plan.add_argument("--nframes", type=int, metavar="N", help="or how many frames to take of a video")
    plan.add_argument(
        "--prompt-tokens", type=int, default=40, metavar="N", help="tokens of text, the chat template's included (40)"
    )
    plan.add_argument("--tokens", type=int, default=100, metavar="N", help="tokens in the answer (100)")
    plan.add_argument("--min-pixels", type=int, metavar="N", help="enlarge pictures and frames of fewer pixels")
    plan.add_argument("--max-pixels", type=int, metavar="N", help="shrink pictures and frames of more pixels")
    plan.add_argument("--weights", choices=["bfloat16", "float32"], default="bfloat16", help="as in `minivl ask`")
    plan.add_argument(
        "--tensors", action="store_true", help="list instead every tensor of that run: name, shape, dtype"
    )
    plan.add_argument("--no-seconds", action="store_true", help="measure nothing")
    plan.add_argument("--json", metavar="FILE", help="write the numbers too")
    plan.set_defaults(run=commands.run_plan)


def add_summary(subparsers):
    summary = subparsers.add_parser("summary", help="the module tree and the parameters, from a config.json alone")
    add_source(summary)
    summary.add_argument("--depth", type=int, metavar="N", help="levels of the tree that are shown (default: all)")
    summary.set_defaults(run=commands.run_summary)


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


if __name__ == "__main__":
    sys.exit(main())
