"""`minivl chat`: lines, files, commands, interrupts, and the filter. The conversation is held to `VLM.chat` without a cache."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minivl
from minivl import Error
from minivl.cli import main
from minivl.cli.chat import complete
from minivl.cli.chat_terminal import ChatTerminal, attach_file, parse_question
from minivl.model.kv_cache import KVCache
from minivl.tiny import scene
from minivl.vlm import VLM

HOW_MANY, DESCRIBE = "How many shapes are there?", "Describe the picture."


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """scene.png, "another one.png" and clip.gif in an empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    scene(5).image.save("scene.png")
    scene(3).image.save("another one.png")
    frames = [scene(seed, size=(112, 112)).image for seed in range(4)]
    frames[0].save("clip.gif", save_all=True, append_images=frames[1:], duration=500)
    return tmp_path


def fresh(vlm, messages):
    """The answer to the last question, everything run again."""
    return vlm.chat(messages)


def answers(console):
    return [message["content"] for message in console.messages if message["role"] == "assistant"]


# ---- lines ----


@pytest.mark.parametrize(
    "line, expected",
    [
        ("What is it?", ["What is it?"]),
        ("@scene.png What is it?", [("image", "scene.png"), "What is it?"]),
        ("What is @scene.png?", ["What is", ("image", "scene.png"), "?"]),
        (
            "Is @scene.png like @'another one.png', or not?",
            ["Is", ("image", "scene.png"), "like", ("image", "another one.png"), ", or not?"],
        ),
        ('(@"another one.png")', ["(", ("image", "another one.png"), ")"]),
        ("@clip.gif and then", [("video", "clip.gif"), "and then"]),
        ("mail a@b.c, @@property and @@", ["mail a@b.c, @property and @"]),
        ("5 @ 3", ["5 @ 3"]),
    ],
)
def test_files_in_a_line(line, expected, files):
    found = []
    for part in parse_question(line):
        source = part[part["type"]]
        found.append(source if part["type"] == "text" else (part["type"], getattr(source, "path", source)))
    assert found == [one if isinstance(one, str) else (one[0], str(files / one[1])) for one in expected]


def test_files_that_are_not_there():
    with pytest.raises(Error, match="there is no file nothing.png. .*write @@ for an @"):
        parse_question("What is @nothing.png?")
    with open("text.png", "w") as file:
        file.write("no image")
    with pytest.raises(Error, match="text.png is not an image"):
        attach_file("text.png")


def test_completion(files):
    assert complete("@sc", 0) == "@scene.png" and complete("@sc", 1) is None
    assert complete("@an", 0) == '@"another one.png"' and complete("sc", 0) is None
    (files / "folder").mkdir()
    assert complete("@fo", 0) == "@folder/"


# ---- turns ----


def test_a_conversation_is_that_of_the_library(vlm, capsys, monkeypatch):
    """Two images and three questions; each image goes through the tower once."""
    towers, tower = [], minivl.model.engine.vision_tower
    monkeypatch.setattr("minivl.model.engine.vision_tower", lambda *a: towers.append(len(a[1])) or tower(*a))
    console = ChatTerminal(vlm)
    for line in (f"@scene.png {HOW_MANY}", DESCRIBE, f'@"another one.png" {DESCRIBE}'):
        assert console.say(line)
    out = capsys.readouterr().out
    assert towers == [1, 1] and out == "".join(f"{answer}\n" for answer in answers(console))
    messages = [{"role": "user", "content": [{"type": "image", "image": scene(5).image}, text(HOW_MANY)]}]
    for answer, more in zip(answers(console), ([text(DESCRIBE)], [picture(3), text(DESCRIBE)], None)):
        assert fresh(vlm, messages) == answer
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": more}]
    assert console.last.cached_tokens > 100 and console.last.prompt_tokens == vlm.count_tokens(messages[:-2]).total


def text(words):
    return {"type": "text", "text": words}


def picture(seed):
    return {"type": "image", "image": scene(seed).image}


def test_a_file_without_a_question_waits_for_one(vlm, capsys):
    console = ChatTerminal(vlm, waiting=[attach_file("scene.png")])
    console.say('@"another one.png"')
    assert "put before the next question" in capsys.readouterr().err and console.messages == []
    console.say(DESCRIBE)
    assert [part["type"] for part in console.messages[0]["content"]] == ["image", "image", "text"]
    assert console.waiting == [] and [p.resized_size for p in console.last.images] == [(336, 224), (168, 224)]


