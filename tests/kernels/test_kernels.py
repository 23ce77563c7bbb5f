"""Each kernel's compiled twin against its NumPy reference, and both against float64, on awkward shapes.

Tolerance: a float32 sum of K terms in another order differs by a few times K^0.5 * 2^-24 of the sum of |terms|; 1e-6 of
the result's largest value holds for all shapes here, 2e-6 where an exponential comes on top.
"""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from minivl.checkpoint.config import Config
from minivl.checkpoint.presets import PUBLISHED, published_config
from minivl.errors import Error
from minivl.kernels import activations, attention, choose, linear, matmul, norms, rope, set_threads
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.model.positions import mrope

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def close(actual, expected, tolerance):
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    np.testing.assert_array_less(np.abs(actual - expected).max(), tolerance * max(np.abs(expected).max(), 1e-30))


@pytest.mark.parametrize(
    "M, K, N", [(1, 2, 1), (1, 6, 5), (1, 7, 3), (2, 8, 4), (5, 1176, 130), (3, 64, 2500), (1, 3420, 1030)]
)
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(M, K, N, stored, with_bias):
    x, weight = normal(M, K), normal(N, K)
    bits = from_float32(weight)
    exact_weight = to_float32(bits) if stored == "bfloat16" else weight
    stored_weight = bits if stored == "bfloat16" else weight
    bias = normal(N) if with_bias else None
    expected = x.astype(np.float64) @ exact_weight.T.astype(np.float64) + (0 if bias is None else bias)
    tolerance = max(
        1e-6, 2**-24 * np.sqrt(K)
    )  # rounding of K terms in any order: that of the BLAS, and of the registers
    for function in (linear.linear_numpy, linear.linear_numba):
        close(function(x, stored_weight, bias), expected, tolerance)


def test_upcast_is_exact_for_every_bfloat16():
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)  # denormals, infinities and NaN included
    np.testing.assert_array_equal(to_float32(bits).view(np.uint32), expected.view(np.uint32))


def test_one_row_reads_both_halves_of_a_word():
    weight = np.zeros((3, 4), dtype=np.float32)
    weight[0, 1], weight[1, 2], weight[2, 3] = 1.5, -2, 1e-39
    x = np.array([[10, 20, 30, 40]], dtype=np.float32)
    actual = linear.linear_numba(x, from_float32(weight))
    expected = x @ to_float32(from_float32(weight)).T
    np.testing.assert_array_equal(actual, expected)


def test_linear_passes_infinities_on():
    weight = from_float32(np.ones((4, 8), dtype=np.float32))
    x = normal(1, 8)
    x[0, 3] = np.inf
    assert np.all(linear.linear_numba(x, weight) == np.inf)


# odd sums, sums shorter than a register, fewer rows of W than are taken at a time, and those that do not divide evenly
@pytest.mark.parametrize(
    "K, N", [(1, 1), (2, 1), (6, 5), (7, 3), (8, 4), (9, 2), (33, 7), (64, 2500), (1176, 130), (3420, 10)]
)
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_row_gives_the_same_bits_alone_and_among_others(K, N, stored, with_bias):
    weight = normal(N, K) * np.float32(10) ** RNG.integers(-3, 3, (N, K)).astype(np.float32)
    weight = from_float32(weight) if stored == "bfloat16" else weight
    x, bias = normal(linear.MAX_FEW_ROWS, K), normal(N) if with_bias else None
    alone = [linear.linear_numba(row[None], weight, bias) for row in x]
    for M in range(1, linear.MAX_FEW_ROWS + 1):
        for rows in (slice(0, M), slice(linear.MAX_FEW_ROWS - M, None)):
            together = linear.linear_numba(x[rows], weight, bias)
            assert together.dtype == np.float32 and together.tobytes() == b"".join(one.tobytes() for one in alone[rows])
    exact = x.astype(np.float64) @ to_float32(weight).T.astype(np.float64) + (0 if bias is None else bias)
    close(together, exact, 1e-6)


