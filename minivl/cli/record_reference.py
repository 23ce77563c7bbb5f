"""`minivl record-reference`: a recording from Hugging Face transformers."""

from minivl.cli.files import check_output, check_safetensors_name
from minivl.cli.options import FRAMES, PROMPT, values
from minivl.cli.prompts import messages_from

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
    check_safetensors_name(options.output)
    source = CHECKPOINT if options.model is None else options.model
    count = record_reference(source, messages_from(options), None, options.output, **values(options, FRAMES))
    print(f"{options.output}: {count} tensors")
