"""The command line. One module per command: HELP and OPTIONS describe it, `run` runs it.

Results go to stdout; progress, advice and errors to stderr.
"""

import argparse
import contextlib
import importlib
import os
import re
import sys
import warnings

from minivl.cli.options import add_options
from minivl.errors import Error

DESCRIPTION = "Qwen2.5-VL on the CPU, in NumPy and Numba, made to be understood."
EXAMPLES = """\
examples:
  minivl walk                                                draw a scene, ask about it, show every step
  minivl walk "How many circles are there?" --scene 3        your own question about another scene
  minivl ask photo.jpg "What is this?"                       only the answer
  minivl trace photo.jpg "What is this?" -o run.safetensors  record every tensor of a run
  minivl plan 72B --image 1080x1920                          what a run takes, without weights

`minivl COMMAND --help` describes a command. Without --model, the commands that run a model use the small trained one that
ships with minivl: it knows coloured shapes and digits.
"""
COMMANDS = (  # modules of this folder; the command is named like its module, with "-" for "_"
    "walk", "ask", "chat", "trace", "report", "collect", "what_if", "compare", "record_reference", "make_checkpoint", "bench",
    "plan", "summary", "lab",
)  # fmt: skip
# options that are named differently from the library's arguments
RENAMED = {"spill": "-o", "images": "--image", "videos": "--video"}


def main(arguments=None):
    """Run one command; returns the exit status."""
    if sys.stdout is None:
        print("minivl: standard output is closed: there is nowhere to write the result.", file=sys.stderr)
        return 1
    sys.stdin, sys.stderr = (stream or open(os.devnull, mode) for stream, mode in ((sys.stdin, "r"), (sys.stderr, "w")))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" for characters it lacks
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no UTF-8 is refused by itself, by the tokenizer
    try:
        with contextlib.redirect_stdout(Output(sys.stdout)):
            status = run_command(arguments)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        print("minivl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `minivl walk | head`
        discard_output()
        return 0
    except OutputError as error:
        discard_output()
        print(f"minivl: {error}", file=sys.stderr)
        return 1


def run_command(arguments):
    try:
        options, unknown = build_parser().parse_known_args(arguments)
        if unknown:
            options.command.error(f"unrecognized arguments: {' '.join(unknown)}{file_hint(unknown)}")
    except SystemExit:  # after --help
        sys.stdout.flush()
        raise
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"minivl: {message}", file=sys.stderr)
            return options.run(options) or 0
    except Error as error:
        print(f"minivl: {error}{option_names(str(error), options.command)}", file=sys.stderr)
        return 1


def file_hint(unknown):
    """What to do if a file that begins with "-" was taken for an option."""
    files = [name for name in unknown if name.startswith("-") and os.path.isfile(name)]
    return f" (A file? Write ./{files[0]})" if files else ""


class Parser(argparse.ArgumentParser):
    """A parser for which a wrong option is an error like any other: status 1. (2 is `minivl compare`'s "something differs".)"""

    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


class CommandParser(Parser):
    """The parser of one command: options may stand before, between and after its other arguments; "--" ends them.

    subtle: up to Python 3.12, parse_known_intermixed_args calls parse_known_args twice, for the options and for the rest, and
    the first call would drop the "--": what follows it is kept for the second.
    """

    mixing, tail = False, ()

    def parse_known_args(self, args=None, namespace=None):
        if self.mixing:
            namespace, rest = super().parse_known_args(args, namespace)
            rest, self.tail = [*rest, *self.tail], ()
            return namespace, rest
        args, self.mixing = list(args), True
        if "--" in args and not hasattr(argparse.ArgumentParser, "_parse_known_args2"):
            at = args.index("--")
            args, self.tail = args[:at], args[at:]
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixing, self.tail = False, ()


def build_parser():
    top = Parser(
        "minivl", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = top.add_subparsers(required=True, title="commands", metavar="COMMAND", parser_class=CommandParser)
    for name in COMMANDS:
        command = importlib.import_module(f"minivl.cli.{name}")
        epilog = getattr(command, "EPILOG", "")
        layout = argparse.RawDescriptionHelpFormatter if "\n" in epilog else argparse.HelpFormatter
        parser = subparsers.add_parser(name.replace("_", "-"), help=command.HELP, epilog=epilog, formatter_class=layout)
        add_options(parser, command.OPTIONS)
        parser.set_defaults(run=command.run, command=parser)
    return top


def option_names(message, parser):
    """ " (On the command line: --top-k.)" for the arguments, such as top_k=, that an Error of the library names."""
    options = RENAMED | {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    names = [options[name] for name in dict.fromkeys(re.findall(r"\b([a-z_]+)=", message)) if name in options]
    names = [name for name in names if name in parser._option_string_actions and name not in message]
    return f" (On the command line: {', '.join(names)}.)" if names else ""


class OutputError(Exception):
    """Standard output cannot be written. Not an OSError, which argparse drops, nor an Error, after which `chat` continues."""


class Output:
    """A stream that raises an OutputError for every failure except a closed pipe."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        with self._explain():
            return self._stream.write(text)

    def flush(self):
        with self._explain():
            self._stream.flush()

    @contextlib.contextmanager
    def _explain(self):
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as cause:
            raise OutputError(f"cannot write to standard output: {cause.strerror or cause}.") from None


def discard_output():
    """Discard what stdout still buffers, so that Python does not fail on it again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
