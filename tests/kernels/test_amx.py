"""Products on AMX, on any processor: its instructions emulated; the compiled ones trapped; and code for one that has them.

emulated  amx_emulation.py in the place of amx_tile.py: the loops, on whatever runs Numba
trapped   the very code that is compiled for AMX, on x86-64 without it; amx_trap.c does what each instruction says
"""

import collections
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite.binding
import numpy as np
import pytest

from minivl import kernels
from minivl.errors import Error
from minivl.kernels import amx, choose, linear
from minivl.kernels.bfloat16 import from_float32, to_float32

HERE = Path(__file__).parents[1]
FEATURES = llvmlite.binding.get_host_cpu_features()
PRESENT = FEATURES.get("amx-bf16", False)
LINUX = sys.platform == "linux" and platform.machine() == "x86_64"

# fewer and more than: the rows of a tile, two tiles, a block of panels; the k of a tile, of a panel; the rows of W of a task
SHAPES = [
    (1, 2, 1), (1, 33, 17), (2, 1, 1), (15, 31, 40), (16, 32, 16), (17, 33, 33), (33, 64, 31), (70, 500, 130), (300, 257, 96),
    (40, 1200, 600),
]  # fmt: skip


def inputs(M, K, N):
    rng = np.random.default_rng([M, K, N])
    x, w, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in ((M, K), (N, K), N))
    return x, from_float32(w), bias if N % 2 else None


def special():
    """Rows of x with what is not usual, for weights 0.5, 1, 0, a denormal, and infinity in one row of W."""
    x = np.random.default_rng(0).standard_normal((16, 40), dtype=np.float32)
    x[0, 3], x[1, 3], x[2, 3] = np.inf, -np.inf, np.nan
    x[3], x[4], x[5] = 0, 0, 1e-40
    x[3, 7], x[4, 7] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    x[6, 2], x[6, 3] = np.inf, -np.inf
    weight = np.full((5, 40), 0.5, dtype=np.float32)
    weight[1], weight[2, 3:] = 1, 0
    stored = from_float32(weight)
    stored[3], stored[4, 5] = 5, 0x7F80
    return x, stored, None


PRODUCTS = """
import json, sys
import numpy as np
from minivl.kernels import amx, set_threads
given, results = np.load(sys.argv[1]), {}
for case in sorted({name.split("/")[0] for name in given}):
    x, weight, bias = (given.get(f"{case}/{name}") for name in ("x", "weight", "bias"))
    for terms in (3, 2):
        for threads in json.loads(sys.argv[2]):
            set_threads(threads)
            results[f"{case}/{terms}/{threads}"] = amx.matmul_amx(x, weight, bias, terms)
np.savez(sys.argv[1], **results)
"""
EMULATED = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import amx_emulation
from minivl.kernels import amx
amx_emulation.install(amx)
"""
TRAPPED = """
import ctypes, sys
from minivl.kernels import amx
if sys.argv[3]:
    handler = ctypes.CDLL(sys.argv[3])
    handler.install.restype = ctypes.POINTER(ctypes.c_long)
    counts = handler.install()
    amx.request_permission = lambda: None
amx.SECONDS = 0
amx.check()
"""
COUNTED = """
if sys.argv[3]:
    assert counts[0] == counts[1] > 0 and counts[2] > 10000 and counts[3] == 0
"""
CROSS_COMPILED = """
import llvmlite.binding
llvmlite.binding.get_host_cpu_features = lambda: {"avx512f": True}
from numba import types
from minivl.kernels import amx, tile
assert tile.LANES == 16
def array(kind, dims, readonly=False):
    return types.Array(kind, dims, "C", readonly=readonly)
