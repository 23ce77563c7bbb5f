"""Ready-made studies of what goes on inside a run. Each returns arrays with names for their axes, and says what it found.

    from minivl import studies
    found = studies.ablate_heads(vlm, "What colour is the ring?", images="scene.png")
    print(found)                    # one sentence
    found.decoder                   # float32 [layers, heads]
    plots.ablate_heads(found)       # minivl.plots has a picture of each, of the same name

    forced.py    an answer, forced: prompt and answer in one prefill, from any layer on
    heads.py     ablate_heads: which heads the answer needs
    grid.py      patch_grid: where the difference between two prompts sits, layer by layer
    occluded.py  occlusion: which part of the picture the answer rests on
    looks.py     attention_to_image, attention_rollout: where a token looks
    lens.py      logit_lens: what it would say if it stopped after each layer
    kept.py      what all of them read of a trace

Edits of your own: edits.py.
"""

from minivl.studies.attention import AttentionToImage, Rollout, attention_rollout, attention_to_image
from minivl.studies.causal_tracing import PatchGrid, patch_grid
from minivl.studies.head_ablation import HeadAblation, ablate_heads
from minivl.studies.logit_lens import LogitLens, logit_lens
from minivl.studies.occlusion import Occlusion, occlusion
from minivl.studies.teacher_forcing import Forced, force

__all__ = [
    "AttentionToImage", "Forced", "HeadAblation", "LogitLens", "Occlusion", "PatchGrid", "Rollout", "ablate_heads",
    "attention_rollout", "attention_to_image", "force", "logit_lens", "occlusion", "patch_grid",
]  # fmt: skip
