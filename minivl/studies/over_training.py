"""Skills and heads over training: when does the model learn a task, and when does the head appear that reads for it?

history = studies.over_training(sorted(Path("run/checkpoints").iterdir()), over=studies.scenes(50))
print(history)
plots.over_training(history)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import minivl
from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.studies.cases import ASKED, QUESTION_WORD
from minivl.studies.head_atlas import head_atlas
from minivl.tiny.scoring import SCORED_FAMILIES, TASKS, interval_of, score_families

SKILLS = ("describe", "count", "colour", "exists", "where", "word", "way", "corner")
READ = (QUESTION_WORD, ASKED)


@dataclass(frozen=True)
class Training:
    """Scores and heads of several checkpoints.

    steps      their numbers, ascending
    skills     {task: [(score, low, high), ...]}, one for each step, NaN where it was not asked; 95 % intervals as in scoring.py
    heads      {role: [(share, low, high), ...]}: the largest mean share of attention that any head has on this role
    strongest  {role: [(layer, head), ...]}: that head
    """

    steps: tuple
    skills: dict
    heads: dict
    strongest: dict

    def __str__(self):
        known = {task: values[-1][0] for task, values in self.skills.items() if not np.isnan(values[-1][0])}
        skills = [f"{task} {score:.0%}" for task, score in known.items()]
        heads = [
            f"head {self.strongest[role][-1][1]} of layer {self.strongest[role][-1][0]} has {values[-1][0]:.0%} on the {role}"
            for role, values in self.heads.items()
        ]
        parts = [", ".join(part) for part in (skills, heads) if part]
        return f"At step {self.steps[-1]}, the last of {len(self.steps)}: {'; '.join(parts)}."


def over_training(checkpoints, over, tasks=SKILLS, families=tuple(SCORED_FAMILIES), examples=1, **options):
    """Score checkpoints of a training run and measure what their heads read. -> Training

    checkpoints  folders, each named by its step ("000400")
    over         cases for the heads: see cases.py
    tasks        to be scored by minivl.tiny.scoring, in trained wordings;  families, examples  as in `score_families`
    """
    for argument, given, known in (("tasks", tasks, TASKS), ("families", families, SCORED_FAMILIES)):
        for name in given:
            if name not in known:
                raise Error(f"{argument}= has {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    folders = sorted(map(Path, checkpoints), key=step_of)
    if not folders:
        raise Error(
            "checkpoints= is empty. Give the folders of a run, such as sorted(Path('run/checkpoints').iterdir())."
        )
    skills, heads, strongest = ({name: [] for name in names} for names in (tasks, READ, READ))
    for folder in folders:
        vlm = minivl.load(folder)
        results = score_families(vlm, examples, families={name: SCORED_FAMILIES[name] for name in families})
        for task in tasks:
            scores = [scored.score for scored in results if scored.task == task and not scored.held_out]
            skills[task].append(interval_of(task, scores) if scores else (np.nan,) * 3)
        atlas = head_atlas(vlm, over, **options)
        for role in READ:
            at = atlas.index("role", role)
            mean = np.nan_to_num(atlas.mean[..., at])
            layer, head = (int(n) for n in np.unravel_index(mean.argmax(), mean.shape))
            heads[role].append((float(mean[layer, head]), *(float(end[layer, head, at]) for end in atlas.interval())))
            strongest[role].append((layer, head))
    return Training(tuple(map(step_of, folders)), skills, heads, strongest)


def step_of(folder):
    """The number in a checkpoint's folder name."""
    if not folder.name.isdigit():
        raise Error(f"checkpoint {folder}: its folder must be named by its step, such as 000400.")
    return int(folder.name)
