"""Videos: sources, sampling, sizes, patches, and the whole way through the model."""

import base64
import json
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from conftest import random_video_inputs, small_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minivl
from minivl import Error
from minivl.cli import main
from minivl.model.positions import prompt_positions
from minivl.processing.image_processor import ImageProcessor
from minivl.processing.inputs import Inputs
from minivl.processing.load_video import Clip, is_video, open_video
from minivl.processing.messages import build_messages, expand, find_media, user
from minivl.processing.video_processor import (
    frame_limits,
    linspace_indices,
    prepare_video,
    sample_frames,
    seconds_per_grid,
    smart_nframes,
)
from minivl.stream import run
from minivl.trace.recorder import record

FACTS = {
    fact["id"]: fact for fact in json.loads((Path(__file__).parents[1] / "known_answers.json").read_text())["facts"]
}
CLOSE = 1e-5  # see test_model.py


def pictures(count, width=80, height=60):
    """A bar that moves to the right; every frame differs from every other in large areas."""
    frames = []
    for i in range(count):
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        pixels[:, i * width // count : (i + 1) * width // count] = (200, 30, 30)
        pixels[: height // 3, : i * 8 + 8] = (20, 20, 160)
        frames.append(Image.fromarray(pixels))
    return frames


def saved(path, frames, **options):
    options = {"duration": 100, "lossless": True} | options
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


def filmed(path, frames, codec="libx264", rate=10):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def difference(one, other):
    """Mean distance of two images' colours, 0 to 255."""
    return np.abs(np.asarray(one, dtype=np.float32) - np.asarray(other, dtype=np.float32)).mean()


@pytest.fixture(scope="module")
def tiny():
    return minivl.load()


@pytest.fixture
def gif(tmp_path):
    return saved(tmp_path / "a.gif", pictures(12))


# ---- which frames ----


@pytest.mark.parametrize("case", FACTS["smart_nframes"]["output"], ids=lambda c: f"{c['total_frames']}-{c['ele']}")
def test_known_answers(case):
    total, rate, asked = case["total_frames"], case["video_fps"], case["ele"]
    if case["nframes"] == "ValueError":
        with pytest.raises(Error, match="at least 2 frames; this one has 1"):
            smart_nframes(total, rate, **asked)
        return
    clip = Clip(total, rate, None)
    indices = sample_frames(clip, **asked)
    assert smart_nframes(total, rate, **asked) == len(indices) == case["nframes"] and indices.dtype == np.int64
    assert case["indices"] is None or indices.tolist() == case["indices"]
    assert len(indices) / total * rate == pytest.approx(case["sample_fps"], rel=1e-12)
    assert seconds_per_grid(clip, len(indices), 2) == np.float32(case["second_per_grid_t"])
    processor = ImageProcessor(max_pixels=12845056)  # the published file's
    assert frame_limits(processor, clip, len(indices)) == (128 * 28 * 28, case["max_pixels_per_frame"])


@given(st.integers(2, 5000), st.floats(0.5, 240), st.floats(0.01, 100))
def test_what_is_sampled_is_even_and_rises_from_first_to_last(total, rate, fps):
    indices = sample_frames(Clip(total, rate, None), fps=fps)
    assert len(indices) % 2 == 0 and 2 <= len(indices) <= min(total, 768)
    assert indices[0] == 0 and indices[-1] == total - 1 and np.all(np.diff(indices) > 0)


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(fps=1, nframes=4), "Choose one"),
        (dict(nframes=4, max_frames=8), "Choose one"),
        (dict(nframes=1), "of 10 frames, 0 would be taken"),
        (dict(nframes=12), "of 10 frames, 12 would be taken"),
        (dict(nframes=11), "of 10 frames, 12 would be taken"),
        (dict(max_frames=1), "of 10 frames, 0 would be taken"),
        (dict(nframes=-4), "nframes=-4"),
        (dict(nframes=4.0), "an integer"),
        (dict(nframes=True), "nframes=True"),
        (dict(fps=0), "fps=0"),
        (dict(fps=float("nan")), "fps=nan"),
        (dict(fps="2"), "fps='2'"),
        (dict(min_frames=2.5), "min_frames=2.5"),
    ],
)
def test_frames_that_cannot_be_had(asked, words):
    with pytest.raises(Error, match=words):
        smart_nframes(10, 30.0, **asked)


