"""Which rows of a tensor belong to the answering position, to a box, a mask, a word, a window.

Tensors fall into three sets by what their rows are; a set has one numbering and one index. Rows that the tower keeps in
window order are put back, so that all tensors of a set agree:

    patch    rows of the tower: patches, unit by unit, all images and then all videos
    token    rows of the merger and of `visual`: image tokens in raster order
    prompt   rows of the decoder: tokens of the prompt

and a choice of rows is one of these, several of which may be given:

    answer       the last token of the prompt, from which the answer's first token is computed; also lm_head     (prompt)
    text         tokens of text                                                                                  (prompt)
    word         tokens of the prompt's "word" in its question; word:red circle: of these words                   (prompt)
    image        all of the images and videos                                                         (patch, token, prompt)
    box          what the prompt's "box" touches; box:NAME: the one of this name in "boxes"           (patch, token, prompt)
    mask         what lies at least half in the prompt's "mask"; mask:NAME: of this name in "masks"   (patch, token, prompt)
    window:3     the fourth attention window of the tower                                                         (patch)
    all                                                                                               (patch, token, prompt)
"""

import re
from fnmatch import fnmatchcase
from unicodedata import normalize

import numpy as np

from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.tensors import catalogue
from minivl.tensors.names import parse

SETS = {
    "patches": "patch",
    "patch slots": "patch",
    "tokens": "token",
    "token slots": "token",
    "prompt": "prompt",
}  # of a row kind of the catalogue
MEANS = {
    "answer": {"prompt"},
    "text": {"prompt"},
    "word": {"prompt"},
    "image": {"patch", "token", "prompt"},
    "box": {"patch", "token", "prompt"},
    "mask": {"patch", "token", "prompt"},
    "window": {"patch"},
    "all": {"patch", "token", "prompt"},
}
OF_LAST_TOKEN = ("lm_head", "next_token")


def parse_choices(rows):
    """rows= as a tuple of choices; an Error for one that is unknown."""
    choices = (rows,) if isinstance(rows, str) else tuple(dict.fromkeys(rows))
    if not choices:
        raise Error('rows= is empty; give, for example, rows="answer".')
    for choice in choices:
        kind, _, rest = choice.partition(":") if isinstance(choice, str) else (None, "", "")
        if kind not in MEANS or (kind not in ("word", "box", "mask", "window") and rest):
            raise Error(
                f"rows={choice!r} is unknown.{did_you_mean(str(kind), MEANS)} Choices: answer, text, word, image, box, mask, "
                "window:N, all; word:TEXT, box:NAME and mask:NAME."
            )
        if kind == "window" and not rest.isdecimal():
            raise Error(f"rows={choice!r}: name the window by its number, as in window:0.")
    return choices


def set_of(name):
    """The set of a tensor: "patch", "token" or "prompt"; an Error for one whose rows cannot be collected."""
    tensor = catalogue.of(name)
    if tensor.name in OF_LAST_TOKEN:
        return "prompt"
    if tensor.axes[-1] in ("L", "S"):
        raise Error(
            f"{tensor.name} has as many columns as its prompt has keys, so the rows of several prompts do not go into one "
            "array. Collect q_rope and k_rope, from which it is computed, or trace single prompts."
        )
    if tensor.rows not in SETS:
        raise Error(
            f"the rows of {tensor.name} are neither patches nor tokens. Name tensors of the tower or the decoder."
        )
    return SETS[tensor.rows]


def choose_tensors(config, keep, choices):
    """{tensor: set} of what `keep` names and at least one choice applies to, in the order of a run."""
    patterns = [keep] if isinstance(keep, str) else list(keep)
    tensors = {}
    for pattern in patterns:
        if not isinstance(pattern, str) or "{i}" not in pattern:
            catalogue.check_name(config, pattern)
        known = catalogue.names_of(config, media=0)
        names = [name for name in known if pattern in (name, parse(name).general) or fnmatchcase(name, pattern)]
        if not names:
            raise Error(
                f"keep={pattern!r} names no tensor of the tower or the decoder of a prompt. docs/tensors.md lists all."
            )
        for name in names:
            if any(character in pattern for character in "*?[") and not is_collectable(name):
                continue
            tensors[name] = set_of(name)
    apply = {choice: MEANS[choice.partition(":")[0]] for choice in choices}
    for choice, sets in apply.items():
        if not sets & set(tensors.values()):
            raise Error(f"rows={choice!r} means nothing for the tensors of keep=: these have rows of another kind.")
    return {name: tensors[name] for name in catalogue.in_data_flow(tensors) if fits(name, tensors[name], choices)}


def is_collectable(name):
    try:
        return bool(set_of(name))
    except Error:
        return False


def fits(name, own, choices):
    """Whether one of the choices applies to this tensor."""
    if name in OF_LAST_TOKEN:
        return "answer" in choices
    return any(own in MEANS[choice.partition(":")[0]] for choice in choices)


