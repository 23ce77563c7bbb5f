"""Names of checkpoints, by transformers' own renaming of keys."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from minivl.tensors.names import published_name  # noqa: E402

conversion = pytest.importorskip("transformers.conversion_mapping")
loading = pytest.importorskip("transformers.core_model_loading")


def test_names_are_those_of_transformers():
    """Each spelling of each key that transformers 5 renames to one of its model has that one's published name."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig())
    keys = model.state_dict()
    renamings = conversion.get_model_conversion_mapping(model)
    for key in keys:
        own = published_name(key)
        spellings = {key, own, key.removeprefix("model."), own.replace("model.", "language_model.", 1)}
        loaded = {other: loading.rename_source_key(other, renamings, [], "model", keys)[0] for other in spellings}
        assert loaded[own] == loaded[key] == key
        for other, name in loaded.items():
            if name in keys:
                assert published_name(other) == published_name(name) == own, other
