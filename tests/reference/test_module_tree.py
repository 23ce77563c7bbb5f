"""`minivl summary` against the modules that transformers makes of the same config.json, without weights."""

import re

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

from minivl.checkpoint.config import Config  # noqa: E402
from minivl.checkpoint.presets import PUBLISHED, published_config  # noqa: E402
from minivl.plan.summary import counts, tree  # noqa: E402

# transformers 5 has the names that came later; the sizes, eps and biases inside the brackets are compared as they are
LATER = {
    "Qwen2_5_VLRMSNorm": "Qwen2RMSNorm",
    "SiLUActivation": "SiLU",
    "Qwen2_5_VLVisionRotaryEmbedding": "Qwen2_5_VisionRotaryEmbedding",
    "Qwen2_5_VLTextModel": "Qwen2_5_VLModel",
}


def theirs(model):
    """The lines of their tree in our layout: the text model in place of the one that holds both halves."""
    lines = repr(model).splitlines()
    assert lines[1] == "  (model): Qwen2_5_VLModel(" and lines[-3] == "  )"
    inner = [line.removeprefix("  ") for line in lines[2:-3]]
    text = "\n".join([lines[0], *inner, *lines[-2:]]).replace("(language_model): ", "(model): ")
    return re.sub(r"\w+", lambda word: LATER.get(word[0], word[0]), text)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tree_and_counts(name):
    stored = published_config(**PUBLISHED[name])
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**stored))
    config = Config.named(name)
    assert re.sub(r"  # .*", "", tree(config)) == theirs(model)
    found = {"visual": model.model.visual, "model": model.model.language_model, "total": model}
    found |= {"visual.blocks.0": model.model.visual.blocks[0], "model.layers.0": model.model.language_model.layers[0]}
    for row, part in found.items():
        assert counts(config)[row] == sum(weight.numel() for weight in part.parameters()), row
