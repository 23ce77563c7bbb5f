"""What a page says of a run, written down tensor by tensor while the run goes on; the tensors themselves are let go."""

import math
import time

import numpy as np

from minivl.errors import Error
from minivl.palette import HEAT
from minivl.report.attention import Looks
from minivl.report.images import scenes
from minivl.report.next_token import prompt_words, question_of, text_of, told
from minivl.stream import Lazy, value_of
from minivl.tensors import catalogue
from minivl.tensors.explain import Narrator, explain
from minivl.tensors.names import parse
from minivl.tiny import CHECKPOINT
from minivl.trace.maps import MAPPED, Maps
from minivl.trace.stats import describe_outliers, stats_of

LARGE = 1 << 24  # values of a tensor that the model itself never makes: above, its statistics are left out
ROWS = 6000  # of the table of tensors: the prompt's first, then the answer's as far as they go
GROUPS = ("preparation", "vision tower", "decoder, the prompt", "decoder, token by token")


class Notes:
    """Shown every tensor (`see`); `data` is the page's content, plain values for JSON."""

    def __init__(self, vlm):
        self.vlm, self.config, self.narrator = vlm, vlm.config, Narrator(vlm)
        self.mapped, self.resized, self.logits, self.chosen, self.hidden = {}, {}, [], [], {}
        self.stages, self.rows, self.skipped, self.texts = [], [], 0, {}
        self.looks = Looks(vlm.config.text)
        self._stage = [0.0, 0, 0]  # seconds, values and tensors since the last stage ended
        self._since = time.perf_counter()

    def know(self, info):
        """What a trace says of its run, should the tensors themselves not have been kept."""
        self.mapped = {name: np.array(info[name], dtype=np.int64) for name in MAPPED if name in info}

    def see(self, name, tensor):
        """What `stream.run` calls. Time that is spent in here is not the model's."""
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
        if name in MAPPED:
            self.mapped[name] = np.array(tensor)
        elif own.endswith(".resized"):
            self.resized[name] = np.array(tensor)
        elif own == "lm_head":
            self.logits.append(np.array(tensor[-1]))
        elif own == "next_token":
            self.chosen.append(int(tensor[0]))
        elif layer == ".self_attn.probs":
            self.looks.see(step, parsed.index, tensor, len(self.mapped.get("input_ids", ())))
        elif step == 0 and layer in (".self_attn.q_rope", ".self_attn.k_rope"):
            self.looks.see_rope(parsed.index, layer.rpartition(".")[2], tensor)
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
        found = stats_of(name, value_of(tensor))
        numbers = [short(value) for value in (found.min, found.max, found.mean, found.rms)]
        self.rows.append([*line, *numbers, found.nan, found.inf, describe_outliers(found)])

    def data(self, answer, info, measured):
        """The content of the page. info: as of a `Trace`."""
        self._check()
        maps = Maps.from_tensors(self.config, self.mapped, getattr(answer, "pictures", ()))
        media = np.flatnonzero(maps.shown) if not maps.tokens else maps.prompt_of_token(np.arange(maps.tokens))
        return {
            "question": question_of(info, self.vlm),
            "answer": str(answer) if answer is not None else text_of(self.vlm, self.chosen),
            "finished": bool(answer is None or answer.finished),
            "model": model_name(self.vlm),
            "config": about_config(self.config),
            "backend": self.vlm.kernels.name,
            "versions": info.get("versions", {}),
            "edited": info.get("edited", []),
            "measured": measured,
            **scenes(maps, self.resized, answer),
            "prompt": prompt_words(maps, self.vlm),
            "words": told(self.vlm, self.logits, self.chosen, self.hidden),
            "looks": self.looks.packed(media),
            "heat": HEAT.astype(int).tolist(),
            "groups": list(GROUPS),
            "stages": self.stages,
            "tensors": {"rows": self.rows, "texts": self.texts, "skipped": self.skipped},
        }

    def _check(self):
        missing = [] if "input_ids" in self.mapped else ["input_ids"]
        missing += [] if self.chosen and len(self.logits) == len(self.chosen) else ["*lm_head", "*next_token"]
        missing += [] if len(self.hidden) == len(self.chosen) else ["model.layers.*", "steps.*.model.layers.*"]
        missing += [] if len(self.looks) == len(self.chosen) else ["*model.layers.*.self_attn.probs"]
        if missing:
            raise Error(
                f"the page needs tensors that this trace does not hold: {', '.join(missing)}. Trace to the end with "
                "keep=minivl.report.needed, or with keep='*'."
            )


def ends_stage(name):
    """Whether a line of the timeline ends here: the stages and blocks of a walk; of later tokens, each is one."""
    return name.endswith("next_token") if parse(name).step else catalogue.level(name) != "tensor"


def group(name):
    """Which part of the run a tensor belongs to."""
    if parse(name).step:
        return 3
    row = catalogue.of(name)
    return 2 if row is None else {"tower": 1, "decoder": 2}.get(row.section, 0)


def short(value):
    """Four digits are enough to read, and make the file smaller."""
    return None if value is None else float(f"{value:.4g}")


def model_name(vlm):
    """What people call it."""
    if vlm.folder is None:
        return "a model without a folder"
    if str(vlm.folder) == str(CHECKPOINT):
        return "the small model that ships with minivl"
    hub = [part for part in vlm.folder.parts if part.startswith("models--")]
    return hub[-1].removeprefix("models--").replace("--", "/") if hub else vlm.folder.name


def about_config(config):
    vision, text = config.vision, config.text
    return (
        f"tower: {vision.depth} blocks of width {vision.hidden_size}, full attention in "
        f"{', '.join(map(str, vision.fullatt_block_indexes)) or 'none'}; decoder: {text.num_hidden_layers} layers of width "
        f"{text.hidden_size}, {text.num_attention_heads} heads; {text.vocab_size:,} tokens"
    )
