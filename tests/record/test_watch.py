"""What recorders keep of the calls of modules: names, passes over prompt and answer, inputs; without a framework."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import minivl
from minivl.checkpoint.safetensors import read_header
from minivl.compare.recordings import open_recording
from minivl.record.recording import Recording, module_name, to_storable
from minivl.record.watch import Watch, is_cache_filled


def rows(count, width=4, start=0):
    return np.arange(start, start + count * width, dtype=np.float32).reshape(1, count, width)


class Port:
    """Calls of modules by name, as a framework would report them."""

    def __init__(self, keep="*"):
        self.recording = Recording(keep)
        self.watch = Watch(self.recording, np.asarray)

    def call(self, name, *args, returns=None, inside=(), **kwargs):
        module = object()
        self.watch.enter(module, name, args, kwargs)
        for step in inside:
            step()
        self.watch.leave(module, name, args, kwargs, returns)

    def answer(self, tokens, **kwargs):
        """A pass of a decoder of one layer."""
        x = rows(tokens)
        layer = lambda: self.call("model.layers.0", x, returns=(x + 1, None))  # noqa: E731
        head = lambda: self.call("lm_head", x, returns=x * 2)  # noqa: E731
        self.call("", returns=SimpleNamespace(logits=x * 2), inside=[layer, head], **kwargs)


def ids(count):
    return np.arange(count)[None]


def test_names_of_modules():
    assert module_name("model.language_model.layers.0") == "model.layers.0"
    assert module_name("base_model.model.model.visual.blocks.0") == "visual.blocks.0"
    assert module_name("vision_tower.merger.mlp.0") == "visual.merger.mlp.0"
    assert module_name("language_model.model.layers.3.mlp") == "model.layers.3.mlp"
    assert module_name("_orig_mod.model.norm") == "model.norm"
    assert module_name("model.lm_head") == module_name("base_model.model.lm_head") == "lm_head"
    assert module_name("blocks.0.norm1", "visual") == "visual.blocks.0.norm1"
    assert module_name("", "visual") == "visual" and module_name("") == ""


def test_inputs_and_outputs_of_modules():
    port, x, y = Port(), rows(3), rows(3, 8)
    port.call("model.layers.0.post_attention_layernorm", x, returns=x + 1)
    port.call("model.layers.0.mlp", x, returns=y, inside=[lambda: port.call("model.layers.0.mlp.act_fn", y, returns=y)])
    port.call("model.layers.0.mlp.down_proj", y, returns=x + 2)
    port.call("model.layers.0.self_attn.o_proj", y + 1, returns=x + 3)
    found = port.recording
    assert list(found) == [
        "model.layers.0.self_attn.context",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.attn_residual",
        "model.layers.0.post_attention_layernorm",
        "model.layers.0.mlp.act",
        "model.layers.0.mlp.down_proj",
    ]
    assert np.array_equal(found["model.layers.0.attn_residual"], x[0]) and found["model.layers.0.mlp.act"].shape == (
        3,
        8,
    )


def test_a_norm_that_adds_is_no_witness_of_the_residual():
    port, x = Port(), rows(3)
    port.call("model.layers.0.post_attention_layernorm", x, x, returns=(x, x))
    assert list(port.recording) == ["model.layers.0.post_attention_layernorm"]


def test_passes_over_prompt_and_answer():
    port = Port()
    for tokens in (5, 1, 1):
        port.answer(tokens, input_ids=ids(tokens))
    shapes = {name: tensor.shape for name, tensor in port.recording.items()}
    assert shapes == {
        "input_ids": (5,),
        "inputs_embeds": (5, 4),
        "model.layers.0": (5, 4),
        "lm_head": (1, 4),
        "steps.1.model.layers.0": (1, 4),
        "steps.1.lm_head": (1, 4),
        "steps.2.model.layers.0": (1, 4),
        "steps.2.lm_head": (1, 4),
    }


def test_passes_without_a_cache_grow_by_a_token():
    port = Port()
    for tokens in (5, 6, 7):
        port.answer(tokens, input_ids=ids(tokens))
    assert port.recording["steps.2.model.layers.0"].shape == (7, 4)


def test_chunks_of_a_prompt():
    port = Port()
    for tokens, seen in ((4, 0), (4, 4), (2, 8), (1, 10)):
        cache = SimpleNamespace(get_seq_length=lambda seen=seen: seen)
        port.answer(tokens, input_ids=ids(tokens), past_key_values=cache)
    assert open_recording(port.recording)["model.layers.0"].shape == (10, 4)
    assert "chunks.2.model.layers.0" in port.recording and "steps.1.model.layers.0" in port.recording


@pytest.mark.parametrize(
    "cache, filled",
    [(None, False), ([], False), ([None], False), (((rows(2), rows(2)),), True), (rows(2), True)]
    + [([SimpleNamespace(offset=offset)], offset > 0) for offset in (0, 3)],
)
def test_caches_of_several_kinds(cache, filled):
    assert is_cache_filled({"kv_cache": cache}) == filled


def test_a_second_prompt_is_refused():
    port = Port()
    port.answer(5, input_ids=ids(5))
    with pytest.raises(minivl.Error, match="another prompt begins, of 9 tokens"):
        port.answer(9, input_ids=ids(9))
    with pytest.raises(minivl.Error, match="one prompt; this batch has 2"):
        Port().answer(5, input_ids=np.zeros((2, 5), dtype=np.int64))


def test_the_tower_runs_for_images_then_for_videos():
    port = Port()
    for at in (0, 100):
        port.watch.keep("visual.window_index", np.array([1, 0]))
        port.watch.keep("visual.cu_seqlens", np.array([0, 8]))
        port.call("visual", rows(2, start=at), returns=SimpleNamespace(pooler_output=rows(2, start=at)))
    assert port.recording["visual"].tolist() == [*rows(2)[0].tolist(), *rows(2, start=100)[0].tolist()]
    assert port.recording["visual.window_index"].tolist() == [1, 0, 3, 2]
    assert port.recording["visual.cu_seqlens"].tolist() == [0, 8, 16]


def test_queries_and_keys():
    """Segments of the tower are joined; repeated key heads count once, cached rows not at all."""
    port, q, k = Port(), np.zeros((1, 4, 2, 8)), np.arange(64.0).reshape(1, 2, 4, 8)
    repeated = k.repeat(2, axis=1)
    segments = [lambda: port.watch.attend(q, q), lambda: port.watch.attend(q + 1, q + 1)]
    port.call("visual.blocks.0.attn", rows(4), returns=rows(4), inside=segments)
    project = lambda: port.call("model.layers.0.self_attn.k_proj", rows(2), returns=rows(2, 16))  # noqa: E731
    port.call("model.layers.0.self_attn", rows(2), inside=[project, lambda: port.watch.attend(q, repeated)])
    port.call("model.other", rows(2), inside=[lambda: port.watch.attend(q, q)])
    assert port.recording["visual.blocks.0.attn.q_rope"].shape == (4, 4, 8)
    assert np.array_equal(port.recording["model.layers.0.self_attn.k_rope"], k[0, :, 2:])
    assert not any("other" in name and "rope" in name for name in port.recording)


def test_after_an_exception_it_goes_on():
    """A module that raised is never left; its caller is, or is called again."""
    port = Port()
    failing = lambda: port.watch.enter("attention", "model.layers.0.self_attn", (rows(2),), {})  # noqa: E731
    port.call("model.layers.0", rows(2), returns=rows(2), inside=[failing])
    assert port.watch.running == [] and "model.layers.0" in port.recording


def test_a_file_is_what_was_recorded(tmp_path):
    port = Port(keep=["lm_head", "*.layers.*", "extra"])
    port.answer(5, input_ids=ids(5))
    port.recording.add("extra", np.array(2))
    path = tmp_path / "port.safetensors"
    port.recording.save(path)
    found = open_recording(path)
    assert list(found) == ["model.layers.0", "lm_head", "extra"]
    assert all(np.array_equal(found[name], port.recording[name]) for name in found)
    assert read_header(path)[0]["__metadata__"]["format"] == "minivl-recording"
    assert dict(minivl.Trace.load(path)).keys() == set(found)


def test_nothing_recorded_is_an_error(tmp_path):
    with pytest.raises(minivl.Error, match="nothing was recorded.*keep='visual'"):
        Recording("visual").save(tmp_path / "port.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError, match="Did you mean lm_head"):
        port = Port()
        port.answer(2, input_ids=ids(2))
        port.recording["lm.head"]


@pytest.mark.parametrize(
    "array, kind",
    [
        (np.ones((2, 3), dtype=np.complex64), "float32"),
        (np.ones(3, dtype=np.uint32), "int64"),
        (np.ones(3, dtype=np.uint8), "uint8"),
        (np.ones(3, dtype=bool), "bool"),
        (np.ones(3, dtype=np.float16), "float16"),
    ],
)
def test_types_that_a_file_has(array, kind):
    stored = to_storable(array)
    assert stored.dtype == kind and stored.shape[:1] == array.shape[:1]
    if array.dtype.kind == "c":
        assert stored.shape == (2, 3, 2) and stored[0, 0].tolist() == [1, 0]


def test_a_port_without_a_cache_runs_all_again():
    """Each token of the answer takes a pass over all tokens up to it, and the tower again: as tiny-qwen does."""
    port, patches = Port(), rows(8)[0]
    for count in (5, 6, 7):
        port.call("model.embed_tokens", ids(count), returns=rows(count))
        port.call("visual", pixels=patches, returns=patches[:2], inside=[
            lambda: port.call("visual.blocks.0", patches, returns=patches + 1),
            lambda: port.call("visual.blocks.0.attn", patches, returns=patches, inside=[
                lambda: port.watch.attend(rows(4).reshape(1, 2, 4, 2), rows(4).reshape(1, 2, 4, 2))]),
        ])  # fmt: skip
        port.call("model.rotary_emb", rows(count), np.tile(np.arange(count), (3, 1, 1)), returns=None)
        attend = lambda n=count: port.watch.attend(rows(n, 4).reshape(1, 2, n, 2), rows(n, 2).reshape(1, 1, n, 2))  # noqa: E731
        port.call("model.layers.0.self_attn", rows(count), returns=rows(count), inside=[attend])
        port.call("model.layers.0", rows(count), returns=rows(count) + count)
    found = port.recording
    assert found["visual"].shape == (2, 4) and found["visual.blocks.0"].shape == (8, 4)
    assert found["visual.blocks.0.attn.q_rope"].shape == (2, 4, 2)
    assert found["model.layers.0"].shape == (5, 4) and found["position_ids"].shape == (3, 5)
    for step, count in ((1, 6), (2, 7)):
        assert np.array_equal(found[f"steps.{step}.model.layers.0"], rows(count)[0] + count)
        assert found[f"steps.{step}.position_ids"].tolist() == [[count - 1]] * 3
        assert found[f"steps.{step}.model.layers.0.self_attn.q_rope"].shape == (2, 1, 2)
        assert found[f"steps.{step}.model.layers.0.self_attn.k_rope"].shape == (1, 1, 2)


def test_further_pictures_are_appended():
    port, patches = Port(), rows(8)[0]
    for start in (0, 1):
        port.call("visual", patches + start, returns=patches[:2])
    assert port.recording["visual"].shape == (4, 4)


@pytest.mark.parametrize("keep", ["*", "*_rope"])
@pytest.mark.parametrize("fused", [False, True])
def test_repeated_key_heads_count_once_whatever_is_kept(keep, fused):
    """The width of k_proj is known though its output is not kept; of one fused product the values tell."""
    port, q, k = (
        Port(keep),
        np.ones((1, 4, 5, 8)),
        np.random.default_rng(0).standard_normal((1, 2, 5, 8), dtype=np.float32),
    )
    project = lambda: port.call("model.layers.0.self_attn.k_proj", rows(5), returns=rows(5, 16))  # noqa: E731
    inside = [] if fused else [project]
    attend = lambda: port.watch.attend(q, k.repeat(2, axis=1))  # noqa: E731
    port.call("model.layers.0.self_attn", rows(5), inside=[*inside, attend])
    assert np.array_equal(port.recording["model.layers.0.self_attn.k_rope"], k[0])


def test_logits_of_one_row():
    port = Port()
    port.call("lm_head", rows(1)[0, 0], returns=np.arange(7.0))
    assert port.recording["lm_head"].shape == (1, 7)


def test_a_part_of_a_model_has_no_logits():
    """A tower and a decoder without its head, recorded without name=: their output is no lm_head."""
    tower, x = Port(), rows(3)
    tower.call("", x, returns=x, inside=[lambda: tower.call("blocks.0", x, returns=x + 1)])
    assert list(tower.recording) == ["blocks.0"]
    decoder = Port()
    norm = rows(3) * 2
    decoder.call("", ids(3), returns=norm, inside=[lambda: decoder.call("norm", x, returns=norm)])
    assert "lm_head" not in decoder.recording
    tied = Port()  # a head that is no module
    tied.call("", ids(3), returns=norm + 1, inside=[lambda: tied.call("norm", x, returns=norm)])
    assert np.array_equal(tied.recording["lm_head"], (norm + 1)[0, -1:])


def test_a_warm_up_run_of_the_tower_counts_once():
    port = Port()
    for _ in range(2):
        port.call(
            "visual", rows(4), returns=rows(4), inside=[lambda: port.call("visual.blocks.0", rows(4), returns=rows(4))]
        )
    assert port.recording["visual.blocks.0"].shape == (4, 4)


def test_a_longer_prompt_is_no_next_token():
    """Without a cache a token more means a step only if the tokens before are the same."""
    for again in (dict(input_ids=np.arange(6)[None] + 1), dict(inputs_embeds=rows(6, start=9))):
        port = Port()
        port.answer(5, **({"input_ids": ids(5)} if "input_ids" in again else {"inputs_embeds": rows(5)}))
        with pytest.raises(minivl.Error, match="another prompt begins, of 6 tokens"):
            port.answer(6, **again)
    port = Port()
    port.answer(5, inputs_embeds=rows(5))
    port.answer(6, inputs_embeds=rows(6))
    assert "steps.1.model.layers.0" in port.recording


def test_logits_of_tied_heads_however_the_model_is_called():
    x = rows(3)
    for args, kwargs in (((rows(4), ids(3)), {}), ((), {"inputs_embeds": x})):
        port = Port()
        norm = partial(port.call, "norm", x, returns=x)
        port.call("", *args, returns=x + 1, inside=[norm], **kwargs)
        assert "lm_head" in port.recording, kwargs


def test_two_equal_images_are_two():
    """A blank page twice, of two shapes: equal patches, other grids."""
    port, patches = Port(), np.ones((1, 8, 6), np.float32)
    for grid in ([[1, 2, 4]], [[1, 4, 2]]):
        port.call("visual", patches, np.array(grid), returns=rows(2))
    assert len(port.recording["visual"]) == 4


def test_steps_of_a_part_in_bfloat16():
    """Without a cache hidden states are computed again, off by a unit of the last place."""
    port, x = Port(), rows(5) + 1
    port.call("model.layers.5", x, returns=x)
    again = np.concatenate([x * np.float32(1 + 2**-7), x[:, -1:]], axis=1)
    port.call("model.layers.5", again, returns=again)
    assert "steps.1.model.layers.5" in port.recording
