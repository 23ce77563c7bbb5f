"""Measure what the docs say about the small model that ships, and write it into the pages. For after a new training.

    python docs/measured.py                      # all parts: some twenty minutes
    python docs/measured.py scores "finding reader"
    python docs/measured.py --list

A measured part of a page stands between <!-- measured: NAME --> and <!-- end -->. The sentences around it say what is to be
seen there: read them again. Findings write their figures too, and a few pictures of other pages have names of their own.
"""

import argparse
import re
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import minivl  # noqa: E402
from minivl import plots, studies  # noqa: E402
from minivl.answer.grounding import iou  # noqa: E402
from minivl.faults import all_faults, score  # noqa: E402
from minivl.helpers import write_whole  # noqa: E402
from minivl.studies.findings import FINDINGS, Model  # noqa: E402
from minivl.tiny import evaluate, scene  # noqa: E402
from minivl.tiny.drawing import COLOURS, mask  # noqa: E402
from minivl.tiny.scenes import describe  # noqa: E402
from minivl.tiny.scoring import (  # noqa: E402
    BOXES,
    SCORED_FAMILIES,
    render_forms,
    render_table,
    score_example,
    score_families,
    score_turns,
    shown,
)
from minivl.tiny.tasks import ENLARGED, draw_example, reading  # noqa: E402

PART = re.compile(r"(<!-- measured: ([\w -]+) -->)(.*?)(<!-- end -->)", re.DOTALL)
CASES = 200  # of each finding
FAULT_SCENES = 40
FILMS = 120
TEXTS = 240  # images of text in each font
LARGE = 60  # examples of each family, as drawn and enlarged
EVERYDAY_IMAGES = 60
EVERYDAY = {  # {question: true answer from the shapes, and from one whose kind no other has}
    "What am I looking at?": lambda shapes, one: describe(shapes),
    "what's in this pic": lambda shapes, one: describe(shapes),
    "Tell me what you can see.": lambda shapes, one: describe(shapes),
    "How many shapes do we have here?": lambda shapes, one: str(len(shapes)),
    "how many things r there": lambda shapes, one: str(len(shapes)),
    "Got any KIND in there?": lambda shapes, one: "yes",
    "Would I find a KIND here?": lambda shapes, one: "yes",
    "Any dog in it?": lambda shapes, one: "no",
    "what color's the KIND": lambda shapes, one: one.colour,
    "The KIND, what colour is it?": lambda shapes, one: one.colour,
    "Do you know the colour of the KIND?": lambda shapes, one: one.colour,
    "Who painted the KIND?": lambda shapes, one: "I don't know",
    "Thanks!": lambda shapes, one: "I don't know",
}
PILLOW, OTHER_FONTS = "Pillow's own", ("DejaVuSerif-Bold", "DejaVuSans-Oblique", "STIXGeneral")
SIZES = {  # factors of (height, width) for the table of boxes
    "at their own size, which needs no resizing": (1.0, 1.0),
    "0.93 times as wide, 1.07 times as high": (1.07, 0.93),
    "3.3 times as wide, 3.1 times as high": (3.1, 3.3),
}


@cache
def small_model():
    return minivl.load()


@cache
def cases():
    """The model with its 200 cases, of which several findings share what is measured."""
    return Model(small_model(), CASES)


def scores():
    """Score the task families in both wordings, and the calibration."""
    return render_table(answers_of_families()).splitlines()


@cache
def answers_of_families():
    return score_families(small_model())


def forms():
    """The same answers by the form of the question, and counts by their number."""
    return render_forms(answers_of_families()).splitlines()


def one_in_another():
    """The family of small shapes in large ones alone, of the same size as `scores`."""
    results = score_families(small_model(), families={"inside": SCORED_FAMILIES["inside"]})
    return [line for line in render_table(results).splitlines() if line.startswith("|") and "not there" not in line]


def films():
    """Answers about films given as lists of frames, and as GIF files, whose frames are enlarged to the published least size."""
    right = {}
    with TemporaryDirectory() as folder:
        for number in range(FILMS):
            example = draw_example("video", (77, number))
            turn, frames, path = example.conversations[0][0], list(example.media[0].frames), Path(folder) / "film.gif"
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=500, disposal=2)
            try:
                from_file = small_model().ask(turn.question, videos=str(path), nframes=len(frames))
            except minivl.Error:  # equal frames become one in a GIF file
                continue
            answers = small_model().ask(turn.question, videos=[frames]), from_file
            right.setdefault(turn.task, []).append([float(turn.is_right(answer)) for answer in answers])
    yield "| task | films | as lists of frames | as GIF files |"
    yield "|---|---|---|---|"
    for task, values in right.items():
        frames, file = zip(*values)
        yield f"| {task} | {len(values)} | {shown(task, frames)} | {shown(task, file)} |"


