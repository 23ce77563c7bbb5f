"""`minivl walk`: every step from an image or video to an answer."""

import os
import sys

from minivl.cli.options import IMAGE_AND_QUESTION, RUN, answer_options, load_model
from minivl.cli.prompts import image_and_question, user_message
from minivl.cli.terminal_image import PROTOCOLS, choose_protocol, encode_image
from minivl.errors import Error

HELP = "show every step from an image or video to the answer"
OPTIONS = (
    *IMAGE_AND_QUESTION,
    ("--brief", bool, "one line for all tokens of the answer after the first; none with --step"),
    ("--step", bool, "stop at every step: look, explain, change something, continue, go back"),
    ("--show", ("auto", "file", *PROTOCOLS),
     "show the image in the terminal by this protocol, or only say in which file it is; auto: if the terminal is known to show "
     "images"),
    *RUN,
)  # fmt: skip

FIRST_SCENE = 15  # five shapes, one of them a circle


def run(options):
    from minivl.cli.walk_terminal import walk_by_commands
    from minivl.stream import each
    from minivl.walk.walk import LATER_TOKENS, narrate

    protocol = image_protocol(options.show)
    if options.image is None and options.scene is None:
        options.scene = FIRST_SCENE
    item, question, scene = image_and_question(options, ask_colour)
    if scene is not None:
        width, height = scene.image.size
        print(f"Scene {options.scene}: {width} x {height} pixels. Draw another with --scene {options.scene + 1}.")
    vlm = load_model(options, one_answer=True)
    show_image(item, options, scene, protocol)
    print(f"Question: {question}\n", flush=True)
    messages = [user_message([item], question)]
    if options.step:
        walk = vlm.walk(messages, **answer_options(options))
        if options.brief:
            walk.skip(LATER_TOKENS)
        answer = walk_by_commands(walk)
    else:
        lines = narrate(vlm, messages, brief=options.brief, **answer_options(options))
        answer = each(lines, lambda line: print(line, flush=True))
    if answer is None:
        return
    print(f"\nAnswer: {answer}")
    truth = None if scene is None else dict(scene.questions).get(question)
    if truth is not None:
        print(f"Truth:  {truth}   ({'right' if answer == truth else 'wrong'})")


def ask_colour(scene):
    """The scene's question for the colour of one of its shapes (short, and not to be guessed); None if it has none."""
    from minivl.tiny.drawing import COLOURS

    return next((question for question, answer in scene.questions if answer in COLOURS), None)


def image_protocol(how):
    """How to show the image: one of PROTOCOLS, or None."""
    if how in PROTOCOLS and not sys.stdout.isatty():
        raise Error(f"--show {how} is for a terminal, and standard output is none: leave it out, or give --show file.")
    return {"auto": choose_protocol(sys.stdout, os.environ), "file": None}.get(how, how)


def show_image(item, options, scene, protocol):
    """Show the image in the terminal, or print which file holds it: a drawn scene is then saved. A video is only named."""
    if protocol is not None and item["type"] == "image":
        print(encode_image(item["image"], protocol))
    elif scene is None:
        print(f"{item['type'].capitalize()}: {options.image}")
    else:
        try:
            path = save_scene(scene.image, options.scene)
        except Error as error:
            print(f"Image: not saved: {error}")
        else:
            print(f"Image: {path}")


def save_scene(image, seed):
    """Write a drawn scene into the user's cache folder. -> the path"""
    from minivl.helpers import user_cache, write_whole

    try:
        path = user_cache() / f"scene-{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as partial:
            image.save(partial, "PNG")
    except (OSError, RuntimeError) as cause:
        raise Error(f"there is no folder for it ({cause}). Set XDG_CACHE_HOME to one that can be written.") from None
    return path
