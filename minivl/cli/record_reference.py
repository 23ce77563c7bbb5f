"""`minivl record-reference`: a recording from Hugging Face transformers."""

from minivl.cli.options import check_question, item, messages_of


def add(subparsers):
    reference = subparsers.add_parser(
        "record-reference", help="record a prompt's tensors from Hugging Face transformers"
    )
    reference.add_argument(
        "files", nargs="*", metavar="FILE", help="pictures and videos, in the order in which the model sees them"
    )
    reference.add_argument("question", metavar="QUESTION")
    reference.add_argument("--image", action="append", default=[], metavar="FILE", help="another picture, behind those")
    reference.add_argument("--fps", type=float, metavar="X", help="frames to take of a second of video (2)")
    reference.add_argument("--nframes", type=int, metavar="N", help="or how many frames to take of a video")
    reference.add_argument("--model", metavar="PATH", help="a checkpoint folder (default: the model that ships)")
    reference.add_argument("-o", "--output", required=True, metavar="FILE.safetensors", help="what to write")
    return reference


def run(options):
    from minivl.reference.record import record_reference
    from minivl.tiny import CHECKPOINT

    check_question(options)
    source = CHECKPOINT if options.model is None else options.model
    messages = messages_of([item(file) for file in [*options.files, *options.image]], options.question)
    count = record_reference(source, messages, None, options.output, fps=options.fps, nframes=options.nframes)
    print(f"{options.output}: {count} tensors")
