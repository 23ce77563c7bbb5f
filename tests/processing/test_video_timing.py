"""Times, rates and orientation of films against arithmetic: made films of many containers, rates and layouts."""

import itertools
import struct
import warnings
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from minivl import Error
from minivl.processing.load_video import open_video
from minivl.processing.video_processor import sample_frames, seconds_per_grid

av = pytest.importorskip("av")
MILLISECOND = Fraction(1, 1000)


def film(path, times, codec="libx264", time_base=MILLISECOND, rate=30, pix_fmt="yuv420p", frames=None, codec_options=None,
         **container_options):  # fmt: skip
    """A film whose frames are shown at these times, in seconds: grey levels that rise, or `frames`, arrays [H, W, 3 or 4]."""
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=rate, options={"threads": "1", **(codec_options or {})})
        shape = frames[0].shape if frames else (32, 48, 3)
        stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], pix_fmt
        stream.codec_context.time_base = time_base
        for i, moment in enumerate(times):
            pixels = frames[i] if frames else np.full(shape, 16 + i * 220 // len(times), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if shape[2] == 4 else "rgb24")
            frame.pts, frame.time_base = round(Fraction(moment) / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def even(rate, count=24, start=0):
    return [start + i / Fraction(rate) for i in range(count)]


NTSC = Fraction(30000, 1001)
GENERATOR = np.random.default_rng(0)
BROWSER = [Fraction(int(ms), 1000) for ms in np.cumsum(GENERATOR.integers(25, 45, 60))]
SLIDES = [Fraction(2 * i) for i in range(12)]
UNEVEN = [*even(10, 20), *(2 + Fraction(9, 2) * i for i in range(4))]
B_FRAMES = {"bf": "3", "g": "12"}

FILMS = [  # name, times, codec, time base, rate in the header, options of the codec and of the container
    *[(f"{rate} {name}", even(rate), codec, 1 / Fraction(rate), rate, {}, {})
      for rate, (name, codec) in itertools.product((Fraction(25, 2), 24, 25, NTSC, 60),
                                                   (("a.mp4", "libx264"), ("a.mov", "mpeg4"), ("a.mkv", "libx264"),
                                                    ("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.ts", "libx264")))],
    ("24000/1001 a.webm", even(Fraction(24000, 1001)), "libvpx-vp9", Fraction(1001, 24000), Fraction(24000, 1001), {}, {}),
    ("25 a.flv", even(25), "libx264", Fraction(1, 25), 25, {}, {}), ("25 a.wmv", even(25), "wmv2", Fraction(1, 25), 25, {}, {}),
    ("25 a.mpg", even(25), "mpeg2video", Fraction(1, 25), 25, {}, {}),
    *[(f"B-frames {name}", even(25), "libx264", Fraction(1, 25), 25, B_FRAMES, {})
      for name in ("a.mp4", "a.mkv", "a.ts", "a.avi", "a.flv")],
    ("hidden frames a.webm", even(25, 40), "libvpx-vp9", Fraction(1, 25), 25, {"auto-alt-ref": "1", "lag-in-frames": "12"}, {}),
    *[(f"starts at 7 s {name}", even(25, start=7), "libx264", MILLISECOND, 25, {}, {}) for name in ("a.mp4", "a.mkv", "a.ts")],
    *[(f"browser {name}", BROWSER, codec, MILLISECOND, 1000, {}, {"live": "1"} if "webm" in name else {})
      for name, codec in (("a.webm", "libvpx"), ("a.mkv", "libx264"), ("a.mp4", "libx264"))],
    *[(f"slides {name}", SLIDES, codec, MILLISECOND, 1000, {}, {})
      for name, codec in (("a.webm", "libvpx"), ("a.mp4", "libx264"))],
    *[(f"uneven {name}", UNEVEN, codec, MILLISECOND, 10, {}, {})
      for name, codec in (("a.webm", "libvpx"), ("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"))],
    ("uneven with B-frames a.mp4", UNEVEN, "libx264", MILLISECOND, 10, B_FRAMES, {}),
    ("fragments a.mp4", even(25), "libx264", Fraction(1, 25), 25, {}, {"movflags": "frag_keyframe+empty_moov"}),
    ("two frames a.mp4", even(4, 2), "libx264", Fraction(1, 4), 4, {}, {}),
]  # fmt: skip


def test_there_are_enough_films():
    assert len(FILMS) > 50 and len({case[0] for case in FILMS}) == len(FILMS)


@pytest.mark.parametrize(
    "name, times, codec, time_base, rate, codec_options, container_options", FILMS, ids=[f[0] for f in FILMS]
)
@pytest.mark.filterwarnings("error")
def test_rates_are_those_of_the_times(name, times, codec, time_base, rate, codec_options, container_options, tmp_path):
    path = film(
        tmp_path / name.split()[-1], times, codec, time_base, rate, codec_options=codec_options, **container_options
    )
    if name == "browser a.webm":
        remove_default_duration(path)
    clip, mean = open_video(path), (len(times) - 1) / (times[-1] - times[0])
    steps = {b - a for a, b in zip(times, times[1:])}
    assert clip.total == len(times) == len(list(clip.frames(range(clip.total))))
    if len(steps) == 1 and rate == mean:  # even: the header's own rate, exactly
        assert clip.fps == float(mean)
    assert clip.fps == pytest.approx(float(mean), rel=2e-3)
    taken = sample_frames(clip)
    expected = min(max(len(times) / float(mean) * 2, min(4, len(times))), len(times))
    assert len(taken) == int(expected) // 2 * 2
    assert seconds_per_grid(clip, len(taken), 2)[0] == pytest.approx(
        2 / (len(taken) / len(times) * float(mean)), rel=2e-3
    )


def remove_default_duration(path):
    """As browsers write it: no frame rate in the header of a WebM; the element is overwritten by an empty one."""
    data = bytearray(path.read_bytes())
    at = data.find(bytes.fromhex("23E383"))
    if at >= 0:
        length = data[at + 3] & 0x7F
        data[at : at + 4 + length] = bytes([0xEC, 0x80 | (length + 2)]) + bytes(length + 2)
    path.write_bytes(data)


def levels(clip):
    """Mean grey of each frame."""
    return [float(np.asarray(picture).mean()) for picture in clip.frames(range(clip.total))]


@pytest.mark.parametrize("skipped", [1, 5])
@pytest.mark.filterwarnings("error")
def test_an_edit_list_leaves_frames_out(skipped, tmp_path):
    """The edit list of an mp4 says where the film begins: frames before that are not shown."""
    data = bytearray(film(tmp_path / "a.mp4", even(25), "mpeg4", Fraction(1, 25), 25).read_bytes())
    whole = open_video(bytes(data))
    at = data.index(b"elst") + 12
    duration, media_time = struct.unpack_from(">Ii", data, at)
    (scale,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    struct.pack_into(">Ii", data, at, duration - skipped * 40, media_time + skipped * scale // 25)
    clip = open_video(bytes(data))
    assert (clip.total, clip.fps) == (24 - skipped, 25.0)
    assert levels(clip) == pytest.approx(levels(whole)[skipped:], abs=1)


MATRICES = {
    "as it is": (1, 0, 0, 1), "90 degrees": (0, 1, -1, 0), "180 degrees": (-1, 0, 0, -1), "270 degrees": (0, -1, 1, 0),
    "mirrored left-right": (-1, 0, 0, 1), "mirrored up-down": (1, 0, 0, -1), "mirrored and 90": (0, 1, 1, 0),
    "mirrored and 270": (0, -1, -1, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def quarters(tmp_path_factory):
    """(a film whose quarters have four colours, those pixels)"""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32], pixels[:16, 32:], pixels[16:, :32], pixels[16:, 32:] = (
        (250, 0, 0),
        (0, 250, 0),
        (0, 0, 250),
        (250, 250, 0),
    )
    path = tmp_path_factory.mktemp("films") / "a.mp4"
    return film(path, even(10, 4), time_base=Fraction(1, 10), rate=10, frames=[pixels] * 4).read_bytes(), pixels  # fmt: skip


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrices(name, quarters):
    """A stored pixel (x, y) is shown at (a x + c y, b x + d y), moved to begin at 0 (ISO 14496-12)."""
    data, pixels = bytearray(quarters[0]), quarters[1]
    (a, b, c, d), at = MATRICES[name], data.index(b"tkhd") + 44
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    y, x = np.mgrid[:32, :64]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    expected = np.zeros((down.max() + 1, across.max() + 1, 3), np.float32)
    expected[down, across] = pixels
    shown = np.asarray(next(open_video(bytes(data)).frames([0])), dtype=np.float32)
    assert shown.shape == expected.shape and np.abs(shown - expected).mean() < 30


@pytest.mark.parametrize(
    "name, codec, pix_fmt, options",
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {}),
        ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),  # VP8's encoder has either alpha or hidden frames
        ("a.mkv", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
        ("a.mov", "qtrle", "argb", {}),
        ("a.mkv", "ffv1", "bgra", {}),
        ("a.mov", "png", "rgba", {}),
    ],
)
def test_films_with_alpha_are_over_white(name, codec, pix_fmt, options, tmp_path):
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[:, 24:] = (200, 0, 0, 255)  # the left half: black, and transparent
    path = film(tmp_path / name, even(10, 4), codec, Fraction(1, 10), 10, pix_fmt, [pixels] * 4, options)
    shown = np.asarray(list(open_video(path).frames([0, 3]))[-1], dtype=np.float32)
    assert shown[:, :16].min() > 240 and np.abs(shown[:, 32:] - (200, 0, 0)).max() < 25


def noise(count):
    return [GENERATOR.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("name, codec, options", [
    ("a.mp4", "libx264", {"movflags": "faststart"}), ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ("a.avi", "mpeg4", {}), ("a.mkv", "libx264", {}), ("a.webm", "libvpx", {}), ("a.flv", "libx264", {}),
])  # fmt: skip
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_film_that_breaks_off_gives_what_it_has(name, codec, options, share, tmp_path):
    path = film(tmp_path / name, even(10, 40), codec, Fraction(1, 10), 10, frames=noise(40), **options)
    data, whole = path.read_bytes(), levels(open_video(path))
    with pytest.warns(UserWarning, match="breaks off or is damaged: its first"):
        clip = open_video(data[: int(len(data) * share)])
    assert 3 < clip.total < 40 * share + 4 and clip.fps == 10.0
    # subtle: images after a missing one may be patched up by the decoder; the first ones are exact
    assert levels(clip)[: clip.total // 2] == pytest.approx(whole[: clip.total // 2])


@pytest.mark.parametrize("name, codec", [
    ("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.ts", "libx264"),
])  # fmt: skip
def test_damage_in_the_middle_is_told(name, codec, tmp_path):
    """A frame that cannot be decoded is an Error; a shorter film, or one that the decoder patches up, is a warning."""
    path = film(tmp_path / name, even(10, 40), codec, Fraction(1, 10), 10, frames=noise(40))
    data, whole = bytearray(path.read_bytes()), levels(open_video(path))
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            clip = open_video(bytes(data))
            shown = levels(clip)
        except Error as error:
            assert "is damaged: frame" in str(error) and "ffmpeg -i" in str(error)
            with pytest.raises(Error):
                list(clip.frames([clip.total - 1]))
            shown = levels_before(clip)
        else:
            assert told and all("is damaged" in str(warning.message) for warning in told)
    assert shown[:5] == pytest.approx(whole[:5]) and clip.total > 20


def levels_before(clip):
    """Mean grey of the frames before the one that cannot be decoded."""
    shown = []
    try:
        for picture in clip.frames(range(clip.total)):
            shown.append(float(np.asarray(picture).mean()))
    except Error:
        return shown


def test_nothing_but_a_header_is_no_film(tmp_path):
    data = film(tmp_path / "a.mp4", even(10, 40), frames=noise(40), movflags="faststart").read_bytes()
    for end in (100, data.index(b"mdat") + 4):
        with pytest.raises(Error, match="cannot read the video|has no frames|holds no video"):
            open_video(data[:end])


# ---- animations ----


def animated(path, count=4, **options):
    frames = [Image.new("RGB", (28, 28), (i * 60, 255 - i * 60, 0)) for i in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return open_video(path)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
@pytest.mark.parametrize("given, shown", [(10, 100), (20, 20), (500, 500)])
def test_frames_of_at_most_10_ms_are_shown_for_100(name, given, shown, tmp_path):
    """As in Firefox, Blink and WebKit."""
    assert animated(tmp_path / name, duration=given).fps == pytest.approx(1000 / shown)


def test_a_default_image_is_no_frame(tmp_path):
    colours = ("red", "lime", "blue")
    frames = [Image.new("RGB", (28, 28), colour) for colour in colours]
    Image.new("RGB", (28, 28), "grey").save(
        tmp_path / "a.png", save_all=True, append_images=frames, duration=500, default_image=True
    )
    clip = open_video(tmp_path / "a.png")
    assert (clip.total, clip.fps) == (3, 2.0)
    assert [picture.getpixel((5, 5)) for picture in clip.frames([0, 2])] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("after", [0, 4, 10, 500, 1000])  # bytes: between two frames, and inside one
def test_an_animation_that_breaks_off(after, tmp_path):
    frames = [Image.fromarray(pixels) for pixels in noise(20)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    data = (tmp_path / "a.gif").read_bytes()
    assert open_video(data).total == 20
    end = data.index(b"\x21\xf9\x04", len(data) // 2)  # the start of a frame: its control extension
    with pytest.warns(UserWarning, match="breaks off"):
        clip = open_video(data[: end + after])
    assert 5 < clip.total < 15 and clip.fps == 10 and len(list(clip.frames(range(clip.total)))) == clip.total


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "codec, options",
    [("mpeg2video", {"bf": "2", "g": "8"}), ("libx264", {"x264-params": "keyint=8:bframes=2:open-gop=1"})],
)
def test_a_recording_that_begins_within_a_broadcast(codec, options, tmp_path):
    """Cut at a key frame, its first B-frames need the picture before it, which is not there: no decoder shows them."""
    path = film(tmp_path / "a.ts", even(25, 48), codec, Fraction(1, 25), 25, codec_options=options)
    with av.open(str(path)) as whole, av.open(str(tmp_path / "cut.ts"), "w") as cut:
        stream, keys = whole.streams.video[0], 0
        copy = cut.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            keys += packet.is_keyframe
            if keys >= 2 and packet.size:
                packet.stream = copy
                cut.mux(packet)
    clip = open_video(tmp_path / "cut.ts")
    shown = list(clip.frames(range(clip.total)))
    assert len(shown) == clip.total >= 30 and clip.fps == pytest.approx(25, rel=1e-2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name, codec, sound", [("a.webm", "libvpx", "libopus"), ("a.mkv", "libx264", "aac"), ("a.mp4", "libx264", "aac")]
)
def test_sound_may_be_longer_than_the_picture(name, codec, sound, tmp_path):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream, heard = container.add_stream(codec, rate=10), container.add_stream(sound, rate=48000)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 10 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for i in range(480):  # ten seconds of silence
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000 * 2), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 48000, 1000 * i
            container.mux(heard.encode(frame))
        container.mux(heard.encode())
    clip = open_video(path)
    assert clip.total == len(list(clip.frames(range(clip.total)))) == 20 and clip.fps == pytest.approx(10, rel=2e-3)
