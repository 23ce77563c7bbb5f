"""The walk from picture to answer: one line for each stage of the stream, what it is called, its shape, what happened.

    for line in narrate(vlm, "How many circles?", image): print(line)

    image.0.resized           [168, 224, 3]   scaled so that both sides are multiples of 28 pixels: 6 x 8 tokens
    visual.window_index       [48]            48 units of 2 x 2 patches, sorted window by window
    ...

Another consumer of the stream: it looks at names and shapes as they pass and changes nothing.
"""

from fnmatch import fnmatchcase

import numpy as np

from minivl.stream import drive


class Narrator:
    """Turns a (name, tensor) pair into a sentence, or None for the tensors inside a block, which it passes over."""

    def __init__(self, vlm):
        self.vlm, self.config = vlm, vlm.config

    def sentence(self, name, tensor):
        """What happened at this tensor; None where the walk does not stop."""
        for pattern, tell in SENTENCES.items():
            if fnmatchcase(name, pattern) and name.count(".") <= pattern.count("."):
                return tell(self, name, tensor)
        return None

    def resized(self, name, tensor):
        m = self.config.vision.merged_size
        return f"scaled so that both sides are multiples of {m} pixels: {tensor.shape[0] // m} x {tensor.shape[1] // m} tokens"

    def patches(self, name, tensor):
        P = self.config.vision.patch_size
        return f"cut into {len(tensor)} patches of {P} x {P} pixels, twice in time, unit by unit"

    def frame_indices(self, name, tensor):
        return f"{len(tensor)} frames are taken, from number {tensor[0]} to {tensor[-1]}"

    def seconds(self, name, tensor):
        return f"{tensor[0]:.3g} seconds from one pair of frames to the next"

    def frames(self, name, tensor):
        m = self.config.vision.merged_size
        return f"each scaled so that both sides are multiples of {m} pixels"

    def pairs(self, name, tensor):
        P = self.config.vision.patch_size
        return f"cut into {len(tensor)} patches of {P} x {P} pixels in two frames each, pair by pair, unit by unit"

    def input_ids(self, name, tensor):
        shown = int(np.isin(tensor, (self.config.image_token_id, self.config.video_token_id)).sum())
        return f"chat template and tokenizer: {len(tensor)} tokens, {shown} of them stand for what is shown"

    def window_index(self, name, tensor):
        return f"{len(tensor)} units of 2 x 2 patches, sorted window by window"

    def windows(self, name, tensor):
        return f"{len(tensor) - 1} windows; in a windowed block a patch sees only its own"

    def patch_embed(self, name, tensor):
        return f"each patch becomes {tensor.shape[1]} numbers: one matrix product"

    def block(self, name, tensor):
        full = int(name.split(".")[-1]) in self.config.vision.fullatt_block_indexes
        return (
            "attention over the whole picture or frame, then MLP" if full else "attention inside each window, then MLP"
        )

    def merger(self, name, tensor):
        return "four patches become one token of the decoder's width"

    def visual(self, name, tensor):
        return "the tokens put back in the order of pictures and videos, row by row"

    def embed_tokens(self, name, tensor):
        return "each token id looks up its row of the embedding table"

    def inputs_embeds(self, name, tensor):
        return "the tokens of pictures and videos take the places of their placeholders"

    def position_ids(self, name, tensor):
        T, last = tensor.shape[1], int(tensor.max())
        return f"time, row and column of each of {T} tokens" + (f"; the last stands at {last}" if last != T - 1 else "")

    def layer(self, name, tensor):
        return "each token looks back at those before it, then MLP"

    def norm(self, name, tensor):
        return "final RMSNorm"

    def logits(self, name, tensor):
        return f"a score for each of {tensor.shape[1]} tokens: {self.best(tensor[0])}"

    def token(self, name, tensor):
        return f"-> {self.vlm.tokenizer.token(int(tensor[0]))!r}"

    def best(self, logits):
        order = np.argsort(-logits, kind="stable")[:3]
        return ", ".join(f"{self.vlm.tokenizer.token(int(i))!r} {logits[i]:.1f}" for i in order)


SENTENCES = {
    "image.*.resized": Narrator.resized,
    "image.*.patches": Narrator.patches,
    "video.*.frame_indices": Narrator.frame_indices,
    "video.*.second_per_grid_t": Narrator.seconds,
    "video.*.resized": Narrator.frames,
    "video.*.patches": Narrator.pairs,
    "input_ids": Narrator.input_ids,
    "visual.window_index": Narrator.window_index,
    "visual.cu_window_seqlens": Narrator.windows,
    "visual.patch_embed": Narrator.patch_embed,
    "visual.blocks.*": Narrator.block,
    "visual.merger": Narrator.merger,
    "visual": Narrator.visual,
    "model.embed_tokens": Narrator.embed_tokens,
    "inputs_embeds": Narrator.inputs_embeds,
    "position_ids": Narrator.position_ids,
    "model.layers.*": Narrator.layer,
    "model.norm": Narrator.norm,
    "lm_head": Narrator.logits,
    "next_token": Narrator.token,
    "steps.*.next_token": Narrator.token,
}


def narrate(vlm, question, images=None, videos=None, **options):
    """Lines of the walk, as they happen; returns the `Answer`. The same arguments as `VLM.ask`."""
    from minivl import chat

    narrator = Narrator(vlm)
    steps = drive(vlm.answer(chat.conversation(question, images, videos), **options))
    while True:
        try:
            name, tensor = next(steps)
        except StopIteration as finished:
            return finished.value
        sentence = narrator.sentence(name, tensor)
        if sentence is not None:
            yield f"{name:<25} {str(list(tensor.shape)):<15} {sentence}"
