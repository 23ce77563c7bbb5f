"""Several prompts at once: the same answers as one by one, whatever their lengths, images and ends are."""

import dataclasses
import io

import numpy as np
import pytest
from conftest import random_video_inputs, small_inputs, small_model

import minivl
from minivl.errors import Error
from minivl.kernels.linear import MAX_FEW_ROWS
from minivl.model import progress
from minivl.model.batch import AT_ONCE, answer_many
from minivl.model.kv_cache import KVCache, KVCaches
from minivl.processing.inputs import Inputs
from minivl.processing.messages import user
from minivl.stream import run
from minivl.tiny import scene
from minivl.trace.recorder import record

CLOSE = 1e-5  # the numpy backend: BLAS sums one row and several in another order


def text_inputs(length, seed=0):
    ids = np.random.default_rng(seed).integers(0, 100, length)
    return Inputs(ids, np.zeros((0, 96), dtype=np.float32), np.zeros((0, 3), dtype=np.int64))


@pytest.fixture(scope="module")
def prompts(vlm):
    """Without an image, with two, with videos; of 4 to 109 tokens."""
    config = vlm.config
    return [
        text_inputs(4),
        small_inputs(config),
        random_video_inputs(config),
        small_inputs(config, grids=((1, 4, 12),), text=30, seed=3),
        text_inputs(17, seed=4),
    ]


def one_by_one(vlm, prompts, **options):
    return [vlm.trace(prompt, keep="next_token", **{"max_new_tokens": 256, **options}).result for prompt in prompts]


def same(answers, expected):
    assert [vars(answer) for answer in answers] == [vars(answer) for answer in expected]
    assert list(answers) == list(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 7},
        {"max_new_tokens": 1},
        {"max_new_tokens": 12, "temperature": 2.0, "top_k": 0, "seed": 3},
        {"max_new_tokens": 9, "temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 0},
    ],
)
def test_answers_are_those_of_one_by_one(vlm, prompts, options):
    same(vlm.ask_many(prompts, **options), one_by_one(vlm, prompts, **options))


def test_room_is_made_once_for_each(vlm, prompts, monkeypatch):
    """When its prompt is read, for the longest answer: no step copies what is there."""
    grown, layers = [], vlm.config.text.num_hidden_layers
    grow = KVCache._enlarge
    monkeypatch.setattr(
        KVCache, "_enlarge", lambda self, array, used, room: grown.append(room) or grow(self, array, used, room)
    )
    vlm.ask_many(prompts, max_new_tokens=30)
    lengths = [len(prompt.input_ids) + 29 for prompt in prompts]
    assert grown == [length for length in lengths for _ in range(2 * layers)]


@pytest.fixture
def ending(vlm):
    """A model whose answers end by themselves, at any of several tokens: each prompt's at another step."""
    ending = type(vlm)(vlm.config, vlm.weights, vlm.kernels)
    ending.sampling = dataclasses.replace(vlm.sampling, eos_token_id=tuple(range(9)))
    return ending


def test_as_many_as_keep_their_bits():
    """Linear layers give a row the same bits in a batch as alone up to so many rows; AMX begins with 16."""
    assert AT_ONCE <= min(MAX_FEW_ROWS, 15)


def test_what_ends_leaves_and_what_waits_takes_its_place(ending, prompts):
    many = [*prompts, *(text_inputs(3 + i, seed=i) for i in range(2 * AT_ONCE))]
    options = {"max_new_tokens": 20, "repetition_penalty": 1.3}
    expected = one_by_one(ending, many, **options)
    lengths = [len(answer.ids) for answer in expected]
    assert 1 in lengths and 20 in lengths and len(set(lengths)) > 5  # so that the test is one
    assert {answer.finished for answer in expected} == {True, False}
    seen = record(answer_many(ending, many, **options), keep=["*.input_ids", "*.next_token", "prompts.*"])
    same(seen.result, expected)

    rows = [len(seen[name]) for name in seen.names if name.startswith("steps.") and name.endswith(".next_token")]
    assert max(rows) == AT_ONCE and sum(rows) == sum(lengths) - len(many)
    for i, answer in enumerate(expected):
        assert seen[f"prompts.{i}.answer_ids"].tolist() == answer.ids
        assert seen[f"prompts.{i}.next_token"].tolist() == answer.ids[:1]
    # the last prompt is read after the first steps
    assert seen.names.index(f"prompts.{len(many) - 1}.input_ids") > seen.names.index("steps.1.next_token")


