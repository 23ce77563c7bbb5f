"""Faults before the model: the prompt's text; resizing, colours and patches of images."""

import numpy as np
from PIL import Image

from minivl.faults import register
from minivl.processing.messages import parse


@register(
    "missing-system-prompt",
    "the prompt starts with the user: no system message",
    "a hand-written prompt instead of the chat template, which adds one by itself",
    "every prompt without a system message of its own",
    "no system prompt",
)
def missing_system_prompt(swap):
    def render(original):
        def without(self, messages, *args, **options):
            text = original(self, messages, *args, **options)
            return text if parse(messages)[0].role == "system" else text.partition("<|im_end|>\n")[2]

        return without

    swap("minivl.processing.chat_template.Template.render", render)


@register(
    "square-resize",
    "every image is scaled to one square, whatever its shape",
    "the preprocessing of CLIP and most other towers, which take one size only",
    "images that are not square, or of another size; boxes above all",
    "wrong resize",
)
def square_resize(swap):
    swap(
        "minivl.processing.image_processor.ImageProcessor.size",
        lambda _: lambda self, *args, **options: (8 * self.merged_size,) * 2,
    )


@register(
    "bilinear-resize",
    "images are resized by bilinear interpolation instead of bicubic",
    "another library's default filter",
    "images whose sides are no multiples of 28: others are not resized at all",
    "wrong resize",
)
def bilinear_resize(swap):
    def resized(_):
        def bilinear(self, image, *args, **options):
            height, width = self.size(image.height, image.width, *args, **options)
            return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

        return bilinear

    swap("minivl.processing.image_processor.ImageProcessor.resize", resized)


@register(
    "bgr",
    "red and blue are exchanged",
    "images read by OpenCV, whose channels are blue, green, red",
    "every image that is not grey; colours above all",
    "BGR",
)
def bgr(swap):
    def resized(original):
        return lambda *args, **options: np.ascontiguousarray(original(*args, **options)[..., ::-1])

    swap("minivl.processing.image_processor.ImageProcessor.resize", resized)


@register(
    "not-normalised",
    "colours lie in 0..1: mean and deviation are left out",
    "do_normalize forgotten, or done by a library's ToTensor alone",
    "every image",
    "not normalised",
)
def not_normalised(swap):
    def normalize(_):
        return lambda self, pixels: np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)

    swap("minivl.processing.image_processor.ImageProcessor.normalize", normalize)


@register(
    "raster-patches",
    "patches come row by row instead of unit by unit (2 x 2)",
    "the patches of an ordinary vision transformer: the published order serves the merger",
    "every image: four patches that are no neighbours become one token",
    "raster order of patches",
)
def raster_patches(swap):
    def patchify(original):
        def in_rows(self, frames):
            patches, (t, h, w) = original(self, frames)
            M = self.merge_size
            units = patches.reshape(t, h // M, w // M, M, M, -1)
            return np.ascontiguousarray(units.swapaxes(2, 3)).reshape(patches.shape), (t, h, w)  # R C r c -> R r C c

        return in_rows

    swap("minivl.processing.image_processor.ImageProcessor.patchify", patchify)
