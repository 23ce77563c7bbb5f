"""The tensors of a run, by name.

    trace = vlm.trace("How many circles?", images=img, keep="visual.blocks.*.attn.probs")
    trace["visual.blocks.3.attn.probs"]         # float32 [H, N, L], read-only
    trace.select("visual.blocks.*")             # a dict, in the order of the data flow
    trace.whole()                               # the chunks of a long prompt joined
    trace.steps[3]["lm_head"]                   # of the fourth token of the answer
    print(trace.table("visual.*"))              # shape, smallest, largest, rms, NaN, outlier channels of each
    trace.save("run.safetensors")               # Trace.load reads it, and so does any reader of safetensors

    vlm.trace(..., spill="run.safetensors")     # the same file, written during the run: nothing stays in memory
    vlm.trace(..., edit={"model.layers.3.self_attn.context": lambda x: x * 0}, stop="model.layers.5")

A trace is one consumer of the stream (stream.py): the model is unaware of it, and computes the same bits with and
without. Edits live as long as the run.
"""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from minivl.answer.answer import Answer
from minivl.checkpoint.config import Config
from minivl.checkpoint.safetensors import bytes_to_reserve, read_tensors, write_tensors
from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.tensors.chunks import chunks_by_name, concatenate
from minivl.tensors.names import parse
from minivl.trace.maps import MAPPED, Maps
from minivl.trace.stats import stats_of, table

FORMAT = "minivl-trace"
ANSWER = {"answer": str, "generated_ids": [int], "prompt_tokens": int, "finished": bool, "raw": str}  # in `info`
TEXTS = ("format", "prompt", "answer", "backend")  # of `info`: strings in a file as they are; the others are JSON


class NoTensor(Error, KeyError):
    """The KeyError of a `Trace`, whose text is not put in quotes."""

    __str__ = Exception.__str__


class NoStep(Error, IndexError):
    """The IndexError of its steps."""


class Trace(Mapping):
    """Named tensors of one run, in the order in which they were made.

    names   the names of all tensors made, kept or not
    result  what the run returned; None if it was stopped. Of a file, the `Answer` as it was, without its images
    info    metadata, plain values: input_ids, image_grid_thw, window_index, ..., generated_ids, edited; of a
            model's run also config, versions, backend, prompt, answer
    config  the `Config` of the model that ran; None if unknown
    """

    def __init__(self, names=(), tensors=(), info=(), result=None, config=None):
        self.names, self._tensors, self.info = list(names), dict(tensors), dict(info)
        self.result, self.config = result, config

    def __getitem__(self, name):
        if name in self._tensors:
            return self._tensors[name]
        if name in self.names:
            raise NoTensor(f"{name} was made but not kept: add it to keep=")
        raise NoTensor(f"no tensor {name}{close_names(name, self.names)}")

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)

    def __repr__(self):
        size = sum(t.nbytes for t in self._tensors.values())
        return f"<Trace: {len(self)} of {len(self.names)} tensors kept, {size / 1e6:.1f} MB>"

    def select(self, pattern):
        """The kept tensors whose names match a glob such as "model.layers.*.mlp.act", as a dict."""
        return {name: tensor for name, tensor in self.items() if fnmatchcase(name, pattern)}

    @property
    def steps(self):
        """The tensors that led to each token of the answer: `steps[0]` the prompt's, `steps[1]` the second token's, ...,
        each a `Trace` by the names of the prompt's, without "steps.1."."""
        return Steps(self)

    def whole(self):
        """The same trace with the chunks of a long prompt joined: names without "chunks.1.". A tensor of which a chunk was not
        kept is left out."""
        names = [name for name in self.names if not parse(name).chunk]
        cut = [own for own, chunks in chunks_by_name(self.names).items() if not {*chunks} <= self._tensors.keys()]
        joined = concatenate(self._tensors)
        tensors = {name: joined[name] for name in joined if not parse(name).chunk and name not in cut}
        return Trace(names, tensors, self.info, self.result, self.config)

    def stats(self, name):
        """`stats.Stats` of a tensor: min, max, mean, rms, NaN and infinite values, outlier channels."""
        return stats_of(name, self[name])

    def table(self, pattern="*"):
        """The statistics of all kept tensors whose names match a glob, a line each: text that a notebook shows as it is."""
        return table(self.select(pattern))

    def compare(self, other, **options):
        """Compare with another recording of the same prompt: first difference and probable cause. -> compare.Comparison"""
        from minivl.compare.comparison import compare

        return compare(self, other, **options)

    @cached_property
    def maps(self):
        """The `Maps` of the part of the prompt that was run: from pixels to tokens and back. Needs nothing in keep=."""
        if self.config is None or "input_ids" not in self.info:
            raise Error("this trace lacks its config or its input_ids. Record it with vlm.trace, beyond input_ids.")
        mapped = {name: np.array(self.info[name], dtype=np.int64) for name in MAPPED if name in self.info}
        return Maps.from_tensors(self.config, mapped, getattr(self.result, "images", ()))

    def save(self, path):
        """Write the kept tensors and `info` to a safetensors file: complete or not at all."""
        metadata = to_metadata(self)
        with write_tensors(path, bytes_to_reserve(self._tensors, metadata)) as file:
            file.metadata = metadata
            for name, tensor in self.items():
                file.add(name, tensor)

    @classmethod
    def load(cls, path):
        """Load a file that `save` or spill= wrote, or any other safetensors file. Tensors are mapped, and read when used."""
        tensors, metadata = read_tensors(path)
        info = {key: text if key in TEXTS else parse_json(text) for key, text in metadata.items()}
        if info.get("format") != FORMAT:
            return cls(tensors, tensors, info)
        check_info(path, info)
        names = info.pop("names")
        del info["format"]
        config = Config.from_dict(info["config"]) if "config" in info else None
        return cls(names, {name: tensors[name] for name in names if name in tensors}, info, answer_of(info), config)