def fonts():
    """Words and numbers in each font that training uses, and in three that it does not."""
    yield "| font | in training | asked | words | asked | numbers |"
    yield "|---|---|---|---|---|---|"
    for name in (PILLOW, *reading.TRAINED_FONTS, *OTHER_FONTS):
        path = None if name == PILLOW else reading.font_files((name,))[0]
        right = {"word": [], "number": []}
        for number in range(TEXTS):
            example = draw_example("text", (78, number), font=path)
            turn = example.conversations[0][0]
            right[turn.task].append(float(turn.is_right(small_model().ask(turn.question, images=example.images))))
        cells = [cell for task, values in right.items() for cell in (str(len(values)), shown(task, values))]
        yield f"| {name} | {'no' if name in OTHER_FONTS else 'yes'} | {' | '.join(cells)} |"


def turns():
    """Right answers by the number of the question in a conversation of six about one image."""
    yield "| question | asked | right |"
    yield "|---|---|---|"
    for number, results in enumerate(score_turns(small_model(), CASES)):
        scores = [one.score for one in results if one.task not in BOXES]
        yield f"| {number + 1} | {len(scores)} | {shown('', scores)} |"


def enlarged():
    """The same examples of each family that training also enlarges, as they are drawn and two or three times as large."""
    yield "| family | asked | as drawn | two or three times as large |"
    yield "|---|---|---|---|"
    for family in ENLARGED:
        scores = [
            [
                one.score
                for number in range(LARGE)
                for one in score_example(small_model(), draw_example(family, (79, number), enlarged=large))
            ]
            for large in (False, True)
        ]
        yield f"| {family} | {LARGE} | {' | '.join(shown('', values) for values in scores)} |"


def everyday():
    """Wordings that nobody trained or held out, written down as people ask."""
    drawn = [draw_example("shapes", (80, number)).media[0] for number in range(EVERYDAY_IMAGES)]
    drawn = [medium for medium in drawn if medium.shapes[0]]
    yield "| question | asked | right |"
    yield "|---|---|---|"
    for question, truth in EVERYDAY.items():
        scores = []
        for medium in drawn:
            kinds = [shape.kind for shape in medium.shapes[0]]
            single = [shape for shape in medium.shapes[0] if kinds.count(shape.kind) == 1]
            if "KIND" in question and not single:
                continue
            asked = question.replace("KIND", single[0].kind) if single else question
            answer = truth(medium.shapes[0], single[0] if single else None)
            scores.append(float(small_model().ask(asked, images=medium.frames[0]) == answer))
        yield f"| {question.replace('KIND', '...')} | {len(scores)} | {shown('', scores)} |"


def usual_questions():
    return evaluate.table(evaluate.evaluate(small_model())).splitlines()


