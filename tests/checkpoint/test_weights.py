"""Weights: layouts, names, dtypes, mapping, and what is said when a file is not right."""

import json
import warnings

import numpy as np
import pytest
from conftest import SMALL, random_weights
from hypothesis import given
from hypothesis import strategies as st

from minivl import Config, Error
from minivl.checkpoint.hub import resolve
from minivl.checkpoint.parameters import parameter_shapes
from minivl.checkpoint.weights import open_weights
from minivl.kernels.bfloat16 import from_float32, to_float32
from minivl.tensors.names import published_name

CONFIG = Config.from_dict(SMALL)
TIED = Config.from_dict({**SMALL, "tie_word_embeddings": True})
ARRAYS = random_weights(CONFIG)
CODES = {np.dtype(np.uint16): "BF16", np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}


def write(path, arrays):
    """A safetensors file, by hand: uint16 means bfloat16."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in arrays.values()))


def stored_as(convert, names=lambda name: name, arrays=ARRAYS):
    return {names(name): convert(array) for name, array in arrays.items()}


def check(weights, expected=ARRAYS, rounded=lambda x: x):
    for name in parameter_shapes(CONFIG):
        np.testing.assert_array_equal(to_float32(weights[name]), rounded(expected[name]), err_msg=name)


def bfloat16(x):
    return to_float32(from_float32(x))


def test_bfloat16_stays_as_stored_and_mapped(tmp_path):
    write(tmp_path / "model.safetensors", stored_as(from_float32))
    weights = open_weights(tmp_path, CONFIG)
    check(weights, rounded=bfloat16)
    matrix = weights["model.layers.0.mlp.up_proj.weight"]
    assert matrix.dtype == np.uint16 and not matrix.flags.writeable and not matrix.flags.owndata
    root = matrix
    while not isinstance(root, np.memmap):
        root = root.base
    assert weights["model.norm.weight"].dtype == np.float32
    assert weights["visual.patch_embed.proj.weight"].dtype == np.uint16


def test_resident_weights_are_copies_of_the_same_bits(tmp_path):
    write(tmp_path / "model.safetensors", stored_as(from_float32))
    mapped, copied = (open_weights(tmp_path, CONFIG, dtype) for dtype in ("bfloat16", "resident"))
    for name in mapped.names():
        np.testing.assert_array_equal(copied[name], mapped[name], err_msg=name)
        assert copied[name].dtype == mapped[name].dtype and copied[name].flags.c_contiguous
        assert not isinstance(copied[name], np.memmap) and copied[name].ctypes.data % 4 == 0
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="read-only"):
        copied["model.embed_tokens.weight"][0] = 0


def test_resident_weights_must_fit(tmp_path, monkeypatch):
    write(tmp_path / "model.safetensors", stored_as(from_float32))
    with pytest.raises(Error, match="Leave one of them out"):
        open_weights(tmp_path, CONFIG, "resident", memory_limit="1GB")
    monkeypatch.setattr("minivl.checkpoint.memory.available_memory", lambda: 1000)
    with pytest.raises(Error, match='weights="resident" takes .* 1.00 kB are free'):
        open_weights(tmp_path, CONFIG, "resident")
    open_weights(tmp_path, CONFIG, "bfloat16")


def test_float32_upcasts_all(tmp_path):
    write(tmp_path / "model.safetensors", stored_as(from_float32))
    weights = open_weights(tmp_path, CONFIG, "float32")
    assert {weights[name].dtype for name in weights.names()} == {np.dtype(np.float32)}
    check(weights, rounded=bfloat16)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("asked", ["bfloat16", "float32"])
def test_other_stored_types(tmp_path, dtype, asked):
    write(tmp_path / "model.safetensors", stored_as(lambda x: x.astype(dtype)))
    weights = open_weights(tmp_path, CONFIG, asked)
    assert weights["lm_head.weight"].dtype == np.float32
    check(weights, rounded=lambda x: x.astype(dtype).astype(np.float32))


def new_style(name):
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name if name.startswith("lm_head") else "model." + name


def bare(name):
    return "language_model." + name.removeprefix("model.") if name.startswith("model.") else name


def wrapped(name):
    return name if name.startswith("visual") else "language_model." + name


@pytest.mark.parametrize("names", [new_style, bare, wrapped, "module.{}".format])
def test_other_names(tmp_path, names):
    write(tmp_path / "model.safetensors", stored_as(lambda x: x, names))
    check(open_weights(tmp_path, CONFIG))


OWN = "visual.blocks.0.norm1.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"
OTHER = {
    "in memory": ("model.visual.blocks.0.norm1.weight", "model.language_model.layers.0.mlp.up_proj.weight",
                  "model.language_model.norm.weight", "lm_head.weight"),
    "without a head": ("visual.blocks.0.norm1.weight", "language_model.layers.0.mlp.up_proj.weight",
                       "language_model.norm.weight", "lm_head.weight"),
    "wrapped": ("visual.blocks.0.norm1.weight", "language_model.model.layers.0.mlp.up_proj.weight",
                "language_model.model.norm.weight", "language_model.lm_head.weight"),
    "parallel": tuple(f"module.{name}" for name in OWN),
}  # fmt: skip


@pytest.mark.parametrize("names", [OWN, *OTHER.values()], ids=["published", *OTHER])
def test_published_name(names):
    assert tuple(map(published_name, names)) == OWN


def test_shards(tmp_path):
    shards = {"a.safetensors": {}, "b.safetensors": {}, "c.safetensors": {}}
    weight_map = {}
    for i, (name, array) in enumerate(ARRAYS.items()):
        shard = list(shards)[i % 3]
        shards[shard][name], weight_map[name] = array, shard
    for shard, arrays in shards.items():
        write(tmp_path / shard, arrays)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check(open_weights(tmp_path, CONFIG))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(Error, match="lacks 1 of 3 shards: b.safetensors"):
        open_weights(tmp_path, CONFIG)


def test_a_single_file_by_any_name(tmp_path):
    write(tmp_path / "mine.safetensors", ARRAYS)
    check(open_weights(tmp_path, CONFIG))
    check(open_weights(tmp_path / "mine.safetensors", CONFIG))


def test_the_weights_that_the_config_names(tmp_path):
    """transformers_weights: a file, or an index, which transformers reads instead of model.safetensors."""
    write(tmp_path / "model.safetensors", stored_as(lambda x: x * 2))
    write(tmp_path / "other.safetensors", ARRAYS)
    weight_map = dict.fromkeys(ARRAYS, "other.safetensors")
    (tmp_path / "other.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("other.safetensors", "other.safetensors.index.json"):
        (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": name}))
        check(open_weights(tmp_path, CONFIG))


TABLE = ARRAYS["model.embed_tokens.weight"]


@pytest.mark.parametrize("stored", ["model.embed_tokens.weight", "lm_head.weight", "both"])
def test_tied_head(tmp_path, stored):
    """One table, under either name or both: it is embedding and head."""
    arrays = {**ARRAYS, "model.embed_tokens.weight": TABLE, "lm_head.weight": TABLE}
    if stored != "both":
        del arrays[({"model.embed_tokens.weight", "lm_head.weight"} - {stored}).pop()]
    write(tmp_path / "model.safetensors", arrays)
    weights = open_weights(tmp_path, TIED)
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]
    np.testing.assert_array_equal(weights["lm_head.weight"], TABLE)
    assert len(weights.names()) == len(parameter_shapes(CONFIG))


def test_a_head_of_its_own_counts_whatever_the_config_says(tmp_path):
    arrays = {**ARRAYS, "lm_head.weight": TABLE[::-1].copy()}
    write(tmp_path / "model.safetensors", arrays)
    with pytest.warns(UserWarning, match="two different tables"):
        check(open_weights(tmp_path, TIED), arrays)


def test_a_head_alone_is_not_enough_unless_tied(tmp_path):
    write(
        tmp_path / "model.safetensors", {name: a for name, a in ARRAYS.items() if name != "model.embed_tokens.weight"}
    )
    with pytest.raises(Error, match="1 missing: model.embed_tokens.weight"):
        open_weights(tmp_path, CONFIG)


def test_tensors_that_are_not_used(tmp_path):
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, dtype=np.float32),
        "model.visual.rotary_pos_emb.inv_freq": np.ones(8, dtype=np.float32),
        "model.rotary_emb.original_inv_freq": np.ones(8, dtype=np.float32),
    }
    write(tmp_path / "model.safetensors", ARRAYS | more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(open_weights(tmp_path, CONFIG))
    write(tmp_path / "model.safetensors", ARRAYS | {"v_head.summary.weight": np.ones((1, 8), dtype=np.float32)})
    with pytest.warns(UserWarning, match="not used: v_head.summary.weight"):
        check(open_weights(tmp_path, CONFIG))


def test_of_two_checkpoints_in_a_folder_the_single_file_counts(tmp_path):
    write(tmp_path / "model.safetensors", ARRAYS)
    write(tmp_path / "model-00001-of-00001.safetensors", stored_as(lambda x: x * 2))
    weight_map = dict.fromkeys(ARRAYS, "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.warns(UserWarning, match="model.safetensors is used, as in transformers"):
        check(open_weights(tmp_path, CONFIG))


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "x/../../a.safetensors", "{}", "C:\\a.safetensors", "..\\a.safetensors"]
)
def test_weights_outside_the_folder_are_not_read(tmp_path, name):
    write(tmp_path / "a.safetensors", ARRAYS)
    folder = tmp_path / "model"
    folder.mkdir()
    name = name.format(tmp_path / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(ARRAYS, name)}))
    with pytest.raises(Error, match="names files outside its folder"):
        open_weights(folder, CONFIG)


@pytest.mark.parametrize(
    "text", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": [1]}}', "[" * 100000,
             "\xff", "9" * 5000,
             '{"weight_map": {"a": "\\u0000"}}', '{"weight_map": {"a": "' + "x" * 5000 + '"}}'])  # fmt: skip
def test_damaged_indices(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(Error, match="not a safetensors index|lacks 1 of 1"):
        open_weights(tmp_path, CONFIG)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(Error, match="cannot read .*: Permission denied. Make the folder readable"):
        open_weights(tmp_path, CONFIG)
    for method in ("stat", "is_dir", "is_file", "exists"):
        monkeypatch.setattr(f"pathlib.Path.{method}", refuse)
    for read in (Config.read, resolve):
        with pytest.raises(Error, match="cannot read .*: Permission denied. Make the folder readable"):
            read(tmp_path)


def test_prefixes(tmp_path):
    write(tmp_path / "model.safetensors", ARRAYS)
    block = open_weights(tmp_path, CONFIG).at("visual").at("blocks.1")
    assert "norm1.weight" in block and "ln_q.weight" not in block
    np.testing.assert_array_equal(block["attn.qkv.bias"], ARRAYS["visual.blocks.1.attn.qkv.bias"])
    assert block.linear("attn.qkv")[1] is not None and len(block.at("mlp").names()) == 6


def test_all_that_does_not_fit_is_one_error(tmp_path):
    arrays = dict(ARRAYS)
    arrays.pop("model.norm.weight"), arrays.pop("lm_head.weight")
    arrays["model.layers.9.extra"] = np.zeros(3, dtype=np.float32)
    arrays["visual.merger.ln_q.weight"] = np.zeros(7, dtype=np.float32)
    write(tmp_path / "model.safetensors", arrays)
    with pytest.raises(Error) as caught:
        open_weights(tmp_path, CONFIG)
    message = str(caught.value)
    assert "2 missing: model.norm.weight, lm_head.weight" in message
    assert "1 unused: model.layers.9.extra" in message
    assert "1 misshapen: visual.merger.ln_q.weight is [7], the config says [32]" in message


def damage(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(change(data)))


def edited_header(**changes):
    def change(data):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["model.norm.weight"] |= changes
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda data: data[:-100], "bytes are missing"),
        (lambda data: data[:20], "not a complete safetensors file"),
        (lambda data: b"", "not a complete safetensors file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (lambda data: (5).to_bytes(8, "little") + b"hello" + data, "safetensors header"),
        (edited_header(dtype="I8"), "stored as I8"),
        (edited_header(shape=[47]), "does not fit F32 .47."),
        (edited_header(data_offsets=[8, 4]), "does not fit F32"),
        (edited_header(data_offsets=None), "damaged"),
    ],
)
def test_damaged_files(tmp_path, change, words):
    path = tmp_path / "model.safetensors"
    write(path, ARRAYS)
    damage(path, change)
    with pytest.raises(Error, match=words):
        open_weights(tmp_path, CONFIG)


def test_folders_without_weights(tmp_path):
    with pytest.raises(Error, match="no .safetensors file"):
        open_weights(tmp_path, CONFIG)
    for name in "ab":
        write(tmp_path / f"{name}.safetensors", ARRAYS)
    with pytest.raises(Error, match="2 .safetensors files and no index"):
        open_weights(tmp_path, CONFIG)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(Error, match="not a safetensors index"):
        open_weights(tmp_path, CONFIG)
    with pytest.raises(Error, match='"bfloat16"'):
        open_weights(tmp_path, CONFIG, "int8")


def test_sources(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    with pytest.raises(Error, match="does not exist"):
        resolve("/no/such/folder")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Error, match="neither a local path nor in the hub's cache"):
        resolve("no-such-org/no-such-model")


def test_a_hub_id_comes_from_the_cache(tmp_path, monkeypatch):
    """The layout of huggingface_hub's cache, as a download leaves it; offline."""
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    write(snapshot / "model.safetensors", ARRAYS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    # versions before 0.24 copy the constant
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve("some/model") == snapshot
    check(open_weights(resolve("some/model"), CONFIG))


@given(st.floats(width=32))
def test_rounding_to_bfloat16(value):
    x = np.array([value], dtype=np.float32)
    back = to_float32(from_float32(x))[0]
    if np.isnan(value):
        assert np.isnan(back)
    elif np.isfinite(back):
        neighbours = to_float32(from_float32(x)[:, None] + np.array([-1, 0, 1]).astype(np.uint16))[0]
        finite = neighbours[np.isfinite(neighbours)].astype(np.float64)
        assert abs(float(back) - float(x[0])) <= np.abs(finite - float(x[0])).min()
