"""Choosing a token."""

import json
from pathlib import Path

import numpy as np
import pytest

from minivl import Error
from minivl.checkpoint.fields import OBEYED, REFUSED
from minivl.model.sampling import (
    FIELDS,
    NOT_BUILT,
    NOT_BUILT_IN_SAMPLING,
    Sampling,
    draw,
    keep_top_k,
    keep_top_p,
    make_rng,
    next_token,
    penalize_repetition,
)

FACTS = {
    fact["id"]: fact for fact in json.loads((Path(__file__).parents[1] / "known_answers.json").read_text())["facts"]
}
LOGITS = np.array([2, -1, 0.5, 3, -0.5, 1], dtype=np.float32)


def test_known_answers():
    known = FACTS["logits"]["output"]
    step = penalize_repetition(LOGITS, np.array([3, 1, 3]), 1.05)
    np.testing.assert_array_equal(step, np.array(known["after_rep"], dtype=np.float32))
    step = step / np.float32(0.5)
    np.testing.assert_array_equal(step, np.array(known["after_temp"], dtype=np.float32))
    for function, limit, key in ((keep_top_k, 3, "after_topk"), (keep_top_p, 0.9, "after_topp")):
        step = function(step, limit)
        np.testing.assert_array_equal(
            step, np.array([-np.inf if v is None else v for v in known[key]], dtype=np.float32)
        )


def test_inputs_are_left_alone():
    before = LOGITS.copy()
    next_token(LOGITS, np.array([0, 3]), Sampling(True, 0.7, 2, 0.5, 1.3), np.random.default_rng(0))
    np.testing.assert_array_equal(LOGITS, before)


def test_top_k_keeps_ties():
    tied = np.array([1, 2, 2, 0], dtype=np.float32)
    assert np.isfinite(keep_top_k(tied, 1)).tolist() == [False, True, True, False]
    assert keep_top_k(tied, 0) is tied and keep_top_k(tied, 9) is tied


def test_top_p_always_keeps_the_best():
    assert np.isfinite(keep_top_p(LOGITS, 1e-6)).tolist() == [False, False, False, True, False, False]


def test_greedy():
    assert next_token(LOGITS, np.array([0]), Sampling(), None) == 3
    tied = np.array([1, 5, 5], dtype=np.float32)
    assert next_token(tied, np.array([0]), Sampling(), None) == 1
    assert next_token(LOGITS, np.array([3, 3]), Sampling(repetition_penalty=2.0), None) == 0


def test_ids_beyond_the_logits_are_ignored():
    np.testing.assert_array_equal(penalize_repetition(LOGITS, np.array([99]), 2.0), LOGITS)


def test_draws_follow_the_probabilities():
    rng, probs = np.random.default_rng(0), np.array([0.1, 0.0, 0.6, 0.3], dtype=np.float32)
    counts = np.bincount([draw(probs, rng) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, probs, atol=0.03)
    assert counts[1] == 0


def test_temperature_almost_zero_is_greedy():
    sampling = Sampling(True, 1e-6)
    assert {next_token(LOGITS, np.array([1]), sampling, np.random.default_rng(i)) for i in range(20)} == {3}


def test_files(tmp_path):
    assert Sampling.read(tmp_path, (7,)) == Sampling(eos_token_id=(7,))
    stored = {
        "do_sample": True,
        "temperature": 1e-6,
        "repetition_penalty": 1.05,
        "eos_token_id": [5, 6],
        "pad_token_id": 6,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    read = Sampling.read(tmp_path, (7,))
    assert (read.do_sample, read.temperature, read.repetition_penalty, read.top_k) == (True, 1e-6, 1.05, 50)
    assert read.eos_token_id == (5, 6)


def test_options():
    assert Sampling().replace(temperature=0.5).do_sample
    assert not Sampling(True).replace(temperature=0.0).do_sample
    assert not Sampling().replace(max_new_tokens=3, top_k=None).do_sample
    assert not Sampling().replace(do_sample=False, temperature=0.5).do_sample


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(temperature=-1), "temperature=-1"),
        (dict(top_p=0.0), "top_p=0.0"),
        (dict(top_k=-1), "top_k=-1"),
        (dict(repetition_penalty=0), "repetition_penalty=0"),
        (dict(max_new_tokens=0), "max_new_tokens=0"),
        (dict(beams=4), "unknown generation option beams"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(Error, match=words):
        Sampling().replace(**options)


def test_a_tiny_temperature_is_greedy():
    for temperature in (1e-6, 1e-40):
        assert next_token(LOGITS, np.array([0]), Sampling(True, temperature, 0), np.random.default_rng(0)) == 3


def test_scores_that_are_no_numbers():
    broken = LOGITS.copy()
    broken[2] = np.nan
    with pytest.raises(Error, match="1 of 6 scores"):
        next_token(broken, np.array([0]), Sampling(), None)


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", "hot"), ("temperature", float("nan")), ("top_p", "1"), ("top_k", 5.0), ("do_sample", "false"),
        ("max_new_tokens", 2.5), ("max_new_tokens", True), ("eos_token_id", "500"), ("eos_token_id", [None]),
        ("no_repeat_ngram_size", 3), ("num_beams", 4), ("bad_words_ids", [[1]]),
    ],
)  # fmt: skip
def test_generation_config_with_a_value_that_will_not_do(field, value, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(Error, match=field):
        Sampling.read(tmp_path, (7,))


def test_generation_config_that_asks_for_nothing_special(tmp_path):
    neutral = {"num_beams": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0, "min_p": None, "transformers_version": "5"}
    (tmp_path / "generation_config.json").write_text(json.dumps({**neutral, "eos_token_id": [3, 4]}))
    assert Sampling.read(tmp_path, (7,)) == Sampling(eos_token_id=(3, 4))


@pytest.mark.parametrize("seed", (-1, "x", 1.5))
def test_bad_seeds(seed):
    with pytest.raises(Error, match="seed="):
        make_rng(seed)


# ---- numbers of NumPy, numbers of no sense, options without effect ----


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.array])
def test_numbers_of_numpy(kind):
    ours = Sampling().replace(temperature=kind(0.5), top_p=kind(0.75), top_k=np.int64(3), max_new_tokens=np.uint8(5))
    assert ours == Sampling().replace(temperature=0.5, top_p=0.75, top_k=3, max_new_tokens=5)
    assert type(ours.temperature) is float and type(ours.top_k) is int and ours.do_sample is True
    assert Sampling().replace(do_sample=np.True_).do_sample is True
    assert Sampling(True).replace(temperature=kind(0.0)).do_sample is False
    assert make_rng(np.int64(7)).random() == make_rng(7).random()


