"""Bad prompts: images, videos, messages, options, inputs made by hand, edits, caches."""

import base64
import io
import os

import numpy as np
from bad_inputs.common import Bad, tiny, write
from PIL import Image

from minivl.processing.inputs import Inputs

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
QUESTION = "How many?"


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG, JPEG = encode(Image.fromarray(NOISE)), encode(Image.fromarray(NOISE), "JPEG")
GIF = encode(
    Image.fromarray(NOISE), "GIF", save_all=True, append_images=[Image.fromarray(255 - NOISE)] * 9, duration=100
)


def count(**media):
    return lambda folder: tiny().count_tokens(QUESTION, **media)


def image(name, source, cause, fix):
    return Bad(f"image: {name}", count(images=[source]), cause, fix)


def image_file(name, content, cause, fix, file="a.png"):
    act = lambda folder: tiny().count_tokens(QUESTION, images=folder / file)  # noqa: E731
    return Bad(f"image: {name}", act, cause, fix, content if callable(content) else lambda f: write(f, file, content))


def video(name, source, cause, fix):
    return Bad(f"video: {name}", count(videos=[source]), cause, fix)


def video_file(name, content, cause, fix, file="a.mp4"):
    act = lambda folder: tiny().count_tokens(QUESTION, videos=folder / file)  # noqa: E731
    return Bad(f"video: {name}", act, cause, fix, content if callable(content) else lambda f: write(f, file, content))


