"""Several prompts at once: decoding is bound by reading the weights, and these serve all sequences in one go.

    prompt 0    prefill .......... token token token end
    prompt 1             prefill . token token token token token end
    prompt 2                       .............. prefill . token token ...     (if only two were run at a time)

A prefill is bound by arithmetic and has nothing to gain: prompts are read one after the other, each into a cache of its own.
Then every step adds one token to each sequence. There is no batch axis and no padding: the tokens of a step are rows like those
of a prompt, in the order of the prompts, and go through the same `decoder_layer`; only the cache, a `KVCaches`, knows that each
row looks back on a past of its own (kv_cache.py).

    tokens [B]    linear, norms, MLP: B rows        attention: row b sees cache b alone

A linear layer gives a row the same bits alone and beside others (kernels/linear.py, up to FEW rows), and so does all the rest:
the answers are those of one prompt after the other.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minivl.errors import Error
from minivl.kernels.linear import FEW
from minivl.model.sampling import generator
from minivl.processing import messages
from minivl.processing.inputs import Inputs
from minivl.stream import under

ASKED = {"question", "images", "videos"}  # of a prompt, as `VLM.ask` takes them


def answer_many(vlm, prompts, seed=None, **options):
    """Stage: a list of messages (or `Inputs`) for each prompt -> a list of `Answer`. Names: see docs/tensors.md.

    FEW are answered at a time: for so many, linear layers keep their promise, and more would not be faster for each.
    """
    media, sampling = vlm.chosen(options)
    generator(seed)  # what is wrong with it shows now
    waiting, running, answers, steps = [*range(len(prompts))], {}, [None] * len(prompts), 0
    while waiting or running:
        if waiting and len(running) < FEW:
            i = waiting.pop(0)
            begun = begin(vlm, prompts[i], i, media, sampling, generator(seed))
            running[i] = yield from under(f"prompts.{i}", begun)
        else:
            steps += 1
            yield from under(f"steps.{steps}", vlm.step([*running.values()]))
        for i in [i for i, sequence in running.items() if sequence.ended]:
            sequence = running.pop(i)
            ids = yield f"prompts.{i}.answer_ids", np.array(sequence.ids, dtype=np.int64)
            sequence.ids = ids.tolist()
            answers[i] = vlm.answered(prompts[i], sequence)
    return answers


def begin(vlm, prompt, i, media, sampling, rng):
    """Stage: prompt i -> a `Sequence` with its first token."""
    try:
        inputs = yield from vlm.read(prompt, **media)
    except Error as error:
        raise Error(f"prompt {i}: {error}") from None
    return (yield from vlm.begin(inputs, vlm.new_cache(), sampling, rng))


def conversations(prompts):
    """Messages (or `Inputs`) of each prompt; an Error if one is of another kind."""
    if not isinstance(prompts, (list, tuple)):
        raise Error(f"prompts is a {type(prompts).__name__}; it must be a list with one entry for each prompt.")
    found = [conversation(i, prompt) for i, prompt in enumerate(prompts)]
    for i, prompt in enumerate(found):
        check_files(i, prompt)
    return found


def check_files(i, prompt):
    """That the files of a prompt are there, before hours are spent on those in front of it."""
    images, videos = ([], []) if isinstance(prompt, Inputs) else messages.media(prompt)
    for source, _ in (*images, *videos):
        if isinstance(source, (str, Path)) and "://" not in str(source)[:8] and not str(source).startswith("data:"):
            if not Path(source).exists():
                raise Error(f"prompt {i}: {source} does not exist. Check the path.")


def conversation(i, prompt):
    if isinstance(prompt, Inputs):
        return prompt
    if isinstance(prompt, str):
        return messages.user(prompt)
    if isinstance(prompt, Mapping) and isinstance(prompt.get("question"), str) and prompt.keys() <= ASKED:
        return messages.user(**prompt)
    if isinstance(prompt, Mapping) and isinstance(prompt.get("question"), str):
        unknown = ", ".join(map(str, prompt.keys() - ASKED))
        raise Error(f"prompt {i} has {unknown}, which is unknown beside a question: there are images and videos.")
    if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(message, Mapping) for message in prompt):
        return prompt
    raise Error(
        f'prompt {i} is {prompt!r}; it must be a question, {{"question": ..., "images": ..., "videos": ...}} or a list of '
        "messages, in a list of its own."
    )
