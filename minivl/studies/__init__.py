"""Interpretability studies of a run. Each returns arrays with named axes, and prints as one sentence.

    from minivl import studies
    ablation = studies.ablate_heads(vlm, "What colour is the ring?", images="scene.png")
    print(ablation)                 # one sentence
    ablation.decoder                # float32 [layers, heads]
    plots.ablate_heads(ablation)    # minivl.plots has a plot of the same name for each

    teacher_forcing.py  Forced: prompt and answer in one prefill, from any layer on
    head_ablation.py    ablate_heads: the heads that the answer needs
    causal_tracing.py   patch_grid, patch_heads: tokens, layers, heads that carry the difference between two prompts
    occlusion.py        occlusion: the part of the image that the answer needs
    attention.py        attention_to_image, attention_rollout
    logit_lens.py       logit_lens: the next token if the model stopped after each layer
    linear_probe.py     probe: from which tensors of a store (minivl.collect) a label can be read
    head_atlas.py       head_atlas: what each head attends to, by role of the tokens
    architecture.py     without_windows, without_time: what these parts carry
    edge_probe.py       edge_probe: how exactly each stage of the tower knows where an edge lies
    cases.py            any of these over many cases: an image with a question and its true answer
    averages.py         what they return then: mean logit difference, 95 % intervals
    scenes.py           scenes: cases with a known truth, drawn
    over_training.py    over_training: skills and heads of the checkpoints of a run
    windows.py          the tower's windows over an image
    from_trace.py       read tensors of a trace, or say what to keep
    findings/           results on the small model: python -m minivl.studies.findings

Plots, walks and the report page draw the numbers that are computed here. Edits of your own: minivl/trace/edits.py.
"""

from minivl.studies.architecture import without_time, without_windows
from minivl.studies.attention import AttentionToImage, Rollout, attention_rollout, attention_to_image
from minivl.studies.averages import Averages
from minivl.studies.cases import Case
from minivl.studies.causal_tracing import PatchGrid, patch_grid, patch_heads
from minivl.studies.edge_probe import edge_probe
from minivl.studies.head_ablation import HeadAblation, ablate_heads
from minivl.studies.head_atlas import head_atlas, heads_on
from minivl.studies.linear_probe import Probes, probe
from minivl.studies.logit_lens import LogitLens, logit_lens
from minivl.studies.occlusion import Occlusion, occlusion
from minivl.studies.over_training import Training, over_training
from minivl.studies.scenes import scenes
from minivl.studies.teacher_forcing import Forced, force

__all__ = [
    "AttentionToImage", "Averages", "Case", "Forced", "HeadAblation", "LogitLens", "Occlusion", "PatchGrid", "Probes",
    "Rollout", "Training", "ablate_heads", "attention_rollout", "attention_to_image", "edge_probe", "force", "head_atlas",
    "heads_on", "logit_lens", "occlusion", "over_training", "patch_grid", "patch_heads", "probe", "scenes", "without_time",
    "without_windows",
]  # fmt: skip
