"""Which of our tensors a port's tensor is, by its name.

    match_names(theirs, ours, {"ffn_out-{}": "model.layers.{}.mlp.down_proj"})      # {ours: theirs}

The rules, the surest first: a name map; the same name; the name that transformers has in memory
(`model.language_model.layers.0`); ours behind a prefix (`base.visual.merger`); the end of exactly one of ours
(`blocks.0.norm1`). `/` and `:` count as dots.
"""

import json
import os
import re
from pathlib import Path

from minivl.errors import Error
from minivl.tensors.names import parse, published_name


def match_names(theirs, ours, names=None):
    """{our name: their name}. If two of theirs mean the same tensor, the surer rule wins.

    names  a name map {theirs: ours}, or the path of a JSON file with one
    """
    names, ours, matches = read_map(names), list(ours), {}
    known = set(ours)
    for name in theirs:
        for rank, mine in enumerate(candidates(name, ours, names)):
            if mine in known:
                if mine not in matches or rank < matches[mine][0]:
                    matches[mine] = (rank, name)
                break
    return {mine: name for mine, (_, name) in matches.items()}


def candidates(name, ours, names):
    """What a port's name may mean, the surest first; None where a rule does not apply."""
    yield translate(name, names)
    yield name
    dotted = re.sub(r"[/:]+", ".", name).strip(".")
    dotted = re.sub(r"[._]outputs?$", "", dotted)
    yield dotted
    yield published_name(dotted)
    parts = dotted.split(".")
    for start in range(1, len(parts)):
        if parts[start - 1] == "steps":  # subtle: never take a later token's tensor for the prompt's
            return
        rest = ".".join(parts[start:])
        yield published_name(rest)
        yield rest if "steps" not in parts[:start] else None
    ends = [mine for mine in ours if mine.endswith("." + dotted) and not parse(mine).prefix.startswith("steps")]
    yield ends[0] if len(ends) == 1 else None


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
        if len(wildcards(theirs)) < len(wildcards(ours)):
            raise Error(
                f"name map: {ours!r} has more {{}} or * than {theirs!r}. Each stands for the same text in both."
            )
    return names


def wildcards(pattern):
    return re.findall(r"\{\}|\*", pattern)


def translate(name, names):
    """A port's name by the map; None if no entry matches. Entries without wildcards come first."""
    for theirs, ours in sorted(names.items(), key=lambda pair: len(wildcards(pair[0]))):
        parts = re.split(r"\{\}|\*", theirs)
        match = re.fullmatch("(.+?)".join(re.escape(part) for part in parts), name)
        if match:
            fill = iter(match.groups())
            return re.sub(r"\{\}|\*", lambda _: next(fill), ours)  # noqa: B023
    return None