given = array(types.float32, 6), array(types.uint16, 2, True), array(types.float32, 1)
amx._multiply_rows.compile((*given, types.intp, types.intp, array(types.float32, 2)))
print(amx._multiply_rows.inspect_asm(amx._multiply_rows.signatures[0]))
"""


def run(script, *arguments, cache, **environment):
    """In a process of its own, and with compiled code of its own: it is not for this processor, or not what the file says."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_NUM_THREADS": "2", **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(script, folder, *arguments, **environment):
    cases = {"x".join(map(str, shape)): inputs(*shape) for shape in SHAPES} | {"special": special()}
    arrays = {
        f"{case}/{name}": array for case, all_ in cases.items() for name, array in zip(("x", "weight", "bias"), all_)
    }
    np.savez(folder / "products.npz", **{name: array for name, array in arrays.items() if array is not None})
    threads = [1, 2] if (os.cpu_count() or 1) > 1 else [1]
    run(script, folder / "products.npz", json.dumps(threads), *arguments, cache=folder, **environment)
    with np.load(folder / "products.npz") as found:
        return {
            name: [found[f"{name}/{count}"] for count in threads] for name in {key.rpartition("/")[0] for key in found}
        }


def make_emulated(folder):
    """How well it is compiled changes no result: as little as that is worth the time."""
    return results(EMULATED + PRODUCTS, folder, NUMBA_OPT="1")


def make_trapped(folder):
    """On a processor with AMX nothing is trapped, and this is the test of the processor."""
    if not LINUX or not FEATURES.get("fma") or not (PRESENT or shutil.which("cc")):
        pytest.skip("Linux on x86-64 with FMA and a C compiler")
    library, environment = "", {}
    if not PRESENT:
        library = folder / "amx_trap.so"
        command = ["cc", "-O2", "-mfma", "-shared", "-fPIC", HERE / "amx_trap.c", "-o", library, "-lm"]
        subprocess.run(command, check=True)
        wanted = {**FEATURES, "amx-tile": True, "amx-bf16": True}
        environment = {
            "NUMBA_CPU_NAME": llvmlite.binding.get_host_cpu_name(),
            "NUMBA_CPU_FEATURES": ",".join(f"{'+' if has else '-'}{name}" for name, has in wanted.items()),
        }
    return results(TRAPPED + PRODUCTS + COUNTED, folder, library, **environment)


def make_code(folder):
    """The assembly of one thread's task, for a processor with AMX."""
    if not LINUX:
        pytest.skip("compiles for x86-64 where that is the machine's own")
    features = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": "+amx-tile,+amx-bf16"}
    return run(CROSS_COMPILED, cache=folder, **features)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A future of each: they are processes that compile from scratch, as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            make: pool.submit(make, tmp_path_factory.mktemp(make.__name__))
            for make in (make_emulated, make_trapped, make_code)
        }


@pytest.fixture(scope="module")
def emulated(made):
    return made[make_emulated].result()


@pytest.fixture(scope="module")
def trapped(made):
    return made[make_trapped].result()


