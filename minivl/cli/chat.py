"""`minivl chat`: a conversation, question by question. What a line means is in console.py."""

import glob
import os
import sys

from minivl.cli.options import TOKENS, add_run_options, answer_options, load_model
from minivl.errors import Error


def add(subparsers):
    talk = subparsers.add_parser("chat", help="a conversation about pictures and videos, question by question")
    talk.add_argument("files", nargs="*", metavar="FILE", help="pictures and videos before the first question")
    talk.add_argument("--system", metavar="TEXT", help="the system prompt (default: that of the model's chat template)")
    talk.add_argument("--tokens", action="store_true", help=TOKENS)
    return add_run_options(talk)


def run(options):
    """Read lines until there are no more. The exit status: 1 if a line of a filter failed."""
    from minivl.cli.chat_terminal import Console, attached, note

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    files = [attached(file) for file in options.files]  # whatever is wrong with one shows before a model is loaded
    asked = options.system, files, answer_options(options), options.tokens, interactive
    console, failed = Console(load_model(options), *asked), False
    if interactive:
        print("A question, with @picture.png where you like; /help; Ctrl-D ends.")
    for line in typed() if interactive else sys.stdin:
        try:
            if not console.say(line):
                break
        except Error as error:
            note(error)
            failed = True
        except KeyboardInterrupt:
            if not interactive:
                raise
            note("interrupted")
    return int(failed and not interactive)


def typed():
    """Lines from a terminal, with the history, editing and completion of readline where there is one."""
    try:
        import readline
    except ImportError:  # not on Windows
        pass
    else:
        readline.set_completer_delims(" \t\n")
        readline.set_completer(completed)
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:  # of a line that is half written
            print()
        except EOFError:
            print()
            return


def completed(word, index):
    """The index-th way to complete @part-of-a-name; None if there are no more."""
    if not word.startswith("@"):
        return None
    start = word[1:]
    found = sorted(glob.glob(glob.escape(os.path.expanduser(start)) + "*"))
    names = [f"@{name}/" if os.path.isdir(name) else f'@"{name}"' if " " in name else f"@{name}" for name in found]
    return names[index] if index < len(names) else None
