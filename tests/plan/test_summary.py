"""`minivl summary`: the published trees and counts."""

import math
import re
from pathlib import Path

import pytest
from conftest import SMALL

from minivl import load
from minivl.checkpoint.config import Config
from minivl.checkpoint.parameters import parameter_shapes
from minivl.cli import main
from minivl.helpers import format_bytes
from minivl.plan.summary import counts, table, tree

TREE_3B = """\
Qwen2_5_VLForConditionalGeneration(
  (visual): Qwen2_5_VisionTransformerPretrainedModel(
    (patch_embed): Qwen2_5_VisionPatchEmbed(
      (proj): Conv3d(3, 1280, kernel_size=(2, 14, 14), stride=(2, 14, 14), bias=False)
    )
    (rotary_pos_emb): Qwen2_5_VisionRotaryEmbedding()
    (blocks): ModuleList(
      (0-31): 32 x Qwen2_5_VLVisionBlock(
        (norm1): Qwen2RMSNorm((1280,), eps=1e-06)
        (norm2): Qwen2RMSNorm((1280,), eps=1e-06)
        (attn): Qwen2_5_VLVisionAttention(
          (qkv): Linear(in_features=1280, out_features=3840, bias=True)
          (proj): Linear(in_features=1280, out_features=1280, bias=True)
        )
        (mlp): Qwen2_5_VLMLP(
          (gate_proj): Linear(in_features=1280, out_features=3420, bias=True)
          (up_proj): Linear(in_features=1280, out_features=3420, bias=True)
          (down_proj): Linear(in_features=3420, out_features=1280, bias=True)
          (act_fn): SiLU()
        )
      )
    )
    (merger): Qwen2_5_VLPatchMerger(
      (ln_q): Qwen2RMSNorm((1280,), eps=1e-06)
      (mlp): Sequential(
        (0): Linear(in_features=5120, out_features=5120, bias=True)
        (1): GELU(approximate='none')
        (2): Linear(in_features=5120, out_features=2048, bias=True)
      )
    )
  )
  (model): Qwen2_5_VLModel(
    (embed_tokens): Embedding(151936, 2048)
    (layers): ModuleList(
      (0-35): 36 x Qwen2_5_VLDecoderLayer(
        (self_attn): Qwen2_5_VLAttention(
          (q_proj): Linear(in_features=2048, out_features=2048, bias=True)
          (k_proj): Linear(in_features=2048, out_features=256, bias=True)
          (v_proj): Linear(in_features=2048, out_features=256, bias=True)
          (o_proj): Linear(in_features=2048, out_features=2048, bias=False)
        )
        (mlp): Qwen2MLP(
          (gate_proj): Linear(in_features=2048, out_features=11008, bias=False)
          (up_proj): Linear(in_features=2048, out_features=11008, bias=False)
          (down_proj): Linear(in_features=11008, out_features=2048, bias=False)
          (act_fn): SiLU()
        )
        (input_layernorm): Qwen2RMSNorm((2048,), eps=1e-06)
        (post_attention_layernorm): Qwen2RMSNorm((2048,), eps=1e-06)
      )
    )
    (norm): Qwen2RMSNorm((2048,), eps=1e-06)
    (rotary_emb): Qwen2_5_VLRotaryEmbedding()
  )
  (lm_head): Linear(in_features=2048, out_features=151936, bias=False)
)"""


def bare(text):
    """A tree without the numbers of parameters behind its lines."""
    return re.sub(r"  # .*", "", text)


def note(text, line):
    """What stands behind the only line that has these words."""
    (found,) = [one for one in text.splitlines() if line in one]
    return found.partition("  # ")[2]


def test_tree_of_the_3b():
    text = tree(Config.named("3B"))
    assert bare(text) == TREE_3B
    assert note(text, "Qwen2_5_VLForConditionalGeneration") == "3,754,622,976"
    assert note(text, "32 x ") == "19,702,200 each, 630,470,400 together"
    assert note(text, "36 x ") == "77,076,992 each, 2,774,771,712 together"
    assert note(text, "(lm_head)") == "tied: the weight of model.embed_tokens"


def test_tree_of_the_7b():
    """The same but for its sizes, its number of layers, and a head of its own."""
    text, sizes = tree(Config.named("7B")), {"2048": "3584", "11008": "18944", "256": "512", "151936": "152064"}
    expected = re.sub(r"\b(2048|11008|256|151936)\b", lambda found: sizes[found[0]], TREE_3B)
    assert bare(text) == expected.replace("(0-35): 36 x", "(0-27): 28 x")
    assert note(text, "(lm_head)") == "544,997,376"


@pytest.mark.parametrize(
    "name, visual, block, layer, together",
    [
        ("3B", 668_684_288, 19_702_200, 77_076_992, 3_754_622_976),
        ("7B", 676_550_144, 19_702_200, 233_057_792, 8_292_166_656),
    ],
)
def test_published_counts(name, visual, block, layer, together):
    found = counts(Config.named(name))
    assert (found["visual"], found["visual.blocks.0"], found["model.layers.0"]) == (visual, block, layer)
    assert found["total"] == together


