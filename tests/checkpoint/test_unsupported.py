"""Fine-tunes that load as they are, and relatives, quantised weights and adapters that are refused with what differs."""

import hashlib
import json
import shutil
import sys
import warnings

import numpy as np
import pytest
from conftest import SMALL, random_weights
from test_weights import write

import minivl
from minivl import Config, Error
from minivl.checkpoint.weights import open_weights
from minivl.cli import main
from minivl.processing.chat_template import KNOWN, Template, render
from minivl.processing.tokenizer import Tokenizer
from minivl.tiny import CHECKPOINT

MESSAGES = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}]
# Another default system prompt, and an answer that begins by thinking: what a fine-tune's template may do
OWN = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou solve.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% if add_vision_id %}#{% endif %}<|image_pad|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
OWN_PROMPT = (
    "<|im_start|>system\nYou solve.<|im_end|>\n<|im_start|>user\n<|image_pad|>What?<|im_end|>\n"
    "<|im_start|>assistant\n<think>"
)


# ---- refused ----


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "qwen2_vl"}, "tower without windows"),
        ({"model_type": "qwen3_vl"}, "learnt positions, deepstack"),
        ({"model_type": "qwen3_vl_moe"}, "learnt positions, deepstack"),
        ({"model_type": "qwen2_5_omni"}, "a thinker and a talker"),
        ({"model_type": "qwen2"}, "no vision tower"),
        ({"model_type": "qwen2_5_vl_text"}, "one half of such a model"),
        ({"model_type": None}, "one architecture only"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq, 4 bits.*as it was before"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"config.json: fp8\)"),
    ],
)
def test_relatives_are_refused_with_what_differs(changes, words):
    with pytest.raises(Error, match=words):
        Config.from_dict({**SMALL, **changes})


def test_an_empty_quantization_is_none():
    assert Config.from_dict({**SMALL, "quantization_config": None}) == Config.from_dict(SMALL)


def test_adapters_are_to_be_merged(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(Error, match=r"adapter_config.json says that this is a LoRA adapter.*merge_and_unload"):
        minivl.load(tmp_path)
    shutil.copytree(CHECKPOINT, tmp_path / "both")
    (tmp_path / "both" / "adapter_config.json").write_text("{}")
    with pytest.raises(Error, match="holds the merged model already, remove the file"):
        minivl.load(tmp_path / "both")


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"),
        lambda name: name.replace("q_proj.weight", "q_proj.lora_A.weight"),
        lambda name: name.replace("lm_head.weight", "lm_head.modules_to_save.default.weight"),
    ],
)
def test_adapters_in_the_weights(renamed, tmp_path):
    config = Config.from_dict(SMALL)
    write(tmp_path / "model.safetensors", {renamed(name): array for name, array in random_weights(config).items()})
    with pytest.raises(Error, match=r"model.safetensors holds a LoRA adapter that is not merged: \d+ tensors such as"):
        open_weights(tmp_path, config)


# ---- chat templates ----


def test_the_shipped_template_is_known():
    """Without jinja2 the model that ships must do."""
    texts = [json.loads((CHECKPOINT / name).read_text())["chat_template"] for name in ("chat_template.json",)]
    assert all(hashlib.sha256(text.strip().encode()).hexdigest() in KNOWN for text in texts)
    assert Template.read(CHECKPOINT).source is None and Template.read(None).source is None


@pytest.mark.parametrize("name", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"])
def test_a_template_of_its_own_is_run(name, tmp_path):
    (tmp_path / name).write_text(OWN if name.endswith("jinja") else json.dumps({"chat_template": OWN}))
    template = Template.read(tmp_path)
    assert template.source == OWN and template.render(MESSAGES) == OWN_PROMPT
    assert template.render(MESSAGES, False, add_vision_id=True).endswith("user\n#<|image_pad|>What?<|im_end|>\n")


def test_which_template_counts(tmp_path):
    """The processor's own before the tokenizer's; of several, the default."""
    several = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert Template.read(tmp_path).render(MESSAGES) == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Template.read(tmp_path).render(MESSAGES) == "J"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ messages | length }}"}')
    assert Template.read(tmp_path).render(MESSAGES) == "1"
    (tmp_path / "processor_config.json").write_text('{"chat_template": null}')
    assert Template.read(tmp_path).render(MESSAGES) == "1"


