"""`minivl record-reference`: a recording from Hugging Face transformers."""

from minivl.cli.options import (
    FRAMES,
    add_options,
    add_prompt,
    check_output,
    check_question,
    media_item,
    messages_of,
    values,
)

OPTIONS = (
    ("--image FILE", list, "a further image, after FILE ...; may be given several times"),
    *FRAMES,
    ("--model PATH", str, "a checkpoint folder (default: the model that ships)"),
)


def add(subparsers):
    parser = subparsers.add_parser(
        "record-reference", help="record the tensors of a prompt in Hugging Face transformers"
    )
    add_prompt(parser)
    add_options(parser, OPTIONS)
    parser.add_argument("-o", "--output", required=True, metavar="FILE.safetensors", help="the recording")
    return parser


def run(options):
    from minivl.reference.record import record_reference
    from minivl.tiny import CHECKPOINT

    files = [*options.files, *options.image]
    check_question(options)
    check_output("-o", options.output, files, options.model)
    source = CHECKPOINT if options.model is None else options.model
    messages = messages_of([media_item(file) for file in files], options.question)
    count = record_reference(source, messages, None, options.output, **values(options, FRAMES))
    print(f"{options.output}: {count} tensors")
