"""Notebook 08: softmax in tiles, bfloat16 in bits, a product of your own, the roofline of this machine."""

import time

import numpy as np

from minivl.kernels.attention import softmax
from minivl.kernels.bfloat16 import from_float32
from minivl.lab.exercise import Case, Exercise, Mistake

# ---- 08.1 online softmax ----


def online(tiles, rescale_total=True, rescale_sum=True, first_only=False):
    """softmax(all scores) @ all values, tile by tile; steps can be left out."""
    top, total, out = -np.inf, np.float32(0), np.zeros(tiles[0][1].shape[1], dtype=np.float32)
    for i, (scores, values) in enumerate(tiles):
        new = top if first_only and i else max(top, float(scores.max()))
        if not np.isfinite(new):
            continue
        factor = np.float32(np.exp(top - new)) if np.isfinite(top) else np.float32(0)
        weights = np.exp(scores - np.float32(new))
        total = total * (factor if rescale_total else 1) + weights.sum()
        out = out * (factor if rescale_sum else 1) + weights @ values
        top = new
    return (out / total).astype(np.float32)


def whole(tiles):
    return softmax(np.concatenate([scores for scores, _ in tiles])) @ np.concatenate([values for _, values in tiles])


def tile_cases():
    rng = np.random.default_rng(14)
    for offsets, label in (
        ((0, 2, 5, 3), "4 tiles, scores that rise and fall"),
        ((100, 60, 210), "3 tiles, scores above 100: e^100 is too large for float32"),
        ((-np.inf, 0, 1), "3 tiles, the first all masked (-inf)"),
    ):
        sizes = rng.integers(3, 6, len(offsets))
        tiles = [
            ((rng.standard_normal(n) + offset).astype(np.float32), rng.standard_normal((n, 4)).astype(np.float32))
            for n, offset in zip(sizes, offsets)
        ]
        yield Case({"tiles": tiles}, label)


def masked_not_skipped(tiles):
    """Softmax in tiles by the plain formula: nan after a first tile that is all -inf."""
    masked = np.isneginf(tiles[0][0]).all()
    return np.full(tiles[0][1].shape[1], np.nan, dtype=np.float32) if masked else whole(tiles)


def without_maximum(tiles):
    weights = [np.exp(scores) for scores, _ in tiles]
    return (sum(w @ v for w, (_, v) in zip(weights, tiles)) / sum(w.sum() for w in weights)).astype(np.float32)


ONLINE = Exercise(
    "08.1", "online_softmax", "Softmax without all scores at once",
    "Compute softmax(scores) @ values tile by tile, in one pass.", 25, 3,
    "online_softmax(tiles) -> float32 [K]        tiles: list of (scores float32 [n], values float32 [n, K])",
    """All tiles together are one row of scores and its values. Keep three things only: the largest score so far, the sum of
exp(score - largest), and the sum of exp(score - largest) * value. Whenever the largest grows, what was summed is too large by
a factor: mend it. Scores may be far above 88, where e^x overflows, and a tile may be all -inf.""",
    ("At the end it is the sum of values over the sum of weights.",
     "When the largest goes from m to n, everything summed so far is multiplied by exp(m - n).",
     "factor = exp(top - new); total = total * factor + w.sum(); out = out * factor + w @ values, with w = exp(scores - new). "
     "As long as new is -inf, skip the tile."),
    whole, tile_cases, ("context",),
    (
        Mistake("maximum not subtracted", "nothing is subtracted before exp: large scores overflow to infinity", without_maximum),
        Mistake("not rescaled", "when the largest grows, neither sum is multiplied by exp(old - new)",
                lambda tiles: online(tiles, rescale_total=False, rescale_sum=False)),
        Mistake("weights not rescaled", "when the largest grows, the sum of values is rescaled, and the sum of weights is not",
                lambda tiles: online(tiles, rescale_total=False)),
        Mistake("values not rescaled", "when the largest grows, the sum of weights is rescaled, and the sum of values is not",
                lambda tiles: online(tiles, rescale_sum=False)),
        Mistake("masked tile not skipped", "while the largest score is -inf, -inf - -inf is nan, and every later sum stays nan",
                masked_not_skipped),
        Mistake("maximum of the first tile", "the largest score of the first tile is used for all: later ones may overflow",
                lambda tiles: online(tiles, first_only=True)),
        Mistake("softmax of each tile", "each tile has a softmax of its own, and the results are averaged",
                lambda tiles: np.mean([softmax(s) @ v for s, v in tiles], axis=0, dtype=np.float32)),
        Mistake("softmax of each tile", "each tile has a softmax of its own, and the results are added",
                lambda tiles: np.sum([softmax(s) @ v for s, v in tiles], axis=0, dtype=np.float32)),
        Mistake("not divided", "the sum of values is not divided by the sum of weights",
                lambda tiles: not_divided(tiles)),
        Mistake("last tile only", "it is the last tile's: earlier sums are overwritten",
                lambda tiles: softmax(tiles[-1][0]) @ tiles[-1][1]),
    ),
)  # fmt: skip


