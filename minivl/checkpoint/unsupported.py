"""Reject unsupported checkpoints: other architectures, quantised weights, LoRA adapters that are not merged."""

from minivl.errors import Error

MODEL_TYPE = "qwen2_5_vl"
QWEN2_VL = "Qwen2-VL has a tower without windows, with LayerNorm and a plain MLP"
QWEN3_VL = "Qwen3-VL has learnt positions, deepstack features and q/k norms"
QWEN3_5 = "Qwen3.5 has linear attention in most of its layers"
OMNI = "Qwen-Omni wraps such a model in a thinker and a talker, and takes audio"
TEXT_ONLY = "this is a text-only model: it has no vision tower"
HALF = "this is one half of such a model alone"
RELATIVES = {
    "qwen2_vl": QWEN2_VL, "qwen2_vl_text": QWEN2_VL, "qwen3_vl": QWEN3_VL, "qwen3_vl_text": QWEN3_VL,
    "qwen3_vl_moe": QWEN3_VL, "qwen3_vl_moe_text": QWEN3_VL, "qwen3_5": QWEN3_5, "qwen3_5_moe": QWEN3_5,
    "qwen2_5_omni": OMNI, "qwen2_5_omni_thinker": OMNI, "qwen3_omni_moe": OMNI, "qwen2": TEXT_ONLY, "qwen2_moe": TEXT_ONLY,
    "qwen3": TEXT_ONLY, "qwen3_moe": TEXT_ONLY, "qwen2_5_vl_text": HALF, "qwen2_5_vl_vision": HALF,
    "colqwen2": "ColQwen answers with vectors for retrieval, not with text",
}  # fmt: skip
ADAPTER = "adapter_config.json"
UNMERGED = (".lora_", ".base_layer.", ".modules_to_save.")  # in names that peft gives while an adapter is apart
MERGE = "Merge it in peft, model.merge_and_unload().save_pretrained(FOLDER), and give that folder."


def check_model_type(stored):
    """Check that a config.json describes Qwen2.5-VL, the only supported architecture."""
    if not isinstance(stored, dict):
        raise Error(f"a config is the object of a config.json, with model_type and so on; this is {stored!r}.")
    stated = stored.get("model_type")
    if stated != MODEL_TYPE:
        why = RELATIVES.get(str(stated), "minivl implements that one architecture only")
        raise Error(f'model_type is {stated!r}; it must be "{MODEL_TYPE}": {why}. Use a Qwen2.5-VL checkpoint.')


def check_not_quantised(stored, where=" in config.json"):
    """Check that the weights are not quantised: AWQ, GPTQ, bitsandbytes, FP8 and others all leave this object."""
    stated = stored.get("quantization_config")
    if not stated:
        return
    method = stated.get("quant_method", "unnamed") if isinstance(stated, dict) else stated
    bits = f", {stated['bits']} bits" if isinstance(stated, dict) and "bits" in stated else ""
    raise Error(
        f"the weights are quantised (quantization_config{where}: {method}{bits}); minivl reads bfloat16, float16 and "
        "float32. Use the checkpoint as it was before; if its tensors are not quantised, remove that entry."
    )


def check_no_adapter(folder):
    """Check that a folder holds no LoRA adapter, not even next to a model: transformers would apply it to the model."""
    if (folder / ADAPTER).is_file():
        raise Error(
            f"{folder / ADAPTER} says that this is a LoRA adapter, which changes a model but is not one. {MERGE} If the folder "
            "holds the merged model already, remove the file."
        )


def check_merged(path, names):
    """Check that a file's tensors are not those of an adapter, or of a model that still has one beside its weights."""
    apart = [name for name in names if name.startswith("base_model.") or any(part in name for part in UNMERGED)]
    if apart:
        raise Error(f"{path} holds a LoRA adapter that is not merged: {len(apart)} tensors such as {apart[0]}. {MERGE}")
