"""`minivl ask`: the answer, and its boxes and points drawn on the image."""

import sys
import time

from minivl.cli.files import check_output
from minivl.cli.options import FRAMES, PIXELS, PROMPT, RUN, TOKENS, answer_options, load_model, values
from minivl.cli.prompts import messages_from
from minivl.errors import Error
from minivl.helpers import format_table

HELP = "answer a question about images and videos"
OPTIONS = (
    *PROMPT,
    ("--draw FILE.png", str, "draw the boxes and points of the answer on the image, and list them"),
    ("--draw-on N", int, "the image they lie in: 1 is the first (default: the last)"),
    TOKENS,
    *RUN,
)
NO_IMAGE = (
    "no image was given: this answers the text alone. Give an image before the question, or draw one with --scene 0."
)


def run(options):
    from minivl.processing.count_tokens import format_timing
    from minivl.stream import each

    messages, settings = messages_from(options), answer_options(options)
    names = options.files if options.scene is None else [f"scene {options.scene}"]
    images = [name for name, item in zip(names, messages[0]["content"]) if item["type"] == "image"]
    check_drawing(options, images)
    vlm = load_model(options, one_answer=True)
    count = vlm.count_tokens(messages, **values(options, PIXELS + FRAMES)) if options.tokens else None
    times = [time.perf_counter()]  # of the question, and of each piece of the answer

    def show(piece):
        print(piece, end="", flush=True)
        times.append(time.perf_counter())

    if vlm.offloader is not None and sys.stderr.isatty():
        answer = vlm.chat(messages, **settings)  # a token takes seconds: progress bars, which half a line would disturb
        show(answer)
    else:
        answer = each(vlm.stream(messages, **settings), show)
    print()
    if not names:
        print(f"minivl: {NO_IMAGE}", file=sys.stderr)
    if options.tokens:
        first = times[1] - times[0] if len(times) > 1 else None
        print(format_timing(count, answer, time.perf_counter() - times[0], first), file=sys.stderr)
    if options.draw is not None:
        draw_answer(answer if options.draw_on is None else answer.on(options.draw_on - 1), images, options.draw)


def check_drawing(options, images):
    """Check that the answer can be drawn as the options say, before a model is loaded."""
    from minivl.answer.drawing import image_format

    if options.draw is None and options.draw_on is not None:
        raise Error("--draw-on chooses the image to draw on: give --draw FILE.png too.")
    if options.draw is None:
        return
    if not images:
        raise Error("--draw needs an image to draw on (a video will not do): give one before the question.")
    if options.draw_on is not None and not 1 <= options.draw_on <= len(images):
        raise Error(f"--draw-on {options.draw_on}: the images are numbered from 1 to {len(images)}.")
    check_output("--draw", options.draw, options.files, options.model)
    image_format(options.draw)


def draw_answer(answer, images, path):
    """Print the boxes and points, in pixels of the image as the model saw it and as it was given, and draw them."""
    from minivl.answer.drawing import write

    name, image, places = images[answer.image], answer.images[answer.image], answer.places
    (H, W), (h, w) = image.resized_size, image.original_size
    rows = [("", "", f"as the model saw it, {W} x {H}", f"{name}, {w} x {h}")]
    for place in places:
        resized, original = (
            ", ".join(f"{v:.1f}".removesuffix(".0") for v in numbers) for numbers in (place.resized, place.original)
        )
        outside = "" if place.inside else "   (beyond the image)"
        rows.append((type(place).__name__.lower(), " ".join(place.label.split()), resized, original + outside))
    if places:
        print("\n".join(format_table(rows)))
    write(answer.draw(), path)
    if not places:
        print(f"minivl: there are no boxes or points in the answer; {path} has none.", file=sys.stderr)