def test_a_template_sees_the_plain_spelling(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages | tojson }}")
    content = [{"type": "image_url", "image_url": {"url": "ä"}}, {"video": "b", "image": None}, {"text": "ö"}]
    shown = Template.read(tmp_path).render([{"role": "user", "content": content}, {"role": "user", "content": "c"}])
    kinds = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "ö"}]
    assert "ö" in shown and json.loads(shown) == [
        {"role": "user", "content": kinds}, {"role": "user", "content": "c"},
    ]  # fmt: skip


def test_marks_of_training_say_nothing(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("a {%- generation %} b {% endgeneration -%}\n c")
    assert Template.read(tmp_path).render(MESSAGES) == "a b c"


@pytest.mark.parametrize(
    "source, words",
    [
        ("{% for %}", "is not valid Jinja"),
        ("{{ raise_exception('no images, please') }}", "refuses these messages: no images, please"),
        ("{{ messages.__class__.__mro__ }}", "refuses these messages"),
    ],
)
def test_templates_that_cannot_be_run(source, words, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(Error, match=words):
        Template.read(tmp_path).render(MESSAGES)


def test_without_jinja(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "jinja2.exceptions", None)
    (tmp_path / "chat_template.jinja").write_text(OWN)
    with pytest.raises(Error, match="chat_template.jinja is not the published chat template.*pip install 'jinja2"):
        Template.read(tmp_path)
    assert Template.read(CHECKPOINT).render(MESSAGES) == render(MESSAGES)


def test_a_fine_tune_is_asked_in_its_own_words(tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(CHECKPOINT, folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": OWN}))
    vlm = minivl.load(folder)
    picture = np.full((90, 130, 3), 40, dtype=np.uint8)
    trace = vlm.trace("What?", images=picture, keep="input_ids")
    words = vlm.tokenizer.decode(trace["input_ids"], skip_special=False)
    count = vlm.count_tokens("What?", images=picture)
    assert words == OWN_PROMPT.replace("<|image_pad|>", "<|image_pad|>" * count.images[0].tokens)
    assert count.total == len(trace["input_ids"])


# ---- tokens ----


def test_tokens_of_a_fine_tune(tmp_path):
    """Those that stand in tokenizer_config.json alone are added; ids that do not fit are an error."""
    shutil.copy(CHECKPOINT / "tokenizer.json", tmp_path)
    size = Tokenizer.read(tmp_path).size
    fields = dict(lstrip=False, rstrip=False, normalized=False, single_word=False)
    added = {str(size): {"content": "<act>", "special": False, **fields}}
    added[str(size + 1)] = {"content": "<|end_of_act|>", "special": True, **fields}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = Tokenizer.read(tmp_path)
    ids = tokenizer.encode("a<act>b<|end_of_act|>")
    assert ids[1] == size and ids[3] == size + 1 and tokenizer.decode(ids) == "a<act>b"
    added[str(size + 5)] = {"content": "<far>", "special": False, **fields}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(Error, match=f"'<far>' is {size + 5}; with tokenizer.json it is {size + 2}"):
        Tokenizer.read(tmp_path)


def larger(folder, rows):
    """The model that ships with an embedding table that is longer, as padding leaves it; the new rows point where 7 does."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    weights = {name: minivl.load().weights[name] for name in minivl.load().weights.names() if name != "lm_head.weight"}
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = np.concatenate([table, np.repeat(table[7:8], rows, axis=0)])
    write(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(table) + rows}))
    return minivl.load(folder)


def test_tokens_without_text_are_told(tmp_path, capsys):
    """A row beyond the vocabulary that is chosen: the text cannot show it, so a warning does."""
    vlm = larger(tmp_path / "larger", 64)
    edit = {"next_token": np.array([vlm.config.text.vocab_size - 1])}
    with pytest.warns(UserWarning, match="chose token 831, for which tokenizer.json has no text"):
        answer = vlm.trace("Hello", edit=edit).result
    assert answer == "" and answer.ids == [831]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vlm.ask("Hello") == minivl.load().ask("Hello")


def test_the_command_line_says_warnings_in_a_line(tmp_path, capsys, monkeypatch):
    larger(tmp_path / "larger", 64)
    monkeypatch.setattr("minivl.model.sampling.next_token", lambda *arguments: 830)
    assert main(["ask", "Hello", "--model", str(tmp_path / "larger"), "--max-new-tokens", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "\n" and captured.err.startswith("minivl: the model chose token 830")
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["minivl", "minivl"]
    assert "no image was given" in captured.err.splitlines()[1]
