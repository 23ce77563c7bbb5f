"""`minivl make-checkpoint`: a small random checkpoint with the published constants, for trying ports."""

HELP = "write a small random checkpoint with the published constants, 200 MB, and two prompts"
OPTIONS = (
    ("folder FOLDER", str, "a new folder"),
    ("--seed N", int, "of the random weights and images (0)"),
    ("--blocks N", int, "depth of the vision tower (32); blocks 7, 15, 23 and 31 have full attention"),
    ("--layers N", int, "depth of the decoder (4)"),
    ("--untied", bool, "with a head of its own: 155 MB more"),
)


def run(options):
    from minivl.helpers import format_bytes
    from minivl.make import make_checkpoint

    given = {name: getattr(options, name) for name in ("seed", "blocks", "layers")}
    given = {name: value for name, value in given.items() if value is not None}
    folder = make_checkpoint(options.folder, **given, tied=not options.untied)
    files = sorted(folder.iterdir())
    print(f"{folder}: {len(files)} files, {format_bytes(sum(file.stat().st_size for file in files))}")