def test_top_k_of_an_unsigned_type():
    logits = np.arange(300, dtype=np.float32)
    for k in (3, np.uint8(3), np.int8(3), np.uint64(3)):
        assert np.isfinite(keep_top_k(logits, k)).sum() == 3


@pytest.mark.parametrize("field", ["temperature", "repetition_penalty", "top_p", "top_k", "max_new_tokens"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 1e300, float("inf"), float("nan"), True, "1", [1], 1j])
def test_numbers_of_no_sense(field, value, tmp_path):
    with pytest.raises(Error, match=f"{field}=") as caught:
        Sampling().replace(**{field: value})
    assert len(str(caught.value)) < 200
    if not isinstance(value, complex):
        (tmp_path / "generation_config.json").write_text(json.dumps({field: value}))
        with pytest.raises(Error, match=f"{field}="):
            Sampling.read(tmp_path, (7,))


@pytest.mark.parametrize("field, value", [
    ("min_p", 0.1), ("typical_p", 0.9), ("epsilon_cutoff", 0.1), ("eta_cutoff", 0.1), ("top_h", 0.4), ("top_p", 0),
    ("top_k", -1),
])  # fmt: skip
def test_options_without_effect_on_greedy_decoding(field, value, tmp_path):
    """Not refused while greedy, as in transformers; refused when sampling is turned on."""
    (tmp_path / "generation_config.json").write_text(json.dumps({field: value}))
    greedy = Sampling.read(tmp_path, (7,)).replace(max_new_tokens=5)
    assert not greedy.do_sample
    with pytest.raises(Error, match=field):
        greedy.replace(temperature=0.5)
    (tmp_path / "generation_config.json").write_text(json.dumps({field: value, "do_sample": True}))
    with pytest.raises(Error, match=field):
        Sampling.read(tmp_path, (7,))


@pytest.mark.parametrize("field, value", [
    ("length_penalty", 2.0), ("diversity_penalty", 0.5), ("early_stopping", True),  # of beams
    ("renormalize_logits", True),  # the probabilities are normalised in any case
    ("remove_invalid_values", True),  # scores that are not finite are an Error
])  # fmt: skip
def test_options_without_effect_on_any_decoding(field, value, tmp_path):
    for do_sample in (False, True):
        (tmp_path / "generation_config.json").write_text(json.dumps({field: value, "do_sample": do_sample}))
        assert Sampling.read(tmp_path, (7,)) == Sampling(do_sample, eos_token_id=(7,))


@pytest.mark.parametrize("field", NOT_BUILT)
def test_options_that_change_any_answer_are_refused(field, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({field: 3}))
    with pytest.raises(Error, match=f"{field} is 3, and minivl has no {field}"):
        Sampling.read(tmp_path, (7,))


def test_what_is_refused_is_in_the_table_of_fields():
    assert {*NOT_BUILT, *NOT_BUILT_IN_SAMPLING} == set(REFUSED["generation_config.json"].split())
    assert set(FIELDS) <= set(OBEYED["generation_config.json"].split())


def test_max_length_counts_the_prompt(tmp_path):
    """transformers' older limit: in effect where neither the file nor the call gives max_new_tokens."""
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"max_length": 8}))
    settings = Sampling.read(tmp_path, (7,))
    assert settings.most_new_tokens(5) == 3 and settings.replace(max_new_tokens=9).most_new_tokens(5) == 9
    with pytest.raises(
        Error, match="the prompt has 8 tokens, and max_length of generation_config.json, 8, counts them too"
    ):
        settings.most_new_tokens(8)
    path.write_text(json.dumps({"max_length": 8, "max_new_tokens": 20}))
    assert Sampling.read(tmp_path, (7,)).most_new_tokens(5) == 20
    path.write_text(json.dumps({"max_length": "8"}))
    with pytest.raises(Error, match="max_length='8': it must be an integer"):
        Sampling.read(tmp_path, (7,))
