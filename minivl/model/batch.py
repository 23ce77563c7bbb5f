"""Batched decoding: several prompts at once. Decoding is bound by reading the weights, which one step does for all sequences.

    prompt 0    prefill .......... token token token end
    prompt 1             prefill . token token token token token end
    prompt 2                       .............. prefill . token token ...     (with two at a time)

A prefill is bound by arithmetic and gains nothing: prompts are prefilled one after the other, each into its own cache.
Then every step adds one token to each sequence. There is no batch axis and no padding: the tokens of a step are rows like those
of a prompt, in the order of the prompts, and go through the same `decoder_layer`; only the cache, a `KVCaches`, gives each row
its own keys and values (kv_cache.py).

    tokens [B]    linear, norms, MLP: B rows        attention: row b attends to cache b alone

A compiled linear layer gives a row the same bits alone and in a batch (kernels/linear.py, up to MAX_FEW_ROWS rows), and so does
all the rest: the answers are those of one prompt after the other.
"""

import numpy as np

from minivl.errors import Error
from minivl.model.sampling import make_rng
from minivl.processing.inputs import Inputs
from minivl.stream import under

AT_ONCE = 8  # at most 15: with AMX, another kernel (amx.py) takes more rows; without it, above linear.MAX_FEW_ROWS


def answer_many(vlm, prompts, seed=None, **options):
    """Stage: a list of messages (or `Inputs`) for each prompt -> a list of `Answer`. Names: see docs/tensors.md.

    AT_ONCE are decoded at a time: each has a cache of its own, and more would hardly be faster for each.
    """
    prepare_options, sampling = vlm.split_options(options)
    prepared = [isinstance(prompt, Inputs) for prompt in prompts]
    # prepared prompts take none of these options; where all are prepared, `VLM.read` refuses them
    options_of = [{} if one and not all(prepared) else prepare_options for one in prepared]
    make_rng(seed)  # raises its error before anything runs
    waiting, running, answers, steps = [*range(len(prompts))], {}, [None] * len(prompts), 0
    while waiting or running:
        if waiting and len(running) < AT_ONCE:
            i = waiting.pop(0)
            first = begin(vlm, prompts[i], i, options_of[i], sampling, make_rng(seed))
            running[i] = yield from under(f"prompts.{i}", first)
        else:
            steps += 1
            yield from under(f"steps.{steps}", vlm.step([*running.values()]))
        for i in [i for i, sequence in running.items() if sequence.ended]:
            sequence = running.pop(i)
            ids = yield f"prompts.{i}.answer_ids", np.array(sequence.ids, dtype=np.int64)
            sequence.ids = ids.tolist()
            answers[i] = vlm.build_answer(sequence, has_text=not isinstance(prompts[i], Inputs))
    return answers


def begin(vlm, prompt, i, prepare_options, sampling, rng):
    """Stage: prompt i -> a `Sequence` with its first token."""
    try:
        inputs = yield from vlm.read(prompt, **prepare_options)
        return (yield from vlm.begin(inputs, vlm.new_cache(), sampling, rng))
    except Error as error:
        raise Error(f"prompt {i}: {error}") from None
