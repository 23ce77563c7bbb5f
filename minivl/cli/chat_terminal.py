"""`minivl chat`: a conversation, line by line; pictures and videos wherever a line says @file.

    > What is in @photo.jpg and what in @"another photo.jpg"?
    > /tokens

A line is one question; white space next to a file is dropped, @@ is the sign itself. The answer streams to stdout. Interrupted
(Ctrl-C), what was said so far is the answer, and nothing at all undoes the question; so does an error. Earlier turns are in the
cache and are not run again. Without a terminal on both sides it is a filter: questions on stdin, answers on stdout, no prompt.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

from minivl.cli.options import PROMPT_OPTIONS, item
from minivl.errors import Error
from minivl.helpers import write_json
from minivl.processing.count_tokens import format_reuse, format_timing
from minivl.stream import each

LONGEST = (
    200 * 10**6
)  # bytes of a file that is kept in memory; longer ones stay where they are, and should stay as they are

HELP = """\
@file, @"file with spaces"   a picture or video, as it is now, at this place of the question (@@: the sign itself)
/tokens           what the conversation holds so far: tokens of each picture and video, and of text
/undo             take back the last question and its answer
/new              begin again, with the same system prompt
/system TEXT      another system prompt, for all of the conversation; without TEXT, the model's own
/save FILE.json   write the messages, as transformers and others read them
/load FILE.json   go on from such a file
/quit             or Ctrl-D; Ctrl-C stops an answer
//...             a question that begins with a slash"""

# @@, or @ at the start of a word with a name in quotes or up to white space
ATTACHED = re.compile(r"""(?<![^\s(\[{"'])@(?:(@)|"([^"]+)"|'([^']+)'|([^\s@]\S*))""")
AFTER_NAMES = ".,;:!?)]}\"'"  # what may stand behind a name without being part of it


class Snapshot(bytes):
    """A file as it was when it was attached: overwritten later, it does not change what was said before."""

    path = None

    @classmethod
    def of(cls, path):
        """The path itself of a file that is too long."""
        if os.path.getsize(path) > LONGEST:
            return path
        found = cls(Path(path).read_bytes())
        found.path = path
        return found


class Console:
    """A conversation. `messages` are those that have been answered, `waiting` items go before the next question.

    system, options  the system prompt, and options of `VLM.stream`;  waiting  items before the first question
    tokens           say after each answer what it took;  interactive  an interrupt ends an answer, not the program
    """

    def __init__(self, vlm, system=None, waiting=(), options=None, tokens=False, interactive=True):
        self.vlm, self.options, self.tokens, self.interactive = vlm, options or {}, tokens, interactive
        self.cache, self.messages, self.last = vlm.new_cache(), [], None
        self.waiting = list(waiting)
        self.set_system(system or "")

    def say(self, line):
        """One line: a command or a question. Its result goes to stdout. False: the conversation is over."""
        line = line.strip()
        if line in ("/quit", "/exit"):
            return False
        if line.startswith("/") and not line.startswith("//"):
            self.command(*line.split(maxsplit=1))
        elif line:
            self.ask(line[1:] if line.startswith("//") else line)
        return True

    def ask(self, line):
        content = self.waiting + content_of(line)
        if not any(part["type"] == "text" for part in content):
            self.waiting = content
            note(f"{named(content)}: part of the next question")
            return
        question = {"role": "user", "content": content}
        said, start = [], time.perf_counter()

        def see(piece):
            print(piece, end="", flush=True)
            said.append((piece, time.perf_counter() - start))

        answer, pieces = None, self.vlm.stream([*self.messages, question], cache=self.cache, **self.options)
        try:
            answer = each(pieces, see)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            if not said:
                note("interrupted: the question is taken back")
                return
        finally:
            if said or answer is not None:
                print(flush=True)
        text = "".join(piece for piece, _ in said)
        self.messages += [question, {"role": "assistant", "content": text}]
        self.waiting, self.last = [], answer
        if answer is None:
            note("interrupted: what was said so far is the answer")
        elif self.tokens:
            seconds, first = time.perf_counter() - start, said[0][1] if said else None
            print(format_timing(self.count(self.messages[:-1]), answer, seconds, first), file=sys.stderr)

    def count(self, messages):
        given = {name: self.options.get(name) for name in PROMPT_OPTIONS}
        return self.vlm.count_tokens(messages, cache=self.cache, **given)

    # ---- commands ----

    def command(self, name, argument=""):
        known = {
            "/help": self.help, "/tokens": self.show_tokens, "/undo": self.undo, "/new": self.new, "/clear": self.new,
            "/system": self.set_system, "/save": self.save, "/load": self.load,
        }  # fmt: skip
        if name not in known:
            raise Error(f"there is no command {name}: /help lists them. A question that begins so is written /{name}.")
        if argument and name not in ("/system", "/save", "/load"):
            raise Error(f"{name} stands alone; behind it came {argument!r}.")
        known[name](argument)

    def help(self, _):
        print(HELP)

    def show_tokens(self, _):
        count = self.count(self.messages)
        context = self.vlm.config.text.max_position_embeddings
        print(f"{count}, of them {min(len(self.cache), count.total):,} in the cache; the context is {context:,}")
        if self.last is not None:
            print(f"last answer {len(self.last.ids):,} tokens, to a prompt of {format_reuse(self.last)}")

    def undo(self, _):
        if not self.turns():
            raise Error("there is nothing to take back.")
        while self.messages.pop()["role"] != "user":
            pass
        self.last = None

    def new(self, _):
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]
        self.cache, self.waiting, self.last = self.vlm.new_cache(), [], None

    def set_system(self, text):
        system = [{"role": "system", "content": text}] if text else []
        self.messages = system + [message for message in self.messages if message["role"] != "system"]

    def save(self, name):
        path = json_path(name)
        if not self.turns():
            raise Error("there is nothing to save: ask something first.")
        write_json([portable(message) for message in self.messages], path)
        note(f"{path}: {self.turns()} questions and their answers")

    def load(self, name):
        path = json_path(name)
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise Error(f"cannot read {path}: {cause}. Give a file that /save has written.") from None
        self.count(messages)  # an Error if they are no messages, or a picture is missing
        self.messages, self.cache = [as_now(message) for message in messages], self.vlm.new_cache()
        self.waiting, self.last = [], None
        note(f"{path}: {self.turns()} questions and their answers")

    def turns(self):
        return sum(message["role"] == "user" for message in self.messages)


