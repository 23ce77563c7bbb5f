"""The model that ships with minivl: a real, small, trained Qwen2.5-VL, and the recipe that made it.

    CHECKPOINT          folder of the checkpoint
    scene(seed)         an image of coloured shapes with questions and true answers
    digit_picture(i)    an image of a real handwritten digit that training never saw

    tasks               the task families it is trained on: tasks.draw_example(family, seed)

    tasks/          draw pictures and ask about them, a file for each topic; examples.py: what they return
    phrasings.py    how the questions of the tasks are worded
    drawing.py      draw shapes; scenes.py: scenes of them, with a few questions in one wording; digits.py: handwritten digits
    scoring.py      score a model on the tasks; evaluate.py: the command for it
    training/       the recipe: batches, targets, losses, the model in torch, the command
    checkpoint/     the model

python -m minivl.tiny.evaluate scores it; python -m minivl.tiny.training.train trains it (needs the [reference] extra).
"""

from pathlib import Path

CHECKPOINT = Path(__file__).with_name("checkpoint")


def scene(seed, size=None, count=None):
    """See minivl.tiny.scenes.scene."""
    from minivl.tiny import scenes

    return scenes.scene(seed, size, count)


def digit_picture(index, seed=0):
    """See minivl.tiny.scenes.digit_picture."""
    from minivl.tiny import scenes

    return scenes.digit_picture(index, seed)
