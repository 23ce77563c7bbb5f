"""Generate what the docs take from the code: tables of tensors.md, lab.md, glossary.md, drawing and imports of architecture.md.

    python docs/generate.py             # write them
    python docs/generate.py --check     # exit with 1 if a page is out of date; the tests do that

A generated part of a page stands between <!-- generated: NAME --> and <!-- end -->.
"""

import importlib.util
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

from minivl.lab.catalogue import NOTEBOOKS, all_exercises  # noqa: E402
from minivl.lab.course import LEVELS  # noqa: E402
from minivl.tensors.catalogue import CATALOGUE, SECTIONS  # noqa: E402

# a word or two on each station, as the drawing shows it
STATIONS = {
    "tensors": "names and catalogue",
    "kernels": "NumPy and Numba",
    "checkpoint": "config.json, safetensors",
    "processing": "prompt to model inputs",
    "model": "tower, decoder, sampling",
    "answer": "boxes and points",
    "compare": "two recordings compared",
    "tiny": "the model that ships",
    "record": "record a port",
    "make": "random checkpoint",
    "reference": "record transformers",
    "plan": "cost without weights",
    "trace": "record and edit",
    "walk": "step by step",
    "studies": "ablation, patching, lens",
    "faults": "known mistakes, injected",
    "vlm": "load, ask, trace, walk",
    "plots": "matplotlib figures",
    "report": "one HTML page",
    "dataset": "rows of many prompts",
    "bench": "speed",
    "lab": "exercises, checked",
    "cli": "command line",
}
GROUND = ("stream", "helpers", "errors", "palette")


def import_rules():
    """MAY_IMPORT of tests/test_imports.py."""
    spec = importlib.util.spec_from_file_location("test_imports", ROOT / "tests" / "test_imports.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {own: row.split() for own, row in module.MAY_IMPORT.items()}


def floors(rules):
    """Stations by floor, the ground floor first: each imports only from floors below its own."""
    below = {own: set(rules[own]) for own in STATIONS}
    while below:
        floor = [own for own in below if not below[own]]
        assert floor, f"STATIONS lacks {set().union(*below.values()) - set(STATIONS)}, which tests/test_imports.py has"
        yield floor
        below = {own: row - set(floor) for own, row in below.items() if own not in floor}


def drawing():
    """The stations as boxes, floor by floor, in text."""
    width = 26
    yield "```"
    for floor in reversed(list(floors(import_rules()))):
        rows = [floor[i : i + 4] for i in range(0, len(floor), 4)]
        for row in rows:
            yield "  ".join("┌" + "─" * width + "┐" for _ in row)
            yield "  ".join("│" + f"{name}{'/' if name != 'vlm' else '.py'}".center(width) + "│" for name in row)
            yield "  ".join("│" + STATIONS[name].center(width) + "│" for name in row)
            yield "  ".join("└" + "─" * width + "┘" for _ in row)
    yield f"  ground, under all: {', '.join(f'{name}.py' for name in GROUND)}"
    yield "```"


def import_table():
    yield "| folder | may import |"
    yield "|---|---|"
    for floor in floors(import_rules()):
        for own in floor:
            yield f"| `{own}` | {', '.join(f'`{other}`' for other in import_rules()[own]) or '(the ground only)'} |"


def tensor_table(section):
    yield "| name | shape | dtype | rows | what it is |"
    yield "|---|---|---|---|---|"
    for tensor in CATALOGUE:
        if tensor.section == section:
            shape, lazy = ", ".join(tensor.axes), "; lazy" if tensor.lazy else ""
            yield f"| `{tensor.name}` | [{shape}] | {tensor.dtype} | {tensor.rows} | {tensor.meaning}{lazy} |"


def exercise_table():
    yield "| notebook | number | function | goal | minutes | | model |"
    yield "|---|---|---|---|---|---|---|"
    before = None
    for e in all_exercises().values():
        notebook = f"{e.notebook} {NOTEBOOKS[e.notebook]}" if e.notebook != before else ""
        model = "the small one" if e.uses_model else f"`with_parts({e.part}=)`" if e.part else ""
        yield f"| {notebook} | {e.number} | `{e.name}` | {e.goal} | {e.minutes} | {LEVELS[e.difficulty]} | {model} |"
        before = e.notebook


def glossary_path():
    """The eight words of glossary.png, and their numbers in it."""
    from glossary_picture import WORDS, path_in_the_picture  # needs matplotlib

    path = path_in_the_picture()
    t, h, w = path["position"]
    path |= {"pixel": "x = {}, y = {}".format(*path["pixel"]), "position": f"t = {t}, h = {h}, w = {w}"}
    yield "| word | in the picture | what it is |"
    yield "|---|---|---|"
    for word, meaning in WORDS.items():
        yield f"| **{word}** | {path[word]} | {meaning} |"


GENERATED = {
    "glossary": glossary_path,
    "stations": drawing,
    "imports": import_table,
    "exercises": exercise_table,
    **{f"tensors of {section}": lambda section=section: tensor_table(section) for section in SECTIONS},
}


def generate(text):
    """A page's text with its generated parts made from today's code."""

    def replace(match):
        return f"{match[1]}\n\n" + "\n".join(GENERATED[match[2]]()) + f"\n\n{match[4]}"

    return re.sub(r"(<!-- generated: ([\w ]+) -->)(.*?)(<!-- end -->)", replace, text, flags=re.DOTALL)


def main(arguments):
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if generate(text) != text:
            stale.append(page.name)
            if "--check" not in arguments:
                page.write_text(generate(text), encoding="utf-8")
    print("\n".join(stale) if stale else "all pages are up to date")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
