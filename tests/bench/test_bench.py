"""`minivl bench`: what it counts, what it writes, and that what it claims about the engine is so. No test looks at a clock."""

import contextlib
import dataclasses
import json
import tracemalloc
from pathlib import Path

import numba
import numpy as np
import pytest
from conftest import SMALL, random_weights, small_inputs, small_model

import minivl
from minivl.bench import programs, report, workloads
from minivl.bench import run as bench_run
from minivl.bench.peers import Peer
from minivl.bench.programs import OURS, Limits, Minivl, Process, measure, time_stage
from minivl.bench.workloads import config_of_size, operations, weight_bytes, write_checkpoint
from minivl.checkpoint.config import Config
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.weights import Weights
from minivl.cli import main
from minivl.errors import Error
from minivl.kernels import choose, speeds
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.kernels.speeds import READERS, read_sum_numpy
from minivl.kernels.tile import COLUMNS, ROWS
from minivl.stream import drive, run
from minivl.vlm import VLM

KEYS = "date size rounds machine versions left_out limits peak_memory results".split()


def small_workloads(config):
    """Vision, prefill and decode, alone and at once, of two images with partial windows."""
    inputs = small_inputs(config)
    rng = np.random.default_rng(0)
    every = [workloads.vision_workload(config, inputs), *workloads.decoder_workloads(config, inputs, rng)]
    return {workload.kind: workload for workload in every}


