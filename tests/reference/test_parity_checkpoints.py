"""Checkpoints in unusual layouts: the same logits as transformers float32 loads from the same folder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import SMALL, random_weights  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

import minivl  # noqa: E402
from minivl import Config  # noqa: E402
from minivl.processing.inputs import Inputs  # noqa: E402

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rescaled(**more):
    return {"rope_scaling": {**YARN, "mrope_section": SMALL["rope_scaling"]["mrope_section"], **more}}


def compare(folder):
    config = Config.read(folder)
    ids = np.random.default_rng(0).integers(0, min(config.text.vocab_size, config.image_token_id), 60)
    with torch.no_grad():
        model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        expected = model(input_ids=torch.tensor(ids[None])).logits[0, -1].numpy()
    vlm = minivl.load(folder)
    inputs = Inputs(ids, np.zeros((0, config.vision.patch_dim), dtype=np.float32), np.zeros((0, 3), dtype=np.int64))
    actual = vlm.trace(inputs, keep="lm_head")["lm_head"][-1]
    assert np.max(np.abs(actual - expected)) < 1e-5 * np.max(np.abs(expected))


def write(folder, stored, weights):
    save_file(
        {name: np.ascontiguousarray(w) for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


@pytest.mark.parametrize(
    "changes",
    [rescaled(), rescaled(truncate=False), rescaled(mscale=0.7, mscale_all_dim=0.7), rescaled(mscale=1.0, mscale_all_dim=0.5),
     rescaled(mscale=0.5), rescaled(beta_fast=20, beta_slow=2), rescaled(attention_factor=1.5)])  # fmt: skip
def test_yarn(tmp_path, changes):
    stored = {**SMALL, **changes}
    compare(write(tmp_path, stored, random_weights(Config.from_dict(stored))))


@pytest.mark.parametrize("tables", [(TABLE,), (HEAD,), (TABLE, HEAD)])
@pytest.mark.filterwarnings("ignore:config.json says that lm_head")
def test_tied_tables(tmp_path, tables):
    """Of two that differ, each is used for what it is called; of one, both are it."""
    stored, weights = {**SMALL, "tie_word_embeddings": True}, random_weights(Config.from_dict(SMALL))
    for name in {TABLE, HEAD} - set(tables):
        del weights[name]
    compare(write(tmp_path, stored, weights))
