"""The grammar of tensor names, and other spellings of them.

    parse("steps.3.model.layers.7.self_attn.q_rope")    # step 3, index 7, general "model.layers.{i}.self_attn.q_rope"
    published_name("model.language_model.layers.0")     # "model.layers.0"

A name is the module path of the published checkpoint, after at most two prefixes:

    steps.3.    made for the fourth token of the answer (the prompt's tensors have no such prefix)
    chunks.1.   made for the second chunk of a long prompt (the first chunk's have no such prefix)
    prompts.2.  made while the third of several prompts was read

What each tensor is stands in catalogue.py.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

OTHER_NAMES = {  # the beginning of another name: of the published one; the first that fits counts
    "model.visual": "visual",
    "model.language_model": "model",
    "language_model.model": "model",
    "language_model.lm_head": "lm_head",
    "language_model": "model",
}
PREFIX = re.compile(r"(steps|chunks|prompts)\.([^.]+)\.")  # the number may be a glob
COUNTED = re.compile(r"(image|video|visual\.blocks|model\.layers)\.([^.]+)")


@dataclass(frozen=True)
class Name:
    """A tensor's name, taken apart.

    prefix   "steps.3.", "chunks.1.", ... or ""
    own      the name after it: "model.layers.7.mlp.act"
    general  the catalogue's: "model.layers.{i}.mlp.act"
    counted  what the index counts: "model.layers"; "" if nothing
    index    7; None if there is none, or a glob stands in its place
    step, chunk, prompt   numbers of the prefix; 0 without one
    """

    prefix: str
    own: str
    general: str
    counted: str
    index: int | None
    step: int = 0
    chunk: int = 0
    prompt: int = 0


@lru_cache(maxsize=1 << 14)
def parse(name):
    """The `Name` of a tensor, or of a glob of names. Any text has one: a name outside the grammar is its own general name."""
    prefix, numbers = "", {}
    while match := PREFIX.match(name, len(prefix)):
        prefix = name[: match.end()]
        numbers[match[1].rstrip("s")] = int(match[2]) if match[2].isdecimal() else 0
    own = name[len(prefix) :]
    counted = COUNTED.match(own)
    if counted is None:
        return Name(prefix, own, own, "", None, **numbers)
    general = f"{counted[1]}.{{i}}{own[counted.end() :]}"
    index = int(counted[2]) if counted[2].isdecimal() else None
    return Name(prefix, own, general, counted[1], index, **numbers)


def published_name(name):
    """The published checkpoint's name of a tensor or module, which is minivl's, from the other names in use.

        model.visual.blocks.0.norm1        visual.blocks.0.norm1        transformers 4.52 and later, in memory and in files
        model.language_model.layers.0      model.layers.0
        language_model.layers.0            model.layers.0               a `Qwen2_5_VLModel` that was saved alone
        language_model.model.layers.0      model.layers.0               wrappers in the manner of LLaVA
        language_model.lm_head             lm_head

    A leading `module.` (DistributedDataParallel) is dropped.
    """
    name = name.removeprefix("module.")
    for other, own in OTHER_NAMES.items():
        if name == other or name.startswith(other + "."):
            return own + name.removeprefix(other)
    return name