def uri(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


IMAGES = [
    image("no such file", "no/such.png", "the image no/such.png does not exist.", "Check the path."),
    image("no such file, a URI", "file:///no/such.png", "the image file:///no/such.png does not", "Check the path."),
    image("on another machine", "file://server/share/a.png", "file://server/share/a.png names the",
          "Give a path, or a URI such as"),
    image("in the network", "https://example.org/a.png", "https://example.org/a.png: minivl fetches",
          "Give the path of a downloaded"),
    image("a number", 5, "a int is not an image. Give a path,", "Give a path, bytes, a PIL image or"),
    image("an empty string", "", "the image . is a folder, not a file.", "Give the path of a file."),
    image("a path with a zero byte", "a\0.png", "does not exist", "Check the path."),
    image("a folder", "/", "the image / is a folder, not a file.", "Give the path of a file."),
    image("no bytes", b"", "given as bytes is not an image that", "a film is a video."),
    image("bytes of text", b"hello" * 20, "given as bytes is not an image that", "a film is a video."),
    image("a cut PNG", PNG[:2000], "cannot read the image", "Is it whole?"),
    image("a cut JPEG", JPEG[:700], "cannot read the image", "Is it whole?"),
    image("a damaged PNG", PNG[:60] + bytes(40) + PNG[100:], "cannot read the image", "Is it whole?"),
    image("a PDF", b"%PDF-1.7\n" * 9, "given as bytes is not an image that", "a film is a video."),
    image("an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "given as bytes is not an image that",
          "a film is a video."),
    image("a film", b"\x00\x00\x00\x20ftypisom" + bytes(200), "given as bytes is not an image that", "a film is a video."),
    image("a data URI without base64", "data:image/png,abc", "the data URI of the image must be base64:",
          "data:image/png;base64,..."),
    image("a data URI cut short", uri(PNG)[:-3], "the data URI of the image is not valid", "Was it cut?"),
    image("a data URI of text", uri(b"hello" * 20), "from a data URI is not an image that", "a film is a video."),
    image("a data URI of a megabyte of noise", "data:image/png;base64," + "!" * 1_000_000,
          "the data URI of the image is not valid", "Was it cut?"),
    image("a megabyte of letters", "x" * 1_000_000, "the image", "Check the path."),
    image("array of three pixels", np.zeros(3, np.uint8), "an array of shape [3] is not an image.",
          "Give [H, W], [H, W, 3] or [H, W,"),
    image("array of two colours", np.zeros((4, 4, 2), np.uint8), "an array of shape [4, 4, 2] is not a",
          "Give [H, W], [H, W, 3] or [H, W,"),
    image("array with the colours first", np.zeros((3, 64, 64), np.uint8), "an array of shape [3, 64, 64] is not a",
          "Give [H, W], [H, W, 3] or [H, W,"),
    image("array of no pixels", np.zeros((0, 4, 3), np.uint8), "an array of shape [0, 4, 3] is not a",
          "Give [H, W], [H, W, 3] or [H, W,"),
    image("array of int64", np.zeros((4, 4, 3), np.int64), "an array of int64 is not an image. Give",
          "Give uint8 from 0 to 255, or"),
    image("floats up to 255", np.full((4, 4, 3), 255.0), "floats of an image must lie in 0..1;", "Divide by 255?"),
    image("floats with NaN", np.full((4, 4, 3), np.nan), "floats of an image must lie in 0..1;", "Divide by 255?"),
    image("negative floats", np.full((4, 4, 3), -0.5), "floats of an image must lie in 0..1;", "Divide by 255?"),
    image("201 times as long as wide", Image.new("RGB", (2010, 10)), "an image of 2010 x 10 pixels is more",
          "Cut it up."),
    image("grey of 32 bits", Image.fromarray(np.full((64, 64), 70_000, np.int32)),
          "the image has grey values from 70000", "Give values from 0 to 255 in mode"),
    image("a class", Image.Image, "a type is not an image. Give a path,", "Give a path, bytes, a PIL image or"),
    image_file("a pipe", lambda folder: os.mkfifo(folder / "a.png"), "the image", "Give the path of a file."),
    image_file("an empty file", b"", "is not an image that Pillow can read.", "a film is a video."),
    image_file("a link to nowhere", lambda folder: (folder / "a.png").symlink_to(folder / "gone"), "the image",
               "Check the path."),
    image_file("a PSD's first bytes", b"8BPS\0\1" + bytes(50), "is not an image that Pillow can read.",
               "a film is a video."),
    image_file("a WebP's first bytes", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20), "cannot read the image",
               "Is it whole?", "a.webp"),
]  # fmt: skip
VIDEOS = [
    video("no such file", "no/such.mp4", "the video no/such.mp4 does not exist.", "Check the path."),
    video("in the network", "http://example.org/a.mp4", "http://example.org/a.mp4: minivl fetches",
          "Give the path of a downloaded"),
    video("a number", 5, "a int is not a video. Give a path,", "Give a path, bytes, a list or an"),
    video("an empty list", [], "a list of no frames is not a video. Give", "Give at least one."),
    video("no bytes", b"", "cannot read the video", "Is it whole?"),
    Bad("video: frames of two sizes",
        lambda folder: tiny().ask(QUESTION, videos=[[Image.new("RGB", (56, 56)), Image.new("RGB", (224, 56))]]),
        "the frames of a video must have one", "Scale them before."),
    video("an image", PNG, "the video given as bytes is an image", "videos=[[first, second, ...]]."),
    video("an image's path among frames", ["no/such.png"] * 2, "the image no/such.png does not exist.", "Check the path."),
    video("an array of one image", np.zeros((64, 64, 3), np.uint8), "an array [64, 64, 3] is not a video.",
          "frames, rows, columns, colours."),
    video("an array of integers", np.zeros((4, 64, 64, 3), np.int32), "an array of int32 is not an image. Give",
          "Give uint8 from 0 to 255, or"),
    video("text as bytes", b"hello" * 50, "cannot read the video", "Is it whole?"),
    video_file("an empty film", b"", "cannot read the video", "Is it whole?"),
    video_file("a film's first bytes", b"\x00\x00\x00\x20ftypisom" + bytes(200), "cannot read the video",
               "Is it whole?"),
    video_file("a WebM's first bytes", bytes.fromhex("1A45DFA3") + bytes(200), "cannot read the video",
               "Is it whole?", "a.webm"),
    video_file("a folder", lambda folder: (folder / "a.mp4").mkdir(), "the video", "Give the path of a file."),
    video_file("a pipe", lambda folder: os.mkfifo(folder / "a.mp4"), "the video", "Give the path of a file."),
]  # fmt: skip


