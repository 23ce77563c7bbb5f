"""Match a port's tensor names to minivl's.

    match_names(theirs, ours, {"ffn_out-{}": "model.layers.{}.mlp.down_proj"})      # {ours: theirs}

The rules, the surest first: a name map; the same name; the name that transformers has in memory
(`model.language_model.layers.0`); ours after a prefix (`base.visual.merger`); a module whose last layer is ours (`mlp` for
`mlp.down_proj`); the end of exactly one of ours, after any prefix (`vit.blocks.0.norm1`). All characters but letters and
digits count as the same separator (`visual_blocks_0_norm1`); the names of operators and outputs that exporters add are
dropped (`/visual/blocks.0/attn/qkv/Gemm_output_0`).

Tensors of later tokens, our `steps.3.`, may be counted in other words: `decode_3.`, `step3/`, `steps[3].`, `token_3`, at the
start or the end. A 0 is the prompt; with "decode", or if a prompt without a number occurs, it is the first token after it.
"""

import json
import os
import re
from pathlib import Path

from minivl.compare.measure import are_equal
from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.tensors import catalogue
from minivl.tensors.names import OTHER_NAMES, parse, published_name

LAST_LAYER = {"attn": "attn.proj", "self_attn": "self_attn.o_proj", "mlp": "mlp.down_proj"}
TOWER = ("vision_tower", "vision_model", "vision", "vit")  # other names of `visual`
SPELT, ENDING = 1000, 2000  # ranks of the less sure rules
OUTPUT = re.compile(r"[._]outputs?(_\d+)?$")
OPERATOR = re.compile(r"[./](Add|Cast|Conv|Gelu|Gemm|MatMul|Mul|Reshape|Sigmoid|Squeeze|Transpose|Unsqueeze)(_\d+)?$")
STEP = re.compile(
    r"(?<![A-Za-z0-9])(decode[._/:-]?steps?|decode|decoding|steps?|token)[._/:-]?\[?(\d+)\]?(?![A-Za-z0-9])"
)
# words of a name that say which half of the model it belongs to, or that it belongs to neither
OF_TOWER, OF_DECODER = {"vision", "visual", "vit", "image"}, {"text", "decoder", "language", "llm", "gpt", "h"}
OF_NEITHER = {"audio", "speech", "grad", "gradient", "gradients"}
NOT_OURS = re.compile(r"\b(act_fn|rotary_emb|rotary_pos_emb|dropout|drop_path)\b|attn\.softmax$|patch_embed\.proj$")


def match_names(theirs, ours, names=None):
    """{our name: their name}. If two of theirs mean the same tensor, the surer rule wins, then the later one.

    names  a name map {theirs: ours}, or the path of a JSON file with one
    """
    return choose_matches(meanings(theirs, ours, names))


def meanings(theirs, ours, names=None):
    """{their name: (rank of the rule, our name)}, see `recognise`; names as in `match_names`."""
    names = read_map(names)
    check_targets(names, ours)
    spellings, first = spell(ours), first_step(theirs)
    return {name: recognise(name, spellings, names, first) for name in theirs}


def choose_matches(meant):
    """{our name: their name} of `meanings`, as `match_names`."""
    matches = {}
    for name, (rank, mine) in meant.items():
        if mine is not None and (mine not in matches or rank <= matches[mine][0]):
            matches[mine] = (rank, name)
    return {mine: name for mine, (_, name) in matches.items()}


def unmatched(meant):
    """Their names that mean none of our tensors. Modules whose output minivl has no tensor for (`act_fn`) do not count."""
    return [name for name, (_, mine) in meant.items() if mine is None and not NOT_OURS.search(name)]


def outvoted(theirs, meant):
    """{their name: the name taken instead of it} of those that mean one tensor of ours and hold other values.

    An operator before another one of the same module (`qkv/MatMul` before its `qkv/Add`) is no other name for it.
    """
    matches = choose_matches(meant)
    lost = [(name, matches[mine]) for name, (_, mine) in meant.items() if mine is not None and matches[mine] != name]
    lost = [(name, other) for name, other in lost if strip_output(name) != strip_output(other)]
    return {name: other for name, other in lost if not are_equal(theirs[name], theirs[other])}


