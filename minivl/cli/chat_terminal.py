"""`minivl chat`: a conversation, line by line; images and videos wherever a line says @file.

    > What is in @photo.jpg and what in @"another photo.jpg"?
    > /tokens

A line is one question; white space next to a file is dropped, @@ stands for @. The answer streams to stdout. On Ctrl-C the text
so far becomes the answer; if there is none yet, or on an error, the question is taken back. Earlier turns are in the KV cache
and are not run again. If stdin or stdout is no terminal, it is a filter: questions on stdin, answers on stdout, no prompt.
"""

import base64
import io
import json
import os
import re
import sys
import time
from pathlib import Path

from minivl.cli.prompts import draw_scene, media_item
from minivl.errors import Error
from minivl.helpers import write_json
from minivl.processing.count_tokens import format_reuse, format_timing
from minivl.stream import each

LARGEST_SNAPSHOT = 200 * 10**6  # bytes; a larger file is read from its path again, and should not be changed meanwhile

HELP = """\
@file, @"file with spaces"   an image or video, as it is now, at this point of the question (@@: the character @)
/scene N          draw a scene of coloured shapes, minivl.tiny.scene(N), and put it before the next question
/tokens           length of the conversation so far: tokens of each image and video, and of text
/undo             take back the last question and its answer
/new              start a new conversation, with the same system prompt
/system TEXT      change the system prompt of the whole conversation; without TEXT, to the model's own
/save FILE.json   write the messages, in the format of transformers
/load FILE.json   continue a saved conversation
/quit             or Ctrl-D; Ctrl-C stops an answer
//...             a question that begins with a slash"""

# @@, or @ at the start of a word with a name in quotes or up to white space
ATTACHED = re.compile(r"""(?<![^\s(\[{"'])@(?:(@)|"([^"]+)"|'([^']+)'|([^\s@]\S*))""")
PUNCTUATION = ".,;:!?)]}\"'"  # may follow a name without being a part of it


class Snapshot(bytes):
    """The bytes of a file when it was attached: overwriting the file later does not change earlier turns.

    path  of the file, or a data: URI of a drawn scene;  name  for messages to the user
    """

    path = name = None

    @classmethod
    def of(cls, path):
        """A snapshot; the path itself if the file is too large."""
        if os.path.getsize(path) > LARGEST_SNAPSHOT:
            return path
        snapshot = cls(Path(path).read_bytes())
        snapshot.path = snapshot.name = path
        return snapshot


class ChatTerminal:
    """A conversation. `messages` have been answered; `waiting` items are put before the next question.

    system       the system prompt;  waiting  items before the first question;  options  of `VLM.stream`
    tokens       print tokens and seconds after each answer
    interactive  an interrupt ends an answer, not the program
    """

    def __init__(self, vlm, system=None, waiting=(), options=None, tokens=False, interactive=True):
        self.vlm, self.options, self.tokens, self.interactive = vlm, options or {}, tokens, interactive
        self.cache, self.messages, self.last = vlm.new_cache(), [], None
        self.waiting = list(waiting)
        self.set_system(system or "")

    def say(self, line):
        """Run a command or ask a question; the result goes to stdout. Returns False if the conversation is over."""
        line = line.strip()
        if line in ("/quit", "/exit"):
            return False
        if line.startswith("/") and not line.startswith("//"):
            self.command(*line.split(maxsplit=1))
        elif line:
            self.ask(line[1:] if line.startswith("//") else line)
        return True

    def ask(self, line):
        content = self.waiting + parse_question(line)
        if not any(part["type"] == "text" for part in content):
            self.waiting = content
            note(f"{format_names(content)}: put before the next question")
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
            note("interrupted: the text so far is the answer")
        elif self.tokens:
            seconds, first = time.perf_counter() - start, said[0][1] if said else None
            print(format_timing(self.count(self.messages[:-1]), answer, seconds, first), file=sys.stderr)

    def count(self, messages):
        sizes = {name: self.options.get(name) for name in ("min_pixels", "max_pixels", "fps", "nframes")}
        return self.vlm.count_tokens(messages, cache=self.cache, **sizes)

    # ---- commands ----

    def command(self, name, argument=""):
        commands = {
            "/help": self.help, "/tokens": self.show_tokens, "/undo": self.undo, "/new": self.new, "/clear": self.new,
            "/system": self.set_system, "/save": self.save, "/load": self.load, "/scene": self.scene,
        }  # fmt: skip
        if name not in commands:
            raise Error(f"there is no command {name}: /help lists them. For a question that begins so, write /{name}.")
        if argument and name not in ("/system", "/save", "/load", "/scene"):
            raise Error(f"{name} takes no argument; {argument!r} followed it.")
        commands[name](argument)

    def help(self, _):
        print(HELP)

    def scene(self, number):
        if not number.strip().isdecimal() or len(number) > 100:
            raise Error("/scene takes the number of a scene, such as /scene 5.")
        self.waiting.append(attach_scene(int(number)))
        note(f"{format_names(self.waiting)}: put before the next question")

    def show_tokens(self, _):
        count = self.count(self.messages)
        context = self.vlm.config.text.max_position_embeddings
        print(f"{count}, of them {min(len(self.cache), count.total):,} in the cache; the context is {context:,}")
        if self.last is not None:
            print(f"last answer {len(self.last.ids):,} tokens, to a prompt of {format_reuse(self.last)}")

    def undo(self, _):
        if not self.turns():
            raise Error("there is no question to take back.")
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
        write_json([with_paths(message) for message in self.messages], path)
        note(f"{path}: {self.turns()} questions and their answers")

    def load(self, name):
        path = json_path(name)
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as cause:
            raise Error(f"cannot read {path}: {cause}. Give a file written by /save.") from None
        self.count(messages)  # an Error if they are not messages, or an image is missing
        self.messages, self.cache = [with_snapshots(message) for message in messages], self.vlm.new_cache()
        self.waiting, self.last = [], None
        note(f"{path}: {self.turns()} questions and their answers")

    def turns(self):
        return sum(message["role"] == "user" for message in self.messages)


