"""Bad recordings, traces, studies, answers, plans and command lines."""

import io
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import numpy as np
from bad_inputs.checkpoints import container
from bad_inputs.common import Bad, tiny, write
from bad_inputs.prompts import PNG
from PIL import Image

from minivl import Error, studies
from minivl.answer.answer import Answer
from minivl.answer.drawing import write as write_image
from minivl.answer.grounding import places
from minivl.cli import main
from minivl.compare.comparison import compare
from minivl.compare.recordings import open_recording
from minivl.plan.cost import plan
from minivl.plan.meta_model import Footage, Size
from minivl.trace import edits
from minivl.trace.trace import Trace


@cache
def trace():
    """A run whose tensors are small."""
    return tiny().trace("Hi", images=Image.new("RGB", (56, 56)), max_new_tokens=2)


ONE = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


def trace_file(name, metadata, cause, fix):
    def prepare(folder):
        write(folder, "a.safetensors", container({"__metadata__": metadata, **ONE}, bytes(4)))

    return Bad(f"trace file: {name}", lambda folder: Trace.load(folder / "a.safetensors"), cause, fix, prepare)


MINIVL = {"format": "minivl-trace", "names": '["x"]'}
DONE = {"answer": "a", "generated_ids": "[1]", "prompt_tokens": "3", "finished": "true", "raw": '"a"'}
TRACES = [
    trace_file("without names", {"format": "minivl-trace"}, "the metadata 'names' is missing or", "Record the run again."),
    trace_file("names a number", {**MINIVL, "names": "3"}, "the metadata 'names' is missing or", "Record the run again."),
    trace_file("names of numbers", {**MINIVL, "names": "[1, 2]"}, "the metadata 'names' is missing or",
               "Record the run again."),
    trace_file("names cut", {**MINIVL, "names": '["x'}, "the metadata 'names' is missing or", "Record the run again."),
    trace_file("config a word", {**MINIVL, "config": "big"}, "a config is the object of a config.json,", "this is 'big'."),
    trace_file("config of another model", {**MINIVL, "config": '{"model_type": "llama"}'},
               "model_type is 'llama'; it must be", "Use a Qwen2.5-VL checkpoint."),
    trace_file("answer without its ids", {**MINIVL, "answer": "a"}, "the metadata 'generated_ids' is missing",
               "Record the run again."),
    trace_file("generated_ids a word", {**MINIVL, **DONE, "generated_ids": "none"},
               "the metadata 'generated_ids' is missing", "Record the run again."),
    trace_file("prompt_tokens a list", {**MINIVL, **DONE, "prompt_tokens": "[]"},
               "the metadata 'prompt_tokens' is missing", "Record the run again."),
    trace_file("metadata of numbers", {**MINIVL, "names": 3}, "the metadata 'names' is missing or", "Record the run again."),
    trace_file("input_ids text", {**MINIVL, "input_ids": '"abc"'}, "the metadata 'input_ids' is missing or",
               "Record the run again."),
    Bad("trace: no such tensor", lambda folder: trace()["model.layer.0"], "no tensor model.layer.0. Did you mean",
        "Did you mean model.layers.0 or"),
    Bad("trace: not kept", lambda folder: tiny().trace("Hi", keep="lm_head")["model.norm"],
        "model.norm was made but not kept: add it", "add it to keep="),
    Bad("trace: no such step", lambda folder: trace().steps[7], "no step 7: this run made 2, counted from",
        "More come with max_new_tokens="),
    Bad("trace: saved in no folder", lambda folder: trace().save(folder / "no" / "a.safetensors"), "cannot write",
        "Give a file in a folder that can"),
    Bad("trace: saved onto a folder", lambda folder: trace().save(folder), "cannot write", "Give the name of a file."),
    Bad("trace: saved onto a device", lambda folder: trace().save("/dev/null"),
        "cannot write /dev/null: it is a device", "Give the name of a file."),
    Bad("trace: maps without a config", lambda folder: Trace({"x": 1}, {}, {}).maps,
        "this trace lacks its config or its", "Record it with vlm.trace, beyond"),
    Bad("trace: maps of a pixel outside", lambda folder: trace().maps.patch_of_pixel(1000, 1000),
        "x 1000 is outside: there are 112 pixels;", "give numbers from 0, below 112."),
    Bad("trace: maps of an empty box", lambda folder: trace().maps.patches_of_box((5, 5, 5, 9)),
        "the box (5, 5, 5, 9) is empty. Give (x0,", "Give (x0, y0, x1, y1) with x0 < x1"),
    Bad("trace: patch_from something else", lambda folder: edits.patch_from(3, "x"),
        "patch_from takes a trace and a glob of", "patch_from(vlm.trace(...),"),
    Bad("trace: patch_from what was not kept", lambda folder: edits.patch_from(trace(), "nothing"),
        "the trace has no 'nothing':", "`trace.names` of a full run lists"),
    Bad("trace: patch_from another shape", lambda folder: tiny().trace("Hi", edit=edits.patch_from(trace(),
        "model.layers.0", 0)), "model.layers.0 is [21, 192] here and", "Give both runs prompts of one"),
    Bad("trace: ablate a row outside", lambda folder: tiny().trace("Hi", edit=edits.ablate("model.layers.0", 9999)),
        "rows [9999] of model.layers.0: it", "Give integers from 0 to 20,"),
    Bad("trace: ablate a head that is not there", lambda folder: edits.ablate_head(tiny(), "model.layers.0", 6),
        "heads [6]: model.layers.0 has 6 heads.", "Give integers from 0 to 5."),
    Bad("trace: ablate in a layer that is not there", lambda folder: edits.ablate_head(tiny(), "model.layers.5", 0),
        "layer 'model.layers.5': this model has", 'this model has "model.layers.0" to'),
    Bad("trace: steer by another width", lambda folder: tiny().trace("Hi", edit=edits.steer("model.layers.0", [1.0])),
        "the direction is [1] and the rows of", "Give one for each."),
    Bad("trace: steer by words", lambda folder: edits.steer("model.layers.0", "left"),
        "steer needs numbers: a direction [D],", "a direction [D], not 'left', and"),
]  # fmt: skip


