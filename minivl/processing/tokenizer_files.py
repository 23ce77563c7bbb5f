"""Load a `tokenizers.Tokenizer` from the files that a checkpoint has.

    tokenizer.json                    all of it
    vocab.json, merges.txt            the vocabulary and merges alone, as older programs wrote them: text is then split into
                                      words, and bytes are spelt, in Qwen2's way, which no file states
    tokenizer_config.json             added tokens, with their ids; or, without an entry for them,
    added_tokens.json                 {token: id}, of which special_tokens_map.json says which are special

The rules are those of transformers 5 (`Qwen2Tokenizer`, `_from_pretrained`).
"""

import json
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import object_in, read_json

WORDS = (  # what BPE never merges across. Source: Qwen2's tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FLAGS = {"special", "lstrip", "rstrip", "normalized", "single_word"}  # of an added token
DEFAULT_NAMES = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")  # Source: `Qwen2Tokenizer`


def load_library(folder):
    """The tokenizer in a checkpoint folder, with all added tokens."""
    whole, vocabulary, merges = (Path(folder or ".") / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if folder is not None and whole.is_file():
        library, path = load_whole(whole), whole
    elif folder is not None and vocabulary.is_file() and merges.is_file():
        library, path = assemble(vocabulary, merges), vocabulary
    else:
        raise Error(
            f"{folder} has no tokenizer.json (nor vocab.json with merges.txt): text cannot be read or written. Copy it from "
            "the model's repository."
        )
    check_adds_nothing(library, path)
    # subtle: a file saved after training may hold the trainer's truncation and padding, which would cut prompts
    library.no_truncation()
    library.no_padding()
    return add_missing(library, path)


def check_adds_nothing(library, path):
    """Raise an Error for settings by which transformers would change the tokens of a text: minivl adds and splits nothing."""
    config = path.parent / "tokenizer_config.json"
    stored = read_json(config) if config.is_file() else {}
    # subtle: with a tokenizer.json, its post-processor decides, whatever add_bos_token and add_eos_token say
    fields = ["add_prefix_space", "split_special_tokens"]
    fields += [] if path.name == "tokenizer.json" else ["add_bos_token", "add_eos_token"]
    wrong = [field for field in fields if stored.get(field)]
    if wrong:
        raise Error(f"{config}: {wrong[0]} is {stored[wrong[0]]!r}; Qwen2.5-VL has false, and only that is supported.")
    if library.num_special_tokens_to_add(False):
        raise Error(
            f"{path} adds special tokens to each text ({library.num_special_tokens_to_add(False)}, post_processor); Qwen2.5-VL "
            "adds none, and only that is supported. Use the tokenizer that came with the model."
        )


def load_whole(path):
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as cause:  # the library raises bare Exception
        raise Error(f"{path} is no tokenizer that the tokenizers library reads ({cause}). Download it again.") from None


def assemble(vocabulary, merges):
    """Build the tokenizer from vocab.json and merges.txt."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        library = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as cause:
        raise Error(f"{vocabulary} and {merges.name} are not of one BPE ({cause}). Download both again.") from None
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.normalizer, library.decoder = normalizers.NFC(), decoders.ByteLevel()
    library.pre_tokenizer = pre_tokenizers.Sequence([words, spelt])
    return library


def add_missing(library, path):
    """Add the tokens that other files of the folder declare, with their flags. -> the tokenizer, `library` or a new one

    path  the file that `library` was read from
    """
    from tokenizers import AddedToken, Tokenizer

    where, declared = read_added_tokens(path.parent)
    known = {token.content: token for token in library.get_added_tokens_decoder().values()}
    changed = {}
    for id, fields in sorted(declared.items()):
        text = fields["content"]
        if text not in known:
            library.add_tokens([AddedToken(**{"normalized": True, **fields})])
        elif any(fields[flag] != getattr(known[text], flag) for flag in FLAGS & fields.keys()):
            changed[text] = {flag: fields[flag] for flag in FLAGS & fields.keys()}
        if library.token_to_id(text) != id:
            raise Error(
                f"{where} says that token {text!r} is {id}; with {path.name} it is {library.token_to_id(text)}. Use both "
                "files from one checkpoint, or save its tokenizer again."
            )
    if changed:  # subtle: add_tokens skips a token that exists, whatever its flags
        stored = json.loads(library.to_str())
        for token in stored["added_tokens"]:
            token.update(changed.get(token["content"], {}))
        library = Tokenizer.from_str(json.dumps(stored))
    return library


def read_added_tokens(folder):
    """(file, {id: what `AddedToken` takes}) of a folder's added tokens."""
    config, legacy = folder / "tokenizer_config.json", folder / "added_tokens.json"
    stored = read_json(config) if config.is_file() else {}
    if "added_tokens_decoder" in stored or not legacy.is_file():
        declared = object_in(stored, "added_tokens_decoder")
        for id, fields in declared.items():
            is_token = id.isdecimal() and isinstance(fields, dict) and isinstance(fields.get("content"), str)
            if not is_token or not all(type(fields[flag]) is bool for flag in FLAGS & fields.keys()):
                raise Error(
                    f"{config}: added_tokens_decoder holds {id!r}: {fields!r}; it must be an id and an object with the token's "
                    '"content". Download it again.'
                )
        known = ("content", *FLAGS)
        return config, {int(id): {k: v for k, v in fields.items() if k in known} for id, fields in declared.items()}
    special, declared = read_special_tokens(folder, stored), read_json(legacy)
    if not all(type(id) is int for id in declared.values()):
        raise Error(f"{legacy} must be an object of tokens and their ids. Download it again.")
    return legacy, {
        id: {"content": text, "special": text in special, "normalized": text not in special}
        for text, id in declared.items()
    }


def read_token_names(folder):
    """{"eos_token": "<|im_end|>", ...} of a checkpoint folder, as chat templates may use them."""
    names = dict(DEFAULT_NAMES)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = Path(folder or ".") / name
        stored = read_json(path) if folder is not None and path.is_file() else {}
        for key, token in stored.items():
            token = token.get("content") if isinstance(token, dict) else token
            if key.endswith("_token") and (token is None or isinstance(token, str)):
                names[key] = token
    return {key: token for key, token in names.items() if token is not None}


def read_special_tokens(folder, stored):
    """The special tokens, which stand for no text, by tokenizer_config.json (`stored`) and special_tokens_map.json."""
    path = folder / "special_tokens_map.json"
    entries = []
    for fields in (stored, read_json(path) if path.is_file() else {}):
        entries += [named for key, named in fields.items() if key.endswith("_token") and isinstance(named, (str, dict))]
        more = fields.get("extra_special_tokens") or fields.get("additional_special_tokens") or []
        entries += more.values() if isinstance(more, dict) else more
    return {token["content"] if isinstance(token, dict) else token for token in entries}
