"""`minivl plan`: what a run takes, without weights."""

import os
import re

from minivl.cli.files import check_output
from minivl.cli.options import CONFIG_SOURCE, FRAMES, PIXELS, SCENE, WEIGHTS, values
from minivl.cli.prompts import draw_scene
from minivl.errors import Error

HELP = "estimate operations, memory and time of a run; needs no weights"
OPTIONS = (
    CONFIG_SOURCE,
    ("--prompt-tokens N", int, "tokens of text, including the chat template (40)", {"default": 40}),
    ("--tokens N", int, "tokens of the answer (100)", {"default": 100}),
    ("--image HxW", list,
     "height x width of an image in pixels, such as 1080x1920, or an image file; may be given several times"),
    ("--video HxWxFRAMES[@FPS]", list,
     "height x width x frames of a video, at 30 per second or FPS, such as 720x1280x900@25, or a video file"),
    SCENE,
    *FRAMES,
    *PIXELS,
    WEIGHTS,
    ("--tensors", bool, "instead, list every tensor of the run: name, shape, dtype"),
    ("--no-seconds", bool, "do not measure this machine"),
    ("--json FILE", str, "write the numbers as JSON too"),
)  # fmt: skip


def run(options):
    from minivl.helpers import write_json
    from minivl.kernels.speeds import calibrate
    from minivl.plan.cost import plan, tensors
    from minivl.plan.meta_model import Size
    from minivl.plan.render import text

    if options.tensors and options.json is not None:
        raise Error("--tensors prints names and shapes only: leave --json out, or --tensors.")
    check_output("--json", options.json, [*options.image, *options.video], options.source)
    arguments = {"source": options.source, "prompt_tokens": options.prompt_tokens, "tokens": options.tokens}
    arguments |= values(options, PIXELS + FRAMES)
    arguments["images"] = [parse_image_size(image) for image in options.image]
    if options.scene is not None:
        width, height = draw_scene(options.scene).image.size
        arguments["images"].append(Size(height, width))
    arguments["videos"] = [parse_video_size(video) for video in options.video]
    if options.tensors:
        for name, shape, dtype in tensors(**arguments):
            print(f"{name:<45} {str(list(shape)):<22} {dtype}")
        return
    result = plan(**arguments, weights=options.weights, speeds=None if options.no_seconds else calibrate)
    print(text(result))
    if options.json is not None:
        write_json(result, options.json)


def parse_image_size(text):
    """The `Size` of "1080x1920", height x width, or of the image at this path."""
    from minivl.plan.meta_model import Size
    from minivl.processing.load_image import open_image
    from minivl.processing.load_video import is_video

    sides = re.fullmatch(r"(\d{1,9}) ?[x×] ?(\d{1,9})", text)
    if sides is None:
        if not os.path.isfile(text):
            raise Error(f"{text} is neither height x width in pixels, such as 1080x1920, nor an image file.")
        if is_video(text):
            raise Error(f"{text} is a video: give it with --video.")
        image = open_image(text)
        return Size(image.height, image.width)
    return Size(*parse_sides(text, *sides.groups()))


def parse_video_size(text):
    """The `Footage` of "720x1280x900", height x width x frames at 30 per second, or at another rate as "720x1280x900@25"; or of
    the video at this path."""
    from minivl.plan.meta_model import Footage
    from minivl.processing.load_video import open_video

    numbers = re.fullmatch(r"(\d{1,9}) ?[x×] ?(\d{1,9}) ?[x×] ?(\d{1,9})(?: ?@ ?(\d{1,9}(?:\.\d+)?))?", text)
    if numbers is None:
        if not os.path.isfile(text):
            raise Error(f"{text} is neither height x width x frames, such as 720x1280x900@25, nor a video file.")
        clip = open_video(text)
        frame = next(clip.frames([0]))
        return Footage(frame.height, frame.width, clip.total, clip.fps)
    *sides, frames, fps = numbers.groups()
    if int(frames) < 1 or (fps is not None and float(fps) <= 0):
        raise Error(f"{text}: the number of frames and their rate must be above 0, such as 720x1280x900@25.")
    return Footage(*parse_sides(text, *sides), int(frames), 30.0 if fps is None else float(fps))


def parse_sides(text, height, width):
    from minivl.processing.image_processor import MOST_PIXELS

    height, width = int(height), int(width)
    if not 1 <= height * width <= MOST_PIXELS:
        raise Error(f"{text}: give height x width in pixels, such as 1080x1920; at most {MOST_PIXELS} pixels.")
    return height, width
