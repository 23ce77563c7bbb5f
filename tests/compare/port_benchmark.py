"""How many mistakes of a port `compare` finds: each made in torch_port.py, alone and in pairs, in three types.

python tests/compare/port_benchmark.py              # the table of docs/compare.md
python tests/compare/port_benchmark.py float32 modules
"""

import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[i]) for i in (2, 1, 0)]

import torch  # noqa: E402
from conftest import SMALL, random_weights, small_inputs, small_model  # noqa: E402
from torch_port import MISTAKES, Port  # noqa: E402

from minivl.compare import compare  # noqa: E402
from minivl.tensors import catalogue  # noqa: E402

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = {"float32": 1e-7, "bfloat16": 2.0**-8, "float16": 2.0**-11}
CHANGES = {"num_hidden_layers": 2, "vision_config": {**SMALL["vision_config"], "depth": 2}}
PAIRS = (
    ("no qkv bias", "h and w"), ("unscaled tower", "sections"), ("interleaved tower", "interleaved decoder"),
    ("no windows", "key heads"), ("LayerNorm", "not causal"), ("gate and up", "tied head"),
    ("quick GELU in merger", "theta"), ("window order left", "no decoder biases"), ("rows and columns swapped", "1-D"),
    ("unscaled tower", "no qkv bias"), ("key heads", "unscaled decoder"), ("post-norm", "gate left out"),
)  # fmt: skip


def is_module(name):
    tensor = catalogue.of(name)
    return tensor is not None and (tensor.made_by in ("norm", "linear", "gelu") or is_block(name))


def is_block(name):
    return catalogue.of(name).level == "block" or name in ("visual.patch_embed", "visual", "lm_head")


RECORDED = {"modules": is_module, "blocks": is_block}


class Benchmark:
    """The right run of a small random model, and ports of it."""

    def __init__(self):
        self.vlm = small_model("numpy", **CHANGES)
        self.inputs = small_inputs(self.vlm.config, grids=((1, 6, 10), (1, 8, 4)), text=2)
        self.trace = dict(self.vlm.trace(self.inputs, max_new_tokens=1))
        self.weights, self.clean = random_weights(self.vlm.config), {}

    def port(self, kind, recorded, mistakes=()):
        port = Port(self.weights, {**SMALL, **CHANGES}, TYPES[kind], mistakes)
        inputs = self.inputs
        tensors = port.run(inputs.input_ids, inputs.pixel_values, inputs.image_grid_thw.tolist())
        return {name: tensor for name, tensor in tensors.items() if RECORDED[recorded](name)}

    def compare(self, kind, recorded, mistakes=()):
        return compare(self.trace, self.port(kind, recorded, mistakes), model=self.vlm)

    def is_felt(self, kind, recorded, mistakes):
        """Whether mistakes change any recorded tensor by more than the type rounds."""
        if (kind, recorded) not in self.clean:
            self.clean[kind, recorded] = self.port(kind, recorded)
        clean, wrong = self.clean[kind, recorded], self.port(kind, recorded, mistakes)
        changes = [np.linalg.norm(wrong[n] - clean[n]) / np.linalg.norm(clean[n]) for n in clean if n in wrong]
        return not all(change <= 3 * ROUNDING[kind] for change in changes)

    def names(self, comparison):
        """The names of the likeliest cause of every stage that is wrong."""
        causes = [row.causes[0].name for row in comparison.wrong_rows if row.causes]
        return {name for cause in causes for name in cause.split(" and ")} | set(causes)

    def score(self, kind, recorded, sets, show=print):
        """(sets that are felt, seen as wrong, all causes named)."""
        felt = [mistakes for mistakes in sets if self.is_felt(kind, recorded, mistakes)]
        seen = named = 0
        for mistakes in felt:
            comparison = self.compare(kind, recorded, mistakes)
            wanted = {MISTAKES[mistake] for mistake in mistakes}
            right = wanted <= self.names(comparison)
            seen, named = seen + (not comparison.ok), named + right
            if comparison.ok or not right:
                where = None if comparison.first is None else comparison.first.name
                show(f"  {kind}, {recorded}: {' + '.join(mistakes)}: {where}: {sorted(self.names(comparison))}")
        return len(felt), seen, named


def main(kinds=tuple(TYPES), kept=tuple(RECORDED)):
    benchmark = Benchmark()
    lines = ["| type | recorded | alarms on the right port | wrong ports that pass | causes of one | both of two |"]
    lines.append("|---|---|---|---|---|---|")
    for kind in kinds:
        for recorded in kept:
            alarms = int(not benchmark.compare(kind, recorded).ok)
            felt, seen, named = benchmark.score(kind, recorded, [(mistake,) for mistake in MISTAKES], log)
            pairs, both_seen, both = benchmark.score(kind, recorded, PAIRS, log)
            passed = felt + pairs - seen - both_seen
            lines.append(f"| {kind} | {recorded} | {alarms} | {passed} | {named} of {felt} | {both} of {pairs} |")
            log(lines[-1])
    print("\n".join(lines))


def log(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    types, kept = ([one for one in sys.argv[1:] if one in table] for table in (TYPES, RECORDED))
    main(types or tuple(TYPES), kept or tuple(RECORDED))