def first_step(theirs):
    """Our number of their step 0: 0, the prompt, or 1."""
    zeros = [(match[1], own) for name in theirs if (match := STEP.search(name)) and not int(match[2])
             for own in [without_step(name, match)]]  # fmt: skip
    bare = {one_separator(name) for name in theirs if not STEP.search(name)} if zeros else set()
    bare |= {name.partition(".")[2] for name in bare if name.startswith(("prefill.", "prompt."))}
    return int(any(word.startswith("decod") or one_separator(own) in bare for word, own in zeros))


def without_step(name, match):
    return f"{name[: match.start()]}{name[match.end() :]}".strip("._/:-")


def split_step(name, first):
    """("steps.3." or "" for the prompt, the rest) of a port's name."""
    match = STEP.search(name)
    if match is None:
        return "", name
    number = int(match[2]) + first
    return f"steps.{number}." if number else "", without_step(name, match)


def name_by_step(theirs, names=None):
    """Their names with the step in front as we have it: "decode_1.lm_head" -> "steps.1.lm_head"."""
    names, first = read_map(names), first_step(theirs)
    pairs = [(mapped, 0) if (mapped := translate(name, names)) is not None else (name, first) for name in theirs]
    return ["".join(split_step(*pair)) for pair in pairs]


def spell(ours):
    """{"" or "steps.3.": `spell_own` of our names after it}"""
    by_step = {"": []}
    for mine in ours:
        lead = f"steps.{parse(mine).step}." if parse(mine).step else ""
        by_step.setdefault(lead, []).append(mine.removeprefix(lead))
    return {lead: spell_own(names) for lead, names in by_step.items()}


def spell_own(ours):
    """(our names, {name with one separator: our name}, {end of it: our name, None if several have it})."""
    whole, ends = {}, {}
    for mine in ours:
        for spelling in [mine, *other_spellings(mine)]:
            whole.setdefault(one_separator(spelling), mine)
        if not parse(mine).prefix:
            words = one_separator(mine).split(".")
            for start in range(1, len(words)):
                end = ".".join(words[start:])
                ends[end] = None if end in ends else mine
    return set(ours), whole, ends


def other_spellings(mine):
    """model.layers.0 -> model.language_model.layers.0 and others."""
    for other, own in OTHER_NAMES.items():
        if mine.startswith(f"{own}.") or mine == own:
            yield other + mine.removeprefix(own)


def one_separator(name):
    return re.sub(r"[^A-Za-z0-9]+", ".", name).strip(".")


def recognise(name, spellings, names, first):
    """(rank of the rule, our name) of a port's name; (None, None) if it means none of ours. first: see `first_step`."""
    mapped = translate(name, names)
    if mapped is not None:  # subtle: the map counts, even where ours has no such tensor: nothing is guessed then
        lead, own = split_step(mapped, 0)
        mine = spellings[lead][1].get(one_separator(own)) if lead in spellings else None
        return (0, lead + mine) if mine is not None else (None, None)
    # subtle: a later token's tensor is never taken for the prompt's
    lead, own = split_step(name, first)
    rank, mine = recognise_own(own, spellings[lead], names) if lead in spellings else (None, None)
    if mine is None or rank and contradicts(own, mine):
        return None, None
    return rank, lead + mine


def contradicts(name, mine):
    """Whether a name says that it belongs to the other half of the model, or to none: `vision_model.layers.0` is no decoder's.

    A word counts unless its own part of the name, or a later one, says otherwise: `vision_language_model.model.layers.0`.
    """
    parts = [set(re.split(r"[_-]", part)) for part in re.split(r"[^a-z_-]+", name.lower())]
    if any(part & OF_NEITHER and "no" not in part for part in parts):  # torch's no_grad is no gradient
        return True
    own, other = (OF_TOWER, OF_DECODER) if mine.startswith("visual") else ({*OF_DECODER, "model"}, OF_TOWER)
    if not mine.startswith(("visual", "model.", "lm_head")):
        return False
    for at, part in enumerate(parts):
        says_so = part & (own - {"model"}) or any(later & own for later in parts[at + 1 :])
        if part & other and not says_so:
            return True
    return False