def recording(name, file, content, cause, fix):
    def prepare(folder):
        if callable(content):
            content(folder / file)
        else:
            write(folder, file, content)

    return Bad(f"recording: {name}", lambda folder: open_recording(folder / file), cause, fix, prepare)


def pt(pickled, compression=zipfile.ZIP_STORED):
    def content(path):
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr("a/data.pkl", pickled)

    return content


def npz(**arrays):
    return lambda path: np.savez(path, **arrays)


RUNS_CODE = b"cos\nsystem\n(S'touch /tmp/owned'\ntR."
RECORDINGS = [
    recording("no such file", "a.txt", "x", "is no .safetensors, .npz or .pt file.", "numpy.savez(path, **arrays), a"),
    recording("an empty npz", "a.npz", b"", "cannot read", "Write it with numpy.savez(path,"),
    recording("a cut npz", "a.npz", b"PK\x03\x04" + bytes(30), "cannot read", "Write it with numpy.savez(path,"),
    recording("npz with objects", "a.npz", npz(x=np.array([{}], dtype=object)), "cannot read",
              "Write it with numpy.savez(path,"),
    recording("npz with texts", "a.npz", npz(x=np.array(["a"])), "'x' of", "it must be an array of numbers"),
    recording("npz with complex numbers", "a.npz", npz(x=np.zeros(2, np.complex64)), "'x' of",
              "it must be an array of numbers"),
    recording("an empty pt", "a.pt", b"", "cannot read", "tensor, ...}, path)."),
    recording("a pt of the old format", "a.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "cannot read",
              "tensor, ...}, path)."),
    recording("a pt that runs code", "a.pt", pt(RUNS_CODE), "cannot read", "tensor, ...}, path)."),
    recording("a pt of a list", "a.pt", pt(b"\x80\x02]q\x00."), "is a list. Write it with", "tensor, ...}, path)."),
    recording("a pt of rubbish", "a.pt", pt(b"rubbish"), "cannot read", "tensor, ...}, path)."),
    recording("a pt that is compressed", "a.pt", pt(b"\x80\x02}q\x00." * 50, zipfile.ZIP_DEFLATED), "its data is compressed",
              "Write it with torch.save"),
    recording("a pt without a pickle", "a.pt", lambda path: zipfile.ZipFile(path, "w").close(), "cannot read",
              "tensor, ...}, path)."),
    recording("a pt of numbers without names", "a.pt", pt(b"\x80\x02}q\x00K\x01K\x02s."), "1 of",
              "it must be an array of numbers"),
    recording("a safetensors that is none", "a.safetensors", b"hello" * 20, "does not start with a safetensors",
              "if it is one, download it again."),
    Bad("recording: a folder", lambda folder: open_recording(folder), "is a folder. Give a .safetensors, .npz",
        "Give a .safetensors, .npz or .pt"),
    Bad("recording: a number", lambda folder: open_recording(5), "a int is not a recording. Give a Trace,",
        "Give a Trace, a dict of arrays, or"),
    Bad("recording: a list of arrays", lambda folder: open_recording([np.zeros(3)]),
        "a list is not a recording. Give a Trace,", "Give a Trace, a dict of arrays, or"),
    Bad("recording: a dict of texts", lambda folder: open_recording({"a": "b"}),
        "'a' of the recording is <U1; it must", "it must be an array of numbers"),
    Bad("recording: a dict with a number for a name", lambda folder: open_recording({1: np.zeros(2)}),
        "1 of the recording is float64; it must", "it must be an array of numbers"),
    Bad("recording: ragged rows", lambda folder: open_recording({"a": [[1, 2], [3]]}),
        "'a' of the recording is no array:", "Give arrays of numbers."),
    Bad("recording: nothing in common", lambda folder: compare(trace(), {"a": np.zeros(3)}),
        "no tensor of their recording has a name of", '"model.layers.{}.mlp.act"} maps'),
    Bad("recording: tolerance of 2", lambda folder: compare(trace(), trace(), tolerance=2),
        "tolerance=2; it must be a number from 0", "it must be a number from 0 to"),
    Bad("recording: tolerance a word", lambda folder: compare(trace(), trace(), tolerance="small"),
        "tolerance='small'; it must be a number", "it must be a number from 0 to"),
    Bad("recording: name map a list", lambda folder: compare(trace(), trace(), names=["a"]),
        "a name map is an object of strings:", '"model.layers.{}.mlp.down_proj"}.'),
    Bad("recording: name map missing", lambda folder: compare(trace(), trace(), names=folder / "no.json"),
        "cannot read the name map", "Write one JSON object, theirs to"),
    Bad("recording: name map with too many *", lambda folder: compare(trace(), trace(), names={"a": "b.*"}),
        "name map: 'b.*' has more {} or * than", "Each stands for the same text in"),
    Bad("recording: required tensor unknown", lambda folder: compare(trace(), trace(), require="nothing.*"),
        "require='nothing.*' matches none of our", "docs/tensors.md lists the names."),
    Bad("recording: config of another model", lambda folder: compare(trace(), trace(), config={"model_type": "gpt2"}),
        "model_type is 'gpt2'; it must be", "Use a Qwen2.5-VL checkpoint."),
    Bad("recording: image missing", lambda folder: compare(trace(), trace(), images=["no.png"]),
        "the image no.png does not exist. Check", "Check the path."),
    Bad("recording: uneven chunks", lambda folder: open_recording({"chunks.1.x": np.zeros((2, 3)),
        "x": np.zeros((2, 4))}), "the chunks of x do not fit together: [2,", "Record the run again."),
]  # fmt: skip
STUDIES = [
    Bad("study: head that is not there", lambda folder: studies.attention_to_image(trace(), head=99),
        "head 99: there are 6 heads, counted from", "None is the mean of all."),
    Bad("study: layer that is not there", lambda folder: studies.attention_to_image(trace(), layer=99), "this needs",
        "Trace again with"),
    Bad("study: token that is not there", lambda folder: studies.attention_to_image(trace(), token=10**6),
        "token 1000000: attention is known for", "the prompt has 39, the answer's"),
    Bad("study: image that is not there", lambda folder: studies.attention_to_image(trace(), image=3),
        "image 3 is outside: there are 1 images", "give integers from 0 to 0."),
    Bad("study: without attention", lambda folder: studies.attention_to_image(tiny().trace("Hi", keep="lm_head")),
        "this needs", "Trace again with"),
    Bad("study: rollout of no part", lambda folder: studies.attention_rollout(trace(), part="attic"),
        "part='attic': choose \"tower\" or", 'choose "tower" or "decoder".'),
    Bad("study: lens of no rows", lambda folder: studies.logit_lens(trace(), tiny(), start=9, end=3),
        "start=9, end=3: choose tokens from 0 to", "the prompt ends at 39."),
    Bad("study: occlusion by something", lambda folder: studies.occlusion(tiny(),
        "Hi", images=PNG, answer="a", by="blur"), 'by=\'blur\': choose "mean" or "zero".', '"mean" or "zero".'),
    Bad("study: occlusion without an image", lambda folder: studies.occlusion(tiny(), "Hi", answer="a"),
        "there is no image or video in this", "there is no image or video in"),
    Bad("study: forced answer of nothing", lambda folder: studies.force(tiny(), "Hi", answer=[]),
        "answer=[]: give text or integer token", "give text or integer token ids, at"),
    Bad("study: ablation by something", lambda folder: studies.ablate_heads(tiny(), "Hi", answer="a", by="noise"),
        'by=\'noise\': choose "zero" or "mean".', '"zero" or "mean".'),
    Bad("study: layers that are not there", lambda folder: studies.ablate_heads(tiny(), "Hi", answer="a", layers=[99]),
        "layers: 99: there are 5; give an integer", "give an integer from 0 to 4."),
    Bad("study: prompts of two lengths", lambda folder: studies.patch_grid(tiny(), "Hi", "Hello, you"),
        "the clean prompt has 21 tokens, the", "they must be as long and have"),
]  # fmt: skip


