"""Head atlas: what each attention head of the decoder attends to where the answer is chosen, by role of the tokens.

    atlas = studies.head_atlas(vlm, over=studies.scenes(200, task="colour"))
    print(atlas)                                    # one sentence
    atlas["layer 1", "head 1", "asked object"]      # (mean share, low, high)
    heads_on(atlas, "asked object", 0.5)            # [(1, 1), (2, 4), ...]

Roles: the question's word for what is asked, the rest of the question, the asked object, the other objects, the image's
background, the template's tokens (system prompt, special tokens), the prompt's last token, the answer so far (cases.py).
A share is no explanation: it says where a head reads, not whether anything depends on it. `ablate_heads` tells that.
"""

import numpy as np

from minivl.stream import value_of
from minivl.studies.averages import average
from minivl.studies.cases import ROLES


def head_atlas(vlm, over, **options):
    """Shares of attention by layer, head and role, [layers, heads, roles], over many cases. -> Averages

    over     cases: see cases.py;  options  as in `vlm.prepare`
    Of an answer with several tokens, the mean over the tokens at which they are chosen.
    """
    text = vlm.config.text
    axes = {
        "layer": [f"layer {i}" for i in range(text.num_hidden_layers)],
        "head": [f"head {head}" for head in range(text.num_attention_heads)],
        "role": list(ROLES),
    }
    return average(vlm, over, "head atlas", axes, shares_by_role, "share of attention", **options)


def shares_by_role(case_run):
    """float32 [layers, heads, roles]; NaN for a role that no token has."""
    probs = []

    def see(name, tensor):
        if name.endswith("self_attn.probs"):
            probs.append(value_of(tensor).mean(axis=1))  # [H, A, S] -> [H, S]

    case_run.logits(start=case_run.answering, see=see)
    shares = np.stack(probs)
    unknown = np.full(shares.shape[:2], np.nan)
    roles = [shares[..., rows].sum(axis=-1) if len(rows) else unknown for rows in case_run.roles.values()]
    return np.stack(roles, axis=-1)


def heads_on(atlas, role, least=0.5):
    """[(layer, head), ...] with at least this mean share on a role, the largest first."""
    mean = atlas.mean[..., atlas.index("role", role)]
    heads = np.argwhere(np.nan_to_num(mean) >= least)
    return sorted((tuple(head) for head in heads.tolist()), key=lambda head: -mean[head])
