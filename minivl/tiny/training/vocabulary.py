"""The tokenizer of the small model: a byte-level BPE, trained on the questions and answers of the task families."""

from functools import lru_cache

from minivl.tiny.tasks import FAMILIES, TRAINED, draw_example
from minivl.tiny.training.recipe import ID, SPECIAL, VOCABULARY

SPELT = ("word", "number")  # tasks whose answers stay single characters: no merge is learnt from them
# Qwen's pre-tokenisation: contractions, words with the character before them, single digits, punctuation, white space
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

EVERYDAY = [  # words that people will try; the model has not learnt what they mean
    "Hello, who are you? Can you tell me what this picture shows and where it was taken?",
    "Please say which one is larger, the left or the right, the top or the bottom, and why.",
    "Yes, there is something near the middle. No, they are not the same; the first is above the second.",
    "Please answer in one word. Is it true? Does it have any other small or large shapes with that colour?",
]


@lru_cache(maxsize=1)
def build_tokenizer():
    """Build a byte-level BPE of VOCABULARY tokens; any text can be encoded. Needs tokenizers."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    room = VOCABULARY - len(SPECIAL)
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=sorted(bytes_of.alphabet()), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    spare = room - tokenizer.get_vocab_size()
    if spare:  # fewer merges than asked for: fill up, so that the special tokens keep their ids
        tokenizer.add_tokens([AddedToken(f"<|spare_{i}|>", normalized=False) for i in range(spare)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    assert all(tokenizer.token_to_id(token) == id for token, id in ID.items())
    return tokenizer


def corpus():
    """Text that the model will read and write, except answers that it has to spell and questions in capitals."""
    for family in FAMILIES:
        for number in range(100):
            for turns in draw_example(family, (number, 0), most=4, branch=TRAINED).conversations:
                for turn in turns:
                    if not turn.question.isupper():
                        yield turn.question
                    if turn.task not in SPELT and not turn.answer.startswith(("the word", "the number")):
                        yield turn.answer
    yield from ["You are a helpful assistant.", "system\n", "user\n", "assistant\n"] * 200
    yield from EVERYDAY * 20
