"""Build a prompt from the command line: its files or a drawn scene, and the question."""

import os
import re

from minivl.cli.options import DEFAULT_QUESTION, answer_options, load_model
from minivl.errors import Error


def messages_from(options):
    """Messages of the files, or of the scene of --scene, and the question."""
    if os.path.isfile(options.question):  # Path.is_file fails on long questions
        raise Error(f'{options.question} is a file: put a question behind it, such as "What is in the picture?".')
    if options.scene is None:
        return [user_message([media_item(file) for file in options.files], options.question)]
    if options.files:
        raise two_images(options.scene, ", ".join(options.files))
    return [user_message([{"type": "image", "image": draw_scene(options.scene).image}], options.question)]


def prepare_run(options):
    """(model, messages, options of the answer). Errors of the question and of files come before the model is loaded."""
    messages = messages_from(options)
    return load_model(options), messages, answer_options(options)


def image_and_question(options, ask=None):
    """(part of a message, question, `Scene` or None) of IMAGE, QUESTION and --scene; without an image, of scene 0.

    With --scene, a lone argument is the question, unless it looks like a file. ask: a function that words a question about
    a scene if none was given; DEFAULT_QUESTION is used if it is None or returns None.
    """
    image, question = options.image, options.question
    is_file = image is not None and (os.path.isfile(image) or re.fullmatch(r"\S+\.\w{2,5}", image) is not None)
    if image is not None and options.scene is not None:
        if question is not None or is_file:
            raise two_images(options.scene, image)
        image, question = None, image
    if image is not None:
        if question is None and " " in image and not is_file:
            raise Error(f"there is no image {image}. To ask that about a drawn scene, add --scene 0.")
        return media_item(image), question or DEFAULT_QUESTION, None
    scene = draw_scene(options.scene or 0)
    question = question or (ask and ask(scene)) or DEFAULT_QUESTION
    return {"type": "image", "image": scene.image}, question, scene


def draw_scene(seed):
    """The `Scene` of --scene."""
    from minivl.tiny import scene

    if seed < 0:
        raise Error(f"--scene {seed}: scenes are numbered from 0.")
    return scene(seed)


def two_images(seed, image):
    return Error(f"--scene {seed} draws an image, and {image} is one: leave one of them out.")


def user_message(items, question):
    """The message of a question, with images and videos, as items, before its text."""
    return {"role": "user", "content": [*items, {"type": "text", "text": question}]}


def media_item(file):
    """A file of the command line as a part of a message: an opened video or image."""
    from minivl.processing.load_image import open_image
    from minivl.processing.load_video import is_video, open_video

    return (
        {"type": "video", "video": open_video(file)} if is_video(file) else {"type": "image", "image": open_image(file)}
    )
