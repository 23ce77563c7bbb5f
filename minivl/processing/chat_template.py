"""The chat template of a checkpoint: the published one, written out in chat.py, or a fine-tune's own, run as a program.

    template = Template.read(folder)
    template.render(messages)                    # the prompt text, one placeholder for each picture and video

A fine-tune may come with another default system prompt, none at all, or other headers; with the published template instead it
would be asked in words that it was not trained on, and nobody would notice. So a template whose text is not a known one is
run through jinja2, in its sandbox, as transformers does. Who has no jinja2 is told.
"""

import datetime
import hashlib
import json
import re
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import read_json
from minivl.processing import messages as chat

# SHA-256 of template texts that mean what chat.render does: the published one, and that of the model that ships
KNOWN = (
    "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb",
    "ee6c5ac37b66e63847ab3d88c9ca5da0b67d1b6c004364a203034bb86b12153b",
)
# where it stands, first come, as for transformers' processor; a tokenizer's own last
FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")

TRAINED = re.compile(
    r"(\{%[-+]?)\s*(end)?generation\s*([-+]?%\})"
)  # around what is trained on; says nothing in a prompt


class Template:
    """source: its text, None for the published one;  path: the file that it is from."""

    def __init__(self, source=None, path=None):
        self.path, self.source = path, None if source is None or digest(source) in KNOWN else source
        self._program = None if self.source is None else compiled(self.source, path)

    @classmethod
    def read(cls, folder):
        """From a checkpoint folder; without one, or without a template in it, the published one."""
        for path in () if folder is None else (Path(folder) / name for name in FILES):
            source = source_of(path) if path.is_file() else None
            if source is not None:
                return cls(source, path)
        return cls()

    def render(self, messages, add_generation_prompt=True, add_vision_id=False):
        """The prompt text: as `chat.render`, or as the checkpoint's own template makes it."""
        if self._program is None:
            return chat.render(messages, add_generation_prompt, add_vision_id)
        plain = chat.plain(messages)
        try:
            return self._program.render(
                messages=plain, add_generation_prompt=add_generation_prompt, add_vision_id=add_vision_id
            )
        except Exception as cause:  # a program of somebody else's: it may raise anything, and some do on purpose
            raise Error(f"the chat template of {self.path} refuses these messages: {cause}.") from None


def digest(source):
    return hashlib.sha256(source.strip().encode()).hexdigest()


def source_of(path):
    """The text of the template in one of FILES, None if there is none. Of several, the one named "default"."""
    if path.suffix == ".jinja":
        return path.read_text(encoding="utf-8")
    found = read_json(path).get("chat_template")
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
    if found is not None and not isinstance(found, str):
        raise Error(f"{path}: chat_template is a {type(found).__name__}; it must be text. Download it again.")
    return found


def compiled(source, path):
    """A jinja2 template, with the settings and functions that transformers gives one."""
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise Error(
            f"{path} is not the published chat template, and to run another one takes jinja2: pip install 'jinja2>=3.1.6'. Or "
            "remove the template from the file, for the published one."
        ) from None

    def refuse(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False} | options)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(
            TRAINED.sub(lambda tag: f"{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}", source)
        )
    except TemplateError as cause:
        raise Error(f"the chat template of {path} is not valid Jinja: {cause}. Use the one of its model.") from None