class Steps(Sequence):
    """A `Trace` for each token of the answer, the last one possibly incomplete."""

    def __init__(self, trace):
        self._trace = trace

    def __len__(self):
        return 1 + max((parse(name).step for name in self._trace.names), default=-1)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise NoStep(f"no step {index}: this run made {len(self)}, counted from 0. More come with max_new_tokens=")
        k = index % len(self)
        names = [name for name in self._trace.names if parse(name).step == k]
        tensors = {strip_step(name): self._trace[name] for name in names if name in self._trace}
        return Trace(map(strip_step, names), tensors, self._trace.info, config=self._trace.config)

    def __repr__(self):
        return f"<{len(self)} steps>"


def strip_step(name):
    """A name without its step: "steps.3.lm_head" -> "lm_head"."""
    return name.removeprefix(f"steps.{parse(name).step}.")


def close_names(name, names):
    """The end of a sentence that names a tensor that is not there."""
    step, steps = parse(name).step, 1 + max((parse(one).step for one in names), default=0)
    if step >= steps:
        made = f"{steps} token{'s' * (steps > 1)}"
        return f": steps.{step} is token {step + 1} of the answer, and this run makes {made}. Raise max_new_tokens= for more."
    close = did_you_mean(name, names)
    return f".{close}" if close else ". `trace.names` of a full run lists them all."


# ---- the metadata of a file ----


def to_metadata(trace):
    """Strings for a safetensors header. There is no date in it: the same run makes the same file, bit for bit."""
    plain = {"format": FORMAT, **trace.info, "names": trace.names}
    return {key: value if key in TEXTS else json.dumps(value) for key, value in plain.items()}


def parse_json(text):
    """The value of a string of the header: JSON, or the string itself."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text


def check_info(path, info):
    """Check that the metadata of a trace's file is as `to_metadata` writes it."""
    kinds = ANSWER if "answer" in info else {}
    kinds = {**kinds, "names": [str], **{name: np.ndarray for name in MAPPED if name in info}}
    for key, kind in kinds.items():
        value = info.get(key)
        if isinstance(kind, list):
            valid = isinstance(value, list) and all(type(item) is kind[0] for item in value)
        elif kind is np.ndarray:
            valid = isinstance(value, list) and is_integers(value)
        else:
            valid = type(value) is kind
        if not valid:
            raise Error(f"{path}: the metadata {key!r} is missing or damaged. Record the run again.")


def is_integers(value):
    """Whether nested lists make an array of integers."""
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        return False
    return array.dtype.kind == "i" or array.size == 0


def answer_of(info):
    """The `Answer` of a run that was finished, or None."""
    if "answer" not in info:
        return None
    numbers = {name: info[name] for name in ("prompt_tokens", "finished", "raw")}
    return Answer(info["answer"], info["generated_ids"], **numbers)