# ---- the command ----


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(text, report as JSON, folder) of the shortest bench there is, in the smallest size."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["--rounds", "2", "--no-peers", "--threads", "1", "--json", str(folder / "b.json")]
    with open(folder / "out.txt", "w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
        assert main(["bench", *arguments]) == 0
    return (folder / "out.txt").read_text(encoding="utf-8"), json.loads((folder / "b.json").read_text()), folder


def test_json_holds_everything(written):
    _, found, folder = written
    assert list(found) == KEYS and [path.name for path in sorted(folder.iterdir())] == ["b.json", "out.txt"]
    assert found["size"] == "tiny" and found["rounds"] == 2 and found["left_out"] == {}
    assert found["machine"]["threads"] == 1 and found["machine"]["processor"]
    assert len(found["machine"]["caches"]) == 2 and set(found["machine"]["blocks"]) == {"depth", "tiles", "block"}
    assert found["versions"]["minivl"] == minivl.__version__ and "torch" in found["versions"]
    for limit in found["limits"].values():
        assert limit["rate"] > 0 and len(limit["times"]) == 2 and all(len(times) for times in limit["times"])
    assert [(one["workload"], one["program"]) for one in found["results"]] == [
        ("vision 336x224", OURS),
        ("prefill", OURS),
        ("decode", OURS),
        ("decode 4 at once", OURS),
    ]
    for one in found["results"]:
        low, high = one["quartiles"]
        times = np.concatenate(one["times"])
        assert len(one["times"]) == 2 and times.min() <= low <= one["median"] <= high <= times.max()
        assert one["ratio"] == 1 and one["difference"] == 0
        fastest = max(("sgemm", "fma"), key=lambda name: found["limits"][name]["rate"])
        least = {"read": one["weight_bytes"], fastest: one["operations"]}
        least = {name: cost / found["limits"][name]["rate"] for name, cost in least.items()}
        assert one["bound"] == max(least, key=least.get)
        if one["bound"] == "read":  # a cache holds all the weights of the model that ships
            assert one["share"] is None
            continue
        of_limit, own = (bench_run.medians(t) for t in (found["limits"][fastest]["times"], one["times"]))
        shares = [one["operations"] / programs.LIMITS[fastest] * limit / mine for limit, mine in zip(of_limit, own)]
        assert one["share"] == pytest.approx(np.median(shares)) and one["share"] > 0


def test_table(written):
    text, found, _ = written
    assert text == report.table(found) + "\n"
    lines = text.splitlines()
    assert all(len(line) < 140 for line in lines)
    assert lines[2].startswith("caches of a core ") and "blocks of a product depth " in lines[2]
    assert lines[3].startswith("limits of the machine: read ") and "GFLOP/s" in lines[3]
    assert lines[5].split() == "workload program median quartiles x minivl rate of limit differs".split()
    assert [line[:39].split() for line in lines[6:10]] == [
        ["vision", "336x224", OURS],
        ["prefill", OURS],
        ["decode", OURS],
        ["decode", "4", "at", "once", OURS],
    ]


def test_table_and_picture_of_a_peer(written, tmp_path):
    """A peer that takes twice the time and reads twice the bytes."""
    found = json.loads(json.dumps(written[1]))
    for one in written[1]["results"]:
        twice = {"median": 2 * one["median"], "ratio": 2.0, "share": None, "difference": 3e-7}
        found["results"].append({**one, **twice, "program": "other", "weight_bytes": 2 * one["weight_bytes"]})
    found["left_out"] = {"third": "torch not installed"}
    lines = report.table(found).splitlines()
    assert lines[10].split()[0] == "other" and lines[10].split()[-2:] == ["2.00", "3e-07"]
    assert lines[-1] == "left out, third: torch not installed"
    report.draw(found, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_above_its_limit_is_named(written):
    found = json.loads(json.dumps(written[1]))
    for one, share in zip(found["results"], (1.004, 1.006, None, 0.9)):
        one["share"] = share
    text = report.table(found)
    assert "above 100 % of the limit: prefill\n" in text and " 100%\n" in text and " 101%\n" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--rounds", "0"], "must be at least 1"),
        (["--threads", "0"], "must be at least 1"),
        (["--only", "nothing"], "only='nothing': there is no such name. There are: vision 336x224, prefill, decode"),
        (["--folder", "somewhere"], "the tiny model ships with its own"),
        (["--json", "no/such/folder/b.json"], "cannot write no/such/folder/b.json"),
    ],
)
def test_errors_come_before_the_work(arguments, words, capsys):
    assert main(["bench", *arguments]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and not captured.out


# ---- rounds and processes ----


class Fake:
    """A program without a process: its times are those given, and it notes when it is asked."""

    def __init__(self, name, log, times=(1.0,), fails=False):
        self.name, self.log, self.times, self.fails = name, log, list(times), fails

    def time(self, workload):
        if self.fails:
            raise Error("it broke")
        self.log.append(self.name)
        return [self.times[min(len(self.log) - 1, len(self.times) - 1)]], np.ones(1, dtype=np.float32), 7


def test_rounds_are_interleaved_and_the_first_is_not_counted():
    log = []
    running = {name: Fake(name, log) for name in (OURS, "a", "b")}
    limits = Fake("limits", [], times=[9.0, 9.0, 1.0])
    of_limits, times, results, peaks = bench_run.run_rounds(limits, running, {}, {"decode": None}, 2)
    assert log == [OURS, "a", "b", "b", "a", OURS, OURS, "a", "b"]
    assert of_limits == {name: [[1.0], [1.0]] for name in ("read", "sgemm", "fma")}
    assert times == {("decode", name): [[1.0], [1.0]] for name in running}
    assert peaks == {name: 7 for name in running} and list(results) == list(times)


def test_a_peer_that_fails_is_left_out_and_minivl_must_not():
    left_out, log = {}, []
    running = {OURS: Fake(OURS, log), "a": Fake("a", log, fails=True)}
    bench_run.run_rounds(Fake("limits", []), running, left_out, {"prefill": None, "decode": None}, 1)
    assert left_out == {"a": "it broke"} and [*running] == [OURS] and log == [OURS] * 4
    with pytest.raises(Error, match="it broke"):
        bench_run.run_rounds(Fake("limits", []), {OURS: Fake(OURS, log, fails=True)}, {}, {"decode": None}, 1)


class Countdown:
    """A program that fails when asked for what it does not know."""

    def __init__(self, known):
        self.known = known

    def run(self, name):
        return self.known[name], np.zeros(1, dtype=np.float32)


def test_a_process_answers_and_passes_errors_on():
    with Process(Countdown, {"decode": 0.3}, threads=1) as program:
        times, result, peak = program.time("decode")
        assert times == [0.3] and result.shape == (1,) and (peak is None or peak > 1e6)
        with pytest.raises(Error, match="Countdown failed: KeyError"):
            program.time("prefill")
    assert not program.process.is_alive()


class Waking(Countdown):
    """The first run takes a little longer."""

    def run(self, name):
        seconds, result = super().run(name)
        self.known = {name: seconds - 0.001}
        return seconds, result


def test_short_work_is_repeated_after_a_first_time():
    short, long = programs.LEAST / 3.5, programs.LONG
    times, _ = measure(Waking({"a": short + 0.001}), "a")
    assert len(times) == 4 and times[0] == pytest.approx(short)
    assert measure(Waking({"a": long}), "a")[0] == [long]


def test_peers_without_room_are_left_out(monkeypatch):
    monkeypatch.setattr(bench_run, "system_memory", lambda: 3 * 10**9)
    monkeypatch.setattr(bench_run, "Process", lambda *arguments, threads: contextlib.nullcontext("a process"))
    peers = {"large": Peer(Countdown, (), 4, ()), "small": Peer(Countdown, (), 2, ())}
    for needed, fitting in ((3 * 10**8, ["small", "large"]), (4 * 10**8, ["small"]), (6 * 10**8, [])):
        left_out = {}
        with contextlib.ExitStack() as stack:
            running = bench_run.start_programs(stack, peers, left_out, Path(), {}, 1, needed)
        assert [*running] == [OURS, *fitting] and sorted([*fitting, *left_out]) == ["large", "small"]
        assert all("too little memory beside minivl" in why for why in left_out.values())


# ---- what is counted ----


@pytest.mark.parametrize("changes", [{}, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}])
def test_operations_are_those_of_the_kernels(changes):
    """Counted from the config, and counted where they happen."""
    vlm, counted = small_model(**changes), []

    def linear(x, weight, bias=None):
        counted.append(2 * len(x) * weight.size)
        return plain.linear(x, weight, bias)

    def segment_attention(q, k, v, bounds):
        H, N, K = q.shape
        counted.extend(4 * H * K * int(end - start) ** 2 for start, end in zip(bounds[:-1], bounds[1:]))
        return plain.segment_attention(q, k, v, bounds)

    def causal_attention(q, k, v, window=None):
        (H, T, K), S = q.shape, k.shape[1]
        counted.extend(4 * H * K * min(S - T + t + 1, window or S) for t in range(T))
        return plain.causal_attention(q, k, v, window)

    plain = vlm.kernels
    watched = {"linear": linear, "segment_attention": segment_attention, "causal_attention": causal_attention}
    watching = VLM(vlm.config, vlm.weights, dataclasses.replace(plain, **watched))
    program = Minivl.__new__(Minivl)
    work = small_workloads(vlm.config)
    program.vlm, program.workloads, program.caches = watching, work, {}
    program.model = programs.WithFeatures(watching.config, watching.weights, watching.kernels)
    for kind in ("vision", "prefill", "decode", "together"):
        program.run(kind)
        counted.clear()  # decode runs its prompt the first time
        program.run(kind)
        assert sum(counted) == operations(vlm.config, work[kind]), kind


