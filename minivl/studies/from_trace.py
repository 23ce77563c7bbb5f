"""What studies and plots read of a trace: tensors by name, or an Error that says what to keep; tokens as text."""

import re
from fnmatch import fnmatchcase

import numpy as np

from minivl.errors import Error
from minivl.tensors.names import parse


def needed(trace, *names):
    """The kept tensors of these names, a list. An Error says what to keep if some are missing."""
    chunked = next((name for name in trace.names if parse(name).chunk), None)
    if chunked is not None and any(name.startswith("model.") for name in names):
        raise Error(
            f"the prompt was run in chunks ({chunked}), and this needs tensors of all of it: give trace.whole(), of a trace "
            'that kept all chunks, with keep="*model.layers.*".'
        )
    missing = [name for name in names if name not in trace]
    if missing:
        # many are named by a glob; a number at the very end stays, for "model.layers.*" would be far more
        short = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) if len(missing) > 4 else name for name in missing)
        quoted = ", ".join(f'"{name}"' for name in short)
        never = [name for name in missing if name not in trace.names]
        why = f"{never[0]} was never made in it" if never else "they were not kept"
        raise Error(f"this needs {quoted} of the trace: {why}. Trace again with keep=[{quoted}] among others.")
    return [trace[name] for name in names]


def numbered(trace, pattern):
    """Numbers i of all names in the trace that are the pattern with {i} filled in, rising."""
    before, after = pattern.split("{i}")
    inner = [
        name[len(before) : len(name) - len(after)] for name in trace.names if fnmatchcase(name, f"{before}*{after}")
    ]
    return sorted({int(i) for i in inner if i.isdigit()})


def place_of_step(step):
    """What names of a step start with: none in the prefill, which makes the answer's first token."""
    return f"steps.{step}." if step else ""


def token_ids(trace):
    """The prompt's ids and then those of the answer, as far as they were chosen, int64; and the prompt's length."""
    steps = [name for name in trace.names if name == "next_token" or name.endswith(".next_token")]
    return np.concatenate([trace.maps.input_ids, *needed(trace, *steps)]), len(trace.maps.input_ids)


def lines_of(trace, name, start, end, T):
    """Rows start to end of a decoder tensor, counted through the prompt (T rows) and the answer's steps (one row each)."""
    prompt = needed(trace, name)[0][start:end] if start < T else needed(trace, f"steps.{start - T + 1}.{name}")[0]
    steps = range(max(start + (start >= T), T), end)
    return np.concatenate([prompt, *needed(trace, *[f"steps.{i - T + 1}.{name}" for i in steps])])


def spoken(vlm, ids):
    """Token ids as text in quotes; their numbers, where the model has no tokenizer."""
    if vlm.folder is None:
        return f"tokens {', '.join(str(int(i)) for i in ids)}" if len(ids) != 1 else f"token {int(ids[0])}"
    return repr(vlm.tokenizer.decode(ids, skip_special=False))
