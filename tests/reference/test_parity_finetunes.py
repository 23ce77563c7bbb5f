"""Fine-tunes as transformers saves them, and relatives as its own config classes write them.

Every tensor of a fine-tune with resized embeddings and new tokens in its prompt is compared with transformers' model, in every
form in which a checkpoint may be saved. What is not a Qwen2.5-VL of whole weights is refused.
"""

import dataclasses
import json

import numpy as np
import pytest
from oracle import load_reference, run_reference, unknown_to_reference
from parity import assert_parity
from random_models import CASES, VOCABULARY, random_config, random_inputs, random_weight, torch, write_checkpoint
from transformers import (
    AwqConfig,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GPTQConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5OmniConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

import minivl
from minivl import Config, Error

ADDED = 7  # tokens
ROWS = 256  # of the table then, padded to a multiple of 64


def tuned(folder, case, dtype=torch.bfloat16, **options):
    """A checkpoint of which tokens were added, merged with a low-rank adapter, and saved by transformers."""
    config = random_config(np.random.default_rng(CASES[case]["seed"]), **CASES[case])
    write_checkpoint(folder / "base", config, 1)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "base", dtype=torch.float32)
    model.resize_token_embeddings(VOCABULARY + ADDED, pad_to_multiple_of=64, mean_resizing=False)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                weight[VOCABULARY:] = random_weight(name, weight[VOCABULARY:].shape, random)
            elif "_proj.weight" in name:  # W + B A, as merge_and_unload leaves it
                down, up = (
                    torch.randn(shape, generator=random) for shape in ((4, weight.shape[1]), (weight.shape[0], 4))
                )
                weight += up @ down / weight.shape[1]
    model.to(dtype).save_pretrained(folder / "tuned", **options)
    return folder / "tuned"


def with_new_tokens(inputs):
    """The same prompt with all added ids in it, and one of the padding rows behind them."""
    ids = inputs.input_ids.copy()
    words = np.flatnonzero(ids < 200)[: ADDED + 1]
    ids[words] = [*range(VOCABULARY, VOCABULARY + ADDED), ROWS - 1][: len(words)]
    assert len(words) > 5
    return dataclasses.replace(inputs, input_ids=ids)


def drop_ties(stored):
    """Some savers leave the flag out at the top, and it stands in text_config alone."""
    stored.pop("tie_word_embeddings", None)


SAVED = {
    "bfloat16": dict(case="untied"),
    "tied": dict(case="tied"),
    "float16": dict(case="untied", dtype=torch.float16),
    "float32": dict(case="tied", dtype=torch.float32),
    "shards": dict(case="untied", max_shard_size="100kB"),
    "videos": dict(case="videos_and_images"),
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_every_tensor_of_a_fine_tune(name, backend, tmp_path):
    folder = tuned(tmp_path, **SAVED[name])
    assert (folder / "model.safetensors.index.json").is_file() == (name == "shards")
    reference = load_reference(folder)
    assert reference.get_input_embeddings().weight.shape[0] == ROWS
    case = CASES[SAVED[name]["case"]]
    media = {kind: case.get(kind, ()) for kind in ("grids", "videos", "seconds")}
    inputs = with_new_tokens(random_inputs(reference.config, seed=3, text=20, **media))
    trace = minivl.load(folder, backend=backend, video_positions="transformers5").trace(inputs)
    assert trace["lm_head"].shape == (1, ROWS)
    assert_parity(run_reference(reference, **vars(inputs)), trace, unknown_to_reference(inputs))


def test_the_flag_of_the_tie_in_text_config_alone(tmp_path):
    folder = tuned(tmp_path, "tied")
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    expected = minivl.load(folder).weights["lm_head.weight"]
    assert stored.pop("tie_word_embeddings") is True
    stored["text_config"]["tie_word_embeddings"] = True
    path.write_text(json.dumps(stored))
    assert np.array_equal(minivl.load(folder).weights["lm_head.weight"], expected)


def test_an_older_table_beside_a_newer_config_is_told(tmp_path):
    folder = tuned(tmp_path, "tied")
    (folder / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    with pytest.raises(Error, match=rf"embed_tokens.weight is \[{ROWS}, \d+\], the config says \[{VOCABULARY}, "):
        minivl.load(folder)


@pytest.mark.parametrize(
    "made, words",
    [
        (Qwen2VLConfig, "Qwen2-VL has a tower without windows"),
        (Qwen3VLConfig, "Qwen3-VL has learnt positions"),
        (Qwen3VLMoeConfig, "Qwen3-VL has learnt positions"),
        (Qwen2_5OmniConfig, "a thinker and a talker"),
        (Qwen2Config, "no vision tower"),
        (lambda: Qwen2_5_VLConfig().text_config, "one half"),
        (lambda: Qwen2_5_VLConfig().vision_config, "qwen2_5_vl"),
    ],
)
def test_relatives(made, words, tmp_path):
    made().save_pretrained(tmp_path)
    with pytest.raises(Error, match=words):
        Config.read(tmp_path)


@pytest.mark.parametrize(
    "quantized, words",
    [
        (lambda: AwqConfig(bits=4), "awq, 4 bits"),
        (lambda: GPTQConfig(bits=4), "gptq, 4 bits"),
        (lambda: BitsAndBytesConfig(load_in_4bit=True), "bitsandbytes"),
        (lambda: FineGrainedFP8Config(), "fp8"),
    ],
)
def test_quantized(quantized, words, tmp_path):
    config = Qwen2_5_VLConfig()
    config.quantization_config = quantized()
    config.save_pretrained(tmp_path)
    with pytest.raises(Error, match=rf"the weights are quantised .*{words}"):
        Config.read(tmp_path)


def test_older_tokenizer_files(tmp_path):
    """vocab.json and merges.txt."""
    from test_text import TEXTS, older_files
    from transformers import AutoTokenizer

    from minivl.processing.tokenizer import Tokenizer

    ours, theirs = (read(older_files(tmp_path)) for read in (Tokenizer.read, AutoTokenizer.from_pretrained))
    for text in (*TEXTS, " <point> <think> \r\n\t"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_another_template_says_what_transformers_says(name, tmp_path):
    """White space around blocks, loop controls, JSON, marks of training: the settings of both programs are the same."""
    from transformers.utils.chat_template_utils import render_jinja_template

    from minivl.processing.chat_template import Template

    source = """{%- set system = namespace(said=false) -%}
    {% for message in messages %}
        {% if message.role == 'skip' %}{% continue %}{% endif %}
        {% generation %}<|im_start|>{{ message.role }}
{{ message | tojson }}<|im_end|>
        {% endgeneration %}
    {% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant{% endif %}
"""
    (tmp_path / name).write_text(source if name.endswith("jinja") else json.dumps({"chat_template": source}))
    content = [{"type": "image"}, {"type": "text", "text": "größer <b>?"}]
    messages = [{"role": "user", "content": content}, {"role": "skip", "content": ""}, {"role": "x", "content": "y"}]
    rendered, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True)
    assert Template.read(tmp_path).render(messages) == rendered[0]
