"""Chat template: messages to the prompt text, with one placeholder for each image and video.

    template = Template.read(folder)
    print(template.render(messages))

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    <|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>
    <|im_start|>assistant

The published template, the same in all published checkpoints, is written out here (`render`) for reading. A fine-tune may come
with another default system prompt, none at all, or other headers, and answers worse without them; a template whose text is
not a known one is therefore run through jinja2, in its sandbox, as transformers does.
"""

import hashlib
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import read_json
from minivl.processing.messages import PLACEHOLDERS, parse
from minivl.processing.template_sandbox import compile_template
from minivl.processing.tokenizer_files import read_token_names

SYSTEM = "You are a helpful assistant."

# SHA-256 of template texts that give the same as `render`: the published one, and that of the model that ships
KNOWN = (
    "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb",
    "ee6c5ac37b66e63847ab3d88c9ca5da0b67d1b6c004364a203034bb86b12153b",
)
# searched in this order, as by transformers' processor; a tokenizer's own template comes last
FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")


class Template:
    """A checkpoint's chat template.

    source       its text, None for the published one
    path         the file it was read from
    token_names  {"eos_token": "<|im_end|>", ...}: the tokens that it may name
    """

    def __init__(self, source=None, path=None, token_names=()):
        self.token_names = dict(token_names)
        self.path, self.source = path, None if source is None or hash_source(source) in KNOWN else source
        self._program = None if self.source is None else compile_template(self.source, path)

    @classmethod
    def read(cls, folder):
        """Read the template of a checkpoint folder; without one, or without a template in it, the published one."""
        for path in () if folder is None else (Path(folder) / name for name in FILES):
            source = read_source(path) if path.is_file() else None
            if source is not None:
                return cls(source, path, read_token_names(folder))
        return cls()

    def render(self, messages, add_generation_prompt=True, add_vision_id=False):
        """The prompt text. Arguments: see `render`."""
        if self._program is None:
            return render(messages, add_generation_prompt, add_vision_id)
        try:
            return self._program(
                messages=plain_messages(messages),
                tools=None,
                documents=None,
                **self.token_names,
                add_generation_prompt=add_generation_prompt,
                add_vision_id=add_vision_id,
            )
        except Error:
            raise
        except Exception as cause:  # a template may raise anything, some on purpose
            raise Error(
                f"the chat template of {self.path} refuses these messages: {str(cause).rstrip('.')}. Write them as it "
                "expects them, or use the template that came with the model."
            ) from None


def render(messages, add_generation_prompt=True, add_vision_id=False):
    """The prompt text, by the published template.

    add_generation_prompt  end with the header of the assistant's answer
    add_vision_id          number images and videos: "Picture 1: ", "Video 1: "; counted over the whole conversation
    """
    messages, parts, counts = parse(messages), [], {"image": 0, "video": 0}
    if messages and messages[0].role != "system":
        parts.append(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
    for message in messages:
        body = "".join(render_item(item, counts, add_vision_id) for item in message.items)
        parts.append(f"<|im_start|>{message.role}\n{body}<|im_end|>\n")
    if add_generation_prompt:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)


def render_item(item, counts, numbered):
    """One item of a message: its text, or the placeholder of its image or video."""
    if isinstance(item, str):
        return item
    counts[item.kind] += 1
    number = f"{'Picture' if item.kind == 'image' else 'Video'} {counts[item.kind]}: " if numbered else ""
    return f"{number}<|vision_start|>{PLACEHOLDERS[item.kind]}<|vision_end|>"


def plain_messages(messages):
    """The messages in their plainest spelling, for templates that know no other: dicts, with media as {"type": "image"}."""
    plain = []
    for message in parse(messages):
        content = message.content
        if not isinstance(content, str):
            content = [{"type": "text", "text": i} if isinstance(i, str) else {"type": i.kind} for i in content]
        plain.append({**message.fields, "content": content})
    return plain


# ---- templates of fine-tunes ----


def hash_source(source):
    """SHA-256 of a template's text, without surrounding white space."""
    return hashlib.sha256(source.strip().encode()).hexdigest()


def read_source(path):
    """The text of the template in one of FILES, None if there is none. Of several, the one named "default"."""
    if path.suffix == ".jinja":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as cause:
            raise Error(f"{path} is not text in UTF-8 ({cause}). Download it again.") from None
    source = read_json(path).get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        if named and "default" not in named:
            raise Error(
                f"{path} has chat templates named {', '.join(map(str, named))} and none named default. Rename the right one "
                'to "default".'
            )
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise Error(f"{path}: chat_template is a {type(source).__name__}; it must be text. Download it again.")
    return source
