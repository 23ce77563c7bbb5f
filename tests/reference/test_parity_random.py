"""Twenty-two random configurations, every tensor of the forward pass, against transformers in float32.

Needs the [reference] extra. Run it by its path: pytest tests/reference
"""

import numpy as np
import pytest
from oracle import covering_tensor, launch_positions, leaves, load_reference, run_reference, unknown_to_reference
from parity import assert_parity
from random_models import CASES, random_config, random_inputs, write_checkpoint

import minivl

BACKENDS, STORAGE = ("numba", "numpy"), ("bfloat16", "float32")


class Case:
    """One configuration: its checkpoint in `folder`, transformers' model of it, inputs, and all reference tensors."""

    def __init__(self, name, folder):
        forced, self.name, self.folder = CASES[name], name, folder
        config = random_config(np.random.default_rng(forced["seed"]), **forced)
        write_checkpoint(folder, config, forced["seed"])
        self.reference = load_reference(folder)
        media = {name: forced.get(name, ()) for name in ("grids", "videos", "seconds")}
        self.inputs = random_inputs(self.reference.config, seed=forced["seed"], **media)
        self.tensors = run_reference(self.reference, **vars(self.inputs))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("weights", STORAGE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_tensor(case, backend, weights):
    trace = minivl.load(case.folder, weights, backend, "transformers5").trace(case.inputs)
    assert_parity(case.tensors, trace, unknown_to_reference(case.inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_tensor_with_the_positions_of_launch(case, backend):
    """transformers 5 run with the positions of the version that the model was launched with."""
    positions = launch_positions(case.reference, case.inputs)
    expected = run_reference(case.reference, **vars(case.inputs), position_ids=positions)
    trace = minivl.load(case.folder, backend=backend).trace(case.inputs)
    assert_parity(expected, trace, {"rope_delta", "next_token"})
    last = int(positions[:, -1].max())
    assert trace["rope_delta"] == last + 1 - len(case.inputs.input_ids)
    same = np.array_equal(positions, case.tensors["position_ids"])
    assert same != bool(len(case.inputs.video_grid_thw)), "the videos of these cases must be longer than wide"


def test_nothing_is_skipped(case):
    """Every module of transformers that computes something is compared: under its own name, or as COVERED_BY says."""
    trace = minivl.load(case.folder, video_positions="transformers5").trace(case.inputs)
    skipped = {
        leaf
        for leaf in leaves(case.reference)
        if not (covering_tensor(leaf) in case.tensors and covering_tensor(leaf) in trace)
    }
    asleep = {
        leaf
        for leaf in leaves(case.reference)
        if leaf.startswith("visual") and not case.inputs.pixel_values.size + case.inputs.pixel_values_videos.size
    }
    assert skipped == asleep


def test_the_cases_cover_what_they_are_named_after():
    """Whoever changes a seed or a draw learns here what is no longer tested."""
    configs = {name: random_config(np.random.default_rng(case["seed"]), **case) for name, case in CASES.items()}
    texts, towers = [c.text_config for c in configs.values()], [c.vision_config for c in configs.values()]
    assert {t.num_attention_heads // t.num_key_value_heads for t in texts} >= {1, 2, 3, 6}
    assert {v.window_size for v in towers} >= {48, 56, 112, 168} and {v.depth for v in towers} == {2, 3, 4}
    assert all(max(v.fullatt_block_indexes, default=0) < v.depth for v in towers)
    layouts = {
        name: (configs[name].vision_config.fullatt_block_indexes, configs[name].vision_config.depth) for name in CASES
    }
    assert layouts["no_full_block"][0] == [] and layouts["all_blocks_full"] == ([0, 1], 2)
    assert all(len(set(t.rope_parameters["mrope_section"])) > 1 for t in texts)
    assert {t.num_hidden_layers for t in texts} == {2, 3, 4} and {t.rms_norm_eps for t in texts} >= {1e-6, 1e-4, 1e-3}
    assert "sliding_attention" in configs["sliding_window"].text_config.layer_types
    assert configs["sliding_window"].text_config.layer_types[0] == "full_attention"
    assert {c.tie_word_embeddings for c in configs.values()} == {True, False}
    assert {len(case["grids"]) for case in CASES.values()} == {0, 1, 2, 3}