def alone_and_together(vlm, prompts, tokens):
    """{name: tensor} of the second token's step of each prompt alone, and of all together."""
    alone = [vlm.trace(prompt, keep="steps.1.*", max_new_tokens=tokens) for prompt in prompts]
    return alone, record(answer_many(vlm, prompts, max_new_tokens=tokens), keep="steps.1.*")


def row_of(name, tensor, b, seen):
    """Row b of a tensor of a joint step, as the same sequence has it alone."""
    kind = name.rpartition(".")[2]
    if kind in ("scores", "probs"):
        rest = tensor[:, b, seen:]
        assert np.all(rest == (-np.inf if kind == "scores" else 0))
        return tensor[:, b : b + 1, :seen]
    return tensor[:, b : b + 1] if kind in ("q_rope", "k_rope", "position_ids") else tensor[b : b + 1]


def test_every_tensor_of_a_step_is_the_rows_of_each_alone(vlm, prompts):
    alone, together = alone_and_together(vlm, prompts, 2)
    assert list(together) == list(alone[0])
    for b, own in enumerate(alone):
        for name, tensor in own.items():
            seen = tensor.shape[-1] if name.endswith((".scores", ".probs")) else None
            row = row_of(name, together[name], b, seen)
            assert row.dtype == tensor.dtype and row.shape == tensor.shape, name
            # subtle: NumPy's sum of a row, for the probabilities that are built for whoever looks, depends on its length
            if vlm.kernels.name == "numba" and not name.endswith(".probs"):
                assert row.tobytes() == tensor.tobytes(), (name, b)
            else:
                np.testing.assert_allclose(row, tensor, rtol=0, atol=CLOSE * np.abs(tensor[np.isfinite(tensor)]).max())


def test_watching_changes_no_bit(vlm, prompts):
    watched = record(answer_many(vlm, prompts, max_new_tokens=4), keep=["steps.*.lm_head", "steps.*.probs"])
    again = record(answer_many(vlm, prompts, max_new_tokens=4), keep="steps.*.lm_head")
    assert [watched[name].tobytes() for name in again] == [tensor.tobytes() for tensor in again.values()]
    same(watched.result, again.result)


@pytest.mark.parametrize("name", ["scores", "probs"])
def test_replacing_a_lazy_tensor_by_itself_changes_nothing_but_rounding(vlm, prompts, name):
    plain = record(answer_many(vlm, prompts, max_new_tokens=2), keep="steps.1.lm_head")["steps.1.lm_head"]
    stage = answer_many(vlm, prompts, max_new_tokens=2)
    edited = record(stage, keep="steps.1.lm_head", edit={f"steps.1.model.layers.*.self_attn.{name}": lambda x: x})
    np.testing.assert_allclose(edited["steps.1.lm_head"], plain, rtol=0, atol=CLOSE * np.abs(plain).max())


