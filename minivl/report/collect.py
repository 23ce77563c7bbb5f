"""Collect the report's data while a run streams by; keep no tensors."""

import math
import time

import numpy as np

from minivl.errors import Error
from minivl.palette import HEAT
from minivl.report.attention import AttentionMaps
from minivl.report.causes import NEEDED, choose_runs, measure_causes
from minivl.report.images import pictures, views_in_page
from minivl.report.next_token import answer_tokens, prompt_tokens, question_of, shorten
from minivl.report.tower import TowerMaps
from minivl.stream import Lazy, value_of
from minivl.tensors import catalogue
from minivl.tensors.explain import Narrator, explain
from minivl.tensors.names import parse
from minivl.tensors.tokens import token_text
from minivl.tiny import CHECKPOINT
from minivl.trace.maps import MAPPED, Maps
from minivl.trace.stats import describe_outliers, stats_of

LARGE = 1 << 24  # values of a lazy tensor (attention scores and probabilities): above this, its statistics are left out
ROWS = 6000  # of the table of tensors, from the first one on
GROUPS = ("preparation", "vision tower", "decoder, the prompt", "decoder, token by token")


class Collector:
    """Take every tensor of a run (`add`); `data` is the page's content, plain values for JSON.

    causes  how many runs may be spent on causes, afterwards
    """

    def __init__(self, vlm, causes=0):
        self.causes, self.inputs = causes, {}  # of the decoder, for causes
        self.vlm, self.config, self.narrator = vlm, vlm.config, Narrator(vlm)
        self.mapped, self.resized, self.logits, self.ids, self.hidden = {}, {}, [], [], {}
        self.stages, self.rows, self.skipped, self.texts = [], [], 0, {}
        self.attention, self.tower, self._maps = AttentionMaps(vlm.config.text), TowerMaps(vlm.config.vision), None
        self._stage = [0.0, 0, 0]  # seconds, values and tensors since the last stage ended
        self._since = time.perf_counter()

    def add_info(self, info):
        """Take what a trace's `info` has of its run, in case the tensors were not kept."""
        self.mapped = {name: np.array(info[name], dtype=np.int64) for name in MAPPED if name in info}

    def add(self, name, tensor):
        """Take one tensor: an observer for `stream.run`. Time spent in here is not counted as the model's."""
        self._stage[0] += time.perf_counter() - self._since
        self._stage[1] += 0 if isinstance(tensor, Lazy) else math.prod(tensor.shape)
        self._stage[2] += 1
        self._keep(name, tensor)
        if ends_stage(name):
            self._end_stage(name, tensor)
        self._row(name, tensor)
        self._since = time.perf_counter()

    def _keep(self, name, tensor):
        parsed = parse(name)
        step, own = parsed.step, parsed.own
        layer = parsed.general.removeprefix("model.layers.{i}") if parsed.counted == "model.layers" else None
        if self.causes and name in NEEDED:
            self.inputs[name] = np.array(tensor)
        if name in MAPPED:
            self.mapped[name] = np.array(tensor)
        elif own.endswith(".resized"):
            self.resized[name] = np.array(tensor)
        elif own == "lm_head":
            self.logits.append(np.array(tensor[-1]))
        elif own == "next_token":
            self.ids.append(int(tensor[0]))
        elif parsed.counted == "visual.blocks" and own.endswith((".attn.q_rope", ".attn.k_rope", ".attn.probs")):
            if self._maps is None:
                self._maps = Maps.from_tensors(self.config, self.mapped)
            self.tower.add(parsed.index, own.rpartition(".")[2], tensor, self._maps)
        elif layer == ".self_attn.probs":
            self.attention.add_probs(step, parsed.index, tensor, len(self.mapped.get("input_ids", ())))
        elif step == 0 and layer in (".self_attn.q_rope", ".self_attn.k_rope"):
            self.attention.add_rope(parsed.index, layer.rpartition(".")[2], tensor)
        elif layer == "":
            self.hidden.setdefault(step, {})[parsed.index] = np.array(tensor[-1])  # of a long prompt, its last chunk's

    def _end_stage(self, name, tensor):
        seconds, values, tensors = self._stage
        parsed = parse(name)
        self.stages.append(
            {
                "name": parsed.prefix.rstrip(".") if parsed.step else name,
                "group": group(name),
                "sentence": self.narrator.sentence(name, tensor) or "",
                "text": explain(self.config, name, tensor),
                "shape": list(tensor.shape),
                "seconds": round(seconds, 7),
                "values": values,
                "tensors": tensors,
            }
        )
        self._stage = [0.0, 0, 0]

    def _row(self, name, tensor):
        """One line of the table: name, shape, dtype, min, max, mean, rms, NaN, inf, outliers."""
        if len(self.rows) >= ROWS:
            self.skipped += 1
            return
        if not parse(name).prefix:
            self.texts[name] = explain(self.config, name, tensor)
        line = [name, list(tensor.shape), str(tensor.dtype)]
        if isinstance(tensor, Lazy) and math.prod(tensor.shape) > LARGE:
            self.rows.append([*line, *[None] * 6, "never made"])
            return
        stats = stats_of(name, value_of(tensor))
        numbers = [shorten(value) for value in (stats.min, stats.max, stats.mean, stats.rms)]
        self.rows.append([*line, *numbers, stats.nan, stats.inf, describe_outliers(stats)])

    def data(self, answer, info, measured):
        """The content of the page. info: as in a `Trace`."""
        self._check()
        maps = Maps.from_tensors(self.config, self.mapped, getattr(answer, "images", ()))
        causes, views = None, views_in_page(maps)
        if self.causes:
            causes = measure_causes(self.vlm, {**self.mapped, **self.inputs}, self.ids, maps, views, self.causes)
        media = np.flatnonzero(maps.shown) if not maps.tokens else maps.prompt_of_token(np.arange(maps.tokens))
        return {
            "question": question_of(info),
            "answer": str(answer or "") or token_text(self.vlm, self.ids),
            "finished": bool(answer is None or answer.finished),
            "model": model_name(self.vlm),
            "config": describe_config(self.config),
            "backend": self.vlm.kernels.name,
            "versions": info.get("versions", {}),
            "edited": info.get("edited", []),
            "measured": measured,
            **pictures(maps, self.resized, answer, views),
            "prompt": prompt_tokens(maps, self.vlm),
            "tokens": answer_tokens(self.vlm, self.logits, self.ids, self.hidden),
            "attention": self.attention.pack(media),
            "causes": causes,
            "tower": self.tower.pack(maps),
            "merge": self.config.vision.spatial_merge_size,
            "heat": HEAT.astype(int).tolist(),
            "groups": list(GROUPS),
            "stages": self.stages,
            "table": {"rows": self.rows, "texts": self.texts, "skipped": self.skipped},
        }

    def _check(self):
        missing = [] if "input_ids" in self.mapped else ["input_ids"]
        missing += [] if self.ids and len(self.logits) == len(self.ids) else ["*lm_head", "*next_token"]
        missing += [] if len(self.hidden) == len(self.ids) else ["model.layers.*", "steps.*.model.layers.*"]
        missing += [] if len(self.attention) == len(self.ids) else ["*model.layers.*.self_attn.probs"]
        if missing:
            raise Error(
                f"the page needs tensors that this trace does not hold: {', '.join(missing)}. Trace to the end with "
                "keep=minivl.report.needed, or with keep='*'."
            )


