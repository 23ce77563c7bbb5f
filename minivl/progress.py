"""Bars on stderr for long work: consumers of the stream that count what passes and change nothing. Off when not a terminal."""

from tqdm import tqdm


def reading(stage, config):
    """The same stage, with a bar that counts blocks and layers of the prefill."""
    names = [f"visual.blocks.{i}" for i in range(config.vision.depth)]
    names += [f"model.layers.{i}" for i in range(config.text.num_hidden_layers)]
    last, names, reply = names[-1], set(names), None
    with tqdm(total=len(names), desc="reading", unit="layer", leave=False, delay=1, disable=None) as bar:
        while True:
            try:
                name, tensor = stage.send(reply)
            except StopIteration as finished:
                return finished.value
            reply = yield name, tensor
            if name in names:
                bar.update()
            if name == last:
                bar.close()


def answering(stage, prompts):
    """The same stage, that of several prompts, with a bar that counts answers and names the layer that has just been run."""
    reply = None
    with tqdm(total=prompts, desc="answering", unit="prompt", leave=False, delay=1, miniters=0, disable=None) as bar:
        while True:
            try:
                name, tensor = stage.send(reply)
            except StopIteration as finished:
                return finished.value
            reply = yield name, tensor
            if name.split(".")[-2] in ("blocks", "layers") or name.endswith(".answer_ids"):
                bar.set_postfix_str(name, refresh=False)
                bar.update(name.endswith(".answer_ids"))