def recognise_own(name, spellings, names):
    """`recognise`, of the names of one token."""
    known, whole, ends = spellings
    meanings = list(candidates(name, names))
    for rank, mine in enumerate(meanings):
        if mine in known:
            return rank, mine
    for rank, mine in enumerate(meanings):
        if mine is not None and (spelt := whole.get(one_separator(mine))):
            return SPELT + rank, spelt
    words = one_separator(strip_output(name)).split(".")
    for start in range(len(words)):
        for end in with_last_layer(".".join(words[start:])):
            if start and len(words) - start < 3:  # after a prefix, "norm" may be anything
                continue
            if mine := ends.get(one_separator(end)):
                return ENDING + start, mine
    return None, None


def candidates(name, names):
    """What a port's name may mean, the surest first; None where a rule does not apply."""
    yield translate(name, names)
    yield name
    stripped = strip_output(name)
    yield from with_last_layer(stripped)
    yield from with_last_layer(published_name(stripped))
    words = stripped.split(".")
    for start in range(len(words)):
        rest = ".".join(words[start:])
        if words[start] in TOWER:
            yield from with_last_layer(".".join(["visual", *words[start + 1 :]]))
        if start:
            yield from with_last_layer(published_name(rest))
            yield from with_last_layer(rest)


def with_last_layer(name):
    """The name, then that of its last layer if it is a module: mlp -> mlp.down_proj."""
    yield name
    module = re.search(r"\b(self[._]attn|attn|mlp)$", name)
    if module:
        yield name[: module.start()] + LAST_LAYER[module[1].replace(".", "_")]


def strip_output(name):
    """A name without what exporters add: "/visual/norm1/Mul_output_0" -> "visual.norm1"."""
    dotted = re.sub(r"[/:]+", ".", name).strip(".")
    bare = OUTPUT.sub("", dotted)
    return OPERATOR.sub("", bare) if bare != dotted else bare


def read_map(names):
    """A name map {theirs: ours}, from a dict or a JSON file; "{}" or "*" in both stands for the same text, a layer's number."""
    if names is None:
        return {}
    if isinstance(names, (str, os.PathLike)):
        try:
            names = json.loads(Path(names).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as cause:
            raise Error(f"cannot read the name map {names}: {cause}. Write one JSON object, theirs to ours.") from None
    if not isinstance(names, dict) or not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise Error('a name map is an object of strings: {"ffn_out-{}": "model.layers.{}.mlp.down_proj"}.')
    for theirs, ours in names.items():
        if len(wildcards(theirs)) < len(wildcards(ours)):
            raise Error(
                f"name map: {ours!r} has more {{}} or * than {theirs!r}. Each stands for the same text in both."
            )
    return names


def check_targets(names, ours):
    """Raise an Error for an entry of a name map that can mean no tensor of a run, whatever stands for its {} and *."""
    every = {parse(name).own for name in ours} | {tensor.name.replace("{i}", "0") for tensor in catalogue.CATALOGUE}
    every |= {spelling for name in list(every) for spelling in other_spellings(name)}
    for target in names.values():
        own = parse(target).own
        pattern = re.compile(".+".join(map(re.escape, re.split(r"\{\}|\*", own))))
        if not any(pattern.fullmatch(name) for name in every):
            near = did_you_mean(own.replace("{}", "{i}"), {tensor.name for tensor in catalogue.CATALOGUE})
            raise Error(f"name map: {target!r} is no tensor of minivl.{near} docs/tensors.md lists all.")


def idle_entries(theirs, names):
    """Entries of a name map, as `read_map` gives it, that fit none of their names."""
    return [entry for entry in names if not any(map(pattern_of(entry).fullmatch, theirs))]


def pattern_of(entry):
    """A regular expression of their names, in which each {} or * stands for some text."""
    return re.compile("(.+?)".join(map(re.escape, re.split(r"\{\}|\*", entry))))


def wildcards(pattern):
    return re.findall(r"\{\}|\*", pattern)


def translate(name, names):
    """A port's name by the map; None if no entry matches. Entries without wildcards come first."""
    for theirs, ours in sorted(names.items(), key=lambda pair: len(wildcards(pair[0]))):
        if match := pattern_of(theirs).fullmatch(name):
            fill = iter(match.groups())
            return re.sub(r"\{\}|\*", lambda _: next(fill), ours)  # noqa: B023
    return None
