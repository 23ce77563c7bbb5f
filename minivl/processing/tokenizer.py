"""Text to token ids and back, through the checkpoint's own tokenizer files and the `tokenizers` library.

Special tokens inside the text, such as <|image_pad|>, become their ids; no token is added at the start or the end.
"""

import warnings

import numpy as np

from minivl.errors import Error
from minivl.processing.tokenizer_files import load_library

REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that form no character


class Tokenizer:
    """A byte-level BPE: any text can be encoded, and one character may take several tokens."""

    def __init__(self, library):
        self._library = library  # a tokenizers.Tokenizer

    @classmethod
    def read(cls, folder):
        """Read the tokenizer of a checkpoint folder."""
        return cls(load_library(folder))

    def encode(self, text):
        """Token ids, int64 [T]."""
        if not isinstance(text, str):
            raise Error(f"a question must be text; this is a {type(text).__name__}.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as cause:
            raise Error(f"the text is not valid Unicode ({cause.reason} at {cause.start}). Read it as UTF-8.") from None
        return np.array(self._library.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids, skip_special=True):
        """The text of token ids; special tokens are left out unless asked for. Ids beyond the vocabulary have no text."""
        return self._library.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def warn_unnamed(self, ids):
        """Warn if tokens of an answer have no text: rows of the embedding table beyond the vocabulary."""
        unnamed = sorted({int(i) for i in ids if self._library.id_to_token(int(i)) is None})
        if unnamed:
            warnings.warn(
                f"the model chose token {', '.join(map(str, unnamed))}, for which tokenizer.json has no text: the answer's "
                "text lacks it, answer.ids has it. Is this the tokenizer that the model was trained with?",
                stacklevel=2,
            )

    def id(self, token):
        """The id of a token by its name, such as "<|image_pad|>"."""
        token_id = self._library.token_to_id(token)
        if token_id is None:
            raise Error(f"tokenizer.json has no token {token!r}. Is it the tokenizer of a Qwen2.5-VL checkpoint?")
        return token_id

    @property
    def size(self):
        """Number of tokens that have a name; a model's tables are often a little longer."""
        return self._library.get_vocab_size()

    def stream(self):
        """A decoder to push ids into, one at a time."""
        return TextStream(self)


class TextStream:
    """Text as tokens come, never half a character: bytes that end inside one wait for the next token.

    The pieces together are what `decode` makes of all ids: a byte-level decoder joins bytes, so text may be cut
    wherever a character ends.
    """

    def __init__(self, tokenizer):
        self._tokenizer, self._waiting = tokenizer, []

    def push(self, id):
        """The text that this token completes; "" if it completes none."""
        self._waiting.append(int(id))
        text = self._tokenizer.decode(self._waiting)
        if text.endswith(REPLACEMENT):  # bytes that a later token may complete
            return ""
        self._waiting = []
        return text

    def end(self):
        """The text that is left after the last token."""
        text, self._waiting = self._tokenizer.decode(self._waiting), []
        return text
