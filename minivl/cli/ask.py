"""`minivl ask`: the answer, and what it says of places drawn on the picture."""

import sys
import time
from pathlib import Path

from minivl.cli.options import (
    PROMPT_OPTIONS,
    TOKENS,
    add_run_options,
    answer_options,
    asked,
    check_question,
    load_model,
)
from minivl.errors import Error
from minivl.helpers import format_table


def add(subparsers):
    ask = subparsers.add_parser("ask", help="answer a question about pictures and videos")
    ask.add_argument(
        "files", nargs="*", metavar="FILE", help="pictures and videos, in the order in which the model sees them"
    )
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument(
        "--draw", metavar="FILE.png", help="draw boxes and points of the answer on the picture, and list them"
    )
    ask.add_argument(
        "--draw-on", type=int, metavar="N", help="which picture they lie in: 1 is the first (default: the last)"
    )
    ask.add_argument("--tokens", action="store_true", help=TOKENS)
    return add_run_options(ask)


def run(options):
    from minivl.processing.count_tokens import format_timing
    from minivl.stream import each

    check_question(options)
    check_drawing(options)
    vlm = load_model(options)
    messages, given = asked(options), answer_options(options)
    count = vlm.count_tokens(messages, **{name: given[name] for name in PROMPT_OPTIONS}) if options.tokens else None
    times = [time.perf_counter()]  # of the question, and of each piece of the answer

    def show(piece):
        print(piece, end="", flush=True)
        times.append(time.perf_counter())

    if (
        vlm.resident is not None and sys.stderr.isatty()
    ):  # a token takes seconds: bars, which a half-written line disturbs
        answer = vlm.chat(messages, **given)
        show(answer)
    else:
        answer = each(vlm.stream(messages, **given), show)
    print()
    if options.tokens:
        first = times[1] - times[0] if len(times) > 1 else None
        print(format_timing(count, answer, time.perf_counter() - times[0], first), file=sys.stderr)
    if options.draw is not None:
        show_places(answer if options.draw_on is None else answer.on(options.draw_on - 1), options)


def check_drawing(options):
    """That what is asked for can be drawn, before a model is loaded."""
    from minivl.answer.drawing import picture_format

    if options.draw is None and options.draw_on is not None:
        raise Error("--draw-on chooses the picture to draw on: give --draw FILE.png too.")
    if options.draw is None:
        return
    pictures = picture_files(options)
    if not pictures:
        raise Error("--draw needs a picture to draw on (a video will not do): give one before the question.")
    if options.draw_on is not None and not 1 <= options.draw_on <= len(pictures):
        raise Error(f"--draw-on {options.draw_on}: the pictures are numbered from 1 to {len(pictures)}.")
    picture_format(options.draw)
    if any(Path(options.draw).resolve() == Path(file).resolve() for file in options.files):
        raise Error(f"--draw {options.draw} would overwrite a file that the question is about. Give another file.")


def show_places(answer, options):
    """List boxes and points, in pixels of the picture as the model saw it and as it was given, and write it with them."""
    from minivl.answer.drawing import write

    name, picture, places = picture_files(options)[answer.image], answer.pictures[answer.image], answer.places
    (H, W), (h, w) = picture.resized_size, picture.original_size
    rows = [("", "", f"as the model saw it, {W} x {H}", f"{name}, {w} x {h}")]
    for place in places:
        resized, original = (
            ", ".join(f"{v:.1f}".removesuffix(".0") for v in seen) for seen in (place.resized, place.original)
        )
        beyond = "" if place.inside else "   (beyond the picture)"
        rows.append((type(place).__name__.lower(), " ".join(place.label.split()), resized, original + beyond))
    if places:
        print("\n".join(format_table(rows)))
    write(answer.draw(), options.draw)
    if not places:
        print(f"minivl: there are no boxes or points in the answer; {options.draw} has none.", file=sys.stderr)


def picture_files(options):
    from minivl.processing.load_video import is_video

    return [file for file in options.files if not is_video(file)]
