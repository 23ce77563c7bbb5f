"""`minivl bench --growth`: what is measured is what is planned. No test looks at a clock."""

import json

import pytest

from minivl.bench import growth
from minivl.bench.growth import GROWING, list_works, measure_growth, measure_memory
from minivl.bench.growth_report import draw_growth, growth_table
from minivl.cli import main
from minivl.errors import Error
from minivl.stream import run
from minivl.vlm import load

SPEEDS = dict.fromkeys(("call", "read", "linear", "attention", "look_back", "rows", "move"), 1e9) | {"call": 1e-5}
SOME = {"pixels": (224,), "frames": (4,), "prompt": (64, 512), "cache": (300,), "together": (1, 2)}


@pytest.fixture(scope="module")
def works():
    return list_works(load(), tuple(GROWING), SPEEDS)


def test_work_grows_up_to_the_context(works):
    context = load().config.text.max_position_embeddings
    amounts = {name: [work.amount for work in works if work.quantity == name] for name in GROWING}
    assert amounts["pixels"] == list(GROWING["pixels"]) and amounts["together"] == list(GROWING["together"])
    assert amounts["cache"] == [amount for amount in GROWING["cache"] if amount < context] != list(GROWING["cache"])


def test_planned_time_rises_with_the_work(works):
    for name in ("pixels", "frames", "prompt", "cache"):
        seconds = [work.planned[0] for work in works if work.quantity == name]
        assert seconds == sorted(seconds) and seconds[-1] > 1.5 * seconds[0], name


@pytest.mark.parametrize(
    "quantity, amount", [("pixels", 448), ("frames", 8), ("prompt", 512), ("cache", 1024), ("together", 4)]
)
def test_measured_memory_is_the_planned_one(works, quantity, amount):
    """Within 20 %; kernels' own scratch is not NumPy's and not in the plan."""
    (work,) = [work for work in works if (work.quantity, work.amount) == (quantity, amount)]
    run(work.stage())  # what is kept from the first run on is not memory of the work
    assert 0.9 < measure_memory(work) / work.planned[1] < 1.2


def test_a_decoded_token_sees_the_whole_cache(works):
    (work,) = [work for work in works if (work.quantity, work.amount) == ("cache", 1024)]
    shapes = {}

    def see(name, tensor):
        shapes[name] = tensor.shape

    run(work.stage(), see)
    assert shapes["model.layers.0.self_attn.scores"][1:] == (1, 1025)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(report, folder) of the command on little work."""
    folder = tmp_path_factory.mktemp("growth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "GROWING", SOME)
        patch.setattr(growth, "calibrate", lambda: SPEEDS)
        arguments = ["--growth", "--rounds", "1", "--threads", "1", "--json", str(folder / "g.json")]
        assert main(["bench", *arguments]) == 0
    return json.loads((folder / "g.json").read_text()), folder


def test_report(written):
    report, _ = written
    rows = [(row["quantity"], row["amount"]) for row in report["results"]]
    assert rows == [(name, amount) for name, amounts in SOME.items() for amount in amounts]
    for row in report["results"]:
        assert row["seconds"] > 0 and row["memory"] > 0 and row["planned_memory"] > 0
        assert (row["planned_seconds"] is None) == (row["quantity"] == "together" and row["amount"] > 1)
    assert report["speeds"] == SPEEDS and report["machine"]["threads"] == 1


def test_table_and_picture(written, tmp_path):
    report, _ = written
    lines = growth_table(report).splitlines()
    assert len(lines) == 4 + len(report["results"])
    assert lines[3].split() == "time planned ratio memory planned ratio".split()
    pytest.importorskip("matplotlib")
    draw_growth(report, tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(only=["pixel"]), "what grows is pixels"),
        (dict(repeats=0), "at least 1"),
        (dict(size="7B"), "Use one of tiny"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(Error, match=message):
        measure_growth(**options)