def test_few_rows_keep_denormals_infinities_and_nans_to_themselves():
    """The values of a row reach no other, nor do those of a row of W another column, the last ones in memory included."""
    x, weight = normal(5, 21), normal(6, 21)
    x[1, 20], x[3, 0] = np.inf, np.nan
    weight[5, 20] = np.inf
    x[0, 20] = 0  # 0 * infinity
    for stored in (weight, from_float32(weight)):
        out = linear.linear_numba(x, stored)
        assert np.all(np.isinf(out[1, :5])) and np.all(np.isnan(out[3])) and np.isnan(out[0, 5])
        assert np.all(np.isfinite(out[[0, 2, 4], :5])) and np.all(np.isinf(out[[1, 2, 4], 5]))
    tiny, ones = np.full((3, 8), 1e-40, dtype=np.float32), np.ones((4, 8), dtype=np.float32)
    for M in (1, 3):
        for a, b in ((tiny, from_float32(ones)), (ones, tiny)):
            np.testing.assert_allclose(linear.linear_numba(a[:M], b), 8e-40, rtol=1e-3)


def test_few_rows_that_are_not_dense():
    x, weight = normal(8, 40), normal(30, 24)
    expected = x[::2, 3:33] @ weight
    for stored in (weight.T, np.ascontiguousarray(weight.T)):
        close(linear.linear_numba(x[::2, 3:33], stored), expected, 1e-6)
    assert linear.linear_numba(x[:0, :24], weight).shape == (0, 30)


@pytest.mark.parametrize("rows", [32, 40])
def test_any_order_of_numbers_in_memory(rows):
    """Rows in columns, every second one, backwards, float64: kernels that read by address get dense ones."""
    weight = from_float32(normal(30, 24))
    for x in (normal(24, 60).T, normal(60, 48)[:, ::2], normal(60, 24)[:, ::-1], normal(60, 24)[::-1]):
        close(linear.linear_numba(x[:rows], weight), x[:rows] @ to_float32(weight).T, 1e-6)


def test_the_other_kernels_give_a_row_the_same_bits_alone_and_among_others():
    """Those that a decoded token passes through; attention is asked for each sequence by itself."""
    M, H, K = 2 * activations.MIN_PARALLEL_ROWS, 3, 20
    x, up, scale, heads, angles = normal(M, 61), normal(M, 61), normal(61), normal(M, H, K), normal(M, K)
    cos, sin = np.cos(angles), np.sin(angles)
    published_rope, positions = (
        Config.from_dict(published_config(**PUBLISHED["3B"])).text.rope,
        RNG.integers(0, 30_000, (3, M)),
    )

    def everything(rows):
        yield norms.rms_norm_numba(x[rows], scale, 1e-6)
        yield activations.silu_multiply_numba(x[rows], up[rows])
        yield rope.rotate_numba(heads[rows], cos[rows], sin[rows]).swapaxes(0, 1)
        yield from mrope(positions[:, rows], published_rope, 128)

    alone = [[*everything(slice(m, m + 1))] for m in range(M)]
    for count in (2, 3, 5, activations.MIN_PARALLEL_ROWS, M):
        for i, together in enumerate(everything(slice(0, count))):
            assert together.tobytes() == b"".join(alone[m][i].tobytes() for m in range(count)), i


@pytest.mark.parametrize("N, D", [(1, 1), (1, 128), (7, 33), (300, 64)])
def test_rms_norm(N, D):
    x, weight = normal(N, D) * np.float32(10), normal(D)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-6) * weight
    close(norms.rms_norm_numpy(x, weight, 1e-6), expected, 1e-6)
    close(norms.rms_norm_numba(x, weight, 1e-6), expected, 1e-6)


def test_rms_norm_of_zeros_is_zero():
    x, weight = np.zeros((2, 5), dtype=np.float32), normal(5)
    for function in (norms.rms_norm_numpy, norms.rms_norm_numba):
        np.testing.assert_array_equal(function(x, weight, 1e-6), x)