@pytest.mark.parametrize("name", ["3B", "7B", "32B", "72B"])
def test_parts_add_up(name):
    config = Config.named(name)
    found = counts(config)
    assert found["visual"] == found["visual.patch_embed"] + found["visual.blocks"] + found["visual.merger"]
    assert found["visual.blocks"] == config.vision.depth * found["visual.blocks.0"]
    assert found["model"] == found["model.embed_tokens"] + found["model.layers"] + found["model.norm"]
    assert found["model.layers"] == config.text.num_hidden_layers * found["model.layers.0"]
    assert found["total"] == found["visual"] + found["model"] + found["lm_head"]
    assert found["total"] == sum(math.prod(shape) for shape in parameter_shapes(config).values())
    assert (found["lm_head"] == 0) == (name == "3B")


def leaves(text):
    """{module path: (class and arguments, note)} of the lines that have no parts."""
    path, found = [], {}
    for line in text.splitlines():
        level, words = (len(line) - len(line.lstrip())) // 2, line.strip()
        if words.startswith("(") and level:
            path[level - 1 :] = [words[1:].split(")")[0].split("-")[0]]
            if not bare(line).endswith("("):
                found[".".join(path)] = bare(words).split(": ", 1)[1], words.partition("  # ")[2]
    return found


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
def test_every_parameter_is_a_leaf_of_the_tree(changes):
    """And no leaf that claims parameters has none in the checkpoint."""
    config = Config.from_dict({**SMALL, **changes})
    found = leaves(tree(config))
    shapes = {n: s for n, s in parameter_shapes(config).items() if not re.search(r"\.(blocks|layers)\.[1-9]", n)}
    assert {name.rpartition(".")[0] for name in shapes} == {
        name for name, (_, number) in found.items() if number and "tied" not in number
    }
    for name, (_, number) in found.items():
        if number and "tied" not in number:
            held = sum(math.prod(s) for n, s in shapes.items() if n.rpartition(".")[0] == name)
            assert int(number.replace(",", "")) == held, name


def test_small_models():
    """One block is not "0-0"; the decoder's eps is the config's, the tower's is not."""
    vision = {**SMALL["vision_config"], "depth": 1, "fullatt_block_indexes": [0]}
    text = tree(Config.from_dict({**SMALL, "vision_config": vision}))
    assert "(0): Qwen2_5_VLVisionBlock(  # " in text and "(0-2): 3 x Qwen2_5_VLDecoderLayer(" in text
    assert "(norm): Qwen2RMSNorm((48,), eps=1e-05)" in text and "(ln_q): Qwen2RMSNorm((32,), eps=1e-06)" in text
    assert "Conv3d(3, 32, kernel_size=(2, 4, 4), stride=(2, 4, 4), bias=False)" in text


def test_depth():
    config = Config.named("3B")
    assert tree(config, 0) == "Qwen2_5_VLForConditionalGeneration(...)  # 3,754,622,976"
    lines = tree(config, 1).splitlines()
    assert len(lines) == 5 and lines[2] == "  (model): Qwen2_5_VLModel(...)  # 3,085,938,688"
    assert tree(config, 9) == tree(config)


def test_table():
    rows = [line.split() for line in table(Config.named("3B")).splitlines()]
    assert rows[0] == ["module", "parameters", "bfloat16", "float32", "share"]
    assert rows[2] == "each of 32 blocks 19,702,200 39.4 MB 78.8 MB 0.5%".split()
    assert rows[-2][:2] == ["lm_head", "tied"]
    assert rows[-1] == "total 3,754,622,976 7.51 GB 15.0 GB 100.0%".split()


@pytest.mark.parametrize(
    "number, shown",
    [
        (0, "0.00 kB"),
        (999, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_999, "1,000 kB"),
        (7_509_245_952, "7.51 GB"),
        (2e15, "2,000 TB"),
    ],
)
def test_sizes(number, shown):
    assert format_bytes(number) == shown


def test_what_the_docs_show():
    config, docs = Config.named("7B"), (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    assert f"```\n{tree(config, 2)}\n\n{table(config)}\n```" in docs


def test_command(capsys):
    assert main(["summary", "7B", "--depth", "2"]) == 0
    out = capsys.readouterr().out
    config = Config.named("7B")
    assert out == f"{tree(config, 2)}\n\n{table(config)}\n"
    assert main(["summary"]) == 0
    shipped = load(backend="numpy").config
    assert capsys.readouterr().out == f"{tree(shipped)}\n\n{table(shipped)}\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["summary", "5B"], "5B is neither a size (3B, 7B, 32B, 72B) nor a folder"),
        (["summary", "3B", "--depth", "-1"], "--depth -1: it must be at least 0"),
        (["summary", __file__], "nor such a file"),
    ],
)
def test_errors(arguments, words, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not captured.out
