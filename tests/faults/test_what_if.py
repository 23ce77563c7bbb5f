"""What if: every fault goes in, is noticed, is named by `compare`, and goes out again."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import small_inputs, small_model

import minivl
from minivl.cli import main
from minivl.errors import Error
from minivl.faults import all_faults, fault, score
from minivl.faults.inject import find_owner, patch
from minivl.faults.what_if import with_fresh_kernels
from minivl.model import decoder, positions, vision, windows
from minivl.processing.image_processor import ImageProcessor

TESTS = Path(__file__).parents[1]
FAULTS = all_faults()

# for each fault the first tensor that moves
MOVES = {
    "missing-system-prompt": "input_ids",
    "square-resize": "image.0.resized",
    "bilinear-resize": "image.0.resized",
    "bgr": "image.0.resized",
    "not-normalised": "image.0.normalized",
    "raster-patches": "image.0.patches",
    "no-window-attention": "visual.cu_window_seqlens",
    "no-inverse-permutation": "visual",
    "unpermuted-rope": "visual.rope.cos",
    "swapped-hw": "visual.patch_positions",
    "no-qkv-bias": "visual.blocks.0.attn.qkv",
    "interleaved-rope": "visual.blocks.0.attn.q_rope",
    "tanh-gelu": "visual.merger.mlp.1",
    "wrong-eps": "visual.blocks.0.norm1",
    "layer-norm": "visual.blocks.0.norm1",
    "gate-up-exchanged": "visual.blocks.0.mlp.act",
    "unscaled-scores": "visual.blocks.0.attn.scores",
    "frames-not-apart": "visual.cu_seqlens",
    "one-d-positions": "position_ids",
    "swapped-mrope-hw": "position_ids",
    "wrong-rope-delta": "rope_delta",
    "truncated-seconds": "position_ids",
    "interleaved-sections": "model.rope.cos",
    "wrong-theta": "model.rope.cos",
    "key-heads-by-remainder": "model.layers.0.self_attn.scores",
    "no-causal-mask": "model.layers.0.self_attn.scores",
}


@pytest.fixture(scope="module")
def tiny():
    return minivl.load()


def bindings():
    """What every name of the engine's modules, and of its classes, is bound to."""
    rooms = {name: module for name, module in sys.modules.items() if f"{name}.".startswith("minivl.")}
    found = {(room, name): id(value) for room, module in rooms.items() for name, value in vars(module).items()}
    for room, module in rooms.items():
        for kind in [value for value in vars(module).values() if isinstance(value, type)]:
            found |= {(room, kind.__name__, name): id(value) for name, value in vars(kind).items() if callable(value)}
    return found


def test_every_fault_moves_its_tensor_and_compare_names_it(tiny):
    assert list(MOVES) == list(FAULTS)
    named = {}
    for name, bug in FAULTS.items():
        found = tiny.what_if(name, max_new_tokens=2)
        assert found.moved.name == MOVES[name], f"\n{found}"
        assert found.answers[0].ids == tiny_answer(tiny, bug), name
        named[name] = found.cause is not None and found.cause.name == bug.cause
    assert all(named.values()), [name for name, right in named.items() if not right]


def tiny_answer(tiny, bug, seen={}):  # noqa: B006
    """The right answer stays the same from fault to fault: nothing was left behind."""
    from minivl.faults.what_if import draw_prompt

    if bug.shows not in seen:
        question, images, videos, _, options = draw_prompt(bug, {"max_new_tokens": 2})
        seen[bug.shows] = tiny.ask(question, images, videos, **options).ids
    return seen[bug.shows]


def test_every_path_exists():
    """The dotted paths that faults replace: the engine's own functions, methods and constants."""
    for name, bug in FAULTS.items():
        paths = []
        bug.insert(lambda where, make: paths.append(where))  # noqa: B023
        for path in paths:
            owner, last = find_owner(path)
            assert last in vars(owner), f"{name}: {path}"
        assert paths, name


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_left_behind(name):
    with FAULTS[name].inject():
        pass  # imports what it needs
    before = bindings()
    with pytest.raises(RuntimeError), FAULTS[name].inject():
        assert bindings() != before
        raise RuntimeError
    assert bindings() == before


def test_a_module_imported_meanwhile_is_put_right():
    sys.modules.pop("minivl.compare.mistakes.text_positions", None)
    with fault("wrong-theta").inject():
        import minivl.compare.mistakes.text_positions as tokens

        assert tokens.mrope is positions.mrope
    assert tokens.mrope is positions.mrope is decoder.mrope and positions.mrope.__name__ == "mrope"


def test_swapped_reaches_functions_methods_and_constants():
    with (
        patch("minivl.model.windows.window_index", lambda original: len),
        patch("minivl.processing.image_processor.ImageProcessor.normalize", lambda original: max),
        patch("minivl.model.vision.EPS", lambda original: original * 2),
    ):
        assert windows.window_index is vision.window_index is len
        assert vars(ImageProcessor)["normalize"] is max and vision.EPS == 2e-6
    assert windows.window_index is vision.window_index is not len and vision.EPS == 1e-6


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, bug in FAULTS.items()
        if bug.shows != "video" and MOVES[name].startswith(("visual", "model", "position", "rope_"))
    ],
)
def test_both_backends_get_the_same_bug(name, right_and_wrong):
    """Pictures only: those of videos have tests of their own."""
    right, wrong = right_and_wrong(name, "numba"), right_and_wrong(name, "numpy")
    for tensor in wrong.names:
        if wrong[tensor].dtype == np.float32:
            a, b = (np.nan_to_num(trace[tensor], neginf=0) for trace in (right, wrong))
            assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max(), tensor


