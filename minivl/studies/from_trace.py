"""Read tensors from a trace by name, step or layer; an Error says what to keep."""

import re
from fnmatch import fnmatchcase

import numpy as np

from minivl.errors import Error
from minivl.tensors.names import parse


def require(trace, *names):
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


def find_numbers(trace, pattern):
    """Numbers i, ascending, for which the run made a tensor of this name, such as "model.layers.{i}.self_attn.probs"."""
    before, after = pattern.split("{i}")
    inner = [
        name[len(before) : len(name) - len(after)] for name in trace.names if fnmatchcase(name, f"{before}*{after}")
    ]
    return sorted({int(i) for i in inner if i.isdigit()})


def find_kept(trace, pattern):
    """The numbers of `find_numbers` whose tensor the trace kept; an Error if there are none."""
    numbers = find_numbers(trace, pattern)
    kept = [i for i in numbers if pattern.format(i=i) in trace]
    if not kept:
        require(trace, *[pattern.format(i=i) for i in numbers or [0]])
    return kept


def step_prefix(step):
    """Prefix of the names of a step: "" for the prefill, which makes the answer's first token, then "steps.1." ..."""
    return f"steps.{step}." if step else ""


def token_ids(trace):
    """(ids of the prompt, then of the answer so far, int64; length of the prompt)"""
    steps = [name for name in trace.names if name == "next_token" or name.endswith(".next_token")]
    return np.concatenate([trace.maps.input_ids, *require(trace, *steps)]), len(trace.maps.input_ids)


def select_rows(trace, name, start, end, T):
    """Rows start to end of a decoder tensor, counted through the prompt (T rows) and the answer's steps (one row each)."""
    prompt = require(trace, name)[0][start:end] if start < T else require(trace, f"steps.{start - T + 1}.{name}")[0]
    steps = range(max(start + (start >= T), T), end)
    return np.concatenate([prompt, *require(trace, *[f"steps.{i - T + 1}.{name}" for i in steps])])
