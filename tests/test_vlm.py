"""The engine on a small random model: observation is neutral, caches are exact, backends agree, edits do what they say."""

import copy
import dataclasses
import threading

import numpy as np
import pytest
from conftest import small_inputs, small_model

import minivl
from minivl.errors import Error
from minivl.model.engine import scatter
from minivl.processing.inputs import Inputs
from minivl.stream import run
from minivl.trace.recorder import record

# Two orders of summation of the same float32 sums, through 3 blocks and 3 layers: measured at most 2e-6.
CLOSE = 1e-5


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def prefill(vlm, inputs):
    return run(vlm.prefill(inputs, vlm.new_cache()))


def test_watching_changes_no_bit(vlm, inputs):
    unwatched = prefill(vlm, inputs)
    seen = record(vlm.prefill(inputs, vlm.new_cache()), keep="*")
    assert np.array_equal(unwatched, seen.result)
    assert any(name.endswith("attn.probs") for name in seen)  # lazy tensors were built on the way
    assert not any(t.flags.writeable for t in seen.values())


def test_everything_is_float32_or_integer(vlm, inputs):
    seen = vlm.trace(inputs, max_new_tokens=2)
    assert {str(t.dtype) for t in seen.values()} == {"float32", "int64"}


def test_backends_agree_on_every_tensor():
    one, other = small_model("numba"), small_model("numpy")
    inputs = small_inputs(one.config)
    a, b = one.trace(inputs), other.trace(inputs)
    assert list(a) == list(b)
    for name in a:
        if a[name].dtype == np.float32:
            finite = np.isfinite(b[name])
            assert np.array_equal(np.isfinite(a[name]), finite), name
            assert relative(a[name][finite], b[name][finite]) < CLOSE, name
        else:
            assert np.array_equal(a[name], b[name]), name


def test_cached_decoding_equals_recomputing(vlm, inputs):
    cache = vlm.new_cache()
    run(vlm.prefill(inputs, cache))
    more = np.array([7, 8, 9], dtype=np.int64)
    for token in more:
        cached = run(vlm.decode(np.array([token]), cache))
    longer = Inputs(np.append(inputs.input_ids, more), inputs.pixel_values, inputs.image_grid_thw)
    assert relative(cached, prefill(vlm, longer)) < CLOSE


def test_a_second_turn_runs_only_what_is_new(vlm, inputs):
    cache = vlm.new_cache()
    run(vlm.prefill(inputs, cache))
    third = small_inputs(vlm.config, grids=((1, 4, 12),), seed=5)
    both = Inputs(
        np.concatenate([inputs.input_ids, third.input_ids]),
        np.concatenate([inputs.pixel_values, third.pixel_values]),
        np.concatenate([inputs.image_grid_thw, third.image_grid_thw]),
    )
    seen = record(vlm.prefill(both, cache), keep="*")
    assert seen["input_ids"].tolist() == third.input_ids.tolist()
    assert seen["image_grid_thw"].tolist() == [[1, 4, 12]]
    assert relative(seen.result, prefill(vlm, both)) < CLOSE
    assert len(cache) == len(both.input_ids)


def test_another_picture_is_not_taken_for_the_cached_one(vlm, inputs):
    cache = vlm.new_cache()
    run(vlm.prefill(inputs, cache))
    changed = inputs.pixel_values.copy()
    changed[-1] += 1  # in the second image
    other = Inputs(inputs.input_ids, changed, inputs.image_grid_thw)
    seen = record(vlm.prefill(other, cache), keep=["input_ids", "image_grid_thw"])
    assert seen["image_grid_thw"].tolist() == [[1, 6, 4]]
    assert relative(seen.result, prefill(vlm, other)) < CLOSE
    assert relative(seen.result, prefill(vlm, inputs)) > 10 * CLOSE


def test_pages_of_one_colour_differ_by_their_grid(vlm):
    """The same patches, lying and standing: other windows, other positions."""
    lying, standing = (small_inputs(vlm.config, grids=(grid,)) for grid in ((1, 4, 12), (1, 12, 4)))
    blank = np.ones_like(lying.pixel_values)
    lying, standing = (Inputs(one.input_ids, blank, one.image_grid_thw) for one in (lying, standing))
    assert np.array_equal(lying.input_ids, standing.input_ids)
    cache = vlm.new_cache()
    run(vlm.prefill(lying, cache))
    assert relative(run(vlm.prefill(standing, cache)), prefill(vlm, standing)) < CLOSE