@pytest.fixture(scope="module")
def right_and_wrong():
    seen, models = {}, {backend: small_model(backend) for backend in ("numba", "numpy")}

    def traced(name, backend):
        if (name, backend) not in seen:
            with FAULTS[name].inject():
                seen[name, backend] = with_fresh_kernels(models[backend]).trace(small_inputs(models[backend].config))
        return seen[name, backend]

    return traced


def test_what_is_told(tiny):
    found = tiny.what_if("no-inverse-permutation")
    told = str(found)
    for words in (
        "First tensor that moves: visual,",
        "window order not undone",
        "visual.blocks.3",
        "lm_head",
        "Truth:",
    ):
        assert words in told
    assert found.truth.count(",") == 3 and f"Truth:    {found.truth}\nRight:    {found.truth}\n" in told
    assert found.answers[1] != found.answers[0] and str(found.answers[1]) in told
    assert "&#x27;" in found._repr_html_() and 0 <= found.moved_probability <= 1
    assert np.isclose(found.probabilities[1].sum(), 1, atol=1e-5)


def test_a_bug_that_does_not_bite_says_so(tiny):
    """A picture in one window, whose sides are multiples of 28."""
    drawn = minivl.tiny.scene(5, size=(112, 112))
    for name in ("no-window-attention", "no-inverse-permutation", "bilinear-resize"):
        found = tiny.what_if(name, "How many shapes are there?", drawn.image, max_new_tokens=2)
        assert "the same" in str(found) and found.answers[0].ids == found.answers[1].ids
        assert found.moved is None and "bit for bit" in str(found)


def test_inputs_and_models_without_a_tokenizer():
    small = small_model("numpy")
    found = small.what_if("unscaled-scores", small_inputs(small.config), keep="visual.blocks.*", max_new_tokens=2)
    assert found.moved.name == "visual.blocks.0.attn.scores" and found.question is None and "lm_head" in str(found)


def test_mistakes_in_the_call(tiny):
    with pytest.raises(minivl.Error, match="there is no fault 'no-windows'. Did you mean no-window-attention"):
        tiny.what_if("no-windows")
    with pytest.raises(minivl.Error, match="needs a question"):
        tiny.what_if("bgr", images=minivl.tiny.scene(5).image)


# ---- the command line ----


def test_the_command_lists_shows_and_scores(tmp_path, capsys, monkeypatch):
    assert main(["what-if"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{listed}" for name in FAULTS)
    minivl.tiny.scene(5).image.save(tmp_path / "a.png")
    assert main(["what-if", "bgr", str(tmp_path / "a.png"), "How many shapes are there?", "--max-new-tokens", "1"]) == 0
    assert "First tensor that moves: image.0.resized" in capsys.readouterr().out
    assert main(["what-if", "not-normalised", "--scenes", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].startswith("| no fault |") and lines[2].count("100 %") >= 3
    assert lines[3].startswith("| not-normalised |") and lines[3].count("100 %") < lines[2].count("100 %")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["all"], "for --scenes N"),
        (["bgr", "a.png", "--scenes", "3"], "draws its own images"),
        (["bgr", "--scenes", "0"], "scenes=0"),
        (["bgr", "--scenes", "1", "--temperature", "1"], "leave --temperature out"),
        (["bgr", "-o", "table.md"], "give --scenes"),
        (["nothing"], "there is no fault 'nothing'"),
    ],
)
def test_errors_are_one_line(arguments, words, capsys):
    assert main(["what-if", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("minivl: ") and words in captured.err and captured.err.count("\n") == 1


def test_a_table_goes_on_where_it_was_broken_off(monkeypatch, tmp_path):
    made, path, bugs = [], tmp_path / "table.md", [FAULTS["bgr"], FAULTS["tanh-gelu"]]

    def scores(vlm, bug, scenes):
        made.append(bug and bug.name)
        if made.count("tanh-gelu") == 1 and made[-1] == "tanh-gelu":
            raise KeyboardInterrupt
        return dict.fromkeys(score.ASKED, 0.5)

    model = SimpleNamespace(folder=None)
    monkeypatch.setattr(score, "score", scores)
    with pytest.raises(KeyboardInterrupt):
        list(score.table(model, bugs, 7, path))
    lines = list(score.table(model, bugs, 7, path))
    assert (
        made == [None, "bgr", "tanh-gelu", "tanh-gelu"] and path.read_text().splitlines() == lines and len(lines) == 5
    )
    with pytest.raises(Error, match="is not a table of other, 7 scenes"):
        list(score.table(SimpleNamespace(folder=Path("models/other")), bugs, 7, path))
    with pytest.raises(Error, match="is not a table of 8 scenes"):
        list(score.table(model, bugs, 8, path))
    with pytest.raises(Error, match="cannot write"):
        list(score.table(model, bugs, 7, tmp_path / "no" / "table.md"))
    other = tmp_path / "other.md"
    lines, calls = list(score.table(model, bugs, 7, other, "abc")), len(made)
    assert list(score.table(model, bugs, 7, other, "abc")) == lines and len(made) == calls
    with pytest.raises(Error, match="of this model and is not overwritten"):
        list(score.table(model, bugs, 7, other, "abd"))


def test_scores_of_videos_are_not_made_up(tiny):
    lines = list(score.table(tiny, [FAULTS["truncated-seconds"]], scenes=1))
    assert "videos only" in lines[-1]