def finding(name):
    """Measure a finding: its command and its lines; draw its figure if a page shows it."""
    _, measure = FINDINGS[name]
    lines, draw = measure(cases())
    figure = f"finding-{name}.png"
    if draw is not None and any(figure in page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")):
        draw().savefig(DOCS / figure)
    return [f"`python -m minivl.studies.findings {name} --over {CASES}`", "", *lines]


def faults_of_one_scene():
    """Each fault on its drawn scene: the first tensor that moves, what happens to the answer, whether `compare` names it."""
    yield "| fault | first tensor that moves | probability moved | the answer becomes | cause that `compare` names |"
    yield "|---|---|---|---|---|"
    for one in all_faults().values():
        found = small_model().what_if(one)
        moved = 100 * found.moved_probability
        share = "none" if moved == 0 else "< 0.01 %" if moved < 0.005 else f"{moved:.2f} %"
        named = found.cause.name if found.cause else "none"
        cause = "the right one" if named == one.cause else named
        video = " (of a video)" if one.shows == "video" else ""
        yield f"| {one.name}{video} | {found.moved.name} | {share} | {shown_answer(found)} | {cause} |"


def shown_answer(found):
    right, wrong = found.answers
    if right.ids == wrong.ids:
        return "unchanged"
    text = " ".join(str(wrong).split())
    text = text if len(text) <= 90 else f"{text[:60].rstrip()} ..."
    return re.sub(r"([|`<])", r"\\\1", text) or "(nothing)"


def faults_of_many_scenes():
    return score.table(small_model(), [one for one in all_faults().values() if one.shows != "video"], FAULT_SCENES)


def resized_boxes():
    """IoU of the box of one shape in each of 100 scenes, at several sizes of the image."""
    yield "| images | mean IoU | median | above 0.5 | mean, were boxes not converted |"
    yield "|---|---|---|---|---|"
    for name, factors in SIZES.items():
        found, raw = np.array([box_overlaps(score.SEED + number, factors) for number in range(100)]).T
        above = int((found > 0.5).sum())
        yield f"| {name} | {found.mean():.3f} | {np.median(found):.3f} | {above} | {raw.mean():.3f} |"


def box_overlaps(number, factors):
    """(IoU of the first box in pixels of the original image, the same of the box as the model wrote it) with the true one."""
    drawn = scene(number)
    asked = [(question, answer) for question, answer in drawn.questions if answer.startswith("[{")]
    if not asked:
        drawn = scene(number, count=1)
        asked = [(question, answer) for question, answer in drawn.questions if answer.startswith("[{")]
    (question, truth), (width, height) = asked[0], drawn.image.size
    size = round(width * factors[1]), round(height * factors[0])
    answer = small_model().ask(question, images=drawn.image.resize(size, Image.Resampling.BICUBIC))
    label = truth.split('"label": "')[1].split('"')[0]
    shape = next(shape for shape in drawn.shapes if shape.label == label)
    true = tuple(side * (size[i % 2] / drawn.image.size[i % 2]) for i, side in enumerate(shape.box))
    if not answer.boxes:
        return 0.0, 0.0
    return iou(answer.boxes[0].original, true), iou(answer.boxes[0].resized, true)


def attention_of_an_answer():
    """Draw plots-attention.png, of plots.md."""
    trace = small_model().trace("Describe the picture.", scene(351).image, max_new_tokens=20)
    return {"plots-attention": plots.attention_steps(trace, layer=4, vlm=small_model(), scale="own")}


def patch_grid_of_a_colour():
    """Draw studies-patch-grid.png, of studies.md: the cross of scene 5, pink and green."""
    drawn, question = scene(5), "What colour is the cross?"
    green = drawn.image.copy()
    green.paste(COLOURS["green"], drawn.shapes[0].box[:2], mask("cross", 44))
    prompts = [{"question": question, "images": image} for image in (drawn.image, green)]
    return {"studies-patch-grid": plots.patch_grid(studies.patch_grid(small_model(), *prompts))}


def probes():
    """Draw probes-object.png and probes-place.png from the prompts of dataset.md; print the figures of its sentences."""
    code = re.findall(r"```python\n(.*?)```", (DOCS / "dataset.md").read_text(encoding="utf-8"), re.DOTALL)[-1]
    names = {"minivl": minivl, "studies": studies, "scene": scene}
    exec(code, names)  # ask_colour
    prompts = [prompt for prompt in map(names["ask_colour"], range(900)) if prompt]
    keep = ["visual.patch_embed", "visual.blocks.{i}", "visual", "model.layers.{i}"]
    pictures = {
        "object": [("colour", "box"), ("colour", "answer"), ("shape", "box"), ("shape", "answer")],
        "place": [("x", "box"), ("y", "box"), ("side", "box")],
    }
    with TemporaryDirectory() as folder:
        store = minivl.collect(
            prompts,
            keep,
            Path(folder) / "colour.zarr",
            rows=["answer", "word", "box"],
            reduce="mean",
        )
        for picture, pairs in pictures.items():
            found = [studies.probe(store, label, kind=kind) for label, kind in pairs]
            print("\n".join(map(str, found)), flush=True)
            yield f"probes-{picture}", plots.probes(found)


PICTURES = {"attention": attention_of_an_answer, "patch grid": patch_grid_of_a_colour, "probes": probes}
MEASURED = {
    "scores": scores,
    "forms": forms,
    "one in another": one_in_another,
    "films": films,
    "fonts": fonts,
    "turns": turns,
    "enlarged": enlarged,
    "everyday wordings": everyday,
    "usual questions": usual_questions,
    **{f"finding {name}": lambda name=name: finding(name) for name in FINDINGS},
    "faults of one scene": faults_of_one_scene,
    "faults of many scenes": faults_of_many_scenes,
    "resized boxes": resized_boxes,
}


def names_in(text):
    return [match[2] for match in PART.finditer(text)]


def main():
    parser = argparse.ArgumentParser("docs/measured.py", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts to measure; all if none is given")
    parser.add_argument("--list", action="store_true", help="list the parts")
    options = parser.parse_args()
    if options.list:
        print("\n".join([*MEASURED, *PICTURES]))
        return
    for name in options.names:
        if name not in [*MEASURED, *PICTURES]:
            parser.error(f"there is no part {name!r}: see --list.")
    for page in sorted(DOCS.glob("*.md")):
        for name in names_in(page.read_text(encoding="utf-8")):
            if name in (options.names or MEASURED):
                print(f"{page.name}: {name}", file=sys.stderr, flush=True)
                replace_part(page, name, list(MEASURED[name]()))
    for name in options.names or PICTURES:
        if name in PICTURES:
            print(f"pictures: {name}", file=sys.stderr, flush=True)
            for file, figure in dict(PICTURES[name]()).items():
                figure.savefig(DOCS / f"{file}.png")


def replace_part(page, name, lines):
    """Write a part into its page, which is read again: a long measurement must not undo an edit."""
    text = page.read_text(encoding="utf-8")
    body = "\n".join(lines)
    new = PART.sub(lambda match: f"{match[1]}\n\n{body}\n\n{match[4]}" if match[2] == name else match[0], text)
    with write_whole(page) as partial:
        partial.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