def test_spread():
    assert linspace_indices(2, 2).tolist() == [0, 1] and linspace_indices(10, 10).tolist() == list(range(10))
    assert linspace_indices(6, 4).tolist() == [0, 2, 3, 5]


# ---- sources ----


def test_sources_give_the_same_frames(tmp_path):
    frames = pictures(6)
    for path in (saved(tmp_path / "a.webp", frames), saved(tmp_path / "a b.png", frames)):
        data = path.read_bytes()
        uri = "data:video/any;base64," + base64.b64encode(data).decode()
        with Image.open(path) as image:
            image.seek(3)
            for source in (path, str(path), f"file://{path}", data, uri, image):
                clip = open_video(source)
                assert (clip.total, clip.fps) == (6, 10.0)
                for i, picture in zip((1, 2, 5), clip.frames([1, 2, 5]), strict=True):
                    assert picture.mode == "RGB" and difference(picture, frames[i]) == 0
            assert image.tell() == 3
    for source in (frames, tuple(frames), np.stack(frames), np.stack(frames) / 255, [np.asarray(f) for f in frames]):
        clip = open_video(source)
        assert (clip.total, clip.fps) == (6, None)
        assert [difference(one, other) for one, other in zip(clip.frames(range(6)), frames, strict=True)] == [0] * 6


def test_gif_frames_are_whole_pictures(tmp_path):
    """Later frames of a GIF hold only what changed; colours here are few enough to be kept exactly."""
    frames = pictures(5)
    clip = open_video(saved(tmp_path / "a.gif", frames))
    assert [difference(one, frames[i]) for i, one in zip((0, 3, 4), clip.frames([0, 3, 4]))] == [0, 0, 0]


def test_transparent_frames_show_white(tmp_path):
    clear = [Image.new("RGBA", (8, 8), (i, 0, 0, 0)) for i in (10, 200)]
    path = saved(tmp_path / "a.webp", [clear[0], Image.new("RGBA", (8, 8), (0, 200, 0, 255))])
    first, second = open_video(path).frames([0, 1])
    assert first.getpixel((4, 4)) == (255, 255, 255) and second.getpixel((4, 4)) == (0, 200, 0)


@pytest.mark.parametrize("duration, fps", [(40, 25.0), ([100, 300, 200, 200], 5.0), (0, 10.0)])
def test_the_rate_of_an_animation_is_the_mean(tmp_path, duration, fps):
    for name in ("a.gif", "a.webp") if duration else ("a.gif",):
        assert open_video(saved(tmp_path / name, pictures(4), duration=duration)).fps == pytest.approx(fps)


@pytest.mark.parametrize(
    "name, codec, rate",
    [("a.mp4", "libx264", 10), ("a.mp4", "mpeg4", 24), ("a.webm", "libvpx-vp9", 30), ("a.mkv", "ffv1", 5)],
)
def test_films(tmp_path, name, codec, rate):
    """B-frames and hidden frames included: each index shows the frame that was put there."""
    frames = pictures(24, 96, 64)
    path = filmed(tmp_path / name, frames, codec, rate)
    for source in (path, path.read_bytes()):
        clip = open_video(source)
        assert (clip.total, clip.fps) == (24, float(rate)) and is_video(path)
        wanted = [0, 7, 8, 23]
        for i, picture in zip(wanted, clip.frames(wanted), strict=True):
            assert int(np.argmin([difference(picture, frame) for frame in frames])) == i


