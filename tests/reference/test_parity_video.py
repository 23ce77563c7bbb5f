"""From a video's frames to patches: sampling, sizes and pixels against transformers, torch and qwen-vl-utils.

transformers' video processor and qwen-vl-utils cannot be imported without torchvision; their tests are skipped where it is
missing (pip install torchvision qwen-vl-utils==0.0.10). What needs no torchvision runs always: transformers' image processor
with Pillow, frame by frame, and torch's own linspace.
"""

import numpy as np
import pytest
from PIL import Image
from random_models import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from minivl.errors import Error
from minivl.processing.image_processor import ImageProcessor, smart_resize
from minivl.processing.load_video import Clip
from minivl.processing.video_processor import (
    VIDEO_MAX_PIXELS,
    VIDEO_MIN_PIXELS,
    frame_limits,
    linspace_indices,
    prepare_video,
    smart_nframes,
)
from minivl.stream import run

PUBLISHED = ImageProcessor(max_pixels=12845056)  # preprocessor_config.json of the published checkpoints
VIDEO = ImageProcessor(min_pixels=VIDEO_MIN_PIXELS, max_pixels=VIDEO_MAX_PIXELS)


def noise(frames, height, width, seed=0):
    return np.random.default_rng([41, seed]).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def waves(frames, height, width):
    """Colours that change slowly, as in a photograph."""
    y, x, t, c = np.ogrid[:height, :width, :frames, :3]
    moving = 127 + 100 * np.sin(x / 17 + t / 3 + c) * np.cos(y / 23 - t / 5)
    return np.round(moving.transpose(2, 0, 1, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(5, 336, 448), (4, 500, 300), (3, 60, 80), (2, 900, 1300)])