def test_a_file_that_is_overwritten_does_not_change_what_was_said(vlm):
    console = ChatTerminal(vlm)
    console.say(f"@scene.png {DESCRIBE}")
    scene(3).image.save("scene.png")
    console.say(f"@scene.png {DESCRIBE}")
    expected = [
        {"role": "user", "content": [picture(5), text(DESCRIBE)]},
        {"role": "assistant", "content": answers(console)[0]},
        {"role": "user", "content": [picture(3), text(DESCRIBE)]},
    ]
    assert answers(console)[1] == fresh(vlm, expected) and console.last.cached_tokens > 100


def test_an_error_takes_back_the_question_only(vlm, capsys):
    console = ChatTerminal(vlm, waiting=[attach_file("scene.png")])
    with pytest.raises(Error, match="must not contain the placeholder"):
        console.say("What is <|image_pad|>?")
    with pytest.raises(Error, match="the model's context is 4096"):
        console.say("word " * 4096)
    assert console.messages == [] and len(console.waiting) == 1
    console.say(DESCRIBE)
    assert answers(console) == [
        fresh(vlm, [{"role": "user", "content": [{"type": "image", "image": "scene.png"}, text(DESCRIBE)]}])
    ]


# ---- interrupts ----


class Interrupted:
    """A kernel that is interrupted at its n-th call."""

    def __init__(self, kernel, at):
        self.kernel, self.left = kernel, at

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.kernel(*arguments)


# linear layers: 23 of an image (patches, 4 blocks of 5, merger), then 36 of the prompt and of each token (5 layers of 7, head)
@pytest.mark.parametrize("at", [1, 12, 25, 45, 62, 80, 100])
def test_interrupted_anywhere(vlm, at, capsys):
    """The text so far is the answer; the conversation continues as if that had been all of it."""
    kernels = dataclasses.replace(vlm.kernels, linear=Interrupted(vlm.kernels.linear, at))
    console = ChatTerminal(VLM(vlm.config, vlm.weights, kernels, vlm.folder))
    console.say(f"@scene.png {DESCRIBE}")
    captured = capsys.readouterr()
    first = answers(console)
    whole = fresh(vlm, [{"role": "user", "content": [{"type": "image", "image": "scene.png"}, text(DESCRIBE)]}])
    if first:
        assert whole.startswith(first[0]) and 0 < len(first[0]) < len(whole)
        assert captured.out == first[0] + "\n" and "so far is the answer" in captured.err
    else:
        assert console.messages == [] and captured.out == "" and "taken back" in captured.err
        console.say("@scene.png")
    assert bool(first) == (at > 59)
    console.say(HOW_MANY)
    assert answers(console)[-1] == fresh(vlm, console.messages[:-1])


@pytest.mark.parametrize("at", [1, 2, 3, 8])
def test_interrupted_while_the_cache_grows(vlm, at, monkeypatch, capsys):
    """Between keys and values of a layer too: afterwards every buffer is as long as it must be."""
    console = ChatTerminal(
        vlm, options={"max_new_tokens": 1}
    )  # room is made for the longest answer: the next turn needs more
    console.say("Hello")
    del console.options["max_new_tokens"]
    grown = KVCache._enlarge
    with monkeypatch.context() as patch:
        interrupted = Interrupted(grown, at)
        patch.setattr(KVCache, "_enlarge", lambda *arguments: interrupted(*arguments))
        console.say(f"@scene.png {DESCRIBE}")
    assert "taken back" in capsys.readouterr().err
    console.say(f"@scene.png {DESCRIBE}")
    assert answers(console)[-1] == fresh(vlm, console.messages[:-1])


def test_an_interrupt_ends_a_filter(vlm):
    kernels = dataclasses.replace(vlm.kernels, linear=Interrupted(vlm.kernels.linear, 5))
    console = ChatTerminal(VLM(vlm.config, vlm.weights, kernels, vlm.folder), interactive=False)
    with pytest.raises(KeyboardInterrupt):
        console.say("Hello")


# ---- commands ----


def test_undo_and_new(vlm):
    console = ChatTerminal(vlm, system="Be short.")
    for line in (f"@scene.png {HOW_MANY}", DESCRIBE):
        console.say(line)
    kept = console.messages[:3]
    console.say("/undo")
    assert console.messages == kept
    console.say(DESCRIBE)
    assert answers(console)[-1] == fresh(vlm, console.messages[:-1])
    console.say("/new")
    assert console.messages == [{"role": "system", "content": "Be short."}] and len(console.cache) == 0
    with pytest.raises(Error, match="no question to take back"):
        console.say("/undo")