def messages(name, prompt, cause, fix):
    return Bad(f"messages: {name}", lambda folder: tiny().count_tokens(prompt), cause, fix)


def content(name, items, cause, fix):
    return messages(name, [{"role": "user", "content": items}], cause, fix)


def item(name, fields, cause, fix):
    return content(name, [{"type": "image", "image": PNG, **fields}, {"type": "text", "text": "?"}], cause, fix)


def clip(name, fields, cause, fix):
    return content(name, [{"type": "video", "video": GIF, **fields}, {"type": "text", "text": "?"}], cause, fix)


MESSAGES = [
    messages("None", None, "messages is a NoneType; it must be a", "...}."),
    messages("a number", 7, "messages is a int; it must be a list of", "...}."),
    Bad("messages: none", lambda folder: tiny().chat([]), "there are no messages to answer. Give at", '"..."}.'),
    messages("a dict", {"role": "user", "content": "Hi"}, "messages is a dict; it must be a list of", "...}."),
    messages("texts", ["Hi", "Ho"], "message 0 is 'Hi'; it must be {\"role\":", "...}."),
    messages("no role", [{"content": "Hi"}], "message 0 is {'content': 'Hi'}; it must", "...}."),
    messages("role a number", [{"role": 1, "content": "Hi"}], "message 0 is {'role': 1, 'content':", "...}."),
    messages("no content", [{"role": "user"}], "message 0 is {'role': 'user'}; it must", "...}."),
    content("content None", None, "the content of message 0 is a NoneType;", "...}."),
    content("content a number", 3, "the content of message 0 is a int; it", "...}."),
    content("content a dict", {"type": "text", "text": "Hi"}, "the content of message 0 is a dict; it", "...}."),
    content("an item of text", ["Hi"], "the content of message 0 holds a str; it", "...}."),
    content("an empty item", [{}], "an item with nothing in it has no text,", 'such as {"type": "text"'),
    content("an unknown type", [{"type": "audio", "audio": "a.wav"}], "an item of type 'audio' has no text,",
            'such as {"type": "text"'),
    content("a file in an item of text", [{"type": "text", "text": "?", "image_path": "a.png"}],
            "an item of text has 'image_path',", 'Give {"type": "text"'),
    content("text of another type", [{"type": "audio", "text": "?"}], "an item of text is of type 'audio',",
            'Give {"type": "text"'),
    content("an image in a video", [{"type": "video", "image": PNG}], "an item of type 'video' has an image:",
            'give {"type": "image"'),
    content("a size inside image_url", [{"type": "image_url", "image_url": {"url": PNG, "max_pixels": 1000}}],
            "image_url holds 'max_pixels', which is", "Sizes stand beside image_url."),
    messages("files beside the content", [{"role": "user", "content": "?", "image_path": "a.png"}],
             "message 0 has image_path beside its", "Put each into the content:"),
    messages("a function call", [{"role": "assistant", "content": "", "function_call": {"name": "f"}}],
             "message 0 has function_call, which the", "Write it into the content."),
    content("text a number", [{"type": "text", "text": 3}], "the text of an item is 3, not a", '"..."}.'),
    content("text without its text", [{"type": "text"}], "an item of type 'text' has no text,",
            'such as {"type": "text"'),
    content("an image without its source", [{"type": "image"}], 'an item of type "image" has no image:', "...}."),
    content("image_url without a url", [{"type": "image_url", "image_url": {}}],
            'an item of type "image" has no image:', "...}."),
    item("an image twice", {"path": "a.png"}, "an item has image and path: one image", "one image to an item."),
    item("text beside an image", {"text": "What is it?"}, '"text" is unknown beside an image:',
         "Text is an item of its own."),
    item("a mistyped option", {"max_pixel": 5}, '"max_pixel" is unknown beside an image:', "Text is an item of its own."),
    item("fps of an image", {"fps": 2}, '"fps" is unknown beside an image: there', "Text is an item of its own."),
    item("min_pixels a fraction", {"min_pixels": 1.5}, "min_pixels=1.5: it must be an integer",
         "it must be an integer above 0."),
    item("min_pixels true", {"min_pixels": True}, "min_pixels=True: it must be an integer",
         "it must be an integer above 0."),
    item("max_pixels text", {"max_pixels": "1000"}, "max_pixels='1000': it must be an integer",
         "it must be an integer above 0."),
    item("max_pixels below one token", {"max_pixels": 100}, "min_pixels=100, max_pixels=100: they",
         "Qwen recommends 256 * 784 to 1280"),
    item("limits exchanged", {"min_pixels": 50_000, "max_pixels": 10_000}, "min_pixels=50000, max_pixels=10000: they",
         "Qwen recommends 256 * 784 to 1280"),
    item("resized_height alone", {"resized_height": 280}, "resized_height=280, resized_width=None:",
         "give both, integers in pixels,"),
    item("resized_height 0", {"resized_height": 0, "resized_width": 280}, "resized_height=0: it must be an integer",
         "it must be an integer above 0."),
    item("a requested size of 10^9", {"resized_height": 10**9, "resized_width": 28},
         "an image of 28 x 1000000000 pixels is", "Cut it up."),
    clip("fps 0", {"fps": 0}, "fps=0: it must be a number above 0, at", "at most 100,000."),
    clip("fps negative", {"fps": -1}, "fps=-1: it must be a number above 0, at", "at most 100,000."),
    clip("fps 10^12", {"fps": 1e12}, "fps=1000000000000.0: it must be a number", "it must be a number above 0, at"),
    clip("fps NaN", {"fps": float("nan")}, "fps=nan: it must be a number above 0, at", "at most 100,000."),
    clip("fps text", {"fps": "2"}, "fps='2': it must be a number above 0, at", "at most 100,000."),
    clip("nframes 1", {"nframes": 1}, "of 2 frames, 0 would be taken; their", "Choose it with nframes=, or give a"),
    clip("nframes more than there are", {"nframes": 100}, "of 2 frames, 100 would be taken; their",
         "Choose it with nframes=, or give a"),
    clip("nframes a fraction", {"nframes": 4.0}, "nframes=4.0: it must be an integer",
         "it must be an integer above 0."),
    clip("fps and nframes", {"fps": 2, "nframes": 4}, "nframes is the number of frames to take;", "Choose one."),
    clip("max_frames below min_frames", {"min_frames": 8, "max_frames": 1}, "of 2 frames, 0 would be taken; their",
         "Choose it with nframes=, or give a"),
    clip("total_pixels text", {"total_pixels": "many"}, "total_pixels='many': it must be an integer",
         "it must be an integer above 0."),
    clip("video_start", {"video_start": 3.0}, '"video_start": 3.0: minivl takes videos', "Cut it before."),
    content("a placeholder in the text", [{"type": "text", "text": "<|image_pad|>"}],
            "the prompt has 1 <|image_pad|> and there", "a message's text must not contain"),
    messages("half a surrogate", "\ud800", "the text is not valid Unicode", "Read it as UTF-8."),
    messages("tool calls", [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
             "message 0 has tool_calls, which the chat", "Write it into the content."),
    Bad("messages: images beside messages",
        lambda folder: tiny().count_tokens([{"role": "user", "content": "Hi"}], images=PNG),
        "images= goes with a question in text", "in messages, put each image into"),
    Bad("messages: ask_many of a text", lambda folder: tiny().ask_many("Hi"),
        "prompts is a str; it must be a list with", "it must be a list with one entry"),
    Bad("messages: ask_many of numbers", lambda folder: tiny().ask_many([3]), "prompt 0 is 3; it must be a question,",
        "...} or a list of messages, in a"),
    Bad("messages: ask_many with a missing file", lambda folder: tiny().ask_many(["Hi", {"question": "?",
        "images": "no/such.png"}]), "prompt 1: no/such.png does not exist.", "Check the path."),
    Bad("messages: ask_many with a mistyped key", lambda folder: tiny().ask_many([{"question": "?", "image": PNG}]),
        "prompt 0 has image, which is unknown", "there are images and videos."),
]  # fmt: skip


def option(name, cause, fix, **options):
    return Bad(f"option: {name}", lambda folder: tiny().ask("Hi", **options), cause, fix)


OPTIONS = [
    option("mistyped", "unknown generation option temprature.", "min_pixels, max_pixels, fps,", temprature=0.5),
    option("of beams", "unknown generation option num_beams.", "min_pixels, max_pixels, fps,", num_beams=4),
    option("of transformers", "unknown generation option min_p. There", "min_pixels, max_pixels, fps,", min_p=0.1),
    option("stop strings", "unknown generation option stop. There", "min_pixels, max_pixels, fps,", stop=["\n"]),
    option("temperature negative", "temperature=-1: it must be a number, at", "greedy).", temperature=-1),
    option("temperature NaN", "temperature=nan: it must be a number, at", "greedy).", temperature=float("nan")),
    option("temperature text", "temperature='0.5': it must be a number,", "greedy).", temperature="0.5"),
    option("temperature true", "temperature=True: it must be a number,", "greedy).", temperature=True),
    option("top_p 0", "top_p=0: it must be a number above 0 and", "no limit).", top_p=0),
    option("top_p 1.5", "top_p=1.5: it must be a number above 0", "no limit).", top_p=1.5),
    option("top_k negative", "top_k=-1: it must be an integer, at", "no limit).", top_k=-1),
    option("top_k a fraction", "top_k=2.5: it must be an integer, at", "no limit).", top_k=2.5),
    option("repetition_penalty 0", "repetition_penalty=0: it must be a", "no penalty).", repetition_penalty=0),
    option("max_new_tokens 0", "max_new_tokens=0: it must be an integer", "it must be an integer, at", max_new_tokens=0 ),
    option("max_new_tokens a fraction", "max_new_tokens=5.0: it must be an integer",
           "it must be an integer, at", max_new_tokens=5.0),
    option("max_new_tokens 10^400", "max_new_tokens=a number of many digits:",
           "it must be an integer, at", max_new_tokens=10**400),
    option("do_sample text", "do_sample='yes': it must be true or", "it must be true or false.", do_sample="yes"),
    option("seed negative", "seed=-1: it must be an integer, at", "at least 0.", seed=-1),
    option("seed text", "seed='x': it must be an integer, at", "at least 0.", seed="x"),
    option("fps without a video", "fps= chooses frames of a video, and", "Leave it out, or give videos=.", fps=2),
    option("nframes without a video", "nframes= chooses frames of a video, and", "Leave it out, or give videos=.", nframes=4),
    option("min_pixels of an image, a word", "min_pixels='many': it must be an integer",
           "it must be an integer above 0.", images=PNG, min_pixels="many"),
    option("a cache of something else", "the cache is not one of this model's.",
           "Make it with vlm.new_cache(), of", cache={}),
]  # fmt: skip


def by_hand(name, cause, fix, **fields):
    whole = {"input_ids": np.array([1, 2, 3]), "pixel_values": np.zeros((0, 1176), np.float32),
             "image_grid_thw": np.zeros((0, 3), np.int64)}  # fmt: skip
    return Bad(f"inputs: {name}", lambda folder: tiny().trace(Inputs(**{**whole, **fields})), cause, fix)


IMAGE_TOKENS = [766] * 4  # placeholders of ONE_IMAGE
ONE_IMAGE = {"pixel_values": np.zeros((16, 1176), np.float32), "image_grid_thw": np.array([[1, 4, 4]])}
INPUTS = [
    by_hand("no ids", "input_ids is int64 [0]; it must be integers",
            "it must be integers [T], at", input_ids=np.zeros(0, np.int64)),
    by_hand("ids of fractions", "input_ids is float64 [1]; it must be",
            "it must be integers [T], at", input_ids=np.array([1.5])),
    by_hand("ids of two axes", "input_ids is int64 [1, 2]; it must be",
            "it must be integers [T], at", input_ids=np.array([[1, 2]])),
    by_hand("an id beyond the table", "token id 768 is outside the embedding",
            "your own ids must lie in the", input_ids=np.array([1, 768])),
    by_hand("a negative id", "token id -1 is outside the embedding",
            "your own ids must lie in the", input_ids=np.array([1, -1])),
    by_hand("a grid without patches", "pixel_values is float32 [0, 1176]; for",
            "a row for each patch.", image_grid_thw=np.array([[1, 4, 4]])),
    by_hand("a grid of 0", "image_grid_thw is int64 [1, 3]; it must",
            "it must be integers above 0,", image_grid_thw=np.array([[1, 0, 4]])),
    by_hand("a grid of odd rows", "image_grid_thw holds [[1, 3, 4]]; rows", "rows and columns must be multiples",
            image_grid_thw=np.array([[1, 3, 4]]), pixel_values=np.zeros((12, 1176), np.float32)),
    by_hand("a grid whose product overflows", "pixel_values is float32 [0, 1176]; for",
            "a row for each patch.", image_grid_thw=np.array([[2**31, 2**31, 4]])),
    by_hand("a grid of two numbers", "image_grid_thw is int64 [1, 2]; it must",
            "it must be integers above 0,", image_grid_thw=np.array([[4, 4]])),
    by_hand("a grid of 2^31", "pixel_values is float32 [0, 1176]; for",
            "a row for each patch.", image_grid_thw=np.array([[1, 2**31, 2]])),
    by_hand("patches of another width", "pixel_values is float32 [16, 588]; for",
            "a row for each patch.", pixel_values=np.zeros((16, 588), np.float32), image_grid_thw=np.array([[1, 4, 4]])),
    by_hand("patches of integers", "pixel_values is int64 [16, 1176]; for",
            "a row for each patch.", pixel_values=np.zeros((16, 1176), np.int64), image_grid_thw=np.array([[1, 4, 4]])),
    by_hand("too few placeholders", "the image placeholders that start at", "Expand each placeholder to grid_t",
            input_ids=np.array(IMAGE_TOKENS[:3]), **ONE_IMAGE),
    by_hand("too many placeholders", "the prompt has more image placeholders", "Pass one image for each.",
            input_ids=np.array(IMAGE_TOKENS * 2), **ONE_IMAGE),
    by_hand("seconds of 0", "second_per_grid_ts is [0.0]; it must be",
            "it must be a number of seconds", second_per_grid_ts=np.zeros(1, np.float32)),
    by_hand("a prompt beyond the context", "the prompt has 5000 tokens; the model's",
            "Lower max_pixels, send fewer", input_ids=np.ones(5000, np.int64)),
]  # fmt: skip


def edit(name, edits, cause, fix, **options):
    return Bad(f"edit: {name}", lambda folder: tiny().trace("Hi", edit=edits, **options), cause, fix)


def returning(value):
    return {"model.layers.0": lambda x: value}


def in_place(x):
    x[0] = 0
    return x


EDITS = [
    edit("a list", ["model.layers.0"], "edit=['model.layers.0']: give a dict", "array or function of the tensor}."),
    edit("a mistyped name", {"model.layer.0": np.zeros(3)}, "no tensor of this run is called",
         "Did you mean model.layers.0 or"),
    edit("a layer that is not there", {"model.layers.9": np.zeros(3)}, "no tensor of this run is called",
         "Did you mean model.layers.4 or"),
    edit("returns None", returning(None), "the edit of model.layers.0 returned", "Return the array that should take"),
    edit("returns text", returning("x"), "the replacement for model.layers.0 is", "Send back an array of the same"),
    edit("returns another shape", returning(np.zeros((2, 2), np.float32)), "the replacement for model.layers.0 is",
         "Send back an array of the same"),
    edit("returns NaN", {"model.layers.0": lambda x: x * np.nan}, "768 of 768 scores of the next token are",
         "vlm.trace(...) shows the first"),
    edit("returns float64", {"model.layers.0": lambda x: x.astype(np.float64)},
         "the replacement for model.layers.0 is", "Send back an array of the same"),
    edit("writes in place", {"model.layers.0": in_place}, "the edit of model.layers.0 writes into",
         "Change a copy, x = x.copy(), and"),
    edit("an array of another shape", {"model.layers.0": np.zeros((2, 2), np.float32)},
         "the replacement for model.layers.0 is", "Send back an array of the same"),
    edit("an id beyond the table", {"input_ids": lambda x: x + 10_000}, "token id 10755 is outside the embedding",
         "your own ids must lie in the"),
    edit("a token beyond the table", {"next_token": np.array([768])}, "next_token 768 was put in: give an id",
         "give an id from 0 to 767."),
    edit("a grid of 2^31", {"image_grid_thw": np.array([[1, 2**31, 2]])}, "image_grid_thw is [[1, 2147483648, 2]],",
         "frames x rows x columns must be as", images=PNG),
    edit("a grid of 0", {"image_grid_thw": np.array([[1, 0, 2]])}, "image_grid_thw is [[1, 0, 2]], which",
         "frames x rows x columns must be as", images=PNG),
    edit("a negative grid", {"image_grid_thw": np.array([[-1, -8, 8]])}, "image_grid_thw is [[-1, -8, 8]], which",
         "frames x rows x columns must be as", images=PNG),
    edit("windows out of range", {"visual.window_index": lambda x: x + 1}, "window_index must name each of the units",
         "window_index must name each of the", images=PNG),
    edit("with a cache", {"model.layers.0": lambda x: x}, "edit= and cache= together: the cache",
         "Leave one out.", cache=object()),
    Bad("edit: keep a number", lambda folder: tiny().trace("Hi", keep=3), "keep=3: give a glob such as", "of (name, shape)."),
    Bad("edit: keep mistyped", lambda folder: tiny().trace("Hi", keep="model.norn"), "no tensor of this run is called",
        "Did you mean model.norm or"),
    Bad("edit: stop a number", lambda folder: tiny().trace("Hi", stop=3), "stop=3: give a name or a glob, such as",
        'such as "model.layers.5".'),
    Bad("edit: stop mistyped", lambda folder: tiny().trace("Hi", stop="nowhere"), "no tensor of this run is called",
        "`trace.names` of a full run lists"),
    Bad("edit: limit a word", lambda folder: tiny().trace("Hi", limit="much"),
        "limit='much' is not an amount of memory.", 'Give bytes, or text such as "4GB"'),
    Bad("edit: limit too small", lambda folder: tiny().trace("Hi", limit="1kB"),
        "keeping this takes 1.61 MB: up to 95", "Name fewer in keep= (attention"),
    Bad("edit: spill in no folder", lambda folder: tiny().trace("Hi", spill=folder / "no" / "a.safetensors"),
        "cannot write", "Give a file in a folder that can"),
    Bad("edit: spill onto a folder", lambda folder: tiny().trace("Hi", spill=folder), "cannot write",
        "Give the name of a file."),
    Bad("edit: an error in the middle",
        lambda folder: tiny().trace("Hi", edit=returning(None), spill=folder / "a.safetensors"),
        "the edit of model.layers.0 returned", "Return the array that should take"),
    Bad("edit: walk at an unknown level", lambda folder: tiny().walk("Hi", level="atom"),
        "level='atom': choose one of stage,", "choose one of stage, block,"),
    Bad("edit: walk to an unknown tensor", lambda folder: tiny().walk("Hi").until("model.norn"),
        "no tensor is called model.norn. Did you", "Did you mean model.norm or"),
    Bad("edit: walk back from the start", lambda folder: tiny().walk("Hi").back(),
        "there is no earlier stop: 0 have passed;", "walk.passed lists them."),
    Bad("edit: walk with a cache", lambda folder: tiny().walk("Hi", cache=tiny().new_cache()),
        "a walk changes tensors and runs again;", "leave cache= out."),
    Bad("edit: an unknown fault", lambda folder: tiny().what_if("no-windows"),
        "there is no fault 'no-windows'. Did you", "missing-system-prompt,"),
]  # fmt: skip
CASES = [*IMAGES, *VIDEOS, *MESSAGES, *OPTIONS, *INPUTS, *EDITS]
