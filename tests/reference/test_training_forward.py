"""The torch model that the recipe trains computes what the engine computes."""

import numpy as np
import torch
from safetensors.torch import load_file

import minivl
from minivl.processing import messages
from minivl.stream import run
from minivl.tiny import CHECKPOINT, scene
from minivl.tiny.training.torch_model import Model


def test_the_training_forward_is_qwen():
    """Logits of the torch model that batches windows as a mask, against the engine's."""
    vlm, drawn = minivl.load(), scene(11, size=(196, 140), count=3)
    model = Model().eval()
    weights = load_file(CHECKPOINT / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    question = drawn.questions[0][0]
    inputs = run(vlm.prepare(messages.user(question, drawn.image)))
    trace = vlm.trace(question, images=drawn.image)
    with torch.no_grad():
        features = model.visual(torch.from_numpy(inputs.pixel_values)[None], 14, 10)
        ids, positions = (
            torch.from_numpy(inputs.input_ids)[None],
            torch.from_numpy(trace["position_ids"].copy())[:, None],
        )
        logits, _ = model(ids, positions, features, torch.zeros_like(ids))
    expected = trace["lm_head"]
    error = np.abs(logits[0, -1].numpy() - expected.reshape(-1)).max() / np.abs(expected).max()
    assert error < 1e-4
