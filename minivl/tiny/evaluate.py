"""Score a model on fresh images: python -m minivl.tiny.evaluate [--checkpoint FOLDER]   (needs minivl only)

Three tables: scores of all task families of minivl.tiny.tasks; the same answers by form of the question, and counts by
number; scores on the scenes and digits of minivl.tiny.scenes, with one question of each kind in its usual wording.
Images are drawn from seeds that training cannot have used (another branch of the generator), digits are held-out ones.
"""

import argparse
import sys

from tqdm import tqdm

import minivl
from minivl.tiny import scenes
from minivl.tiny.scenes import USUAL_TASKS, task_of
from minivl.tiny.scoring import (
    GOALS,
    boxes_in,
    overlap_of,
    remark_on,
    render_forms,
    render_table,
    score_families,
    shown,
    shown_goal,
)


def main():
    parser = argparse.ArgumentParser("minivl.tiny.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", help="a checkpoint folder; default: the model that ships")
    parser.add_argument(
        "--examples", type=int, default=60, help="of each family, in units: 60 are some 10,400 questions"
    )
    parser.add_argument("--seconds", type=float, help="stop the families after this time, all equally far")
    parser.add_argument("--scenes", type=int, default=300, help="number of scenes, each with up to five questions")
    parser.add_argument("--digits", type=int, default=360, help="number of held-out digits, of 360")
    parser.add_argument("--seed", type=int, default=1_000_000, help="number of the first scene")
    options = parser.parse_args()
    if not 0 <= options.digits <= 360:
        parser.error(f"--digits {options.digits}: there are 360.")
    try:
        vlm = minivl.load(options.checkpoint)
    except minivl.Error as error:
        sys.exit(f"minivl: {error}")
    if options.examples:
        results = score_families(vlm, options.examples, options.seconds)
        print(f"{render_table(results)}\n\n{render_forms(results)}", flush=True)
    if options.scenes or options.digits:
        print("\n" * bool(options.examples) + table(evaluate(vlm, options.scenes, options.digits, options.seed)))


def evaluate(vlm, scene_count=300, digit_count=360, seed=1_000_000):
    """{task: list of scores}: 1 or 0 for an exact answer; for "where" the box's IoU with the true one."""
    scores = {task: [] for task in USUAL_TASKS}
    for number in tqdm(range(scene_count), desc="scenes", file=sys.stderr, disable=None):
        drawn = scenes.scene(seed + number)
        for question, truth in drawn.questions:
            task = task_of(question, truth)
            answer = vlm.ask(question, images=drawn.image)
            boxes = task == "where"
            scores[task].append(overlap_of(boxes_in(answer), boxes_in(truth)) if boxes else float(answer == truth))
    for index in tqdm(range(digit_count), desc="digits", file=sys.stderr, disable=None):
        drawn = scenes.digit_picture(index)
        question, truth = drawn.questions[0]
        scores["digit"].append(float(vlm.ask(question, images=drawn.image) == truth))
    return scores


def table(scores):
    """The scores as a Markdown table, with 95 % intervals; missed goals are marked."""
    lines = ["| task | questions | score | goal | |", "|---|---|---|---|---|"]
    for task, values in scores.items():
        if values:
            remark = remark_on(GOALS[task], values, [])
            lines.append(f"| {task} | {len(values)} | {shown(task, values)} | {shown_goal(task)} | {remark} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