@pytest.mark.parametrize("N, H, K", [(1, 1, 2), (5, 3, 8), (33, 2, 20)])
def test_rotate(N, H, K):
    x, angles = normal(3, N, H, K)[1], normal(N, K // 2)
    angles = np.concatenate([angles, angles], axis=1)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = (x[..., : K // 2] + 1j * x[..., K // 2 :]) * np.exp(
        1j * angles[:, None, : K // 2]
    )  # pairs as complex numbers
    expected = np.concatenate([turned.real, turned.imag], axis=-1).swapaxes(0, 1)
    close(rope.rotate_numpy(x, cos, sin), expected, 1e-6)
    close(rope.rotate_numba(x, cos, sin), expected, 1e-6)


def attend_slowly(q, k, v, seen):
    """float64 attention, one query at a time. seen(n) -> indices of the keys that query n sees"""
    H, N, K = q.shape
    out = np.zeros((N, H, K))
    for h in range(H):
        g = h // (H // len(k))
        for n in range(N):
            keys = seen(n)
            scores = k[g, keys].astype(np.float64) @ q[h, n] / math.sqrt(K)
            probs = np.exp(scores - scores.max())
            out[n, h] = probs / probs.sum() @ v[g, keys].astype(np.float64)
    return out.reshape(N, H * K)


# the last ones are longer than the block of keys that the compiled kernel takes at a time, and begin inside a panel of queries
@pytest.mark.parametrize(
    "bounds", [[0, 1], [0, 37], [0, 16, 20, 37], [0, 1, 2, 37], [0, 33, 34, 37], [0, 308, 488], [0, 245, 250, 1003]]
)
def test_segment_attention(bounds):
    bounds = np.array(bounds, dtype=np.int64)
    N = int(bounds[-1])
    q, k, v = normal(3, N, 20), normal(3, N, 20), normal(3, N, 20)
    segment = np.searchsorted(bounds, np.arange(N), side="right") - 1
    expected = attend_slowly(q, k, v, lambda n: np.flatnonzero(segment == segment[n]))
    close(attention.segment_attention_numpy(q, k, v, bounds), expected, 2e-6)
    close(attention.segment_attention_numba(q, k, v, bounds), expected, 2e-6)


@pytest.mark.parametrize("K", [5, 20, 80])
def test_a_segment_does_not_depend_on_its_neighbours(K):
    """The same bits alone and beside others, with one block of keys and with several."""
    bounds = np.array([0, 24, 31, 571, 572, 822])
    q, k, v = normal(2, 822, K), normal(2, 822, K), normal(2, 822, K)
    together = attention.segment_attention_numba(q, k, v, bounds)
    for start, end in zip(bounds[:-1], bounds[1:]):
        alone = [x[:, start:end] for x in (q, k, v)]
        assert np.array_equal(
            together[start:end], attention.segment_attention_numba(*alone, np.array([0, end - start]))
        )


@pytest.mark.parametrize("H, KV, T, S", [(2, 2, 1, 1), (6, 2, 1, 19), (6, 2, 19, 19), (4, 1, 7, 40), (3, 3, 33, 50)])
@pytest.mark.parametrize("window", [None, 1, 5])
def test_causal_attention(H, KV, T, S, window):
    q, k, v = normal(H, T, 16), normal(KV, S + 3, 16)[:, :S], normal(KV, S + 3, 16)[:, :S]  # a cache has room behind
    start = 0 if window is None else window
    expected = attend_slowly(
        q, k, v, lambda n: np.arange(max(0, S - T + n + 1 - start) if window else 0, S - T + n + 1)
    )
    close(attention.causal_attention_numpy(q, k, v, window), expected, 2e-6)
    close(attention.causal_attention_numba(q, k, v, window), expected, 2e-6)


def test_attention_does_not_overflow():
    q = k = normal(1, 9, 4) * np.float32(1e4)
    v = normal(1, 9, 4)
    for function in (attention.causal_attention_numpy, attention.causal_attention_numba):
        assert np.all(np.isfinite(function(q, k, v)))


def test_softmax_gives_zero_where_nothing_is_seen():
    scores = np.array([[0, -np.inf, 0], [-np.inf] * 3], dtype=np.float32)
    np.testing.assert_array_equal(attention.softmax(scores), [[0.5, 0, 0.5], [0, 0, 0]])


def test_silu_multiply():
    gate = np.concatenate([normal(50) * 5, [-200, -88, 88, 200, 0]]).astype(np.float32)[None]
    up = normal(*gate.shape)
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    close(activations.silu_multiply_numpy(gate, up), expected, 1e-6)
    close(activations.silu_multiply_numba(gate, up), expected, 1e-6)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 101, dtype=np.float32)[None]
    expected = np.array([[v / 2 * math.erfc(-v / math.sqrt(2)) for v in x[0].tolist()]])
    tanh_form = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert np.abs(tanh_form - expected).max() > 1e-4  # so the test would notice
    close(activations.gelu_numpy(x), expected, 1e-6)
    close(activations.gelu_numba(x), expected, 1e-6)


def test_unknown_backend():
    with pytest.raises(Error, match='"numba"'):
        choose("cuda")
    assert choose("numpy").linear is linear.linear_numpy


def test_the_number_of_threads_changes_no_bit():
    x, gate, bias = normal(37, 300), normal(40, 90), normal(101)
    bits, q, k = from_float32(normal(101, 300)), normal(6, 37, 20), normal(2, 37, 20)

    def everything():
        yield linear.linear_numba(x, bits, bias)
        yield linear.linear_numba(x[:1], bits, bias)
        yield linear.linear_numba(x[:5], bits, bias)
        yield attention.causal_attention_numba(q, k, k)
        yield attention.causal_attention_numba(q[:, :1], k, k)
        yield activations.silu_multiply_numba(gate, gate)

    most, results = numba.config.NUMBA_NUM_THREADS, []
    for count in (1, most):
        set_threads(count)
        results.append([result.tobytes() for result in everything()])
    assert results[0] == results[1]
    for count in (0, most + 1, "2"):
        with pytest.raises(Error, match="threads"):
            set_threads(count)


def test_exponential():
    x = np.concatenate([np.linspace(-87, 88, 20001), np.linspace(-1, 1, 2001)]).astype(np.float32)
    actual = np.array([activations.exponential(v) for v in x])
    expected = np.exp(x.astype(np.float64))
    assert np.max(np.abs(actual - expected) / expected) < 2**-23  # one unit in the last place
    for value, limit in ((-np.inf, 0), (-100, 0), (100, np.inf), (np.inf, np.inf), (0, 1)):
        assert activations.exponential(np.float32(value)) == limit


@pytest.mark.parametrize("M, K, N", [(2, 1, 1), (4, 33, 7), (16, 256, 6), (17, 257, 7), (37, 300, 101), (300, 70, 200)])
def test_matmul_of_many_rows(M, K, N):
    """Tiles that are full and tiles that are not; sums longer than a panel; more rows than a block takes."""
    x, weight, bias = normal(M, K), normal(N, K), normal(N)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    own = np.abs(matmul.matmul_numba(x, weight, bias) - expected).max()
    numpys = np.abs(linear.linear_numpy(x, weight, bias) - expected).max()
    assert own <= 1.5 * numpys + 1e-6 * np.abs(expected).max()
    close(matmul.matmul_numba(x, weight, bias), expected, 1e-6)


def test_matmul_passes_infinities_and_denormals_on():
    weight = from_float32(np.ones((4, 8), dtype=np.float32))
    x = normal(40, 8)
    x[1, 3] = np.inf
    out = matmul.matmul_numba(x, weight)
    assert np.all(out[1] == np.inf) and np.all(np.isfinite(np.delete(out, 1, axis=0)))
    tiny = np.full((40, 8), 1e-40, dtype=np.float32)
    np.testing.assert_allclose(matmul.matmul_numba(tiny, weight), 8e-40, rtol=1e-3)


def test_attention_over_more_keys_than_a_block_holds():
    q, k, v = normal(2, 9, 12), normal(1, 700, 12), normal(1, 700, 12)
    expected = attend_slowly(q, k, v, lambda n: np.arange(692 + n))
    close(attention.causal_attention_numba(q, k, v), expected, 2e-6)
    expected = attend_slowly(q, k, v, lambda n: np.arange(672 + n, 692 + n))
    close(attention.causal_attention_numba(q, k, v, 20), expected, 2e-6)


def test_everything_is_compiled_before_it_is_needed():
    """A run of the shipped model, in a fresh process, adds no compiled form to those that choosing the backend made."""
    script = """
import minivl
from minivl import kernels
from minivl.tiny import scene
from minivl.kernels import activations, attention, linear, matmul, norms, rope
rooms = (activations, attention, linear, matmul, norms, rope)
vlm = minivl.load()
def forms():
    return {name: len(f.signatures) for room in rooms for name, f in vars(room).items() if hasattr(f, "signatures")}
before = forms()
cache = vlm.new_cache()
messages = [{"role": "user", "content": [{"type": "image", "image": scene(0).image}, {"type": "text", "text": "?"}]}]
answer = vlm.chat(messages, cache, max_new_tokens=3)
vlm.chat([*messages, {"role": "assistant", "content": answer}, *messages], cache, max_new_tokens=2)
after = forms()
print({name: (before[name], after[name]) for name in after if before[name] != after[name]}, len(after))
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split("} ")[0] == "{" and int(shown.split("} ")[1]) > 10, shown


# run in a process of its own: each kernel that works on addresses, on awkward shapes, against its reference
ADDRESSES = """
import numpy as np
from minivl.kernels import attention, linear
rng = np.random.default_rng(0)
def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)
for M, K, N in ((2, 1, 1), (1, 23, 3), (5, 23, 7), (8, 600, 301), (33, 257, 25), (40, 600, 300)):
    x, w, b = normal(M, K), normal(N, K), normal(N)
    np.testing.assert_allclose(linear.linear_numba(x, w, b), linear.linear_numpy(x, w, b), rtol=0, atol=1e-4)
for H, KV, T, S, K in ((4, 2, 1, 7, 20), (6, 1, 35, 300, 80), (2, 2, 3, 3, 128), (16, 2, 1, 300, 128)):
    q, k, v = normal(H, T, K), normal(KV, S + 1, K)[:, :S], normal(KV, S, K)
    k.base[:, S:] = np.nan  # what is behind a cache's tokens
    np.testing.assert_allclose(
        attention.causal_attention_numba(q, k, v), attention.causal_attention_numpy(q, k, v), rtol=0, atol=1e-5
    )
"""


def test_nothing_is_read_after_it_was_freed():
    """glibc overwrites freed memory, if asked to."""
    subprocess.run([sys.executable, "-c", ADDRESSES], check=True, env={**os.environ, "MALLOC_PERTURB_": "85"})


def run_with_tiles_of(features, shape, cache):
    """The kernels on addresses, compiled as if the processor had these features alone."""
    script = f"""
import llvmlite.binding
import numpy as np
known, llvmlite.binding.get_host_cpu_features = llvmlite.binding.get_host_cpu_features, lambda: {features!r}
triple, llvmlite.binding.get_process_triple = llvmlite.binding.get_process_triple, lambda: "x86_64-unknown-linux-gnu"
from minivl.kernels import tile
llvmlite.binding.get_host_cpu_features, llvmlite.binding.get_process_triple = known, triple
assert (tile.LANES, tile.ROWS, tile.VECTORS) == {shape!r}
"""
    # subtle: compiled code is cached by processor, and these are not this processor's
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(cache),
        "NUMBA_OPT": "1",
    }  # the loops are the same, LLVM does less
    return subprocess.run([sys.executable, "-c", script + ADDRESSES], capture_output=True, text=True, env=environment)


def test_tiles_of_other_processors(tmp_path):
    """The tile of AVX-512, and that of the smallest registers: any processor can run both, if not fast."""
    tiles = [({"avx512f": True}, (16, 12, 2)), ({}, (4, 6, 2))]
    with ThreadPoolExecutor(len(tiles)) as pool:  # each compiles everything
        runs = [pool.submit(run_with_tiles_of, *tile, tmp_path / str(i)) for i, tile in enumerate(tiles)]
    for done in runs:
        assert done.result().returncode == 0, done.result().stderr


def test_compiled_code_goes_to_a_temporary_folder_or_nowhere(tmp_path, monkeypatch):
    from minivl.kernels import jit_cache

    (tmp_path / "file").write_text("in the way")
    assert jit_cache.is_writable(tmp_path / "new" / "folder")
    assert not jit_cache.is_writable(tmp_path / "file" / "folder")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    assert jit_cache.choose_cache() and numba.config.CACHE_DIR == ""  # the folder of this installation can be written

    monkeypatch.setattr(jit_cache, "is_writable", lambda folder: str(folder).startswith(str(tmp_path)))
    monkeypatch.setattr(jit_cache.tempfile, "tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="neither .* can be written.*Set NUMBA_CACHE_DIR to a folder"):
        assert jit_cache.choose_cache()
    assert os.path.isdir(numba.config.CACHE_DIR) and os.environ["NUMBA_CACHE_DIR"] == numba.config.CACHE_DIR
    monkeypatch.setattr(jit_cache.tempfile, "tempdir", str(tmp_path / "file"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/proc/no-such")
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR=/proc/no-such cannot be written"):
        assert not jit_cache.choose_cache()


def test_the_second_process_compiles_what_it_is_told(tmp_path, monkeypatch):
    """With an empty cache of its own: afterwards the cache holds those kernels, and no others."""
    from minivl.kernels.warm_up import start_second_process

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    process = start_second_process("rotate")
    assert process.wait() == 0
    assert {path.name.partition("-")[0] for path in tmp_path.rglob("*.nbi")} == {"rope._rotate"}


def test_a_second_process_starts_only_when_something_is_compiled(monkeypatch):
    """Not at every `load` of a process whose first one compiled."""
    from minivl.kernels import warm_up as kernels_compile

    started, counts = [], iter((3, 3, 3, 4))
    monkeypatch.setattr(kernels_compile, "start_second_process", lambda *names: started.append(names))
    monkeypatch.setattr(norms, "count_compilations", lambda: next(counts))
    kernels_compile.compile_kernels()
    assert not started
    kernels_compile.compile_kernels()
    assert started == [kernels_compile.LATER]