def test_system_prompt(vlm):
    console = ChatTerminal(vlm)
    console.say(f"@scene.png {DESCRIBE}")
    console.say("/system Answer with one word.")
    console.say(DESCRIBE)
    assert console.messages[0] == {"role": "system", "content": "Answer with one word."}
    assert answers(console)[-1] == fresh(vlm, console.messages[:-1]) and console.last.cached_tokens < 10
    console.say("/system")
    assert console.messages[0]["role"] == "user"


def test_saved_and_loaded(vlm, capsys, files):
    console = ChatTerminal(vlm)
    console.say(f"Bitte: @scene.png {DESCRIBE} größer?")
    console.say(f"@clip.gif {DESCRIBE}")
    console.say("/save talk.json")
    stored = json.loads((files / "talk.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in files.iterdir() if "talk" in path.name) == ["talk.json"]
    assert "größer" in (files / "talk.json").read_text(encoding="utf-8")
    assert stored[0]["content"][1] == {"type": "image", "image": str(files / "scene.png")}
    assert stored[2]["content"][0] == {"type": "video", "video": str(files / "clip.gif")}
    other = ChatTerminal(vlm)
    other.say("/load talk.json")
    (files / "scene.png").unlink()
    (files / "clip.gif").unlink()
    other.say(HOW_MANY)
    console.say(HOW_MANY)
    assert answers(other) == answers(console) and other.last.cached_tokens == 0 < console.last.cached_tokens


def test_long_files_stay_where_they_are(vlm, files, monkeypatch):
    monkeypatch.setattr("minivl.cli.chat_terminal.LARGEST_SNAPSHOT", 10)
    assert attach_file("clip.gif") == {"type": "video", "video": str(files / "clip.gif")}
    (files / "talk.json").write_text(
        '[{"role": "user", "content": [{"type": "video", "video": ["scene.png", "scene.png"]}]}]'
    )
    console = ChatTerminal(vlm)
    console.say("/load talk.json")
    assert console.messages[0]["content"][0]["video"] == ["scene.png", "scene.png"]


def test_tokens(vlm, capsys):
    console = ChatTerminal(vlm, waiting=[attach_file("scene.png")])
    console.say(DESCRIBE)
    capsys.readouterr()
    console.say("/tokens")
    out = capsys.readouterr().out
    total = console.last.prompt_tokens + len(console.last.ids) + 4  # a line's end, and the next answer's three
    held = len(console.cache)
    assert f"prompt {total} tokens (image 1: 96 at 224 x 336; text {total - 96}), of them {held} in the cache" in out
    assert "the context is 4,096" in out and f"last answer {len(console.last.ids)} tokens" in out
    again = ChatTerminal(vlm, tokens=True)
    again.say("Hello")
    again.say("Hello")
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("prompt ") and "from the cache and" in err[1] and "the first text after" in err[1]


@pytest.mark.parametrize(
    "line, words",
    [
        ("/nothing", "there is no command /nothing: /help lists them"),
        ("/undo 3", "/undo takes no argument"),
        ("/load deep.json", "cannot read deep.json"),
        ("/scene " + "1" * 5000, "/scene takes the number"),
        ("Was ist caf\udce9?", "not valid Unicode"),
        ("/undo", "no question to take back"),
        ("/save talk.json", "nothing to save"),
        ("/save scene.png", "ends in .json"),
        ("/load", "no file: give a file whose name ends in .json"),
        ("/load nothing.json", "cannot read nothing.json"),
        ("/load bad.json", "must be"),
    ],
)
def test_commands_that_cannot_be_done(vlm, line, words):
    with open("bad.json", "w") as file:
        file.write('[{"role": "user"}]')
    with open("deep.json", "w") as file:
        file.write("[" * 100_000)
    with pytest.raises(Error, match=words):
        ChatTerminal(vlm).say(line)


def test_help_lists_every_command(vlm, capsys):
    console = ChatTerminal(vlm)
    console.say("/help")
    out = capsys.readouterr().out
    assert all(name in out for name in ("/tokens", "/undo", "/new", "/system", "/save", "/load", "/quit", "@@"))
    assert console.say("") and console.say("//tokens?") and console.messages[0]["content"] == [text("/tokens?")]
    assert console.say("/quit") is False


# ---- the command ----


def test_as_a_filter(vlm):
    """Answers alone on stdout, mistakes on stderr; the lines after a mistake are read."""
    lines = f"@scene.png {HOW_MANY}\n\n@nothing.png ?\n{DESCRIBE}\n/quit\nnever read\n"
    run = subprocess.run(
        [sys.executable, "-m", "minivl", "chat", "--max-new-tokens", "30"],
        input=lines, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    console = ChatTerminal(vlm, options={"max_new_tokens": 30})
    console.say(f"@scene.png {HOW_MANY}")
    console.say(DESCRIBE)
    assert run.returncode == 1 and run.stdout == "".join(f"{answer}\n" for answer in answers(console))
    assert run.stderr.startswith("minivl: there is no file nothing.png") and run.stderr.count("\n") == 1


ROOT = str(Path(__file__).parents[2])


def test_at_a_terminal(vlm):
    """A prompt, an answer, and Ctrl-D."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": ROOT, "TERM": "dumb"}
    command = [sys.executable, "-m", "minivl", "chat", "scene.png"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = read_until(ours, "> ")
        os.write(ours, f"{DESCRIBE}\n".encode())
        shown += read_until(ours, "> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    os.close(ours)
    question = {"role": "user", "content": [{"type": "image", "image": "scene.png"}, text(DESCRIBE)]}
    assert fresh(vlm, [question]) in shown and "/help; Ctrl-D ends." in shown


def read_until(terminal, words):
    shown = ""
    while not shown.endswith(words):
        shown += os.read(terminal, 1000).decode()
    return shown


def test_mistakes_before_a_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("minivl.cli.chat.load_model", lambda options: pytest.fail("loaded"))
    assert main(["chat", "nothing.png"]) == 1
    assert "there is no file nothing.png" in capsys.readouterr().err


def test_ask_says_tokens(capsys):
    assert main(["ask", "scene.png", "clip.gif", HOW_MANY, "--tokens", "--nframes", "4"]) == 0
    captured = capsys.readouterr()
    assert "image 1: 96 at 224 x 336; video 1: " in captured.err and " at 4 frames of " in captured.err
    assert captured.out == minivl.load().ask(HOW_MANY, "scene.png", "clip.gif", nframes=4) + "\n"


# ---- counting ----


@pytest.mark.parametrize(
    "options", [{}, dict(max_pixels=30000), dict(min_pixels=18000), dict(fps=1, add_vision_id=True)]
)
def test_counts_are_those_of_a_run(vlm, options):
    """Of images and videos with sizes of their own, against what is prepared for the model."""
    pixels = np.full((90, 130, 3), 40, dtype=np.uint8)
    content = [
        {"type": "image", "image": "scene.png"},
        {"type": "video", "video": "clip.gif"},
        {"type": "image", "image": pixels, "resized_height": 112, "resized_width": 168},
        {"type": "video", "video": [Image.fromarray(pixels)] * 3, "max_pixels": 20000},
        {"type": "video", "video": "clip.gif", "nframes": 4, "resized_height": 84, "resized_width": 84},
        text(DESCRIBE),
    ]
    messages = [{"role": "user", "content": content}]
    trace = vlm.trace(messages, stop="visual", **options)
    count = vlm.count_tokens(messages, **options)
    assert count.total == len(trace["input_ids"])
    for media, grids, kind in ((count.images, "image_grid_thw", "image"), (count.videos, "video_grid_thw", "video")):
        assert [one.tokens for one in media] == (trace[grids].prod(axis=1) // 4).tolist()
        shapes = [trace[f"{kind}.{i}.resized"].shape for i in range(len(media))]
        assert [(one.height, one.width) for one in media] == [shape[-3:-1] for shape in shapes]
        assert [one.frames for one in media] == [shape[0] if len(shape) == 4 else None for shape in shapes]
    assert count.text == count.total - len(trace["visual"]) and str(count).startswith(
        f"prompt {count.total:,} tokens ("
    )


def test_counting_decodes_one_frame_and_resizes_nothing(vlm, monkeypatch):
    decoded = []
    frames = minivl.processing.load_video.decode_animation
    monkeypatch.setattr(
        "minivl.processing.load_video.decode_animation",
        lambda s, indices, **more: decoded.extend(indices) or frames(s, indices, **more),
    )
    monkeypatch.setattr(
        "minivl.processing.image_processor.ImageProcessor.resize", lambda *a, **k: pytest.fail("resized")
    )
    assert vlm.count_tokens(DESCRIBE, "scene.png", "clip.gif").videos[0].frames == 4 and decoded == [0]
