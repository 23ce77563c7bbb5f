"""Images: sources and modes, sizes, pixels and patches."""

import base64
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL import __version__ as pillow_version

from minivl import Error
from minivl.processing.image_processor import ImageProcessor, round_size, smart_resize
from minivl.processing.load_image import open_image
from minivl.processing.load_video import open_video

FACTS = {
    fact["id"]: fact for fact in json.loads((Path(__file__).parents[1] / "known_answers.json").read_text())["facts"]
}
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_sources_give_the_same_pixels(tmp_path):
    image = Image.fromarray(PIXELS)
    path = tmp_path / "a b.png"
    image.save(path)
    data = png(image)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), f"file://{path}", data, uri, image, PIXELS, PIXELS[:, ::-1][:, ::-1], PIXELS / 255):
        opened = open_image(source)
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), PIXELS)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "La", "RGBa"],
)
def test_every_mode_becomes_rgb(mode):
    opened = open_image(Image.new(mode, (5, 4)))
    assert (opened.mode, opened.size) == ("RGB", (5, 4))


def test_transparency_shows_white():
    half = open_image(Image.new("RGBA", (1, 1), (200, 0, 0, 128)))
    assert np.allclose(np.asarray(half), [227, 127, 127], atol=1)
    assert np.asarray(open_image(Image.new("LA", (1, 1), (0, 0)))).tolist() == [[[255, 255, 255]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.info["transparency"] = 1
    assert np.asarray(open_image(palette)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_grey_arrays():
    assert np.asarray(open_image(PIXELS[:, :, 0])).shape == (30, 40, 3)
    assert np.asarray(open_image(PIXELS[:, :, :1])).shape == (30, 40, 3)


@pytest.mark.parametrize(
    "source, words",
    [
        ("no/such.png", "does not exist"),
        (b"not a picture", "not an image that Pillow can read"),
        (png(Image.fromarray(PIXELS))[:900], "cannot read"),
        ("https://example.org/a.png", "Give the path of a downloaded image"),
        ("data:image/png,abc", "must be base64"),
        ("data:image/png;base64,@", "not valid base64"),
        (5, "a int is not an image"),
        (np.zeros((3, 4, 5), dtype=np.uint8), r"\[3, 4, 5\]"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"\[0, 4, 3\]"),
        (np.zeros((4, 4), dtype=np.int32), "array of int32"),
        (np.full((4, 4), 255.0), "Divide by 255"),
    ],
)
def test_bad_pictures(source, words):
    with pytest.raises(Error, match=words):
        open_image(source)


def test_a_folder_is_not_a_picture(tmp_path):
    with pytest.raises(Error, match="is a folder, not a file"):
        open_image(tmp_path)


def test_a_pipe_or_device_is_not_a_picture(tmp_path):
    """A pipe would wait for a writer, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe")
    for source, kind in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device")):
        for opened in (open_image, open_video):
            with pytest.raises(Error, match=f"is {kind}, not a file"):
                opened(source)


def test_uris(tmp_path):
    """As `Path.as_uri` writes them (RFC 8089), with a host, without encoding, in any case of letters, and relative."""
    path = tmp_path / "my scene ü 100%.png"
    Image.fromarray(PIXELS).save(path)
    uri = path.as_uri()
    assert "%20" in uri
    odd = tmp_path / "a#b?c.png"
    Image.fromarray(PIXELS).save(odd)
    for source in (uri, uri.replace("file://", "file://localhost"), uri.replace("file://", "FILE://"), f"file:{path}",
                   f"file://{path}", odd.as_uri(), f"file://{odd}"):  # fmt: skip
        assert np.array_equal(np.asarray(open_image(source)), PIXELS), source
    with pytest.raises(Error, match="names the machine server"):
        open_image("file://server/a.png")
    with pytest.raises(Error, match="does not exist"):
        open_image("file:///no/such.png")


def test_base64_with_and_without_a_header(tmp_path, monkeypatch):
    text = base64.b64encode(png(Image.fromarray(PIXELS))).decode()
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for source in (text, lines, "DATA:image/png;BASE64," + text, "data:image/png;base64," + lines):
        assert np.array_equal(np.asarray(open_image(source)), PIXELS)
    film = base64.b64encode(b"GIF89a" + bytes(100)).decode()
    for opened in (open_image, open_video):
        with pytest.raises(Error, match="given as base64|GIF|R0lGOD"):
            opened(film)


@pytest.mark.parametrize(
    "form", ["{}", "data:image/png;base64,{}", "data:image/png,{}", "file://{}", "a" * 60 + "/{}", "http://a/{}"]
)
def test_errors_do_not_repeat_megabytes(form):
    source = form.format(base64.b64encode(np.random.default_rng(0).bytes(2_000_000)).decode())
    for opened in (open_image, open_video):
        with pytest.raises(Error) as caught:
            opened(source)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bits(name, tmp_path):
    """All 256 levels, each the high byte (PNG specification, 13.12): the same image as in 8 bits."""
    grey = np.arange(256, dtype=np.uint16)[None].repeat(8, 0)
    if name == "a.pgm":  # older Pillows read it and do not write it
        (tmp_path / name).write_bytes(b"P5 256 8 65535\n" + (grey * 257).astype(">u2").tobytes())
    else:
        Image.fromarray(grey * 257).save(tmp_path / name)
    for source in (tmp_path / name, Image.fromarray(grey * 257), Image.fromarray(grey * 256 + 200)):
        assert np.array_equal(np.asarray(open_image(source)), np.repeat(grey[..., None], 3, axis=2))


def test_a_transparent_value_of_16_bits(tmp_path):
    grey = np.array([[0x1234, 0x1235, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=0x1234)
    image = Image.open(tmp_path / "a.png")
    assert image.info["transparency"] == 0x1234
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 0x12, 255]


@pytest.mark.parametrize("mode, values", [("I", [0, 70000]), ("I", [-5, 9]), ("F", [0.0, 0.7]), ("F", [0.0, 300.0])])
def test_grey_whose_white_is_unknown(mode, values):
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    with pytest.raises(Error, match="nothing says which is white"):
        open_image(image)


@pytest.mark.parametrize("case", FACTS["smart_resize"]["output"], ids=lambda case: f"{case['width']}x{case['height']}")
def test_smart_resize_known_answers(case):
    arguments = [case[key] for key in ("height", "width")]
    limits = {key: case[key] for key in ("min_pixels", "max_pixels")}
    if case["hf_5_23"] == "ValueError":
        with pytest.raises(Error, match="more than 200 times"):
            smart_resize(*arguments, **limits)
    else:
        assert list(smart_resize(*arguments, **limits)) == case["hf_5_23"]


@given(st.integers(28, 3000), st.integers(28, 3000))
def test_smart_resize_keeps_its_promises(height, width):
    H, W = smart_resize(height, width)
    assert H % 28 == W % 28 == 0 and H >= 28 and W >= 28
    assert 3136 <= H * W and (H * W <= 28 * 28 * 1280 or min(H, W) == 28)


def test_normalize_known_answers():
    known = FACTS["normalize"]["output"]
    values = np.array([int(v) for v in known], dtype=np.uint8)
    result = ImageProcessor().normalize(np.repeat(values[None, :, None], 3, axis=2))
    assert result.dtype == np.float32 and result.shape == (3, 1, 5)
    np.testing.assert_array_equal(result[:, 0].T, np.array(list(known.values()), dtype=np.float32))


def test_patch_order_known_answers():
    known = FACTS["patch_order"]["output"]
    H, W = 56, 84
    picture = np.arange(3 * H * W, dtype=np.float32).reshape(1, 3, H, W)
    patches, grid = ImageProcessor().patchify(picture)
    assert [list(grid)] == known["grid"] and list(patches.shape) == known["shape"]
    number = lambda place: place[0] * H * W + place[1] * W + place[2]  # noqa: E731
    assert [int(v) for v in patches[:, 0]] == [number(place) for place in known["first_pixel_of_row"]]
    for column, place in known["row0_cols"].items():
        assert patches[0, int(column)] == number(place)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_unpatchify_is_the_inverse(frames, rows, columns):
    processor = ImageProcessor(patch_size=2)
    picture = np.random.default_rng(frames).random((frames, 3, rows * 4, columns * 4), dtype=np.float32)
    patches, grid = processor.patchify(picture)
    back = processor.unpatchify(patches, grid)
    np.testing.assert_array_equal(back[:frames], picture)
    np.testing.assert_array_equal(back[frames:], picture[-1:].repeat(len(back) - frames, axis=0))


def test_bicubic_is_the_installed_pillows():
    """Pillow's own known answers, and `resized` gives Pillow's pixels."""
    known = FACTS["pil_bicubic"]["output"]
    one = (37 * np.arange(48) % 251).astype(np.uint8).reshape(6, 8)
    assert np.asarray(Image.fromarray(one).resize((5, 4), Image.Resampling.BICUBIC)).tolist() == known["pillow"]
    two = (53 * np.arange(120) % 254).astype(np.uint8).reshape(10, 12)
    order = "vertical_first_pillow13" if int(pillow_version.split(".")[0]) >= 13 else "horizontal_first"
    assert np.asarray(Image.fromarray(two).resize((11, 6), Image.Resampling.BICUBIC)).tolist() == known[order]
    processor = ImageProcessor(patch_size=1, min_pixels=4, max_pixels=70)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (10, 12, 3), dtype=np.uint8))
    height, width = smart_resize(10, 12, 2, 4, 70)
    expected = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    assert (height, width) == (6, 8) and np.array_equal(processor.resize(noise), expected)


def test_files_are_turned_upright_and_pictures_taken_as_they_are(tmp_path):
    """EXIF orientation 6: the camera was held on its side; the first row becomes the last column."""
    sideways = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(PIXELS, -1)
    stored = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", f"file://{tmp_path}/a.png", stored):
        assert np.array_equal(np.asarray(open_image(source)), upright)
    assert np.array_equal(np.asarray(open_image(Image.open(tmp_path / "a.png"))), PIXELS)


def test_the_size_that_a_message_wishes():
    assert round_size(100, 60) == (112, 56)
    for bad in ((100, None), (0, 5), (5.5, 60), (10**12, 60)):
        with pytest.raises(Error, match="resized_height="):
            round_size(*bad)


@pytest.mark.parametrize("std", ([0, 1, 1], [1, float("nan"), 1]))
def test_a_std_of_nothing(std, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_std": std}))
    with pytest.raises(Error, match="image_std above 0"):
        ImageProcessor.read(tmp_path)


def test_resized_stays_within_the_limits_of_the_call():
    processor, image = ImageProcessor(), Image.fromarray(PIXELS)
    assert processor.resize(image).shape == (56, 84, 3)
    assert (
        processor.resize(image, min_pixels=40000).shape[0] * processor.resize(image, min_pixels=40000).shape[1] >= 40000
    )
    big = Image.new("RGB", (800, 600))
    assert np.prod(processor.resize(big, max_pixels=100000).shape[:2]) <= 100000
    assert np.prod(processor.resize(big, max_pixels=1000).shape[:2]) <= 1000  # the stored minimum gives way


@pytest.mark.parametrize(
    "limits", [dict(min_pixels=9000, max_pixels=8000), dict(max_pixels=700), dict(min_pixels=-1), dict(min_pixels=1e20)]
)
def test_bad_limits(limits):
    with pytest.raises(Error, match="min_pixels="):
        ImageProcessor().resize(Image.fromarray(PIXELS), **limits)


@pytest.mark.parametrize(
    "name, stored",
    [
        ("preprocessor_config.json", {"min_pixels": 784, "max_pixels": 7840, "image_mean": [0, 0, 0]}),
        ("preprocessor_config.json", {"size": {"shortest_edge": 784, "longest_edge": 7840}, "image_mean": [0, 0, 0]}),
        (
            "preprocessor_config.json",
            {
                "min_pixels": 784,
                "max_pixels": 7840,
                "size": {"shortest_edge": 1, "longest_edge": 2},
                "image_mean": [0, 0, 0],
            },
        ),
        (
            "processor_config.json",
            {"image_processor": {"min_pixels": 784, "max_pixels": 7840, "image_mean": [0, 0, 0]}},
        ),
    ],
)
def test_processor_files(tmp_path, name, stored):
    (tmp_path / name).write_text(json.dumps(stored))
    processor = ImageProcessor.read(tmp_path)
    assert (processor.min_pixels, processor.max_pixels, processor.image_mean) == (784, 7840, (0, 0, 0))


def test_processor_without_a_file(tmp_path):
    assert ImageProcessor.read(tmp_path) == ImageProcessor() and ImageProcessor().max_pixels == 1003520


SIZES = [  # (fields of preprocessor_config.json, the limits; None where transformers 5 refuses them, and minivl does)
    ({"size": {"shortest_edge": 784, "longest_edge": 7840}}, (784, 7840)),
    ({"size": None}, (3136, 1003520)),
    ({"min_pixels": 784, "max_pixels": 7840, "size": {"min_pixels": 1, "max_pixels": 2}}, (784, 7840)),  # of 4.49
    ({"max_pixels": 7840, "size": {"shortest_edge": 784, "longest_edge": 1}}, (784, 7840)),
    ({"max_pixels": 7840, "size": {"shortest_edge": 784, "longest_edge": 1, "max_pixels": 5}}, (784, 7840)),
    ({"max_pixels": 1003520}, (3136, 1003520)),
    ({"size": {"min_pixels": 12544, "max_pixels": 200704}}, None),
    ({"size": {"height": 280, "width": 280}}, None),
    ({"size": {"shortest_edge": 784, "longest_edge": 7840, "height": 280, "width": 280}}, None),
    ({"min_pixels": 784, "max_pixels": 7840, "size": {"height": 280, "width": 280}}, None),
    ({"size": {"longest_edge": 200704}}, None),
    ({"max_pixels": 200704, "size": {}}, None),
    ({"size": 448}, None),
    ({"size": [448, 448]}, None),
    ({"min_pixels": 784, "max_pixels": 7840, "size": {"edge": 1}}, None),
]


@pytest.mark.parametrize("stored, limits", SIZES)
def test_size_in_all_spellings(tmp_path, stored, limits):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    if limits is None:
        with pytest.raises(Error, match="size is "):
            ImageProcessor.read(tmp_path)
    else:
        processor = ImageProcessor.read(tmp_path)
        assert (processor.min_pixels, processor.max_pixels) == limits


@pytest.mark.parametrize("value", ["3136", True, 0, -1, 1e300, float("nan"), [3136]])
def test_a_stored_limit_is_a_number_of_pixels(tmp_path, value):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": value}))
    with pytest.raises(Error, match="min_pixels is .*; it must be a number of pixels"):
        ImageProcessor.read(tmp_path)


@pytest.mark.parametrize("name", ["data1", "httpd", "files", "http1"])
def test_a_file_whose_name_begins_like_a_scheme(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (28, 28), "red").save(name, format="PNG")
    assert open_image(name).size == (28, 28)


def handmade_png(depth, colour_type, rows, transparent):
    """A PNG with so many bits a sample, made by hand: Pillow writes none of these."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    channels = 3 if colour_type == 2 else 1
    width, height = len(rows[0]) // channels, len(rows)
    lines = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        lines += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header),
        chunk(b"tRNS", struct.pack(f">{channels}H", *transparent)),
        chunk(b"IDAT", zlib.compress(lines)),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "depth, colour_type, row, transparent, expected",
    [
        (4, 0, [8, 15, 0], [8], [255, 255, 0]),
        (2, 0, [1, 2, 3], [1], [255, 170, 255]),
        (8, 0, [8, 16, 0], [8], [255, 16, 0]),
        (16, 2, [0x1200] * 3 + [0] * 3, [0x1200] * 3, [255, 0]),
    ],
)
def test_a_transparent_colour_of_any_depth(depth, colour_type, row, transparent, expected):
    image = open_image(handmade_png(depth, colour_type, [row], transparent))
    assert np.asarray(image).reshape(-1, 3)[:, 0].tolist() == expected


def grey_tiff(values, bits, photometric):
    """An uncompressed grey TIFF of one strip. photometric: 1, or 0 if 0 is white."""
    height, width = values.shape
    if bits == 12:  # two values in three bytes
        a, b = values.reshape(-1)[::2].astype(int), values.reshape(-1)[1::2].astype(int)
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype(np.uint8).tobytes()
    else:
        data = values.astype(f"<u{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_of_tiff_files(bits):
    """Pillow leaves 12 bits as they are, in a mode of 16, and does not invert 16 bits of which 0 is white."""
    most = 2**bits - 1
    values = np.repeat(np.array([[0, most // 2, most, most]]), 4, axis=0)
    for photometric, expected in ((1, [0, 127, 255, 255]), (0, [255, 128, 0, 0]))[: 1 + (bits != 12)]:  # not read by Pillow
        file = grey_tiff(values, bits, photometric)
        pixels = np.asarray(open_image(file))
        assert np.abs(pixels[0, :, 0].astype(int) - expected).max() <= 1 and (pixels == pixels[:1]).all()
        assert np.array_equal(pixels, np.asarray(open_image(Image.open(io.BytesIO(file)))))


def test_alpha_of_a_palette_and_of_no_band():
    """A palette may hold alpha itself; the A of LAB is a colour."""
    painted = Image.new("RGBA", (8, 8), (200, 30, 40, 0))
    palette = painted.quantize(8)
    assert palette.mode == "P" and (np.asarray(open_image(palette)) == 255).all()
    lab = Image.new("LAB", (8, 8), (100, 128, 128)).resize((4, 4))
    assert np.asarray(open_image(lab)).max() < 200


def test_grey_of_16_bits_is_turned_upright():
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 4000
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = 6  # turn by 90 degrees
    Image.fromarray(values).save(file, "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(file.getvalue()))[..., 0], np.rot90(values >> 8, -1))
