"""`minivl record-reference`: a recording from Hugging Face transformers."""


def add(subparsers):
    reference = subparsers.add_parser(
        "record-reference", help="record a prompt's tensors from Hugging Face transformers"
    )
    reference.add_argument(
        "files", nargs="*", metavar="FILE", help="pictures, in the order in which the model sees them"
    )
    reference.add_argument("question", metavar="QUESTION")
    reference.add_argument("--image", action="append", default=[], metavar="FILE", help="another picture, behind those")
    reference.add_argument("--model", metavar="PATH", help="a checkpoint folder (default: the model that ships)")
    reference.add_argument("-o", "--output", required=True, metavar="FILE.safetensors", help="what to write")
    return reference


def run(options):
    from minivl.reference import record_reference
    from minivl.tiny import CHECKPOINT

    source = CHECKPOINT if options.model is None else options.model
    count = record_reference(source, options.question, [*options.files, *options.image], options.output)
    print(f"{options.output}: {count} tensors")
