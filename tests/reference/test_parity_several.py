"""Several prompts at once against transformers' own batch: `generate` with prompts of different lengths, padded on the left."""

import dataclasses

import numpy as np
import pytest
from oracle import arguments, load_reference
from random_models import CASES, WORDS, random_config, random_inputs, torch, write_checkpoint
from test_parity_generation import decided

import minivl
from minivl.processing.inputs import Inputs

STEPS = 24
ENDS = tuple(range(5, WORDS, 17))  # any of these ends an answer


class Batch:
    """A random model and five prompts for it: two of text alone, the others with images or videos, or both."""

    def __init__(self, name, folder):
        forced, self.folder = CASES[name], folder
        config = random_config(np.random.default_rng(forced["seed"]), **forced)
        write_checkpoint(folder, config, forced["seed"])
        self.reference = load_reference(folder)
        grids, videos, seconds = ([*forced.get(kind, ())] for kind in ("grids", "videos", "seconds"))
        self.prompts = [
            random_inputs(self.reference.config, grids, forced["seed"], 6, videos, seconds),
            random_inputs(self.reference.config, [], 41, 3),
            random_inputs(self.reference.config, grids[:1], 42, 17),
            random_inputs(self.reference.config, [], 43, 80),
            random_inputs(self.reference.config, grids[::-1], 44, 1, videos[:1], seconds[:1]),
        ]


@pytest.fixture(scope="module", params=["three_images", "videos_and_images", "yarn", "sliding_window", "long_video"])
def batch(request, tmp_path_factory):
    return Batch(request.param, tmp_path_factory.mktemp(request.param))


def padded(config, prompts):
    """Arguments of transformers' `generate` for all of them: [B, T], the shorter ones padded on the left."""
    length = max(len(prompt.input_ids) for prompt in prompts)
    ids, mask = np.zeros((2, len(prompts), length), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt.input_ids) :] = prompt.input_ids
        mask[row, length - len(prompt.input_ids) :] = 1
    media = {
        field.name: np.concatenate([getattr(prompt, field.name) for prompt in prompts])
        for field in dataclasses.fields(Inputs)
        if field.init and field.name not in ("input_ids", "image_sizes", "images", "cached")
    }
    given = arguments(config, ids.reshape(-1), **media)
    rows = {name: given[name].reshape(ids.shape) for name in ("input_ids", "mm_token_type_ids")}
    return given | rows | {"attention_mask": torch.from_numpy(mask)}


def reference_answers(batch, penalty):
    """[(tokens, how many of them rounding cannot change), ...]"""
    made = batch.reference.generate(
        **padded(batch.reference.config, batch.prompts), do_sample=False, repetition_penalty=penalty,
        max_new_tokens=STEPS, eos_token_id=list(ENDS), pad_token_id=0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    scores = torch.stack(made.scores, dim=1).numpy()  # [B, steps, V]
    for tokens, own in zip(made.sequences[:, -scores.shape[1] :].numpy(), scores):
        ended = np.flatnonzero(np.isin(tokens, ENDS))
        length = int(ended[0]) + 1 if len(ended) else len(tokens)
        yield tokens[:length].tolist(), decided(own[:length])


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("backend, weights", [("numba", "bfloat16"), ("numpy", "float32")])
def test_answers_are_those_of_a_padded_batch(batch, penalty, backend, weights):
    vlm = minivl.load(batch.folder, weights, backend, "transformers5")
    vlm.sampling = dataclasses.replace(vlm.sampling, eos_token_id=ENDS)
    answers = vlm.ask_many(batch.prompts, do_sample=False, repetition_penalty=penalty, max_new_tokens=STEPS)
    compared, lengths = 0, set()
    for answer, (tokens, steps) in zip(answers, reference_answers(batch, penalty), strict=True):
        assert answer.ids[:steps] == tokens[:steps]
        assert steps < len(tokens) or len(answer.ids) == len(tokens)
        compared, lengths = compared + steps, lengths | {len(tokens)}
    assert compared >= 2 * STEPS and len(lengths) > 1, (compared, lengths)