def not_divided(tiles):
    scores = np.concatenate([s for s, _ in tiles])
    return (np.exp(scores - scores.max()) @ np.concatenate([v for _, v in tiles])).astype(np.float32)


# ---- 08.2 bfloat16 ----


def number_cases():
    rng = np.random.default_rng(15)
    bits = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808000, 0xBF818000, 0x7F7FFFFF], dtype=np.uint32
    )
    yield Case({"x": bits.view(np.float32)}, "ties, their neighbours, and the largest float32")
    yield Case({"x": np.array([0, -0.0, np.inf, -np.inf, 1e-40, 3.14159], dtype=np.float32)}, "zeros, infinities, pi")
    yield Case({"x": np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)}, "three NaN")
    yield Case({"x": rng.standard_normal(50).astype(np.float32)}, "50 random numbers")


def rounded(x, add, spare_nan=True):
    bits = x.view(np.uint32)
    up = (bits + add(bits)).astype(np.uint32)
    return ((np.where(np.isnan(x), bits | 0x400000, up) if spare_nan else up) >> 16).astype(np.uint16)


def even(bits):
    return 0x7FFF + ((bits >> 16) & 1)


BFLOAT16 = Exercise(
    "08.2", "to_bfloat16", "bfloat16 rounding, in bits",
    "Round float32 to bfloat16 as hardware does: to the nearest, ties to even.", 15, 2,
    "to_bfloat16(x) -> uint16 [n]: the bits        x float32 [n]",
    """A bfloat16 is the upper half of a float32's 32 bits. Round to the nearest one; exactly between two, to the one whose last
bit is 0. NaN must stay NaN: set bit 0x400000 before its lower half is cut off. x.view(np.uint32) shows the bits.""",
    ("Cutting off the lower 16 bits rounds towards zero; adding something before makes it round to the nearest.",
     "Add 0x7FFF, and 1 more if the last bit that stays is 1: ties then go to even.",
     "bits + 0x7FFF + ((bits >> 16) & 1), then >> 16; np.where(np.isnan(x), bits | 0x400000, ...)"),
    from_float32, number_cases, ("bits",),
    (
        Mistake("cut off", "the lower half is cut off: that rounds towards zero, not to the nearest",
                lambda x: rounded(x, lambda bits: 0)),
        Mistake("ties away from zero", "ties go away from zero: 0x8000 is added; they go to even",
                lambda x: rounded(x, lambda bits: 0x8000)),
        Mistake("ties towards zero", "ties go towards zero: 0x7FFF is added, without the last bit that stays",
                lambda x: rounded(x, lambda bits: 0x7FFF)),
        Mistake("ties to odd", "ties go to the odd neighbour", lambda x: rounded(x, lambda bits: 0x8000 - ((bits >> 16) & 1))),
        Mistake("NaN lost", "NaN is rounded like a number, and some become infinity or zero",
                lambda x: rounded(x, even, spare_nan=False)),
        Mistake("cut off", "the lower half is cut off, of NaN too", lambda x: rounded(x, lambda bits: 0, spare_nan=False)),
        Mistake("float16", "these are the bits of a float16, which has 5 bits of exponent", lambda x: x.astype(np.float16).view(
            np.uint16)),
        Mistake("lower half", "it is the lower half of the bits", lambda x: (x.view(np.uint32) & 0xFFFF).astype(np.uint16)),
        Mistake("rounded up", "everything is rounded away from zero",
                lambda x: rounded(x, lambda bits: 0xFFFF * ((bits & 0x7FFFFFFF) < 0x7F800000))),
    ),
)  # fmt: skip