class Selector:
    """The rows of one prompt: `numbers(choice, set)` in the numbering of the set.

    prompt  a `prompts.Prompt`;  maps  its `Maps`;  pieces  the text that each of its tokens completes, for words
    """

    def __init__(self, prompt, maps, pieces):
        self.prompt, self.maps, self.pieces = prompt, maps, pieces

    def numbers(self, choice, own):
        """Row numbers, int64, ascending; None where the choice does not apply to this set."""
        kind, _, name = choice.partition(":")
        if own not in MEANS[kind]:
            return None
        maps, length = self.maps, len(self.maps.input_ids)
        if kind == "answer":
            return np.array([length - 1])
        if kind == "text":
            return np.flatnonzero(~maps.shown)
        if kind == "word":
            return self.tokens_of_word(name or self.prompt.word)
        if kind == "window":
            return np.sort(maps.patches_of_window(int(name)))
        if kind == "all" and own == "prompt":
            return np.arange(length)
        if kind == "mask":
            numbers = self.of_mask(*self.prompt.mask(name), of_patches=own == "patch")
        else:
            box = kind == "box" and self.prompt.box(name)
            patches = self.patches_of_box(*box) if box else np.arange(maps.patches)
            numbers = patches if own == "patch" else np.unique(maps.token_of_patch(patches))
        return np.sort(maps.prompt_of_token(numbers)) if own == "prompt" else numbers

    # ---- places ----

    def patches_of_box(self, box, image):
        """Patches that a box in pixels of the image as it was given touches."""
        maps = self.maps
        (x0, x1), (y0, y1) = maps.resized(np.array(box[::2]), np.array(box[1::2]), image)
        height, width = maps.size(image)
        inside = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if not (inside[0] < inside[2] and inside[1] < inside[3]):
            raise Error(f"the box {list(box)} lies outside of image {image}.")
        return maps.patches_of_box(inside, image)

    def of_mask(self, mask, image, of_patches):
        """Patches or tokens of which at least half lies in the mask; the fullest ones if none has that much."""
        maps, vision = self.maps, self.maps.config.vision
        given = maps.image_sizes[image] if image < len(maps.image_sizes) else maps.size(image)
        if mask.shape != tuple(given):
            raise Error(
                f"the mask is {list(mask.shape)}, and image {image} {list(given)}: give bool [height, width] of the image."
            )
        merge = 1 if of_patches else vision.spatial_merge_size
        side, (height, width) = vision.patch_size * merge, maps.size(image)
        y = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.int64)
        x = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.int64)
        share = mask[y[:, None], x].reshape(height // side, side, width // side, side).mean(axis=(1, 3))
        if not share.any():
            raise Error(f"the mask of image {image} is empty.")
        rows, columns = np.nonzero(share >= min(0.5, share.max()))
        patches = np.sort(maps.patch_at(rows * merge, columns * merge, image))
        return patches if of_patches else maps.token_of_patch(patches)

    def tokens_of_word(self, word):
        """Tokens that hold a word of the question, whole words, any letter case.

        The question is the text of the last message, in one piece or, with images between, in several.
        """
        text, end, spans = "".join(self.pieces), None, []
        word = normalize("NFC", word)  # as the tokenizer does
        for item in reversed([item for item in self.prompt.messages[-1].items if isinstance(item, str)]):
            part = normalize("NFC", item)
            first = text.rfind(part, 0, end)
            if first < 0:  # a template may trim it
                part = part.strip()
                first = text.rfind(part, 0, end)
            if first < 0:
                raise Error(
                    f"the question {self.prompt.question!r} is not in the prompt as it is written: its chat template changes "
                    "it. Choose rows by text or all."
                )
            matches = re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", part, re.IGNORECASE)
            spans += [(first + m.start(), first + m.end()) for m in matches]
            end = first
        if not spans:
            raise Error(f"the word {word!r} is not in the question {self.prompt.question!r}.")
        ends = np.cumsum([len(piece) for piece in self.pieces])
        begins = ends - [len(piece) for piece in self.pieces]
        hit = np.zeros(len(ends), dtype=bool)
        for a, b in spans:
            hit |= (begins < b) & (ends > a)
        return np.flatnonzero(hit)


def text_pieces(tokenizer, ids):
    """The text that each token completes; "" for one that ends inside a character, and for special tokens."""
    stream = tokenizer.stream()
    return [stream.push(token) for token in ids]


def in_set_order(name, array, maps):
    """A tensor's rows in front, [rows, ...], in the numbering of its set."""
    tensor = catalogue.of(name)
    array = np.moveaxis(array, tensor.row_axis, 0)
    if tensor.rows == "patch slots":
        return array[maps.slot_of_patch(np.arange(maps.patches))]
    if tensor.rows == "token slots":
        return array[maps.slot_of_token(np.arange(maps.tokens))]
    return array
