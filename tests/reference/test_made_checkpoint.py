"""What `minivl make-checkpoint` writes, in transformers: tokenizer, image processor and model give ours, up to the logits."""

import json
import re
from pathlib import Path

import pytest
from random_models import torch, transformers

import minivl
from minivl.make import make_checkpoint
from minivl.reference.record import record_reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint", blocks=16, layers=2)


@pytest.mark.parametrize("which", [0, 1])
def test_both_prompts_agree(folder, which, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    prompt = json.loads((folder / "prompts.json").read_text())[which]
    messages = prompt.pop("messages")
    record_reference(folder, messages, None, tmp_path / "reference.safetensors", **prompt)
    trace = minivl.load(folder, video_positions="transformers5").trace(messages, max_new_tokens=1, **prompt)
    found = trace.compare(tmp_path / "reference.safetensors")
    assert found.ok and found["lm_head"].status == "OK", f"\n{found}"
    assert {row.name for row in found.rows if row.status == "MISSING"} <= {"rope_delta"}


def test_an_untied_head_and_the_settings(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint", blocks=8, layers=1, tied=False)
    model, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)
    assert model.generation_config.repetition_penalty == 1.05 and model.generation_config.eos_token_id == [
        151645,
        151643,
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("<|im_start|><|video_pad|>")["input_ids"] == [151644, 151656]
    assert tokenizer.decode([151642]) == "unused_151642"


def test_the_example_of_the_docs(tmp_path, monkeypatch):
    """docs/recorders.md: ours, then transformers, as printed."""
    text = (Path(__file__).parents[2] / "docs" / "recorders.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(make_checkpoint(tmp_path / "random-vl", blocks=8, layers=1))
    for mark in ("vlm.trace", "minivl.record.torch("):
        exec(next(block for block in blocks if mark in block), {})
    ours = minivl.Trace.load("ours.safetensors")
    found = ours.compare("port.safetensors", model=minivl.load("."))
    assert found.ok and found.covered and found["steps.2.lm_head"].status == "OK", f"\n{found}"
