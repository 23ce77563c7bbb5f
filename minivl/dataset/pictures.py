"""Pictures of rows: thumbnails that a store keeps of images without a file, and a sheet of rows on their images."""

import io

from PIL import Image, ImageDraw, ImageFont

from minivl.palette import COLOURS
from minivl.processing.load_image import open_image
from minivl.processing.messages import find_media

SIDE, GAP, LINE = 168, 8, 18  # pixels of a picture on a sheet, between pictures, of a line of text
LETTERS, FONT_SIZE = 22, 14  # in a line of text; 14 pixels are 10.5 points on a page of 96 to the inch


def thumbnail(prompt):
    """JPEG bytes of the prompt's image, at most SIDE pixels wide and high; None if it has a file, or is a video."""
    images, _ = find_media(prompt.messages)
    if not images or isinstance(images[prompt.image].source, str) or hasattr(images[prompt.image].source, "__fspath__"):
        return None
    image = open_image(images[prompt.image].source)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def sheet(images, captions, boxes, columns=5):
    """A picture for each row, with its box outlined and a caption. -> PIL image

    images  PIL images, or None where there is none;  boxes  (x0, y0, x1, y1) as shares of width and height, or None
    """
    lines = max(len(caption.splitlines()) for caption in captions)
    rows, height = -(-len(images) // columns), SIDE + LINE * lines + 2 * GAP
    page = Image.new("RGB", (GAP + columns * (SIDE + GAP), rows * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    for number, (image, caption, box) in enumerate(zip(images, captions, boxes)):
        x, y = GAP + number % columns * (SIDE + GAP), GAP + number // columns * height
        if image is not None:
            small = image.convert("RGB").copy()
            small.thumbnail((SIDE, SIDE))
            page.paste(small, (x, y))
            if box is not None:
                (w, h), (x0, y0, x1, y1) = small.size, box
                draw.rectangle((x + x0 * w, y + y0 * h, x + x1 * w - 1, y + y1 * h - 1), outline=COLOURS[0], width=2)
        draw.multiline_text((x, y + SIDE + 2), caption, fill="black", font=font, spacing=3)
    return page