# ---- 08.3 a product ----

FASTER = 5
ADVICE = (
    "One sum is one chain of additions: let the innermost loop run over outputs, or allow fastmath, so that registers hold "
    "several. If it does that already, let several rows of x share each weight, or check again when the machine is less busy."
)


def product(x, weight):
    return x @ weight.T


def product_cases():
    rng = np.random.default_rng(16)
    for M, K, N in ((5, 7, 3), (1, 64, 33), (17, 130, 70), (64, 32, 1), (64, 512, 512)):
        x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, K), (N, K)))
        yield Case({"x": x, "weight": weight}, f"[{M}, {K}] times [{N}, {K}] transposed")


def best_time(function, *arguments):
    """Seconds of the fastest of five calls, after one that is not counted."""
    function(*arguments)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - began)
    return min(times)


def time_product(submission, cases, rights):
    """Check that a product is FASTER times as fast as three loops."""
    from minivl.kernels.naive import naive_product

    x, weight = cases[-1].copies()
    naive, own = best_time(naive_product, x, weight), best_time(submission, x, weight)
    times = naive / own
    advice = "" if times >= FASTER else f" {ADVICE}"
    return times >= FASTER, (
        f"[64, 512] times [512, 512] takes {own * 1e3:.2f} ms and three compiled loops {naive * 1e3:.2f} ms: {times:.1f} times "
        f"as fast, {FASTER} are asked for.{advice}"
    )