def collect_trace(trace, vlm, causes=0):
    """The page's data of a trace."""
    collector = Collector(vlm, choose_runs(vlm, causes))
    collector.add_info(trace.info)
    for name, tensor in trace.items():
        collector.add(name, tensor)
    return collector.data(trace.result, trace.info, measured=False)


def ends_stage(name):
    """Whether a row of the timeline ends here: at stages and blocks of a walk; later tokens of the answer are a row each."""
    return name.endswith("next_token") if parse(name).step else catalogue.level(name) != "tensor"


def group(name):
    """Index of the tensor's group in GROUPS."""
    if parse(name).step:
        return 3
    row = catalogue.of(name)
    return 2 if row is None else {"tower": 1, "decoder": 2}.get(row.section, 0)


def model_name(vlm):
    """Name of the model for the page's header."""
    if vlm.folder is None:
        return "a model without a folder"
    if str(vlm.folder) == str(CHECKPOINT):
        return "the small model that ships with minivl"
    hub = [part for part in vlm.folder.parts if part.startswith("models--")]
    return hub[-1].removeprefix("models--").replace("--", "/") if hub else vlm.folder.name


def describe_config(config):
    vision, text = config.vision, config.text
    return (
        f"tower: {vision.depth} blocks of width {vision.hidden_size}, full attention in "
        f"{', '.join(map(str, vision.fullatt_block_indexes)) or 'none'}; decoder: {text.num_hidden_layers} layers of width "
        f"{text.hidden_size}, {text.num_attention_heads} heads; {text.vocab_size:,} tokens"
    )