def test_bytes_are_those_of_the_matrices():
    vlm = small_model()
    work, weights = small_workloads(vlm.config), vlm.weights
    sizes = {name: weights[name].size for name in weights.names() if weights[name].ndim > 1}
    tower = sum(size for name, size in sizes.items() if name.startswith("visual."))
    text = sum(size for name, size in sizes.items() if name.startswith(("model.layers.", "lm_head")))
    assert weight_bytes(vlm.config, work["vision"], 4) == 4 * tower
    assert all(weight_bytes(vlm.config, work[kind], 2) == 2 * text for kind in ("prefill", "decode", "together"))
    assert operations(vlm.config, work["together"]) == 4 * operations(vlm.config, work["decode"])


def test_published_size():
    """3.09 billion weights are read for a token of the 3B: 6.17 GB. Its prompt has 296 tokens."""
    config = Config.from_dict(config_of_size("3B"))
    work = {one.name: one for one in workloads.workloads(config)}
    assert [*work] == ["vision 448x448", "vision 896x896", "prefill", "decode", "decode 4 at once"]
    assert [len(one.inputs.pixel_values) for one in work.values()] == [1024, 4096, 1024, 1024, 1024]
    assert len(work["prefill"].inputs.input_ids) == 296 and work["decode"].features.shape == (256, 2048)
    assert weight_bytes(config, work["decode"], 2) == pytest.approx(6.17e9, rel=1e-3)
    small = Config.from_dict(config_of_size("3B-layers"))
    assert parameter_shapes(small).items() <= parameter_shapes(config).items()
    assert small.vision.fullatt_block_indexes == (1,) and small.vision.depth == 2


def test_reading_is_a_sum():
    for count in (0, 1, 32767, 32768, 100_003):
        words = np.random.default_rng(count).integers(0, 2**64, count, dtype=np.uint64)
        assert {read(words) for read in READERS} == {read_sum_numpy(words)}


def test_limits_are_measured(monkeypatch):
    monkeypatch.setattr(programs, "READ", 1 << 16)
    monkeypatch.setattr(programs, "SIDE", 32)
    limits = Limits()
    assert limits.run("read")[1][0] == read_sum_numpy(limits.words) > 0
    seconds, _ = limits.run("sgemm")
    assert seconds > 0
    np.testing.assert_allclose(limits.product, limits.a @ limits.b, rtol=1e-5)
    seconds, done = limits.run("fma")
    assert seconds > 0 and done[0] >= 2 * ROWS * COLUMNS


