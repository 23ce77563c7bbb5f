"""Images and videos of a conversation are prepared once: the same bits as if prepared at every turn, and little to keep."""

from fnmatch import fnmatch

import numpy as np
import pytest
from PIL import Image

import minivl
from minivl import Error
from minivl.processing.load_video import open_video
from minivl.processing.media_cache import hash_origin
from minivl.stream import run
from minivl.tiny import scene

TURNS = ("Describe the picture.", "How many shapes are there?", "Where is the red circle?")


@pytest.fixture(scope="module")
def vlm():
    return minivl.load()


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene(5).image.save("scene.png")
    scene(3).image.save("other.png")
    frames = [scene(seed, size=(84, 84)).image for seed in range(4)]
    frames[0].save("clip.gif", save_all=True, append_images=frames[1:], duration=500)


@pytest.fixture
def made(monkeypatch):
    """What was decoded, in order."""
    made, opened, played = [], minivl.processing.prepare.open_image, minivl.processing.prepare.prepare_video
    monkeypatch.setattr("minivl.processing.prepare.open_image", lambda source: made.append(source) or opened(source))
    monkeypatch.setattr(
        "minivl.processing.prepare.prepare_video",
        lambda source, *a, **k: made.append(source) or played(source, *a, **k),
    )
    return made


def conversation():
    """Messages turn by turn: an image, a video and another image; the answers are not the model's own."""
    shown = [("image", "scene.png")], [("video", "clip.gif"), ("image", "other.png")], []
    messages = []
    for question, media in zip(TURNS, shown):
        content = [{"type": kind, kind: source} for kind, source in media] + [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        yield list(messages)
        messages.append({"role": "assistant", "content": "2"})


def ran(vlm, messages, cache):
    """What a turn made of its images and of its prompt."""
    keep = ["input_ids", "*_thw", "pixel_values*", "visual", "model.norm", "*lm_head"]
    trace = vlm.trace(
        messages, cache=cache, max_new_tokens=2, keep=lambda name, _: any(fnmatch(name, one) for one in keep)
    )
    return dict(trace)


def same(one, other):
    return list(one) == list(other) and all(np.array_equal(one[n], other[n]) for n in one)


def alike(one, other):
    """The tower the same, the answer but for the order of sums: the cache held the beginning of the text."""
    close = np.abs(one["lm_head"] - other["lm_head"]).max() < 1e-5 * np.abs(other["lm_head"]).max()
    return close and np.array_equal(one["visual"], other["visual"])


def test_once_in_a_conversation_with_the_same_bits(vlm, files, made):
    cache, fresh = vlm.new_cache(), vlm.new_cache()
    for messages in conversation():
        ours = ran(vlm, messages, cache)
        first, fresh.prepared = len(made), {}
        assert same(ours, ran(vlm, messages, fresh))
        del made[first:]  # what the other one decoded
    assert made == ["scene.png", "other.png", "clip.gif"]
    assert len(cache.prepared) == 3 and all(one.patches is None for one in cache.prepared.values())


def test_a_conversation_that_was_changed_before_a_picture_prepares_it_again(vlm, files, made):
    cache, turns = vlm.new_cache(), list(conversation())
    ran(vlm, turns[1], cache)
    changed = [{"role": "system", "content": "Be short."}, *turns[2]]
    assert alike(ran(vlm, changed, cache), ran(vlm, changed, vlm.new_cache()))
    assert made == 3 * ["scene.png", "other.png", "clip.gif"]
    answer, sizes = vlm.chat(changed, cache, max_new_tokens=1), [scene(seed).image.size[::-1] for seed in (5, 3)]
    assert len(made) == 9 and [one.original_size for one in answer.images] == sizes


def test_a_file_that_was_overwritten_is_another_picture(vlm, files):
    cache, (first, second, _) = vlm.new_cache(), conversation()
    ran(vlm, first, cache)
    scene(7).image.save("scene.png")
    assert alike(ran(vlm, second, cache), ran(vlm, second, vlm.new_cache()))


def test_prepared_for_another_cache(vlm, files):
    cache, (first, second, _) = vlm.new_cache(), conversation()
    ran(vlm, first, cache)
    inputs = run(vlm.prepare(second, cache=cache))
    assert len(inputs.pixel_values) == inputs.image_grid_thw[1].prod() and list(map(len, inputs.cached)) == [1, 0]
    with pytest.raises(Error, match="were prepared for another cache"):
        vlm.trace(inputs)


def test_origins(files):
    """The same for the same content, whatever it is given as; none where it would have to be decoded."""
    pixels = np.asarray(scene(5).image)
    data = open("scene.png", "rb").read()
    assert len({hash_origin("image", source, {}) for source in ("scene.png", data, "file://scene.png")}) == 1
    sources = [
        "scene.png",
        "other.png",
        pixels,
        pixels[:, ::-1],
        scene(5).image,
        scene(5).image.convert("L"),
        "data:;base64,AA==",
    ]
    sources += [[pixels, pixels], [pixels], pixels.astype(np.float32)]
    found = [hash_origin("image", source, {}) for source in sources]
    found += [hash_origin("video", "scene.png", {}), hash_origin("image", "scene.png", {"max_pixels": 9000})]
    assert None not in found and len({*found}) == len(found)
    for unknown in (
        "nothing.png",
        "https://a/b.png",
        Image.open("clip.gif"),
        open_video("clip.gif"),
        5,
        [pixels, "no.png"],
    ):
        assert hash_origin("video", unknown, {}) is None
