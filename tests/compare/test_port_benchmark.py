"""A part of the benchmark (port_benchmark.py, its table in docs/compare.md), for the tests: needs torch, takes seconds."""

import pytest

pytest.importorskip("torch")

from port_benchmark import PAIRS, RECORDED, TYPES, Benchmark  # noqa: E402

SINGLES = ("unscaled tower", "no qkv bias", "h and w", "quick GELU in MLP")


@pytest.fixture(scope="module")
def benchmark():
    return Benchmark()


@pytest.mark.parametrize("recorded", RECORDED)
@pytest.mark.parametrize("kind", TYPES)
def test_the_right_port_raises_no_alarm(benchmark, kind, recorded):
    comparison = benchmark.compare(kind, recorded)
    assert comparison.ok and comparison.covered, f"\n{comparison}"


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_mistakes_are_seen_and_named(benchmark, kind):
    sets = [(mistake,) for mistake in SINGLES] + [PAIRS[0]]
    misses = []
    assert benchmark.score(kind, "modules", sets, misses.append) == (len(sets),) * 3, "\n".join(misses)