def test_multiply_adds_are_counted():
    """A tile of ones times ones sums DEPTH ones; the number of operations is near the one asked for, and whole pieces."""
    piece = 2 * ROWS * COLUMNS * speeds.DEPTH * speeds.TURNS
    for asked in (1, 10 * piece, 33 * piece):
        done = speeds.multiply_add(asked)
        assert done % piece == 0 and abs(done - asked) <= piece * numba.get_num_threads()
    ones = np.ones((speeds.DEPTH, ROWS), np.float32), np.ones((speeds.DEPTH, COLUMNS), np.float32)
    assert speeds._multiply_add_piece(*ones) == speeds.DEPTH + 2


# ---- the random checkpoint ----


STORED = {**SMALL, "vocab_size": 3000, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workloads, "POOL", 1 << 16)
        patch.setattr(workloads, "PIECE", 1 << 12)  # tensors of several pieces, the last one short
        write_checkpoint(path, STORED)
    return path


def test_random_checkpoint_loads_and_looks_like_weights(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    vlm = minivl.load(folder)
    table = to_float32(vlm.weights["model.embed_tokens.weight"])
    assert table.shape == (3000, 48) and abs(table.mean()) < 2e-3 and 0.019 < table.std() < 0.021
    assert 2.5 < np.mean((table / table.std()) ** 4) < 3.5  # as of a normal distribution
    assert len(np.unique(table, axis=0)) > 2000  # slices from different places; few rows come twice
    norms = [vlm.weights[name] for name in vlm.weights.names() if "norm" in name or "ln_q" in name]
    assert len(norms) == 2 * 3 + 1 + 2 * 3 + 1
    assert all(0.9 < norm.min() and norm.max() < 1.1 and abs(norm.mean() - 1) < 0.02 for norm in norms)
    work = small_workloads(vlm.config)
    program = Minivl(folder, work)
    for kind, shape in (("vision", (41, 48)), ("prefill", (1, 3000)), ("decode", (1, 3000)), ("together", (4, 3000))):
        seconds, result = program.run(kind)
        assert seconds > 0 and result.shape == shape and np.isfinite(result).all() and result.std() > 0


def test_decoding_again_is_the_same_token(folder):
    """Each time the cache is put back to the prompt; and it is the token after it."""
    work = small_workloads(Config.from_dict(STORED))
    program = Minivl(folder, work)
    first, second = program.run("decode")[1], program.run("decode")[1]
    np.testing.assert_array_equal(first, second)
    cache, inputs = program.model.new_cache(), work["decode"].inputs
    run(program.model.prefill(inputs, cache))
    np.testing.assert_array_equal(first, run(program.model.decode(inputs.input_ids[-1:], cache)))
    for _ in range(2):
        np.testing.assert_array_equal(np.repeat(first, 4, axis=0), program.run("together")[1])


def test_a_checkpoint_is_used_again_or_refused(folder):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    workloads.random_checkpoint(folder, STORED)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(Error, match="has a checkpoint of another kind"):
        workloads.random_checkpoint(folder, config_of_size("3B"))


def test_too_little_disk_or_memory(tmp_path, monkeypatch, capsys):
    usage = type("usage", (), {"free": 5 * 10**9})
    monkeypatch.setattr(workloads.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Error, match="7.5 GB are needed, 5.0 GB are free. Give another folder="):
        write_checkpoint(tmp_path, config_of_size("3B"))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(bench_run, "system_memory", lambda: 10**8)
    assert main(["bench", "--no-peers"]) == 1
    assert "too little memory" in capsys.readouterr().err


def test_the_clock_starts_where_it_is_told(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(programs.time, "perf_counter", lambda: now[0])

    def stage():
        for name, seconds in (("a", 5), ("inputs_embeds", 2), ("logits", 1)):
            now[0] += seconds
            yield name, seconds
        return "end"

    assert time_stage(stage(), after="inputs_embeds") == (1, "end") and time_stage(stage()) == (8, "end")


def test_a_round_counts_once_and_is_compared_with_itself():
    """A machine that is three times as fast in two rounds of five, in which it runs more often."""
    rounds = [[0.06] * 2, [0.06] * 2, [0.06] * 2, [0.02] * 5, [0.02] * 5]
    assert bench_run.quartiles(rounds)[1] == 0.06
    twice = [[2 * t for t in times] for times in rounds]
    config = Config.from_dict(STORED)
    work = small_workloads(config)["prefill"]
    limits = {name: {"rate": 1.0, "times": [[t[0] / 4] for t in rounds]} for name in programs.LIMITS}
    times = {(work.name, OURS): rounds, (work.name, "other"): twice}
    results = dict.fromkeys(times, np.ones(1))
    ours, other = (bench_run.row(config, work, program, limits, times, results) for program in (OURS, "other"))
    assert other["ratio"] == pytest.approx(2) and other["share"] is None
    assert ours["bound"] == "read" and ours["share"] is None or ours["share"] > 0
    limits["read"]["rate"] = 1e30
    ours = bench_run.row(config, work, OURS, limits, times, results)
    assert ours["share"] == pytest.approx(ours["operations"] / programs.LIMITS["sgemm"] / 4)


def test_prefill_starts_from_the_given_features(folder):
    """The tower does not run; its tokens are in the prompt."""
    work = small_workloads(Config.from_dict(STORED))["prefill"]
    program = Minivl(folder, {"prefill": work})
    program.model.features = work.features
    names = []
    for name, tensor in drive(program.model.prefill(work.inputs, program.model.new_cache())):
        names.append(name)
        if name == "inputs_embeds":
            where = work.inputs.input_ids == program.vlm.config.image_token_id
            np.testing.assert_array_equal(tensor[where], work.features)
    assert not [name for name in names if name.startswith("visual")]


# ---- what the engine claims ----


def test_the_stream_yields_as_often_as_it_claims():
    """17 tensors a layer, 15 a block: 618 in a decoded token of the 3B, where 500 cost 0.15 ms of 200."""
    vlm = small_model()
    inputs, cache = small_inputs(vlm.config), vlm.new_cache()
    L, B = vlm.config.text.num_hidden_layers, vlm.config.vision.depth
    prefill = [name for name, _ in drive(vlm.prefill(inputs, cache))]
    decode = [name for name, _ in drive(vlm.decode(np.array([1], dtype=np.int64), cache))]
    assert len(decode) == 17 * L + 6 and 17 * 36 + 6 == 618
    tower = [name for name in prefill if name.startswith("visual") or name in ("pixel_values", "image_grid_thw")]
    assert len(tower) == 15 * B + 16
    assert len(prefill) == len(decode) + len(tower) + 3  # input_ids, inputs_embeds, rope_delta


@pytest.fixture(scope="module")
def large():
    """Every matrix of this decoder is large beside the activations of a short prompt. bfloat16, in memory."""
    changes = {
        "vocab_size": 16384,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
        "vision_config": {**SMALL["vision_config"], "out_hidden_size": 768},
    }
    config = Config.from_dict({**SMALL, **changes})
    arrays = {n: from_float32(a) if a.ndim > 1 else a for n, a in random_weights(config).items()}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    return VLM(config, Weights(arrays), choose("numba"))


def upcast_bytes(vlm):
    """Bytes that each matrix of the decoder would take as float32."""
    weights = vlm.weights.at("model")
    return [4 * weights[name].size for name in weights.names() if weights[name].ndim > 1]


def test_numpy_holds_no_weight_in_float32(large):
    """While a token is decoded, all arrays together take less than the smallest matrix would."""
    cache = large.new_cache()
    run(large.prefill(small_inputs(large.config), cache))
    run(large.decode(np.array([1], dtype=np.int64), cache))  # makes room in the cache
    tracemalloc.start()
    try:
        run(large.decode(np.array([2], dtype=np.int64), cache))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < peak < min(upcast_bytes(large)) == 4 * 256 * 768


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says how much memory was used")
def test_compiled_kernels_hold_no_weight_in_float32(large):
    """Their arrays are not NumPy's: ask the system by how much the process grew, at most, in a prefill and in a token."""
    inputs, cache = small_inputs(large.config), large.new_cache()
    features = run(large.embed_image(inputs.pixel_values, inputs.image_grid_thw))
    assert features.shape == (41, 768)
    for stage in (large.prefill(inputs, cache), large.decode(np.array([1], dtype=np.int64), cache)):
        before = resident_after_reset()
        run(stage)
        assert programs.peak_memory() - before < 10e6 < max(upcast_bytes(large)) / 4


def resident_after_reset():
    """Bytes that this process holds; its peak starts from there."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system does not let the peak be reset")
    return programs.peak_memory()