def test_every_frame_is_that_of_the_image_processor(shape):
    """Bit for bit: time 0 of a pair's patches is what transformers makes of the first frame, time 1 of the second."""
    frames = noise(*shape)
    patches, grid, _ = run(prepare_video(frames, PUBLISHED))
    processor = Qwen2VLImageProcessorPil(min_pixels=PUBLISHED.min_pixels, max_pixels=PUBLISHED.max_pixels)
    expected = processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="np")
    assert expected["image_grid_thw"].tolist() == [[1, *grid[1:]]] * len(frames)
    singles = expected["pixel_values"].reshape(len(frames), -1, 3, 2, 14, 14)
    pairs = patches.reshape(grid[0], -1, 3, 2, 14, 14)
    for i in range(2 * grid[0]):
        frame = min(i, len(frames) - 1)  # an odd last frame counts twice
        assert np.array_equal(pairs[i // 2, :, :, i % 2], singles[frame, :, :, 0])


@pytest.fixture(scope="module")
def video_processor():
    try:
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    except (ImportError, RuntimeError) as cause:  # RuntimeError: a torchvision of another torch
        pytest.skip(f"transformers' video processor needs torchvision ({cause})")
    return Qwen2VLVideoProcessor(cap_pixels_per_frame=True)  # as qwen-vl-utils, and transformers from 5.22 on


@pytest.mark.parametrize(
    "frames, levels",
    [
        (noise(5, 336, 448), 1e-3),  # of the right size already: nothing but rescaling and cutting
        (waves(4, 600, 900), 2),  # torchvision rounds otherwise than Pillow
        (waves(5, 200, 150), 2),
        (noise(3, 60, 80), 2),
        (noise(4, 600, 900), 30),  # Pillow 13 shrinks vertically first; see docs/choices.md
    ],
)
def test_transformers_video_processor(video_processor, frames, levels):
    """The same grid, and patches that differ by so many of 255 levels at most. Measured: 0, 2, 2, 2 and 25."""
    expected = video_processor(videos=[frames], return_tensors="np", do_sample_frames=False)
    patches, grid, _ = run(prepare_video(frames, VIDEO))
    assert expected["video_grid_thw"].tolist() == [list(grid)]
    deviation = np.array(PUBLISHED.image_std, dtype=np.float32).repeat(392)  # columns are (colour, time, y, x)
    difference = np.abs(expected["pixel_values_videos"] - patches) * deviation * 255
    assert difference.max() <= levels + 1e-3 and difference.mean() <= levels / 50


def test_spread_is_torchs_linspace():
    """Up to 10,000 frames; beyond, torch's own vector instructions may round one index in a thousand the other way."""
    rng = np.random.default_rng(42)
    for _ in range(3000):
        total = int(rng.integers(2, 10000))
        count = 2 * int(rng.integers(1, min(384, total // 2) + 1))
        assert np.array_equal(linspace_indices(total, count), torch.linspace(0, total - 1, count).round().long())


@pytest.fixture(scope="module")
def qwen_vl_utils():
    try:
        from qwen_vl_utils import vision_process
    except (ImportError, RuntimeError) as cause:
        pytest.skip(f"qwen-vl-utils cannot be imported ({cause})")
    return vision_process


def random_wish(rng):
    """What a message may ask for: a number of frames, or a rate and its bounds, or nothing."""
    kind, wish = int(rng.integers(4)), {}
    if kind == 1:
        wish["nframes"] = int(rng.integers(1, 60))
    if kind == 2:
        wish["fps"] = float(rng.choice([0.2, 0.5, 1, 2, 4, 10]))
    if kind >= 2 and rng.random() < 0.5:
        wish["min_frames"] = int(rng.integers(1, 40))
    if kind >= 2 and rng.random() < 0.5:
        wish["max_frames"] = int(rng.integers(2, 400))
    return wish


def test_numbers_of_frames(qwen_vl_utils):
    rng, refused = np.random.default_rng(43), 0
    for _ in range(5000):
        total, rate = int(rng.integers(1, 4000)), float(rng.choice([1, 7.5, 23.976, 25, 29.97, 30, 60]))
        wish = random_wish(rng)
        try:
            expected = qwen_vl_utils.smart_nframes(dict(wish), total_frames=total, video_fps=rate)
        except ValueError:
            refused += 1
            with pytest.raises(Error):
                smart_nframes(total, rate, **wish)
        else:
            assert smart_nframes(total, rate, **wish) == expected, (total, rate, wish)
    assert 0 < refused < 500


def test_sizes_of_frames(qwen_vl_utils, monkeypatch):
    """`fetch_video` is given the shape of a video alone, and its resize says which size it was asked for."""
    rng, asked = np.random.default_rng(44), []
    frames = type("Frames", (), {})()
    monkeypatch.setattr(qwen_vl_utils, "VIDEO_READER_BACKENDS", {"shape": lambda ele: (frames, 2.0)})
    monkeypatch.setattr(qwen_vl_utils, "get_video_reader_backend", lambda: "shape")
    resize = staticmethod(lambda video, size, **_: asked.append(tuple(size)) or torch.zeros(1))
    monkeypatch.setattr(qwen_vl_utils.transforms, "functional", type("Resize", (), {"resize": resize}))
    for _ in range(1000):
        frames.shape = (2 * int(rng.integers(1, 385)), 3, *rng.integers(30, 2200, 2).tolist())
        limits = {"max_pixels": int(rng.integers(110_000, 900_000))} if rng.random() < 0.4 else {}
        limits |= {"min_pixels": int(rng.integers(3136, 100_000))} if rng.random() < 0.3 else {}
        limits |= {"total_pixels": int(rng.integers(10**6, 10**8))} if rng.random() < 0.3 else {}
        qwen_vl_utils.fetch_video({"video": "x", **limits})
        low, high = frame_limits(PUBLISHED, Clip(5000, 25.0, None), frames.shape[0], **limits)
        assert smart_resize(*frames.shape[2:], 28, low, high) == asked[-1], (frames.shape, limits)
