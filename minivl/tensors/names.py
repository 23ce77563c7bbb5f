"""The grammar of tensor names, and other spellings of them.

    parse("steps.3.model.layers.7.self_attn.q_rope")    # step 3, index 7, general "model.layers.{i}.self_attn.q_rope"
    published("model.language_model.layers.0")          # "model.layers.0"
    matched(theirs, ours, {"ffn_out-{}": "model.layers.{}.mlp.down_proj"})

A name is the module path of the published checkpoint, behind at most two prefixes:

    steps.3.    made for the fourth token of the answer (the prompt's tensors have no such prefix)
    chunks.1.   made for the second chunk of a long prompt (the first chunk's have no such prefix)
    prompts.2.  made while the third of several prompts was read

What each tensor is stands in catalogue.py.
"""

import difflib
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from minivl.errors import Error

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
    own      the name behind it: "model.layers.7.mlp.act"
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
    """The `Name` of a tensor, or of a glob of names. Any text has one: a name outside the grammar is its own."""
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


def read_map(names):
    """A name map {theirs: ours}, from a dict or a JSON file; "{}" or "*" in both stands for the same text, a layer's number."""
    if names is None:
        return {}
    if isinstance(names, (str, os.PathLike)):
        try:
            names = json.loads(Path(names).read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise Error(f"cannot read the name map {names}: {cause}. Write one JSON object, theirs to ours.") from None
    if not isinstance(names, dict) or not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise Error('a name map is an object of strings: {"ffn_out-{}": "model.layers.{}.mlp.down_proj"}.')
    for theirs, ours in names.items():
        if len(holes(theirs)) < len(holes(ours)):
            raise Error(
                f"name map: {ours!r} has more of {{}} or * than {theirs!r}. Each stands for the same text in both."
            )
    return names


def holes(pattern):
    return re.findall(r"\{\}|\*", pattern)


def translated(name, names):
    """A port's name by the map; None where it says nothing. Names without holes come first."""
    for theirs, ours in sorted(names.items(), key=lambda pair: len(holes(pair[0]))):
        parts = re.split(r"\{\}|\*", theirs)
        found = re.fullmatch("(.+?)".join(re.escape(part) for part in parts), name)
        if found:
            fill = iter(found.groups())
            return re.sub(r"\{\}|\*", lambda _: next(fill), ours)  # noqa: B023
    return None


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


def matched(theirs, ours, names=None):
    """{ours: theirs} of all names that are taken for one of ours. Where two mean the same, the surer wins: see above."""
    names, ours, found = read_map(names), list(ours), {}
    known = set(ours)
    for name in theirs:
        for sure, mine in enumerate(readings(name, ours, known, names)):
            if mine in known:
                if mine not in found or sure < found[mine][0]:
                    found[mine] = (sure, name)
                break
    return {mine: name for mine, (_, name) in found.items()}


def readings(name, ours, known, names):
    """What a port's name may mean, the surest first."""
    yield translated(name, names)
    yield name
    dotted = re.sub(r"[/:]+", ".", name).strip(".")
    dotted = re.sub(r"[._]outputs?$", "", dotted)
    yield dotted
    yield published_name(dotted)
    parts = dotted.split(".")
    for start in range(1, len(parts)):
        if parts[start - 1] == "steps":  # never take a later token's tensor for the prompt's
            return
        rest = ".".join(parts[start:])
        yield published_name(rest)
        yield rest if "steps" not in parts[:start] else None
    ends = [mine for mine in ours if mine.endswith("." + dotted) and not parse(mine).prefix.startswith("steps")]
    yield ends[0] if len(ends) == 1 else None


def close(name, names):
    """The most alike of `names`, or None: what a missing one may have been called."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return found[0] if found else None
