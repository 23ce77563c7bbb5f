"""`minivl record-reference`: a recording from Hugging Face transformers."""

from minivl.cli.options import FRAMES, PROMPT, build_messages, check_output, values

HELP = "record the tensors of a prompt in Hugging Face transformers"
OPTIONS = (
    *PROMPT,
    ("--image FILE", list, "a further image, after FILE ...; may be given several times"),
    *FRAMES,
    ("--model PATH", str, "a checkpoint folder (default: the model that ships)"),
    ("-o --output FILE.safetensors", str, "the recording", {"required": True}),
)


def run(options):
    from minivl.reference.record import record_reference
    from minivl.tiny import CHECKPOINT

    options.files += options.image
    check_output("-o", options.output, options.files, options.model)
    source = CHECKPOINT if options.model is None else options.model
    count = record_reference(source, build_messages(options), None, options.output, **values(options, FRAMES))
    print(f"{options.output}: {count} tensors")
