"""The tokenizer and configuration of the model that learns the task families: as recipe.py, with 768 tokens.

Tokens of the same text keep their meaning: `carry_over` takes embeddings from a checkpoint with another vocabulary.
"""

import copy
import json
from functools import lru_cache
from pathlib import Path

from minivl.tiny.tasks import FAMILIES, TRAINED, draw_example
from minivl.tiny.training import recipe
from minivl.tiny.training.recipe import SPECIAL

VOCABULARY = 768
ID = {token: VOCABULARY - len(SPECIAL) + i for i, token in enumerate(SPECIAL)}
SPELT = ("word", "number")  # tasks whose answers stay single characters: no merge is learnt from them


def configuration():
    """The configuration of recipe.py, for this vocabulary."""
    config = copy.deepcopy(recipe.CONFIG)
    shift = VOCABULARY - recipe.VOCABULARY
    config["vocab_size"] = VOCABULARY
    for key in [key for key in config if key.endswith("_token_id")]:
        config[key] += shift
    return config


CONFIG = configuration()


@lru_cache(maxsize=1)
def build_tokenizer():
    """A byte-level BPE of 768 tokens, trained on the questions and answers of the task families."""
    from tokenizers import AddedToken, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = recipe.untrained_tokenizer()
    size = VOCABULARY - len(SPECIAL)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    spare = size - tokenizer.get_vocab_size()
    if spare:
        tokenizer.add_tokens([AddedToken(f"<|spare_{i}|>", normalized=False) for i in range(spare)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    assert all(tokenizer.token_to_id(token) == id for token, id in ID.items())
    return tokenizer


def corpus():
    """Text that the model will read and write, without letters that it is to spell and questions in capitals."""
    for family in FAMILIES:
        for number in range(100):
            for turns in draw_example(family, (number, 0), most=4, branch=TRAINED).conversations:
                for turn in turns:
                    if not turn.question.isupper():
                        yield turn.question
                    if turn.task not in SPELT and '"' not in turn.answer.replace('bbox_2d"', ""):
                        yield turn.answer
                    elif turn.answer.startswith("["):
                        yield turn.answer
    yield from ["You are a helpful assistant.", "system\n", "user\n", "assistant\n"] * 200
    yield from recipe.EVERYDAY * 20


def carry_over(state, tokenizer):
    """A state dict for this vocabulary from one with the tokenizer given: rows of equal tokens, else the mean of the pieces."""
    import torch

    old, new = state["model.embed_tokens.weight"].float(), build_tokenizer()
    ids, rows = tokenizer.get_vocab(), torch.zeros(VOCABULARY, old.shape[1])
    for token, id in new.get_vocab().items():
        if token in ids:
            rows[id] = old[ids[token]]
        else:
            pieces = tokenizer.encode(new.decode([id]), add_special_tokens=False).ids
            rows[id] = old[pieces].mean(dim=0) if pieces else old.mean(dim=0)
    return {name: tensor.float() for name, tensor in state.items()} | {"model.embed_tokens.weight": rows}


def write_folder(folder):
    """Everything of the checkpoint but model.safetensors."""
    folder = Path(folder)
    recipe.write_folder(folder, build_tokenizer())
    generation = copy.deepcopy(recipe.GENERATION)
    shift = VOCABULARY - recipe.VOCABULARY
    for key in ("bos_token_id", "pad_token_id"):
        generation[key] += shift
    generation["eos_token_id"] = [id + shift for id in generation["eos_token_id"]]
    for name, content in (("config", CONFIG), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
