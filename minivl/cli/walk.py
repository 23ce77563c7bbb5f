"""`minivl walk`: every step from a picture or video to an answer."""

from minivl.cli.options import add_run_options, answer_options, item, load_model, messages_of
from minivl.errors import Error


def add(subparsers):
    walk = subparsers.add_parser("walk", help="show every step from a picture or video to an answer")
    walk.add_argument("image", nargs="?", metavar="IMAGE", help="a picture or a video; without one, a scene is drawn")
    walk.add_argument("question", nargs="?", metavar="QUESTION", help='default: "Describe the picture."')
    walk.add_argument("--scene", type=int, metavar="N", help="which scene to draw, if none is given (default 0)")
    walk.add_argument("--step", action="store_true", help="wait at every step: look, explain, change, go on, go back")
    return add_run_options(walk)


def run(options):
    from minivl.cli.walk_terminal import stepped
    from minivl.processing.load_image import open_image
    from minivl.processing.load_video import open_video
    from minivl.stream import each
    from minivl.walk.walk import narrate

    shown, question, truth = options.image, options.question or "Describe the picture.", None
    if shown is None:
        picture, question, truth = drawn_scene(0 if options.scene is None else options.scene)
        shown = {"type": "image", "image": picture}
    elif options.scene is not None:
        raise Error(f"--scene {options.scene} draws a picture, and {shown} is one: leave one of them out.")
    else:
        shown = item(shown)
        check = open_video if shown["type"] == "video" else open_image
        check(options.image)  # before anything is printed
    vlm = load_model(options)
    print(f"Question: {question}\n")
    messages = messages_of([shown], question)
    if options.step:
        answer = stepped(vlm.walk(messages, level="block", **answer_options(options)))
    else:
        answer = each(narrate(vlm, messages, **answer_options(options)), lambda line: print(line, flush=True))
    if answer is None:
        return
    print(f"\nAnswer: {answer}")
    if truth is not None:
        print(f"Truth:  {truth}   ({'right' if answer == truth else 'wrong'})")


def drawn_scene(seed):
    """A picture of coloured shapes, a question about it, and the true answer."""
    from minivl.tiny import scene

    if seed < 0:
        raise Error(f"--scene {seed}: scenes are numbered from 0.")
    drawn = scene(seed)
    question, truth = drawn.questions[0]
    width, height = drawn.image.size
    print(f"Scene {seed}: {width} x {height} pixels. Draw another with --scene {seed + 1}.")
    return drawn.image, question, truth
