"""`minivl plan`: what a run takes, without weights."""

from minivl.cli.options import PROMPT_OPTIONS
from minivl.errors import Error


def add(subparsers):
    plan = subparsers.add_parser("plan", help="what a run takes on this machine, from a config.json alone")
    add_source(plan)
    plan.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="HxW",
        help="a picture's height x width in pixels, such as 1080x1920, or a picture file; may be given several times",
    )
    plan.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="HxWxFRAMES[@RATE]",
        help="a video's height x width in pixels x frames, at 30 a second or RATE, such as 720x1280x900@25, or a video file",
    )
    plan.add_argument("--fps", type=float, metavar="X", help="frames to take of a second of video (2)")
    plan.add_argument("--nframes", type=int, metavar="N", help="or how many frames to take of a video")
    plan.add_argument(
        "--prompt-tokens", type=int, default=40, metavar="N", help="tokens of text, the chat template's included (40)"
    )
    plan.add_argument("--tokens", type=int, default=100, metavar="N", help="tokens in the answer (100)")
    plan.add_argument("--min-pixels", type=int, metavar="N", help="enlarge pictures and frames of fewer pixels")
    plan.add_argument("--max-pixels", type=int, metavar="N", help="shrink pictures and frames of more pixels")
    plan.add_argument("--weights", choices=["bfloat16", "float32"], default="bfloat16", help="as in `minivl ask`")
    plan.add_argument(
        "--tensors", action="store_true", help="list instead every tensor of that run: name, shape, dtype"
    )
    plan.add_argument("--no-seconds", action="store_true", help="measure nothing")
    plan.add_argument("--json", metavar="FILE", help="write the numbers too")
    return plan


def run(options):
    from minivl.bench.report import check_files, write
    from minivl.kernels.speeds import calibrate
    from minivl.plan.cost import footage_of, plan, size_of, tensors
    from minivl.plan.render import text

    if options.tensors and options.json is not None:
        raise Error("--tensors prints names and shapes only: leave --json out, or --tensors.")
    check_files(options.json, None)
    asked = {name: getattr(options, name) for name in ("prompt_tokens", "tokens", *PROMPT_OPTIONS)}
    asked |= {"source": options.source, "pictures": [size_of(image) for image in options.image]}
    asked["videos"] = [footage_of(video) for video in options.video]
    if options.tensors:
        for name, shape, dtype in tensors(**asked):
            print(f"{name:<45} {str(list(shape)):<22} {dtype}")
        return
    asked["weights"] = options.weights
    found = plan(**asked)  # whatever is wrong shows before anything is measured
    if not options.no_seconds:
        found = plan(**asked, speeds=calibrate())
    print(text(found))
    if options.json is not None:
        write(found, options.json)


def add_source(command):
    command.add_argument(
        "source",
        nargs="?",
        metavar="MODEL",
        help="3B, 7B, 32B, 72B, a folder with a config.json, or such a file; default: the model that ships",
    )