def test_a_prompt_may_end_in_a_picture(vlm, inputs):
    """Run twice, it starts again at the image: half an image cannot be run."""
    last = int(np.flatnonzero(inputs.input_ids == vlm.config.image_token_id)[-1]) + 1
    ends = Inputs(inputs.input_ids[:last], inputs.pixel_values, inputs.image_grid_thw)
    cache = vlm.new_cache()
    first = run(vlm.prefill(ends, cache))
    again = record(vlm.prefill(ends, cache), keep="image_grid_thw")
    assert again["image_grid_thw"].tolist() == [[1, 6, 4]] and relative(again.result, first) < CLOSE


def test_a_cache_belongs_to_its_model(vlm, inputs):
    other = small_model(num_hidden_layers=2)
    for cache in (other.new_cache(), {}):
        with pytest.raises(Error, match="not one of this model's"):
            vlm.trace(inputs, cache=cache)
    with pytest.raises(Error, match="would keep what the edits changed"):
        vlm.trace(inputs, cache=vlm.new_cache(), edit={"lm_head": lambda x: x})


@pytest.mark.parametrize(
    "name, words",
    [("visual.cu_window_seqlens", "boundaries"), ("visual.cu_seqlens", "boundaries"), ("visual.window_index", "once")],
)
def test_edits_cannot_make_the_kernels_read_elsewhere(vlm, inputs, name, words):
    with pytest.raises(Error, match=words):
        vlm.trace(inputs, edit={name: lambda x: x * 3 + 1})


def test_an_edited_rope_delta_moves_the_tokens_after_the_prompt(vlm, inputs):
    plain = vlm.trace(inputs, max_new_tokens=2, keep="steps.1.position_ids")
    moved = vlm.trace(inputs, max_new_tokens=2, keep="steps.1.position_ids", edit={"rope_delta": lambda x: x + 5})
    assert np.array_equal(moved["steps.1.position_ids"], plain["steps.1.position_ids"] + 5)


@pytest.mark.parametrize(
    "field, change, words",
    [
        ("input_ids", lambda x: x[:0], "at least one"),
        ("input_ids", lambda x: x.astype(np.float32), "integers"),
        ("input_ids", lambda x: np.where(x < 100, -5, x), "token id -5"),
        ("pixel_values", lambda x: x[1:], "a row for each patch"),
        ("pixel_values", lambda x: x[:, 1:], "a row for each patch"),
        ("image_grid_thw", lambda x: x[:, :2], "images, 3"),
        ("image_grid_thw", lambda x: x + 1, "multiples of 2"),
    ],
)
def test_inputs_made_by_hand_are_checked(vlm, inputs, field, change, words):
    bad = dataclasses.replace(inputs, **{field: change(getattr(inputs, field))})
    with pytest.raises(Error, match=words):
        vlm.trace(bad)


def test_other_number_types_are_brought_to_the_right_ones(vlm, inputs):
    wide = Inputs(
        inputs.input_ids.astype(np.int32), inputs.pixel_values.astype(np.float64), inputs.image_grid_thw.tolist()
    )
    a, b = vlm.trace(inputs), vlm.trace(wide)
    assert all(np.array_equal(a[name], b[name], equal_nan=True) and a[name].dtype == b[name].dtype for name in a)


def test_a_trace_has_a_limit(vlm, inputs, tmp_path):
    with pytest.raises(Error, match="raise limit="):
        vlm.trace(inputs, limit=10_000)
    with pytest.raises(Error, match="does not exist"):
        vlm.trace(inputs, keep="lm_head").save(tmp_path / "no" / "run.safetensors")
    with pytest.raises(Error, match="no tensor of this run"):
        vlm.trace(inputs, keep=["lm_head", "video.*"])


def test_a_shorter_prompt_forgets_the_rest(vlm, inputs):
    cache = vlm.new_cache()
    run(vlm.prefill(inputs, cache))
    text = Inputs(inputs.input_ids[:4], inputs.pixel_values[:0], inputs.image_grid_thw[:0])
    assert relative(run(vlm.prefill(text, cache)), prefill(vlm, text)) < CLOSE
    assert len(cache) == 4 and cache.media == []


def test_images_do_not_see_each_other(vlm, inputs):
    """Editing the second image leaves the first one's tokens bit-identical."""
    changed = inputs.pixel_values.copy()
    changed[140:] += 1
    first = run(vlm.embed_image(inputs.pixel_values, inputs.image_grid_thw))
    second = run(vlm.embed_image(changed, inputs.image_grid_thw))
    assert np.array_equal(first[:35], second[:35]) and not np.any(np.all(first[35:] == second[35:], axis=1))


