"""The command line: `minivl walk`, `ask`, `chat`, `trace`, `compare`, `bench`, ...

Results on stdout; progress, advice, errors on stderr.
"""

import argparse
import sys
import warnings

from minivl.cli import ask, bench, chat, compare, plan, record_reference, report, summary, trace, walk, what_if
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
COMMANDS = (walk, ask, chat, trace, report, what_if, compare, record_reference, bench, plan, summary)


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
    for command in COMMANDS:
        command.add(subparsers).set_defaults(run=command.run)
    return top


if __name__ == "__main__":
    sys.exit(main())