def test_edited_probabilities_of_one_row_are_its_own(vlm, prompts):
    """Attention of the second sequence on its first key only: its context is that key's value, the others' stay."""

    def first_only(probs):
        probs = probs.copy()
        probs[:, 1] = 0
        probs[:, 1, 0] = 1
        return probs

    name = "steps.1.model.layers.0.self_attn"
    value = record(answer_many(vlm, prompts, max_new_tokens=2), keep="prompts.1.model.layers.0.self_attn.v_proj")
    value = value["prompts.1.model.layers.0.self_attn.v_proj"][0].reshape(2, 8)
    keep, options = f"{name}.context", {"max_new_tokens": 2}
    plain = record(answer_many(vlm, prompts, **options), keep=keep)[keep]
    edited = record(answer_many(vlm, prompts, **options), keep=keep, edit={f"{name}.probs": first_only})[keep]
    np.testing.assert_allclose(edited[1], np.repeat(value, 3, axis=0).reshape(-1), rtol=1e-6)
    np.testing.assert_allclose(np.delete(edited, 1, 0), np.delete(plain, 1, 0), rtol=0, atol=CLOSE)


def test_a_token_sent_back_goes_on_in_its_own_sequence(vlm, prompts):
    edit = {"steps.1.next_token": lambda x: np.where(np.arange(len(x)) == 2, 42, x)}
    options = {"max_new_tokens": 4}
    edited = record(answer_many(vlm, prompts, **options), keep="prompts.*.answer_ids", edit=edit).result
    expected = one_by_one(vlm, prompts, **options)
    same([*edited[:2], *edited[3:]], [*expected[:2], *expected[3:]])
    forced = vlm.trace(prompts[2], keep="next_token", edit={"steps.1.next_token": np.array([42])}, **options).result
    same([edited[2]], [forced])
    edit = {"prompts.0.answer_ids": lambda x: x[::-1]}
    assert record(answer_many(vlm, prompts, **options), keep="*_ids", edit=edit).result[0].ids == expected[0].ids[::-1]


def test_sliding_windows(prompts):
    vlm = small_model(use_sliding_window=True, sliding_window=9, max_window_layers=1)
    same(vlm.ask_many(prompts, max_new_tokens=6), one_by_one(vlm, prompts, max_new_tokens=6))


def test_the_context_ends_each_answer_by_its_own_length(prompts):
    longest = max(len(prompt.input_ids) for prompt in prompts)
    vlm = small_model(max_position_embeddings=longest + 3)
    answers = vlm.ask_many(prompts, max_new_tokens=8)
    same(answers, one_by_one(vlm, prompts, max_new_tokens=8))
    assert sorted({len(answer.ids) for answer in answers}) == [3, 8]
    with pytest.raises(Error, match="context is"):
        vlm.ask_many([*prompts, text_inputs(longest + 3)])


def test_caches_joined_are_the_caches_themselves(vlm, prompts):
    caches = [vlm.new_cache() for _ in prompts]
    for prompt, cache in zip(prompts, caches):
        run(vlm.prefill(prompt, cache))
    before = [(len(cache), cache.next_position) for cache in caches]
    tokens = np.arange(len(caches))
    logits = run(vlm.decode(tokens, KVCaches(caches)))
    assert logits.shape == (len(prompts), vlm.config.text.vocab_size)
    assert [(len(cache), cache.next_position) for cache in caches] == [(n + 1, p + 1) for n, p in before]
    assert [int(cache.input_ids[-1]) for cache in caches] == tokens.tolist()
    assert all(type(cache.next_position) is int and isinstance(cache, KVCache) for cache in caches)


# ---- the model that ships ----


@pytest.fixture(scope="module")
def tiny():
    return minivl.load()


def test_questions_and_pictures_of_every_form(tiny):
    drawn = [scene(i) for i in range(4)]
    frames = [scene(seed, size=(112, 112)).image for seed in range(4)]
    prompts = ["Hello"]
    prompts += [{"question": one.questions[0][0], "images": one.image} for one in drawn]
    prompts += [{"question": drawn[0].questions[1][0], "images": [drawn[0].image, drawn[1].image], "videos": [frames]}]
    prompts += [
        [{"role": "user", "content": [{"type": "image", "image": drawn[2].image}, {"type": "text", "text": "?"}]}]
    ]
    asked = [{"question": one} if isinstance(one, str) else one for one in prompts[:-1]]
    for options in (
        {},
        {"max_new_tokens": 5, "temperature": 1.0, "seed": 7, "max_pixels": 20_000, "add_vision_id": True},
    ):
        expected = [tiny.ask(**one, **options) for one in asked] + [tiny.chat(prompts[-1], **options)]
        answers = tiny.ask_many(prompts, **options)
        same(answers, expected)
    assert answers[1].images[0].source is drawn[0].image
    assert tiny.ask_many(tuple(prompts[:2]), max_new_tokens=3)[0].ids == tiny.ask("Hello", max_new_tokens=3).ids