def test_windowed_blocks_do_not_see_beyond_their_window():
    vision = {**small_model().config.vision.__dict__, "fullatt_block_indexes": []}
    vlm = small_model(vision_config=vision)
    inputs = small_inputs(vlm.config)
    changed = inputs.pixel_values.copy()
    changed[0] += 1  # a patch of unit (0, 0): window 0 holds units of rows 0-3, columns 0-3
    a, b = (run(vlm.embed_image(p, inputs.image_grid_thw)) for p in (inputs.pixel_values, changed))
    moved = np.any(a != b, axis=1)[:35].reshape(5, 7)
    assert moved[:4, :4].all() and moved.sum() == 16


def test_edits_apply_and_do_not_leak(vlm, inputs):
    before = prefill(vlm, inputs)
    name = "model.layers.1.self_attn.context"
    edited = vlm.trace(inputs, keep=["lm_head", name], edit={name: lambda x: x * 0})
    assert not edited[name].any() and relative(edited["lm_head"], before) > 1e-3
    assert np.array_equal(prefill(vlm, inputs), before)


@pytest.mark.parametrize(
    "name", ["visual.blocks.0.attn.probs", "visual.blocks.1.attn.scores", "model.layers.2.self_attn.probs"]
)
def test_replacing_a_lazy_tensor_by_itself_changes_nothing_but_rounding(vlm, inputs, name):
    edited = vlm.trace(inputs, keep="lm_head", edit={name: lambda x: x})
    assert relative(edited["lm_head"], prefill(vlm, inputs)) < CLOSE


def test_edited_probabilities_are_what_the_model_goes_on_from(vlm, inputs):
    """All attention on the first key of the segment: each head's context is that key's value."""

    def first_only(probs):
        edited = np.zeros_like(probs)
        edited[:, :, 0] = 1
        return edited

    name = "model.layers.0.self_attn"
    seen = vlm.trace(inputs, edit={f"{name}.probs": first_only})
    value = seen[f"{name}.v_proj"][0].reshape(2, 8)  # [KV, K]
    expected = np.repeat(value, 3, axis=0).reshape(-1)  # 3 query heads share a key head
    np.testing.assert_allclose(seen[f"{name}.context"], np.tile(expected, (len(inputs.input_ids), 1)), rtol=1e-6)


def test_stop_ends_the_run(vlm, inputs):
    seen = vlm.trace(inputs, stop="visual.blocks.1")
    assert seen.names[-1] == "visual.blocks.1" and seen.result is None


def test_forcing_a_token(vlm, inputs):
    seen = vlm.trace(inputs, max_new_tokens=2, edit={"next_token": np.array([42])})
    assert seen.result.ids[0] == 42 and np.array_equal(
        seen["steps.1.model.embed_tokens"][0], vlm.weights["model.embed_tokens.weight"][42]
    )


def test_generation_stops(vlm, inputs):
    answer = vlm.trace(inputs, max_new_tokens=4).result
    assert len(answer.ids) == 4 and not answer.finished
    ended = vlm.trace(inputs, max_new_tokens=4, edit={"steps.1.next_token": np.array([106])}).result
    assert len(ended.ids) == 2 and ended.finished


def test_the_same_seed_gives_the_same_answer(vlm, inputs):
    def draw(seed):
        return vlm.trace(inputs, max_new_tokens=12, temperature=3.0, top_k=0, seed=seed, keep="next_token").result.ids

    assert draw(1) == draw(1) and len({tuple(draw(seed)) for seed in range(4)}) > 1


def test_prompt_longer_than_the_context(inputs):
    vlm = small_model(max_position_embeddings=50)
    with pytest.raises(Error, match="context is 50"):
        vlm.trace(inputs)


def test_answer_ends_at_the_context(inputs):
    vlm = small_model(max_position_embeddings=len(inputs.input_ids) + 3)
    assert len(vlm.trace(inputs, max_new_tokens=50).result.ids) == 3


def test_sliding_window_matters():
    plain = small_model()
    inputs = small_inputs(plain.config)
    sliding = small_model(use_sliding_window=True, sliding_window=9, max_window_layers=1)
    a, b = plain.trace(inputs), sliding.trace(inputs)
    assert np.array_equal(a["model.layers.0"], b["model.layers.0"])
    assert np.isfinite(b["model.layers.1.self_attn.scores"][0, -1]).sum() == 9
    assert relative(a["lm_head"], b["lm_head"]) > 1e-4


def test_tied_head_is_the_embedding():
    vlm = small_model(tie_word_embeddings=True)
    assert vlm.weights["lm_head.weight"] is vlm.weights["model.embed_tokens.weight"]
    hidden = vlm.trace(small_inputs(vlm.config), keep=["model.norm", "lm_head"])
    expected = hidden["model.norm"][-1:] @ vlm.weights["model.embed_tokens.weight"].T
    np.testing.assert_allclose(hidden["lm_head"], expected, rtol=1e-4, atol=1e-5)