def test_films_are_turned_upright(tmp_path):
    """The matrix in an mp4's track header says how to show it; here as a telephone held upright writes it."""
    frame = Image.fromarray(
        np.repeat(np.array([[[250, 0, 0], [0, 0, 250]]], dtype=np.uint8), 32, axis=1).repeat(64, axis=0)
    )
    path = filmed(tmp_path / "a.mp4", [frame] * 4)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, at)[0] == 65536
    struct.pack_into(">9i", data, at, 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    shown = next(open_video(bytes(data)).frames([0]))
    assert (frame.size, shown.size) == ((64, 64), (64, 64))
    assert difference(shown, frame.transpose(Image.Transpose.ROTATE_270)) < 12 < 60 < difference(shown, frame)


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and so on")
    with pytest.raises(Error, match=r"a\.mp4 .* pip install 'minivl\[video\]'"):
        open_video(tmp_path / "a.mp4")
    assert open_video(saved(tmp_path / "a.gif", pictures(3))).total == 3


@pytest.mark.parametrize(
    "source, words",
    [
        ("no/such.mp4", "video no/such.mp4 does not exist"),
        ("https://example.org/a.mp4", "the path of a downloaded video"),
        (5, "a int is not a video"),
        ([], "a list of no frames"),
        (np.zeros((0, 4, 4, 3), dtype=np.uint8), "a list of no frames"),
        (np.zeros((4, 4, 3), dtype=np.uint8), r"an array \[4, 4, 3\] is not a video"),
        (pictures(1)[0], r"does not move.*videos=\[\["),
    ],
)
def test_bad_videos(source, words):
    with pytest.raises(Error, match=words):
        open_video(source)


def test_damaged_and_other_files(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("not a film")
    saved(tmp_path / "pages.tif", pictures(2))
    pictures(1)[0].save(tmp_path / "still.png")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    for name, words in (
        ("text.mp4", "cannot read the video"),
        ("sound.wav", "holds no video"),
        ("pages.tif", "does not move"),
        ("still.png", "does not move"),
        ("", "is a folder, not a file"),
    ):
        with pytest.raises(Error, match=words):
            open_video(tmp_path / name)


def test_what_is_a_video(tmp_path, gif):
    assert is_video(gif) and is_video("anything.MP4") and is_video(saved(tmp_path / "a.webp", pictures(2)))
    pictures(1)[0].save(tmp_path / "a.png")
    pictures(1)[0].save(tmp_path / "still.gif")
    saved(tmp_path / "pages.tif", pictures(2))
    assert not any(is_video(tmp_path / name) for name in ("a.png", "still.gif", "pages.tif", "none.png", "."))


# ---- sizes and patches ----


def prepared(source, processor=None, **options):
    """(patches, grid, seconds) and the named tensors on the way."""
    trace = record(prepare_video(source, processor or ImageProcessor(), **options))
    return (*trace.result, trace)


def test_a_patch_is_two_frames_deep():
    frames = pictures(4, 84, 56)
    patches, grid, seconds, trace = prepared(frames)
    processor = ImageProcessor()
    assert (grid, seconds, trace.names) == (
        (2, 4, 6), 1.0, ["frame_indices", "second_per_grid_t", "resized", "normalized", "patches"],
    )  # fmt: skip
    halves = patches.reshape(2, 24, 3, 2, 14, 14)  # pair, patch, colour, time, y, x
    for i, frame in enumerate(frames):
        alone, _ = processor.patchify(processor.normalize(processor.resize(frame))[None])
        assert np.array_equal(halves[i // 2, :, :, i % 2], alone.reshape(24, 3, 2, 14, 14)[:, :, 0])


def test_an_odd_last_frame_counts_twice():
    frames = pictures(5)
    odd, grid, _, trace = prepared(frames)
    even, _, _, _ = prepared([*frames, frames[-1]])
    assert grid[0] == 3 and np.array_equal(odd, even) and len(trace["frame_indices"]) == 5
    single, grid, _, _ = prepared(frames[:1])
    assert grid[0] == 1 and len(single) == np.prod(grid)


def test_seconds_are_not_whole_numbers(gif):
    assert prepared(gif, nframes=4)[2] == pytest.approx(2 / (4 / 1.2), rel=1e-7)
    assert prepared(gif, fps=10)[2] == pytest.approx(0.2, rel=1e-7)
    assert prepared(pictures(4), fps=3)[2] == pytest.approx(2 / 3, rel=1e-7)
    assert prepared(gif)[3]["second_per_grid_t"].dtype == np.float32


@pytest.mark.parametrize("options", [dict(nframes=2), dict(min_frames=2), dict(max_frames=2)])
def test_a_list_is_not_sampled(options):
    with pytest.raises(Error, match="leave out frames"):
        prepared(pictures(4), **options)


def test_frames_of_one_size():
    with pytest.raises(Error, match="84 x 56, 84 x 112"):
        prepared([*pictures(2, 84, 56), *pictures(1, 84, 112)])


def size(source, **options):
    """Pixels of a resized frame."""
    return int(np.prod(prepared(source, **options)[3]["resized"].shape[1:3]))


def test_limits(gif):
    """A file's frames of 80 x 60 become those of a video, a list's those of an image."""
    frames = pictures(4)
    assert size(gif) >= 128 * 28 * 28 and size(frames) == 84 * 56
    assert size(gif, max_pixels=9000) <= 9000 and size(frames, min_pixels=50000) >= 50000
    assert size(gif, min_pixels=20000, max_pixels=40000) in range(20000, 40001)
    large = pictures(2, 1600, 1200)
    assert size(large) > 900_000 and size(large, total_pixels=200_000) <= 200_000
    assert size(large, resized_height=200, resized_width=100) == 196 * 112


def test_frames_share_the_total():
    few, many = Clip(10**6, 25.0, None), Clip(10**6, None, None)
    processor = ImageProcessor(max_pixels=12845056)
    assert frame_limits(processor, few, 768) == (100352, 90316800 / 768 * 2)
    assert frame_limits(processor, few, 768, total_pixels=1000) == (100352, int(100352 * 1.05))
    assert frame_limits(processor, few, 4, max_pixels=2_000_000) == (100352, 602112)
    assert frame_limits(processor, many, 4) == (3136, 12845056)
    assert frame_limits(processor, many, 768) == (3136, 235200.0)
    assert frame_limits(ImageProcessor(min_pixels=12544, max_pixels=50176), few, 4) == (12544, 50176)
    for bad in (dict(total_pixels=0), dict(total_pixels="much"), dict(min_pixels=9000, max_pixels=8000)):
        with pytest.raises(Error, match="_pixels="):
            frame_limits(processor, few, 4, **bad)


@pytest.mark.parametrize("indices", [[5, 4], [0, 12], [-1, 3], [2, 2]])
def test_edited_indices_are_checked(gif, indices):
    edit = {"frame_indices": np.array(indices)}
    with pytest.raises(Error, match="must rise, from 0 to 11"):
        record(prepare_video(gif, ImageProcessor(), nframes=2), edit=edit)


def test_edited_indices_are_what_is_read(gif):
    trace = record(prepare_video(gif, ImageProcessor(), nframes=2), edit={"frame_indices": np.array([3, 4])})
    frames = [np.asarray(ImageProcessor().resize(picture, 100352, 602112)) for picture in pictures(12)]
    assert np.array_equal(trace["resized"], np.stack(frames[3:5]))


# ---- messages ----


def test_items_say_how_to_take_a_video():
    item = {
        "type": "video",
        "video": "a",
        "fps": 1.0,
        "max_pixels": 9000,
        "total_pixels": 5,
        "nframes": None,
    }
    images, videos = find_media([{"role": "user", "content": [item, {"type": "image", "image": "b", "fps": None}]}])
    assert videos == [("video", "a", {"fps": 1.0, "max_pixels": 9000, "total_pixels": 5})]
    assert images == [("image", "b", {})]
    for item, words in (
        ({"video": "a", "video_start": 2.0}, "first frame to the last"),
        ({"type": "video"}, "has no video"),
        ({"video": "a", "fsp": 2.0}, '"fsp" is unknown beside a video'),
        ({"image": "a", "fps": 2.0}, '"fps" is unknown beside an image'),
    ):
        with pytest.raises(Error, match=words):
            find_media([{"role": "user", "content": [item]}])


def test_user_and_conversation():
    messages = user("q", "a.png", ["b.mp4", "c.gif"])
    assert [video.source for video in find_media(messages)[1]] == ["b.mp4", "c.gif"]
    assert build_messages("q", "a.png", ["b.mp4", "c.gif"]) == messages
    with pytest.raises(Error, match="videos= goes with a question"):
        build_messages(messages, videos="d.mp4")
    with pytest.raises(Error, match="has 1 <.video_pad.> and there are 0 videos"):
        expand("<|video_pad|>")


def test_mixed_and_several(tiny, gif):
    """Two images and two videos in turn: each placeholder is as long as what it stands for, in its own order."""
    still = Image.new("RGB", (112, 140), "navy")
    content = [
        {"type": "video", "video": str(gif), "nframes": 4, "max_pixels": 30000},
        {"type": "image", "image": still},
        {"type": "text", "text": "and"},
        {"type": "video", "video": pictures(3, 112, 140), "fps": 4},
        {"type": "image", "image": still.resize((168, 112))},
        {"type": "text", "text": "?"},
    ]
    trace = tiny.trace([{"role": "user", "content": content}], add_vision_id=True)
    config, ids = tiny.config, trace["input_ids"]
    assert trace["video_grid_thw"][:, 0].tolist() == [2, 2] and trace["image_grid_thw"].tolist() == [
        [1, 10, 8],
        [1, 8, 12],
    ]
    assert (ids == config.video_token_id).sum() == trace["video_grid_thw"].prod(axis=1).sum() // 4
    kinds = [int(i) for i in ids[1:][(ids[1:] != ids[:-1])] if i in (config.image_token_id, config.video_token_id)]
    assert kinds == [config.video_token_id, config.image_token_id] * 2
    expected, _ = prompt_positions(ids, config, trace["image_grid_thw"], trace["video_grid_thw"], [2 / (4 / 1.2), 0.5])
    assert np.array_equal(trace["position_ids"], expected)
    tokens = trace["visual"]
    images = (10 * 8 + 8 * 12) // 4
    assert np.array_equal(trace["inputs_embeds"][ids == config.image_token_id], tokens[:images])
    assert np.array_equal(trace["inputs_embeds"][ids == config.video_token_id], tokens[images:])
    text = tiny.tokenizer.decode(ids, skip_special=False)
    assert "Video 1: <|vision_start|>" in text and "Picture 2: <|vision_start|>" in text


def test_options_of_the_call_and_of_the_item(tiny, gif):
    def taken(item, **options):
        content = [{"type": "video", "video": str(gif), **item}, {"type": "text", "text": "?"}]
        return len(
            tiny.trace([{"role": "user", "content": content}], stop="video.0.frame_indices", **options)[
                "video.0.frame_indices"
            ]
        )

    assert (taken({}), taken({}, nframes=6), taken({}, fps=10)) == (4, 6, 12)
    assert (taken({"nframes": 8}, fps=10), taken({"fps": 10}, nframes=6)) == (8, 12)
    with pytest.raises(Error, match="Choose one"):
        taken({"fps": 1, "nframes": 8})


def test_ask_stream_chat_and_the_command_line_agree(tiny, gif, capsys):
    options = dict(nframes=4, max_new_tokens=6)
    answer = tiny.ask("Describe the picture.", videos=str(gif), **options)
    assert answer and answer == "".join(tiny.stream("Describe the picture.", videos=[gif], **options))
    assert answer == tiny.chat(user("Describe the picture.", videos=gif), **options)
    assert main(["ask", str(gif), "Describe the picture.", "--nframes", "4", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == answer + "\n"


def test_walk_on_a_video(gif, capsys):
    assert main(["walk", str(gif), "What?", "--fps", "4", "--max-new-tokens", "1"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "4 frames are taken, from number 0 to 11" in lines["video.0.frame_indices"]
    assert "0.6 seconds" in lines["video.0.second_per_grid_t"] and "lm_head" in lines


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["ask", "no.mp4", "What?"], "no.mp4 does not exist"),
        (["walk", "no.mp4"], "no.mp4 does not exist"),
        (["ask", "GIF", "What?", "--fps", "1", "--nframes", "4"], "Choose one"),
        (["ask", "GIF", "What?", "--nframes", "40"], "of 12 frames, 40 would be taken"),
    ],
)
def test_errors_are_one_line(gif, arguments, words, capsys):
    assert main([str(gif) if a == "GIF" else a for a in arguments]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not captured.out


# ---- positions and the model ----


@pytest.mark.parametrize("fact", ["mrope_image", "mrope_video_then_image", "mrope_video_fractional"])
def test_positions_of_transformers_5(tiny, fact):
    known = FACTS[fact]["inputs"], FACTS[fact]["output"]["hf_5_23"]
    renamed = {151652: 763, 151653: 764, 151655: 766, 151656: 767}  # the tiny model's ids
    ids = np.array([renamed.get(i, i) for i in known[0]["input_ids"]], dtype=np.int64)
    grids = [known[0].get(name, []) for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")]
    positions, _ = prompt_positions(ids, tiny.config, *grids, "transformers5")
    assert positions.tolist() == [known[1][row] for row in "thw"]


def test_the_rules_differ_only_behind_a_long_video():
    launch, other = small_model(), small_model(video_positions="transformers5")
    inputs = random_video_inputs(launch.config, videos=((4, 4, 6),), seconds=(0.75,))
    one, two = (vlm.trace(inputs, max_new_tokens=2) for vlm in (launch, other))
    end = int(np.flatnonzero(inputs.input_ids == launch.config.video_token_id)[-1]) + 1
    assert np.array_equal(one["position_ids"][:, :end], two["position_ids"][:, :end])
    # time goes up to floor(3 * 1.5) = 4 behind the start, so the text continues after 5 steps; or after 3, the longer side
    assert np.all(one["position_ids"][:, end:] - two["position_ids"][:, end:] == 2)
    for trace in (one, two):
        assert trace["steps.1.position_ids"].tolist() == (trace["position_ids"][:, -1:] + 1).tolist()
    with pytest.raises(Error, match="choose one of 'launch', 'transformers5'"):
        minivl.load(video_positions="qwen")


def test_seconds_matter_and_1_is_the_default():
    vlm = small_model()
    half, one, default = (random_video_inputs(vlm.config, seconds=s) for s in ((0.5, 0.5), (1.0, 1.0), None))
    logits = [vlm.trace(inputs, keep="lm_head")["lm_head"] for inputs in (half, one, default)]
    assert np.array_equal(logits[1], logits[2]) and np.abs(logits[0] - logits[1]).max() > 1e-3


def test_frames_do_not_see_each_other_in_the_tower():
    vlm = small_model()
    inputs = random_video_inputs(vlm.config, images=(), videos=((3, 6, 10),), seconds=(1.0,))
    changed = inputs.pixel_values_videos.copy()
    changed[-60:] += 1
    none = inputs.pixel_values, inputs.image_grid_thw
    one, two = (run(vlm.embed_image(*none, p, inputs.video_grid_thw)) for p in (inputs.pixel_values_videos, changed))
    assert np.array_equal(one[:30], two[:30]) and np.all(np.any(one[30:] != two[30:], axis=1))


@pytest.mark.parametrize("rule", ["launch", "transformers5"])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_a_video_in_a_later_turn_equals_one_prompt(backend, rule):
    """First an image, then a video and another image, then a question about nothing new."""
    vlm = small_model(backend, video_positions=rule)
    whole = random_video_inputs(vlm.config)
    ends = np.flatnonzero(whole.input_ids == vlm.config.vision_end_token_id) + 1
    cache, ids = vlm.new_cache(), whole.input_ids
    first = Inputs(ids[: ends[0]], whole.pixel_values[:140], whole.image_grid_thw[:1])
    rest = {"video_grid_thw": whole.video_grid_thw[:1], "second_per_grid_ts": whole.second_per_grid_ts[:1]}
    patches = whole.pixel_values_videos[: int(whole.video_grid_thw[0].prod())]
    second = Inputs(ids[: ends[2]], whole.pixel_values, whole.image_grid_thw, patches, **rest)
    for turn, held in ((first, 0), (second, ends[0]), (whole, ends[2]), (whole, len(ids) - 1)):
        trace = record(vlm.prefill(turn, cache))
        assert trace["input_ids"].tolist() == turn.input_ids[held:].tolist()
        alone = record(vlm.prefill(turn, vlm.new_cache()))
        assert np.abs(trace.result - alone.result).max() < CLOSE * np.abs(alone.result).max()
        assert np.array_equal(trace["position_ids"], alone["position_ids"][:, held:])
    assert "visual" not in trace


def test_the_same_frames_at_another_speed_are_not_taken_for_the_cached_ones():
    vlm = small_model()
    slow, fast = (random_video_inputs(vlm.config, images=(), videos=((3, 4, 6),), seconds=(s,)) for s in (2.0, 0.5))
    cache = vlm.new_cache()
    run(vlm.prefill(slow, cache))
    trace = record(vlm.prefill(fast, cache), keep=["video_grid_thw", "lm_head"])
    alone = run(vlm.prefill(fast, vlm.new_cache()))
    assert trace["video_grid_thw"].tolist() == [[3, 4, 6]]
    assert np.abs(trace["lm_head"] - alone).max() < CLOSE * np.abs(alone).max()


def test_backends_agree_on_videos():
    one, other = (small_model(backend) for backend in ("numba", "numpy"))
    a, b = (vlm.trace(random_video_inputs(vlm.config)) for vlm in (one, other))
    assert list(a) == list(b)
    for name in a:
        known = np.isfinite(b[name])
        assert np.array_equal(np.isfinite(a[name]), known), name
        assert np.abs(a[name][known] - b[name][known]).max() <= CLOSE * np.abs(b[name][known]).max(), name


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(second_per_grid_ts=[1.0]), "for each of the 2 videos"),
        (dict(second_per_grid_ts=[1.0, 0.0]), "above 0"),
        (dict(second_per_grid_ts=[1.0, float("nan")]), "above 0"),
        (dict(video_grid_thw=np.array([[2, 4, 6]])), "pixel_values_videos is float32"),
        (dict(video_grid_thw=np.array([[2, 3, 6], [1, 4, 4]])), "multiples of 2"),
        (dict(pixel_values_videos=np.zeros((3, 96), dtype=np.float32)), "a row for each patch"),
    ],
)
def test_inputs_made_by_hand_are_checked(change, words):
    vlm = small_model()
    inputs = vars(random_video_inputs(vlm.config))
    with pytest.raises(Error, match=words):
        vlm.trace(Inputs(**{**inputs, **change}))


def test_too_many_frames_for_the_context(tiny):
    with pytest.raises(Error, match="send fewer images or frames"):
        tiny.ask("?", videos=[pictures(60, 336, 336)])


def test_data_uri_of_a_video_that_is_none():
    with pytest.raises(Error, match="base64"):
        open_video("data:video/mp4,abc")


def test_options_of_videos_without_a_video(tiny, gif):
    for call in (
        lambda: tiny.ask("?", fps=2),
        lambda: tiny.trace("?", nframes=4),
        lambda: tiny.count_tokens("?", fps=1),
        lambda: tiny.ask_many(["?", "?"], fps=2),
        lambda: list(tiny.stream("?", fps=2)),
    ):
        with pytest.raises(Error, match="(fps|nframes)= chooses frames of a video, and there is none"):
            call()
    prompts = ["?", {"question": "?", "videos": str(gif)}]
    assert len(tiny.ask_many(prompts, nframes=4, max_new_tokens=1)) == 2
    assert tiny.chat(user("?"), tiny.new_cache(), fps=2, max_new_tokens=1) is not None  # a later turn may have one