def answered(images=()):
    return Answer("a", [1], prompt_tokens=3, finished=True, images=images)


ANSWERS = [
    Bad("places: size of one number", lambda folder: places("[]", (100,), (100, 100)),
        "(100,) is not the size of an image.", "Give (height, width), in pixels."),
    Bad("places: size of 0", lambda folder: places("[]", (0, 100), (100, 100)),
        "(0, 100) is not the size of an image.", "Give (height, width), in pixels."),
    Bad("places: size infinite", lambda folder: places("[]", (float("inf"), 100), (100, 100)),
        "(inf, 100) is not the size of an image.", "Give (height, width), in pixels."),
    Bad("places: size a word", lambda folder: places("[]", "ab", (100, 100)),
        "'ab' is not the size of an image. Give", "Give (height, width), in pixels."),
    Bad("places: size None", lambda folder: places("[]", None, (100, 100)), "None is not the size of an image. Give",
        "Give (height, width), in pixels."),
    Bad("places: size NaN", lambda folder: places("[]", (float("nan"), 100), (100, 100)),
        "(nan, 100) is not the size of an image.", "Give (height, width), in pixels."),
    Bad("places: an image that is not there", lambda folder: answered().on(0),
        "there is no image 0: the conversation", "the conversation has 0, the first"),
    Bad("places: drawn without an image", lambda folder: answered().draw(), "there is no image to draw on: the",
        "the conversation has none."),
    Bad("places: written without a format", lambda folder: write_image(Image.new("RGB", (9, 9)), folder / "a"),
        "cannot write", "Call it .png or .jpg."),
    Bad("places: written as text", lambda folder: write_image(Image.new("RGB", (9, 9)), folder / "a.txt"),
        "cannot write", "Call it .png or .jpg."),
    Bad("report: no HTML", lambda folder: tiny().report("Hi").save(folder / "a.pdf"),
        "names no HTML file. Call it a.html.", "Call it a.html."),
]  # fmt: skip
PLANS = [
    Bad("plan: unknown size", lambda folder: plan("4B"), "4B is neither a size (3B, 7B, 32B, 72B)",
        "the config.json of any Qwen2.5-VL"),
    Bad("plan: no such folder", lambda folder: plan(folder / "no"), "is neither a size (3B, 7B, 32B, 72B) nor",
        "the config.json of any Qwen2.5-VL"),
    Bad("plan: weights", lambda folder: plan("3B", weights="int4"), "weights='int4' is unknown. Use",
        'Use "bfloat16" or "resident" (as stored), or "float32".'),
    Bad("plan: no tokens", lambda folder: plan("3B", tokens=0), "40 tokens of text and 0 of the answer:",
        "both must be at least 1."),
    Bad("plan: beyond the context", lambda folder: plan("3B", prompt_tokens=10**6),
        "a prompt of 1000000 tokens and an answer", "Lower max_pixels, or take fewer"),
    Bad("plan: an image too thin", lambda folder: plan("3B", [Size(10, 3000)]),
        "an image of 3000 x 10 pixels is more", "Cut it up."),
    Bad("plan: a limit of one pixel", lambda folder: plan("3B", [Size(100, 100)], max_pixels=1),
        "min_pixels=1, max_pixels=1: they must be", "Qwen recommends 256 * 784 to 1280"),
    Bad("plan: a limit in words", lambda folder: plan("3B", [Size(100, 100)], max_pixels="few"),
        "min_pixels=3136, max_pixels='few': they", "Qwen recommends 256 * 784 to 1280"),
    Bad("plan: fps of 0", lambda folder: plan("3B", videos=[Footage(100, 100, 30, 30.0)], fps=0),
        "fps=0: it must be a number above 0.", "number above 0."),
    Bad("plan: nframes of 1", lambda folder: plan("3B", videos=[Footage(100, 100, 30, 30.0)], nframes=1),
        "of 30 frames, 0 would be taken; their", "Choose it with nframes=, or give a"),
]  # fmt: skip


