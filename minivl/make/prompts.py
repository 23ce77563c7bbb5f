"""Two prompts with images and a video that let every known mistake of ports show, as prompts.json and files next to it.

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "tall.png"}, ...]}], "fps": 2.5}

Sides are not multiples of 28, so images are resized; rows and columns differ, and windows at the edges are partial; there are
two images in one prompt, and an image before a video whose pairs of frames are 0.8 seconds apart, which is 1.6 positions:
they stand at 0, 1 and 3, neither at their numbers nor where rounding would put them.
Images differ in each corner and in each colour channel.
"""

import json

import numpy as np
from PIL import Image

SIZES = {"wide.png": (241, 163), "tall.png": (95, 211)}
FILM, FILM_SIZE, FRAMES, MILLISECONDS, FPS = "film.png", (151, 117), 8, 300, 2.5
PROMPTS = (
    (("wide.png", "tall.png"), "How do the two pictures differ?", {}),
    (("tall.png", FILM), "What happens in the film, and what is in the picture?", {"fps": FPS}),
)


def write_prompts(folder, seed=0):
    """Write prompts.json, the images and the film, an animated PNG."""
    rng = np.random.default_rng([seed, 1])
    for name, size in SIZES.items():
        draw_picture(rng, size).save(folder / name)
    first, *rest = [draw_picture(rng, FILM_SIZE) for _ in range(FRAMES)]
    first.save(folder / FILM, save_all=True, append_images=rest, duration=MILLISECONDS, default_image=False)
    prompts = [{"messages": messages(files, question), **options} for files, question, options in PROMPTS]
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=1), encoding="utf-8")


def messages(files, question):
    items = [{"type": kind, kind: name} for name in files for kind in ["video" if name == FILM else "image"]]
    return [{"role": "user", "content": [*items, {"type": "text", "text": question}]}]


def draw_picture(rng, size):
    """Coloured squares of 12 pixels, brighter to the right and below, with noise."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    colours = rng.integers(0, 160, (height // 12 + 1, width // 12 + 1, 3))[y // 12, x // 12]
    slope = (60 * x / width)[..., None] + (30 * y / height)[..., None]
    return Image.fromarray((colours + slope + rng.integers(0, 6, (height, width, 3))).astype(np.uint8))