@pytest.fixture(params=["emulated", "trapped"])
def products(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_two_ways_of_doing_without_agree(shape, emulated, trapped):
    for terms in (3, 2):
        name = f"{'x'.join(map(str, shape))}/{terms}"
        np.testing.assert_array_equal(emulated[name][0], trapped[name][0])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_three_terms_are_as_close_as_float32(shape, products):
    x, stored, bias = inputs(*shape)
    own = products[f"{'x'.join(map(str, shape))}/3"][0]
    expected = x.astype(np.float64) @ to_float32(stored).T.astype(np.float64) + (0 if bias is None else bias)
    largest, numpys = np.abs(expected).max(), np.abs(linear.linear_numpy(x, stored, bias) - expected).max()
    assert own.dtype == np.float32 and own.shape == expected.shape
    assert np.abs(own - expected).max() <= numpys + 1e-7 * largest
    assert np.abs(own - linear.linear_numba(x, stored, bias)).max() <= 1e-6 * largest


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_two_terms_are_as_close_as_said(shape, products):
    x, stored, bias = inputs(*shape)
    own, weight = products[f"{'x'.join(map(str, shape))}/2"][0], to_float32(stored).astype(np.float64)
    expected = x.astype(np.float64) @ weight.T + (0 if bias is None else bias)
    sizes = np.abs(x).astype(np.float64) @ np.abs(weight).T
    error = np.abs(own - expected)
    assert np.all(error <= (2**-17 + 2**-20) * sizes + 2**-22 * np.abs(expected))
    assert x.shape[1] < 30 or error.max() > 3e-7 * np.abs(expected).max()  # so that it is not three


def test_the_number_of_threads_changes_no_bit(products):
    for name, found in products.items():
        assert all(one.tobytes() == found[0].tobytes() for one in found), name


@pytest.mark.parametrize("terms", [3, 2])
def test_what_is_not_usual(terms, products):
    x, stored, _ = special()
    own, portable = products[f"special/{terms}"][0], linear.linear_numba(x, stored)
    np.testing.assert_array_equal(np.isnan(own[:, :3]), np.isnan(portable[:, :3]))
    assert np.isnan(own[2, :3]).all() and np.isnan(own[6, :2]).all()  # NaN, and infinity less infinity
    assert (own[0, :2] == np.inf).all() and (own[1, :2] == -np.inf).all() and np.isnan(own[0, 2])  # infinity times 0
    np.testing.assert_allclose(own[7:, :3], portable[7:, :3], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        own[3:5, 0], portable[3:5, 0], rtol=1e-4
    )  # the largest number is not rounded to infinity
    assert portable[5, 0] > 0 and (own[5, :4] == 0).all()  # what differs: denormals of x and of W count as 0,
    assert portable[7, 3] != 0 and (own[7:, 3] == 0).all()
    assert np.isinf(portable[7:, 4]).all() and not np.isfinite(own[7:, 4]).any()  # and infinite weights may give NaN


def test_three_terms_are_all_of_a_number():
    """Every exponent, both signs, ties, the largest number. Terms of what is below 2^-103 are too small for the instructions,
    of what is below 2^-110 too small for bfloat16."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    bits[:512] = (bits[:512] & 0x007FFFFF) | np.arange(512, dtype=np.uint32) << 23
    bits[512:520] = [0x7F7FFFFF, 0xFF7FFFFF, 0x3F808000, 0x3F818000, 0x3F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x00FFFFFF]
    x = bits.view(np.float32)
    rest, terms = x.copy(), []
    for _ in range(3):
        terms.append(np.empty(x.shape, dtype=np.uint16))
        amx._take_term(rest, terms[-1])
    with np.errstate(invalid="ignore"):
        total = sum(to_float32(term).astype(np.float64) for term in terms)
        near = np.abs(x) < 2.0**127  # where rounding is not cut off
        off = np.abs(total - x)
    finite, normal = np.isfinite(x), np.isfinite(x) & (np.abs(x) >= 2.0**-110)
    np.testing.assert_array_equal(total[normal], x[normal])
    assert off[finite].max() <= 2.0**-134
    np.testing.assert_array_equal(terms[0][near], from_float32(x)[near])
    np.testing.assert_array_equal(np.isnan(total), np.isnan(x))
    np.testing.assert_array_equal(total[np.isinf(x)], x[np.isinf(x)])
    smallest = np.abs([to_float32(term) for term in terms])[:, np.abs(x) >= 2.0**-103]
    assert smallest[smallest > 0].min() >= 2.0**-126
    half = np.abs(x[finite] - sum(to_float32(term).astype(np.float64) for term in terms[:2])[finite])
    assert np.all(half <= np.maximum(2.0**-17 * np.abs(x[finite]), 2.0**-127)) and half.max() > 0


def test_code_for_a_processor_that_has_it(made):
    """Exactly the instructions that were written, on the tiles that were written; LLVM keeps, moves and spills none."""
    text = made[make_code].result()
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s+\w*(tile|tdp|tmm)|.*%tmm", line)]
    lines = [line for line in lines if not line.startswith(".")]
    names = collections.Counter(line.split()[0] for line in lines)
    assert names.keys() == {"ldtilecfg", "tilerelease", "tileloadd", "tdpbf16ps", "tilestored"}
    assert names["ldtilecfg"] == names["tilerelease"] == 1
    assert lines[0].startswith("ldtilecfg")
    products = collections.Counter(tuple(re.findall(r"%tmm(\d)", line)) for line in lines if "tdp" in line)
    assert products.keys() == {("6", "4", "0"), ("7", "4", "1"), ("6", "5", "2"), ("7", "5", "3")}
    assert len(set(products.values())) == 1  # AT&T order: x, W, sums
    moved = {name: [re.findall(r"%tmm(\d)", line)[0] for line in lines if name in line] for name in ("load", "stored")}
    assert sorted(moved["stored"]) == ["0", "1", "2", "3"] and set(moved["load"]) == set("01234567")
    assert [moved["load"].count(tile) for tile in "0123"] == [1] * 4


# ---- who may use it ----


@pytest.fixture
def wanted(monkeypatch, tmp_path):
    """MINIVL_AMX=1 on a machine with AMX, as far as can be told; nothing of it is run."""
    monkeypatch.setenv("MINIVL_AMX", "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))  # for the verdict
    monkeypatch.setattr(amx, "find_missing_hardware", lambda: None)
    monkeypatch.setattr(amx, "request_permission", lambda: None)
    monkeypatch.setattr(amx, "CHECK", "")
    amx.find_obstacle.cache_clear()
    kernels._warn.cache_clear()
    yield monkeypatch
    amx.find_obstacle.cache_clear()


LARGE = (16, 800, 656)  # rows of x, values of k, rows of W: just large enough


def test_off_if_the_machine_or_the_user_says_so(wanted):
    wanted.setenv("MINIVL_AMX", "0")
    assert choose("numba").linear is linear.linear_numba and not kernels.runs_on_amx()
    wanted.setattr(amx, "find_missing_hardware", lambda: "there is none")
    wanted.delenv("MINIVL_AMX")
    assert choose("numba").linear is linear.linear_numba
    assert choose("numpy").matmul == "float32"


@pytest.mark.parametrize("asked", [None, "1"])
def test_used_for_large_products(wanted, asked):
    wanted.delenv("MINIVL_AMX") if asked is None else None
    calls = []
    wanted.setattr(amx, "matmul_amx", lambda x, weight, bias, terms: calls.append((x.shape, terms)))
    assert LARGE[1] * LARGE[2] >= amx.LARGE > (LARGE[1] - 1) * LARGE[2]
    x, stored, bias = inputs(*LARGE)
    for matmul, terms in (("float32", 3), ("bf16x2", 2)):
        chosen = choose("numba", matmul)
        assert chosen.matmul == f"{matmul} on AMX" and chosen.name == "numba"
        chosen.linear(x, stored, bias)
        assert calls.pop() == (x.shape, terms)
        for rows, weight in ((x[:15], stored), (x, to_float32(stored)), (x, stored[1:])):  # few rows, float32, small
            part = None if bias is None else bias[: len(weight)]
            np.testing.assert_array_equal(chosen.linear(rows, weight, part), linear.linear_numba(rows, weight, part))
    assert not calls


def test_the_check_waits_for_the_first_large_product_and_is_remembered(wanted):
    checks, works = [], []
    wanted.delenv("MINIVL_AMX")
    wanted.setattr(amx, "check_in_processes", lambda: checks.append(1))
    wanted.setattr(amx, "matmul_amx", lambda x, weight, bias, terms: works.append(1))
    x, stored, _ = inputs(*LARGE)
    chosen = choose("numba")
    chosen.linear(x[:15], stored)
    assert not checks
    chosen.linear(x, stored)
    amx.find_obstacle.cache_clear()  # as in another process
    chosen.linear(x, stored)
    assert len(checks) == 1 and len(works) == 2
    wanted.setattr(platform, "release", lambda: "another kernel")
    amx.find_obstacle.cache_clear()
    chosen.linear(x, stored)
    assert len(checks) == 2


def test_a_verdict_against_it_is_kept_unless_it_is_asked_for(wanted):
    checks = []
    wanted.delenv("MINIVL_AMX")
    wanted.setattr(amx, "check_in_processes", lambda: checks.append(1) or "it was late")
    for _ in range(2):
        amx.find_obstacle.cache_clear()
        assert amx.find_obstacle() == "it was late"
    assert len(checks) == 1
    wanted.setenv("MINIVL_AMX", "1")
    amx.find_obstacle.cache_clear()
    assert amx.find_obstacle() == "it was late" and len(checks) == 2


def test_a_damaged_verdict_is_a_new_check(wanted, tmp_path):
    checks = []
    wanted.setattr(amx, "check_in_processes", lambda: checks.append(1))
    for text in ("", "[]", '{"for": 3}', "\x00"):
        (tmp_path / amx.RECORD).write_text(text)
        amx.find_obstacle.cache_clear()
        assert amx.find_obstacle() is None
    assert len(checks) == 4


@pytest.mark.parametrize(
    "check, words",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "its check ended with SIGILL"),
        ("import sys; sys.exit('three is not four')", "its check failed (three is not four)"),
        ("import sys; sys.exit(3)", "its check failed (3)"),
    ],
)
def test_portable_if_the_check_fails(check, words, wanted):
    wanted.setattr(amx, "CHECK", check)
    with pytest.warns(UserWarning, match="AMX is not used") as told:
        found = choose("numba")
    assert words in str(told[0].message) and len(told) == 1
    assert found.matmul == "float32" and found.linear is linear.linear_numba
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        choose("numba")
    with pytest.raises(Error, match='matmul="bf16x2" needs AMX'):
        choose("numba", "bf16x2")


@pytest.mark.skipif(not LINUX, reason="asks Linux on x86-64")
def test_portable_if_linux_refuses(wanted):
    wanted.undo()
    wanted.setenv("MINIVL_AMX", "1")
    wanted.setattr(amx, "TILE_DATA", 62)  # there is no such part of a processor's state
    wanted.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"amx-tile": True, "amx-bf16": True})
    with pytest.warns(UserWarning, match="Linux refuses it"):
        assert choose("numba").matmul == "float32"


def test_portable_without_the_processor(wanted):
    wanted.undo()
    wanted.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"amx-tile": True, "amx-bf16": False})
    assert "this processor" in amx.find_missing_hardware() or not LINUX
    wanted.setattr(platform, "machine", lambda: "aarch64")
    assert "x86-64 only" in amx.find_missing_hardware()


def test_wrong_words(monkeypatch):
    monkeypatch.setenv("MINIVL_AMX", "0")
    with pytest.raises(Error, match="MINIVL_AMX=0 turns it off"):
        choose("numba", "bf16x2")
    for backend, matmul in (("numpy", "bf16x2"), ("numba", "float16")):
        with pytest.raises(Error, match='use "float32"'):
            choose(backend, matmul)


def test_the_check_finds_what_is_wrong(wanted):
    def almost(x, weight, bias=None, terms=3):
        return linear.linear_numba(x, weight, bias) * np.float32(1 + 1e-4)

    count = iter(range(1000))
    wanted.setattr(amx, "SECONDS", 0.05)
    for wrong, words in (
        (almost, "3 terms, 1 x 2 times 2 x 1: off by"),
        (lambda *given: linear.linear_numba(*given[:3]) * np.float32("nan"), "off by nan"),
        (lambda *given: linear.linear_numba(*given[:3]) + np.float32(1e-6 * (next(count) > 8)), "gave other bits"),
    ):
        wanted.setattr(amx, "matmul_amx", wrong)
        with pytest.raises(SystemExit, match=words):
            amx.check()
    wanted.setattr(amx, "matmul_amx", lambda *given: linear.linear_numba(*given[:3]))
    amx.check()
    wanted.setattr(amx, "request_permission", lambda: "Linux refuses it")
    with pytest.raises(SystemExit, match="refuses"):
        amx.check()
