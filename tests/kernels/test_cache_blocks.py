"""Blocks of a product: what fits into the caches of several processors, and that every choice computes the same product."""

import numpy as np
import pytest

from minivl.kernels import tune
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.kernels.cache_blocks import USUAL, Blocks, choose_blocks, read_caches
from minivl.kernels.matmul import matmul_numba

AVX2, AVX512, SSE, NEON = (6, 16, 8), (12, 32, 16), (6, 8, 8), (6, 16, 8)  # rows, columns, padded rows of the tile
PROCESSORS = [  # KB of first and second level, tile, blocks
    (32, 512, AVX2, (384, 16, 32)),  # AMD Zen to Zen 3
    (32, 256, AVX2, (384, 8, 32)),  # Intel Haswell to Coffee Lake
    (48, 1280, AVX2, (384, 16, 32)),  # Alder Lake
    (48, 2048, AVX512, (288, 16, 16)),  # Sapphire Rapids
    (32, 1024, AVX512, (192, 16, 16)),  # Skylake-SP, Zen 4
    (48, 512, AVX512, (288, 10, 12)),
    (32, 256, SSE, (384, 8, 64)),
    (128, 4096, NEON, (384, 16, 32)),
]


@pytest.mark.parametrize("first, second, tile, expected", PROCESSORS)
def test_blocks_fit_into_the_caches(first, second, tile, expected):
    rows, columns, padded = tile
    blocks = choose_blocks(first << 10, second << 10, *tile)
    assert blocks == expected
    assert 4 * blocks.depth * columns <= 0.75 * (first << 10)
    tiles, sums = 4 * blocks.tiles * blocks.depth * padded, 4 * blocks.block * blocks.tiles * rows * columns
    assert max(tiles, sums) <= 0.375 * (second << 10)


def test_a_very_small_cache_still_gives_blocks():
    assert choose_blocks(1024, 1024, *AVX512) == (32, 1, 1)


def write_cache(folder, index, **facts):
    (folder / f"index{index}").mkdir()
    for name, value in facts.items():
        (folder / f"index{index}" / name).write_text(f"{value}\n")


def test_sizes_are_read_from_the_system(tmp_path):
    write_cache(tmp_path, 0, level=1, type="Data", size="48K")
    write_cache(tmp_path, 1, level=1, type="Instruction", size="64K")
    write_cache(tmp_path, 2, level=2, type="Unified", size="2048K")
    write_cache(tmp_path, 3, level=3, type="Unified", size="32M")
    assert read_caches(tmp_path) == (48 << 10, 2048 << 10)


def test_a_system_that_does_not_say_gets_the_usual_sizes(tmp_path):
    assert read_caches(tmp_path / "nothing") == USUAL
    write_cache(tmp_path, 0, level="one", type="Data", size="48K")
    write_cache(tmp_path, 1, level=2, type="Unified")
    assert read_caches(tmp_path) == USUAL


@pytest.mark.parametrize("blocks", [Blocks(32, 1, 1), Blocks(96, 3, 2), Blocks(1000, 40, 100)])
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_every_choice_computes_the_product(blocks, stored):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((77, 333), dtype=np.float32), rng.standard_normal((151, 333), dtype=np.float32)
    weight = from_float32(weight) if stored == "bfloat16" else weight
    bias = rng.standard_normal(151, dtype=np.float32)
    exact = x.astype(np.float64) @ to_float32(weight).T.astype(np.float64) + bias
    assert np.abs(matmul_numba(x, weight, bias, blocks) - exact).max() < 1e-6 * np.abs(exact).max()


def test_tune_prints_the_choice_first_and_marks_the_fastest(monkeypatch, capsys):
    monkeypatch.setattr(tune, "SHAPES", ((20, 40, 60), (9, 33, 70)))
    tune.main(["--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("caches of a core: ") and "20x40x60" in lines[1] and "1.000" in lines[2]
    assert "chosen" in lines[2] and len(lines) == 2 + len(tune.candidates(tune.blocks_of_machine()))
    assert sum("fastest" in line for line in lines) <= 1


def test_the_fastest_is_marked():
    chosen, other = Blocks(384, 16, 32), Blocks(256, 16, 32)
    lines = tune.table({chosen: [1e9] * 5, other: [2e9] * 5})
    assert lines[1].endswith("1.000  chosen") and lines[2].endswith("2.000  fastest")
