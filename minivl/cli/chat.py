"""`minivl chat`: read lines and pass them to chat_terminal.ChatTerminal."""

import glob
import os
import sys

from minivl.cli.options import RUN, SCENE, TOKENS, answer_options, load_model
from minivl.errors import Error

HELP = "chat about images and videos; @photo.jpg in a line attaches a file"
OPTIONS = (
    ("files FILE", str, "images and videos before the first question", {"nargs": "*"}),
    SCENE,
    ("--system TEXT", str, "the system prompt (default: that of the model's chat template)"),
    TOKENS,
    *RUN,
)


def run(options):
    """Read lines until there are no more. Exit status 1 if a line failed and no terminal is attached."""
    from minivl.cli.chat_terminal import ChatTerminal, attach_file, attach_scene, note

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    files = [attach_file(file) for file in options.files]  # errors of files come before a model is loaded
    files += [] if options.scene is None else [attach_scene(options.scene)]
    chat = ChatTerminal(
        load_model(options), options.system, files, answer_options(options), options.tokens, interactive
    )
    failed = False
    if interactive:
        print("A question, with @image.png where you like; /help; Ctrl-D ends.")
    for line in read_terminal() if interactive else sys.stdin:
        try:
            if not chat.say(line):
                break
        except Error as error:
            note(error)
            failed = True
        except KeyboardInterrupt:
            if not interactive:
                raise
            note("interrupted")
    return int(failed and not interactive)


def read_terminal():
    """Yield lines from a terminal, with the history, editing and completion of readline where there is one."""
    try:
        import readline
    except ImportError:  # not on Windows
        pass
    else:
        readline.set_completer_delims(" \t\n")
        readline.set_completer(complete)
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:  # drops a line that is half written
            print()
        except EOFError:
            print()
            return


def complete(word, index):
    """The index-th completion of @part-of-a-name; None if there are no more."""
    if not word.startswith("@"):
        return None
    paths = sorted(glob.glob(glob.escape(os.path.expanduser(word[1:])) + "*"))
    names = [f"@{path}/" if os.path.isdir(path) else f'@"{path}"' if " " in path else f"@{path}" for path in paths]
    return names[index] if index < len(names) else None