def command(text, cause, fix, files=None):
    """`minivl` with these arguments, DIR being the folder; what it prints on stderr is the Error's message."""

    def act(folder):
        told = io.StringIO()
        with redirect_stdout(io.StringIO()), redirect_stderr(told):
            status = main([part.replace("DIR", str(folder)) for part in text.split(" ")])
        if status == 1 and told.getvalue().startswith("minivl: "):
            raise Error(told.getvalue().strip().removeprefix("minivl: "))
        raise AssertionError(f"exit status {status}: {told.getvalue()}")

    def prepare(folder):
        for name, content in (files or {"a.png": PNG}).items():
            write(folder, name, content)

    return Bad(f"command: {text}", act, cause, fix, prepare)


COMMANDS = [
    command("ask DIR/no.png What?", "the image", "Check the path."),
    command("ask DIR/a.png", "is a file: put a question behind it,", "put a question behind it, such as"),
    command("ask DIR/a.png DIR/a.png", "is a file: put a question behind it,", "put a question behind it, such as"),
    command("ask DIR/a.png What? --model DIR/no", "does not exist. Give a checkpoint", "Give a checkpoint folder, a"),
    command("ask DIR/a.png What? --model DIR", "does not exist. A checkpoint folder", "A checkpoint folder needs its"),
    command("ask DIR/a.png What? --temperature -1", "temperature=-1.0: it must be a number,", "--temperature.)"),
    command("ask DIR/a.png What? --top-p 2", "top_p=2.0: it must be a number above 0", "--top-p.)"),
    command("ask DIR/a.png What? --max-new-tokens 0", "max_new_tokens=0: it must be an integer", "--max-new-tokens.)"),
    command("ask DIR/a.png What? --max-pixels 5", "min_pixels=5, max_pixels=5: they must be",
            "--min-pixels, --max-pixels.)"),
    command("ask DIR/a.png What? --fps 2", "fps= chooses frames of a video, and", "--fps.)"),
    command("ask DIR/a.png What? --memory-limit lots", "memory_limit='lots' is not an amount of", "--memory-limit.)"),
    command("ask What? --draw DIR/b.png", "--draw needs an image to draw on (a", "give one before the question."),
    command("ask DIR/a.png What? --draw DIR/a.png", "--draw", "Give another file."),
    command("ask DIR/a.png What? --draw DIR/b.txt", "cannot write", "Call it .png or .jpg."),
    command("ask DIR/a.png What? --draw DIR/no/b.png", "cannot write", "Give a file in a folder that can"),
    command("ask DIR/a.png What? --draw-on 1", "--draw-on chooses the image to draw on:", "give --draw FILE.png too."),
    command("ask DIR/a.png What? --draw DIR/b.png --draw-on 2", "--draw-on 2: the images are numbered",
            "the images are numbered from 1 to"),
    command("trace DIR/a.png What?", "give -o FILE.safetensors to write the", "give -o FILE.safetensors to write"),
    command("trace DIR/a.png What? -o DIR/a.png", "-o", "Give another file."),
    command("trace DIR/a.png What? -o DIR", "cannot write", "Give the name of a file."),
    command("trace DIR/a.png What? -o DIR/t.npz", "tensors are written as safetensors.", "that ends in .safetensors."),
    command("ask DIR/a.png What? --model DIR/a.png", "a.png is not a checkpoint.", "Give a folder, a .safetensors"),
    command("compare DIR/a.npz DIR/b.npz --json DIR/r.html --html DIR/r.html", "--json and --html are both",
            "Give each its own file."),
    command("report DIR/a.png What? -o DIR/a.html --beside DIR/a.png", "--beside", "give a recording (.safetensors) or a"),
    command("report DIR/a.png What? -o DIR/a.html --beside DIR/no.html", "no.html does not exist.",
            "Give a recording (.safetensors) or a"),
    command("lab show 1", "there is no exercise '1'.", "`minivl lab`, lists them."),
    command("plan 3B --video 720x1280x1", "at least 2 frames; this one has 1.", "Give a single frame as an image."),
    command("trace DIR/a.png What? --table --keep model.norn", "no tensor of this run is called",
            "Did you mean model.norm or"),
    command("trace DIR/a.png What? --table --stop model.norn", "no tensor of this run is called",
            "Did you mean model.norm or"),
    command("report DIR/a.png What? -o DIR/a.txt", "names no HTML file. Call it a.html.", "Call it a.html."),
    command("report DIR/a.png What? -o DIR/no/a.html", "cannot write", "Give a file in a folder that can"),
    command("walk DIR/a.png What? --scene 3", "--scene 3 draws an image, and", "leave one of them out."),
    command("walk --scene -1", "--scene -1: scenes are numbered from 0.", "numbered from 0."),
    command("what-if no-such-fault", "there is no fault 'no-such-fault'. Did", "missing-system-prompt,"),
    command("what-if no-window-attention -o DIR/t.md", "-o writes the table of --scenes: give",
            "give --scenes 100, or leave it"),
    command("what-if no-window-attention --scenes 0", "scenes=0; it must be at least 1. (On the", "--scenes.)"),
    command("compare DIR/no.npz DIR/a.png", "does not exist. Give a .safetensors,", "Give a .safetensors, .npz or .pt"),
    command("compare DIR/a.png DIR/a.png", "is no .safetensors, .npz or .pt file.", "numpy.savez(path, **arrays), a"),
    command("compare DIR/a.npz DIR/a.npz", "cannot read", "Write it with numpy.savez(path,", {"a.npz": b"PK"}),
    command("plan 5B", "5B is neither a size (3B, 7B, 32B, 72B)", "the config.json of any Qwen2.5-VL"),
    command("plan 3B --image big --no-seconds", "big is neither height x width in pixels,",
            "big is neither height x width in"),
    command("plan 3B --image 0x5 --no-seconds", "0x5: give height x width in pixels, such", "at most 1000000000 pixels."),
    command("plan 3B --video 5x5 --no-seconds", "5x5 is neither height x width x frames,",
            "5x5 is neither height x width x"),
    command("plan 3B --video 100x100x0 --no-seconds", "100x100x0: the number of frames and",
            "the number of frames and their"),
    command("plan 3B --tokens 0 --no-seconds", "40 tokens of text and 0 of the answer:", "both must be at least 1."),
    command("plan 3B --tensors --json DIR/a.json", "--tensors prints names and shapes only:",
            "leave --json out, or --tensors."),
    command("plan 3B --json DIR/no/a.json --no-seconds", "cannot write", "Give a file in a folder that can"),
    command("summary 5B", "5B is neither a size (3B, 7B, 32B, 72B)", "the config.json of any Qwen2.5-VL"),
    command("summary 3B --depth -1", "--depth -1: it must be at least 0.", "at least 0."),
]  # fmt: skip
CASES = [*TRACES, *RECORDINGS, *STUDIES, *ANSWERS, *PLANS, *COMMANDS]