# ---- lines and files ----


def parse_question(line):
    """Content of a question: text and files in the order of the line."""
    content, text, end = [], "", 0
    for match in ATTACHED.finditer(line):
        text += line[end : match.start()]
        end = match.end()
        doubled, *quoted, bare = match.groups()
        if doubled:
            text += "@"
            continue
        name = next((name for name in quoted if name), None)
        if name is None:
            name = bare if os.path.isfile(bare) else bare.rstrip(PUNCTUATION)
            end -= len(bare) - len(name)
        try:
            content += [*text_item(text), attach_file(name)]
        except Error as error:
            hint = "" if os.path.exists(os.path.expanduser(name)) else " @ is followed by a file name; write @@ for an @."
            raise Error(f"{error}{hint}") from None
        text = ""
    return content + text_item(text + line[end:])


def text_item(text):
    return [{"type": "text", "text": text.strip()}] if text.strip() else []


def attach_file(name):
    """A file as a part of a message; an Error if it does not exist or cannot be read."""
    path = os.path.abspath(os.path.expanduser(name))
    if not os.path.isfile(path):
        problem = f"{name} is a folder" if os.path.isdir(path) else f"there is no file {name}"
        raise Error(f"{problem}. Give an image or a video.")
    kind = media_item(path)["type"]
    return {"type": kind, kind: Snapshot.of(path)}


def attach_scene(seed):
    """A drawn scene as a part of a message."""
    file = io.BytesIO()
    draw_scene(seed).image.save(file, "PNG")
    snapshot = Snapshot(file.getvalue())
    snapshot.path = f"data:image/png;base64,{base64.b64encode(snapshot).decode()}"
    snapshot.name = f"scene {seed}"
    return {"type": "image", "image": snapshot}


def format_names(content):
    return ", ".join(getattr(part[part["type"]], "name", part[part["type"]]) for part in content)


def with_paths(message):
    """The message with the paths of images and videos, to be saved."""
    if isinstance(message["content"], str):
        return message
    parts = [
        {key: value.path if isinstance(value, Snapshot) else value for key, value in part.items()}
        for part in message["content"]
    ]
    return {**message, "content": parts}


def with_snapshots(message):
    """The message of a saved file, its paths replaced by what the images and videos are now."""
    if isinstance(message["content"], str):
        return message
    parts = []
    for part in message["content"]:
        kind = part.get("type")
        source = part.get(kind) if kind in ("image", "video") else None
        file = isinstance(source, str) and os.path.isfile(source)
        parts.append({**part, kind: Snapshot.of(source)} if file else part)
    return {**message, "content": parts}


def json_path(name):
    path = Path(name.strip()).expanduser()
    if path.suffix != ".json":
        raise Error(f"{name or 'no file'}: give a file whose name ends in .json, such as talk.json.")
    return path


def note(text):
    print(f"minivl: {text}", file=sys.stderr)