def test_no_prompts(tiny):
    assert tiny.ask_many([]) == []


@pytest.mark.parametrize(
    "prompts, words",
    [
        ("How many?", "prompts is a str; it must be a list"),
        ([3], "prompt 0 is 3; it must be a question"),
        (["a", ("How many?", "a.png")], "prompt 1 is"),
        ([{"images": "a.png"}], "prompt 0 is"),
        ([{"question": "?", "image": "a.png"}], "prompt 0 has image, which is unknown"),
        ([{"role": "user", "content": "?"}], "a list of messages, in a list of its own"),
        (["a", []], "prompt 1 is"),
        ([[{"role": "user"}]], "message 0 is"),
        (["a", {"question": "?", "images": "no.png"}], "prompt 1: no.png does not exist"),
    ],
)
def test_what_is_no_prompt(tiny, prompts, words):
    with pytest.raises(Error, match=words):
        tiny.ask_many(prompts, max_new_tokens=1)


@pytest.mark.parametrize(
    "options, words", [({"beams": 3}, "unknown generation option beams"), ({"seed": -1}, "seed=-1")]
)
def test_options_are_checked_before_anything_runs(tiny, options, words):
    stage = answer_many(tiny, [], **options)
    with pytest.raises(Error, match=words):
        run(stage)


def test_the_bar_counts_answers(vlm, prompts, monkeypatch):
    shown, bar = io.StringIO(), progress.tqdm
    changed = {"disable": False, "delay": 0, "mininterval": 0, "file": shown}
    monkeypatch.setattr(progress, "tqdm", lambda **options: bar(**{**options, **changed}))
    vlm.ask_many(prompts, max_new_tokens=3)
    for words in ("answering", "0/5", "5/5", "prompts.1.visual.blocks.2", "steps.2.model.layers.0"):
        assert words in shown.getvalue()


@pytest.mark.parametrize("token", [5, np.int64(5), np.zeros((1, 1), dtype=np.int64)])
def test_a_token_without_its_axis_is_refused_and_the_cache_stays(vlm, token):
    cache = vlm.new_cache()
    run(vlm.prefill(text_inputs(4), cache))
    with pytest.raises(Error, match=r"decode takes an id for each sequence, int64 \[1\] for one"):
        run(vlm.decode(token, cache))
    assert len(cache) == 4 and run(vlm.decode(np.array([5]), cache)).shape == (1, vlm.config.text.vocab_size)


def test_errors_name_the_prompt(tmp_path):
    vlm = minivl.load(backend="numpy")
    with pytest.raises(Error, match="prompt 1: the prompt has [0-9]+ tokens; the model's context is"):
        vlm.ask_many(["How many?", "word " * 5000, "What?"])
    with pytest.raises(Error, match="prompt 0: no1.png does not exist"):
        vlm.ask_many([{"question": "What?", "videos": [["no1.png", "no2.png"]]}])


def test_options_of_preparing_beside_inputs_are_for_the_others():
    vlm, image = minivl.load(backend="numpy"), scene(5).image
    prepared = run(vlm.read(user("How many shapes are there?", image)))
    other = {"question": "How many shapes are there?", "images": image}
    assert len(vlm.ask_many([prepared, other], max_pixels=112 * 112)) == 2
    with pytest.raises(Error, match="max_pixels: for preparing messages"):
        vlm.ask_many([prepared, prepared], max_pixels=112 * 112)