# ---- lines and files ----


def content_of(line):
    """A question's content: text and files in the order of the line."""
    content, text, end = [], "", 0
    for found in ATTACHED.finditer(line):
        text += line[end : found.start()]
        end = found.end()
        doubled, *quoted, bare = found.groups()
        if doubled:
            text += "@"
            continue
        name = next((name for name in quoted if name), None)
        if name is None:
            name = bare if os.path.isfile(bare) else bare.rstrip(AFTER_NAMES)
            end -= len(bare) - len(name)
        content += [*text_item(text), attached(name)]
        text = ""
    return content + text_item(text + line[end:])


def text_item(text):
    return [{"type": "text", "text": text.strip()}] if text.strip() else []


def attached(name):
    """A file as a part of a message; an Error if it is not there or cannot be read."""
    from minivl.processing.load_image import open_image
    from minivl.processing.load_video import open_video

    path = os.path.abspath(os.path.expanduser(name))
    if not os.path.isfile(path):
        raise Error(f"there is no file {name}: behind @ comes a picture or a video, and @@ is the sign itself.")
    part = item(path)
    kind = part["type"]
    (open_video if kind == "video" else open_image)(path)
    return {"type": kind, kind: Snapshot.of(path)}


def named(content):
    return ", ".join(getattr(part[part["type"]], "path", part[part["type"]]) for part in content)


def portable(message):
    """A message for a file: pictures and videos by their paths."""
    if isinstance(message["content"], str):
        return message
    parts = [
        {key: value.path if isinstance(value, Snapshot) else value for key, value in part.items()}
        for part in message["content"]
    ]
    return {**message, "content": parts}


def as_now(message):
    """A message from a file, with pictures and videos as they are now in the place of their paths."""
    if isinstance(message["content"], str):
        return message
    parts = []
    for part in message["content"]:
        source = part.get(part.get("type"))
        file = part.get("type") != "text" and isinstance(source, str) and os.path.isfile(source)
        parts.append({**part, part["type"]: Snapshot.of(source)} if file else part)
    return {**message, "content": parts}


def json_path(name):
    path = Path(name.strip()).expanduser()
    if path.suffix != ".json":
        raise Error(f"{name or 'no file'}: give a file whose name ends in .json, such as talk.json.")
    return path


def note(text):
    print(f"minivl: {text}", file=sys.stderr)