def test_scatter_counts():
    x, where = np.zeros((3, 2), dtype=np.float32), np.array([False, True, True])
    features = np.arange(4, dtype=np.float32).reshape(2, 2)
    assert scatter(x, features, where).tolist() == [[0, 0], [0, 1], [2, 3]] and not x.any()
    with pytest.raises(Error, match="2 image placeholders and the images have 1 tokens"):
        scatter(x, features[:1], where)


def test_token_id_outside_the_table(vlm):
    with pytest.raises(Error, match="token id 999"):
        vlm.embed_tokens(np.array([999]))


def test_misspelt_names_are_told(vlm, inputs):
    with pytest.raises(Error, match=r"model\.layers\.1\.mlp\.act"):
        vlm.trace(inputs, keep="model.layers.1.mlp.akt")
    with pytest.raises(Error, match="returned None"):
        vlm.trace(inputs, edit={"lm_head": lambda x: None})
    seen = vlm.trace(inputs, keep="lm_head")
    with pytest.raises(KeyError, match="not kept"):
        seen["model.norm"]


def test_trace_saves_and_selects(vlm, inputs, tmp_path):
    from safetensors.numpy import load_file

    seen = vlm.trace(inputs)
    seen.save(tmp_path / "run.safetensors")
    stored = load_file(tmp_path / "run.safetensors")
    assert stored.keys() == seen.keys() and all(np.array_equal(stored[n], seen[n], equal_nan=True) for n in stored)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    assert list(seen.select("visual.merger.mlp.*")) == [f"visual.merger.mlp.{i}" for i in range(3)]


def test_a_cache_in_use_by_another_thread(vlm, inputs):
    """An error there; the answer that runs stays right, and afterwards the cache is free."""
    alone = vlm.trace(inputs, keep="*lm_head", max_new_tokens=3)
    cache, errors = vlm.new_cache(), []

    def intrude(tensor):
        def other():
            try:
                vlm.trace(inputs, keep="lm_head", cache=cache)
            except Error as error:
                errors.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return tensor

    stage = vlm.answer(inputs, cache, max_new_tokens=3)
    ours = record(stage, keep="*lm_head", edit={"model.norm": intrude, "steps.1.model.norm": intrude})
    assert len(errors) == 2 and all("in use by another thread" in error for error in errors)
    assert all(np.array_equal(ours[name], alone[name]) for name in alone) and ours.result.ids == alone.result.ids
    abandoned = vlm.answer(inputs, cache)
    next(abandoned)
    assert len(vlm.trace(inputs, keep="lm_head", cache=cache)["lm_head"]) == 1  # the same thread takes over


def test_an_answer_whose_cache_was_taken_over_cannot_go_on(vlm, inputs):
    cache = vlm.new_cache()
    first = vlm.answer(inputs, cache, max_new_tokens=3)
    next(first)
    record(vlm.answer(inputs, cache, max_new_tokens=1), keep="lm_head")
    with pytest.raises(Error, match="a later answer has taken over the cache of this one"):
        record(first, keep="lm_head")


def test_options_of_preparing_do_not_go_with_inputs(vlm, inputs):
    for options in ({"max_pixels": 784}, {"add_vision_id": True}):
        with pytest.raises(Error, match=f"{next(iter(options))}: for preparing messages; the prompt is Inputs"):
            vlm.trace(inputs, **options)
    assert vlm.trace(inputs, keep="lm_head", max_pixels=None, add_vision_id=False).keys() == {"lm_head"}


def test_inputs_of_text_alone_and_chunks_of_nothing(vlm):
    text = Inputs(np.array([1, 2, 3]), None, None)
    assert len(vlm.trace(text, keep="lm_head")["lm_head"]) == 1
    with pytest.raises(Error, match="both pixel_values and image_grid_thw, or neither"):
        Inputs(np.array([1, 2, 3]), None, np.array([[1, 4, 4]]))
    vlm.prefill_chunk = 0
    with pytest.raises(Error, match="prefill_chunk is 0; it must be a number of tokens"):
        vlm.trace(text)
    del vlm.prefill_chunk


def test_two_threads_that_find_compiled_kernels_at_once():
    """The first one changes to them; the second must not stumble over what is no longer there."""
    vlm = minivl.load(backend="numpy")
    plain, started, results = vlm.kernels, threading.Barrier(2), []

    class Compilation:
        def take(self):
            started.wait()
            return copy.copy(plain)

    compilation = Compilation()
    compilation.plain = plain
    vlm.compilation = compilation

    def use():
        try:
            vlm.use_compiled_kernels()
            results.append("changed")
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=use) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results == ["changed"] * 2 and vlm.kernels is not plain and vlm.compilation is None
