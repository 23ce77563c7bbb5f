"""Progress bars on stderr: consumers of the stream that count tensors and change nothing. Off when not a terminal."""

from tqdm import tqdm

from minivl.stream import watch
from minivl.tensors.catalogue import level
from minivl.tensors.chunks import split_evenly


def show_layers(stage, vlm, tokens=False):
    """Wrap a stage with a bar that counts blocks and layers of the prefill.

    tokens  also show a bar for each later token that takes more than a second, as with weights read from disk
    """
    layers, bar = vlm.config.text.num_hidden_layers, layer_bar("reading", vlm.config.vision.depth)

    def see(name, tensor):
        nonlocal bar
        if name.startswith("steps.") and not tokens:
            return
        if name == "inputs_embeds":  # from here on the number of chunks is known
            bar.total = bar.n + layers * len(split_evenly(len(tensor), vlm.prefill_chunk))
        elif tokens and name.endswith(".model.embed_tokens"):
            bar = layer_bar(f"token {int(name.split('.')[1]) + 1}", layers)
        elif level(name) == "block":
            bar.update()
        elif name.endswith("lm_head"):
            bar.close()

    try:
        return (yield from watch(stage, see))
    finally:
        bar.close()


def layer_bar(what, total):
    return tqdm(total=total, desc=what, unit="layer", leave=False, delay=1, disable=None)


def show_answers(stage, prompts):
    """Wrap the stage of a batch of prompts with a bar that counts answers and names the layer that has just run."""
    with tqdm(total=prompts, desc="answering", unit="prompt", leave=False, delay=1, miniters=0, disable=None) as bar:

        def see(name, tensor):
            if level(name) == "block" or name.endswith(".answer_ids"):
                bar.set_postfix_str(name, refresh=False)
                bar.update(name.endswith(".answer_ids"))

        return (yield from watch(stage, see))
