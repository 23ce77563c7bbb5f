"""`minivl walk`: every step from an image or video to an answer."""

from minivl.cli.options import (
    DEFAULT_QUESTION,
    IMAGE_AND_QUESTION,
    RUN,
    answer_options,
    load_model,
    media_item,
    messages_of,
)
from minivl.errors import Error

HELP = "show every step from an image or video to the answer"
OPTIONS = (
    *IMAGE_AND_QUESTION,
    ("--scene N", int, "the scene to draw if no image is given (default 0)"),
    ("--step", bool, "stop at every step: look, explain, change something, go on, go back"),
    *RUN,
)


def run(options):
    from minivl.cli.walk_terminal import walk_by_commands
    from minivl.stream import each
    from minivl.walk.walk import narrate

    question, truth = options.question or DEFAULT_QUESTION, None
    if options.image is None:
        image, question, truth = draw_scene(0 if options.scene is None else options.scene)
        item = {"type": "image", "image": image}
    elif options.scene is not None:
        raise Error(f"--scene {options.scene} draws an image, and {options.image} is one: leave one of them out.")
    else:
        item = media_item(options.image)
    vlm = load_model(options)
    print(f"Question: {question}\n")
    messages = messages_of([item], question)
    if options.step:
        answer = walk_by_commands(vlm.walk(messages, level="block", **answer_options(options)))
    else:
        answer = each(narrate(vlm, messages, **answer_options(options)), lambda line: print(line, flush=True))
    if answer is None:
        return
    print(f"\nAnswer: {answer}")
    if truth is not None:
        print(f"Truth:  {truth}   ({'right' if answer == truth else 'wrong'})")


def draw_scene(seed):
    """An image of coloured shapes, a question about it, and the true answer."""
    from minivl.tiny import scene

    if seed < 0:
        raise Error(f"--scene {seed}: scenes are numbered from 0.")
    drawn = scene(seed)
    question, truth = drawn.questions[0]
    width, height = drawn.image.size
    print(f"Scene {seed}: {width} x {height} pixels. Draw another with --scene {seed + 1}.")
    return drawn.image, question, truth
