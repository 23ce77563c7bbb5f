"""Token ids as readable text: of one token, of the likeliest, of a prompt. Plots, page and walk all use these.

token_text(vlm, [17])                   # " red"; "#17" without a tokenizer
quote_tokens(vlm, [17, 2])              # "' red<|im_end|>'"
likeliest(logits, 5)                    # ids, the largest logit first
"""

import numpy as np


def token_text(vlm, ids):
    """Text of one token id or several, special tokens by name; "#17 #2" where there is no model or no tokenizer."""
    ids = [int(token) for token in np.atleast_1d(ids)]
    if vlm is None or vlm.folder is None or min(ids, default=0) < 0:
        return " ".join(f"#{token}" for token in ids)
    return vlm.tokenizer.decode(ids, skip_special=False)


def quote_tokens(vlm, ids):
    """The same in quotes, line ends escaped; numbers stay without quotes."""
    return token_text(vlm, ids) if vlm is None or vlm.folder is None else repr(token_text(vlm, ids))


def likeliest(logits, most):
    """Ids of the largest logits (or probabilities), [..., V] -> int64 [..., most]; of equal ones the lowest id first."""
    return np.argsort(-logits, axis=-1, kind="stable")[..., :most]


def token_runs(ids, placeholders):
    """[(start, count)] of a prompt: single tokens, and runs of the same placeholder (one image or video)."""
    media = np.isin(ids, placeholders)
    starts = [i for i in range(len(ids)) if not (i and media[i] and ids[i] == ids[i - 1])]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(ids)])]