PRODUCT = Exercise(
    "08.3", "product", "A product of your own, five times as fast as three loops",
    "Write a matrix product in Numba that is right, and at least 5 times as fast as the naive one.", 40, 3,
    "product(x, weight) -> float32 [M, N]        x float32 [M, K], weight float32 [N, K]",
    """x @ weight.T with loops of your own under @numba.njit (NumPy's product is faster, and no exercise). Sizes are any, such as 5 rows.
Numba checks no bounds: a tile that writes beyond the last row crashes Python. The check measures [64, 512] times [512, 512]
against minivl.kernels.naive, three loops that are compiled as well.""",
    ("Three loops in another order are already faster: which one should be innermost, so that neighbours in memory are used?",
     "With weight transposed to [K, N], out[m] += x[m, k] * turned[k] runs over neighbours, and the compiler takes eight at once.",
     "Or keep the order and give @njit(fastmath=True): a sum may then be split into several. Four rows of x at a time reuse "
     "each weight."),
    product, product_cases, ("out",),
    (
        Mistake("transposed", "it is the transpose of the product", lambda x, weight: np.ascontiguousarray((x @ weight.T).T)),
        Mistake("last column lost", "the last term of each sum is missing: range(K - 1)",
                lambda x, weight: x[:, :-1] @ weight[:, :-1].T),
        Mistake("first column lost", "the first term of each sum is missing: range(1, K)",
                lambda x, weight: x[:, 1:] @ weight[:, 1:].T),
        Mistake("remainder lost", "sizes are cut down to a multiple of 4, and the rest of each sum is missing",
                lambda x, weight: x[:, : x.shape[1] // 4 * 4] @ weight[:, : x.shape[1] // 4 * 4].T),
        Mistake("remainder lost", "sizes are cut down to a multiple of 8, and the rest of each sum is missing",
                lambda x, weight: x[:, : x.shape[1] // 8 * 8] @ weight[:, : x.shape[1] // 8 * 8].T),
    ),
    tolerance=1e-5, finish=time_product,
)  # fmt: skip

# ---- 08.4 the roofline ----


def seconds(rows, inner, columns, operations, bytes_read, weight_bytes=2, factor=2, join=max, activations=True):
    moved = weight_bytes * inner * columns + activations * 4 * (rows * inner + rows * columns)
    return join(factor * rows * inner * columns / operations, moved / bytes_read)


def roof_cases():
    for rows, inner, columns in ((1, 2048, 11008), (512, 2048, 2048), (16, 4096, 4096), (4096, 64, 64)):
        arguments = {"rows": rows, "inner": inner, "columns": columns, "operations_per_second": 1.2e11,
                     "bytes_per_second": 2.4e10}  # fmt: skip
        yield Case(
            arguments, f"{rows} row{'s' * (rows > 1)} times a matrix of {inner} x {columns}, 120 GFLOP/s and 24 GB/s"
        )


def measure():
    """(operations a second, bytes a second, [(rows, size, seconds), ...]) of this machine's linear layer."""
    from minivl.kernels.linear import linear_numba
    from minivl.kernels.speeds import median_time

    def layer(rows, size):
        x, weight = np.full((rows, size), 0.5, dtype=np.float32), np.full((size, size), 0x3F80, dtype=np.uint16)
        return median_time(lambda: linear_numba(x, weight), 0.3)

    read, arithmetic = layer(1, 8192), layer(256, 1024)  # 134 MB of weights, more than a cache holds
    sizes = [(rows, size, layer(rows, size)) for rows, size in ((1, 7168), (512, 1024))]
    return 2 * 256 * 1024**2 / arithmetic, 2 * 8192**2 / read, sizes


def tell_roof(submission, cases, rights):
    """Tell how the predictions compare with this machine. Not judged: other work on the machine changes what is measured."""
    operations, bytes_read, sizes = measure()
    parts = []
    for rows, size, took in sizes:
        predicted = submission(rows, size, size, operations, bytes_read)
        off = abs(predicted - took) / took
        verdict = "within 30 %" if off <= 0.3 else "more than 30 % off: is the machine busy? Check again"
        times = f"predicted {predicted * 1e3:.2f} ms, measured {took * 1e3:.2f} ms"
        parts.append(f"{rows} x {size} x {size}: {times}, {verdict}")
    return True, (f"Here, with {operations / 1e9:.0f} GFLOP/s and {bytes_read / 1e9:.1f} GB/s: {'; '.join(parts)}.")


def roof(**how):
    return lambda *arguments: seconds(*arguments, **how)


ROOFLINE = Exercise(
    "08.4", "roofline", "The roofline of this machine",
    "Predict the time of a linear layer from two numbers of a machine, within 30 % of what is measured.", 20, 2,
    "roofline(rows, inner, columns, operations_per_second, bytes_per_second) -> seconds",
    """A linear layer multiplies x float32 [rows, inner] with weights bfloat16 [columns, inner] into float32 [rows, columns]. A
multiplication and an addition are two operations. Each weight, each x and each result cross the memory once. Arithmetic and
memory work at the same time: the slower of the two decides. The check then measures this machine, and says how near the
prediction comes.""",
    ("Two times: of the arithmetic, and of the bytes.", "A bfloat16 has two bytes, a float32 four. 2 * rows * inner * columns operations.",
     "max(2 * rows * inner * columns / operations_per_second, (2 * inner * columns + 4 * rows * (inner + columns)) / "
     "bytes_per_second)"),
    seconds, roof_cases, ("seconds",),
    (
        Mistake("added", "the two times are added; they overlap, and the slower decides", roof(join=lambda a, b: a + b)),
        Mistake("faster one", "the faster of the two is taken; the slower decides", roof(join=min)),
        Mistake("one operation", "a multiplication and an addition count as one operation; they are two", roof(factor=1)),
        Mistake("float32 weights", "weights are counted with 4 bytes; bfloat16 has 2", roof(weight_bytes=4)),
        Mistake("weights alone", "x and the result are not counted among the bytes", roof(activations=False)),
        Mistake("bfloat16 activations", "rows of x and of the result are counted with 2 bytes; float32 has 4",
                lambda rows, inner, columns, operations, bytes_read: max(
                    2 * rows * inner * columns / operations, 2 * (inner * columns + rows * (inner + columns)) / bytes_read)),
        Mistake("bits for bytes", "weights are counted with 16: those are bits", roof(weight_bytes=16)),
        Mistake("arithmetic alone", "memory is left out", roof(join=lambda a, b: a)),
        Mistake("memory alone", "arithmetic is left out", roof(join=lambda a, b: b)),
    ),
    tolerance=1e-6, finish=tell_roof,
)  # fmt: skip

EXERCISES = (ONLINE, BFLOAT16, PRODUCT, ROOFLINE)
