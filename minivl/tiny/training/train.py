"""Train the small model: python -m minivl.tiny.training.train RUN_FOLDER   (needs the [reference] extra)

    --start FOLDER   begin with the weights and the tokenizer of a checkpoint; default: from scratch
    --steps N        the last step; the last --cooldown of them lower the learning rate to a hundredth

First only the tower is trained, on what covers each token (--tower-steps); then the whole model, on packed examples
from easy to hard. With --start, instead, first only the auxiliary heads, for 150 steps, since no checkpoint has them.
Resumable: the same command continues where it stopped; a larger --steps continues from the state before the cooldown.
RUN_FOLDER gets state.pt, stable.pt (before the cooldown), log.jsonl, tokenizer.json, checkpoints/STEP and checkpoint/, which
minivl loads.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minivl.errors import Error
from minivl.helpers import write_whole
from minivl.tiny.training import model, vocabulary
from minivl.tiny.training.batches import TASKS, make_batch
from minivl.tiny.training.losses import build_parts, compute_losses, word_ids
from minivl.tiny.training.muon import Muon
from minivl.tiny.training.recipe import write_folder

MUON_RATE = 2.5  # factor of the learning rate for Muon's matrices
WARM_UP = 100
HEADS_STEPS, HEADS_RATE = 150, 10.0  # with --start: steps for the auxiliary heads alone; their factor of --rate
SAVE_SECONDS = 300
LOG_EVERY = 25
EXPORT_EVERY = 400
STATES = ("state.pt", "stable.pt")


class Batches(Dataset):
    """Item n is batch n, made in a worker process."""

    def __init__(self, options, tokenizer, make=make_batch):
        self.options, self.tokenizer, self.make = options, tokenizer, make

    def __len__(self):
        return self.options.steps

    def __getitem__(self, n):
        ease = 1.0 if n >= self.options.ease_steps else 0.3 + 0.7 * n / self.options.ease_steps
        made = self.make((n, self.options.seed) if self.options.seed else n, ease, self.tokenizer)
        return {key: torch.from_numpy(value) for key, value in made.items()}


def step_back(worker):
    """Lower an example-drawing process's priority: a thread that waits for its core delays the whole matrix product."""
    if hasattr(os, "nice"):
        os.nice(19)


def main():
    options = parse()
    try:
        train(options)
    except Error as error:
        raise SystemExit(f"error: {error}") from None


def parse(arguments=None):
    parser = argparse.ArgumentParser("minivl.tiny.training.train", description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="where the state, the log and the checkpoints go")
    parser.add_argument("--start", help="a checkpoint folder to begin with")
    parser.add_argument("--steps", type=int, default=12_000, help="last step")
    parser.add_argument("--tower-steps", type=int, help="steps for the tower alone at first (2000; with --start 0)")
    parser.add_argument("--cooldown", type=int, default=2500, help="steps at the end in which the learning rate falls")
    parser.add_argument("--ease-steps", type=int, help="steps until examples are as hard as they get (3500; with --start 0)")
    parser.add_argument("--rate", type=float, default=1.2e-3, help="learning rate between warm-up and cooldown")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the batches")
    parser.add_argument(
        "--bfloat16", action="store_true", help="multiply matrices in bfloat16: faster with AMX, on a GPU"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that draw examples")
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    options = parser.parse_args(arguments)
    for name, steps in (("tower_steps", 2000), ("ease_steps", 3500)):
        if getattr(options, name) is None:
            setattr(options, name, 0 if options.start else steps)
    return options


def train(options, make=make_batch):
    """Run the remaining steps; returns the modules."""
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = share_tokenizer(folder, options.start)
    words = word_ids(tokenizer)
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = build_parts().to(device)
    optimizers = build_optimizers(parts, options.rate, torch.bfloat16 if options.bfloat16 else torch.float32)
    first, cooled, heads_alone = restore(folder, parts, optimizers, options)
    if 0 < options.steps <= heads_alone:
        raise Error(f"--steps {options.steps}: the first {heads_alone} steps are for the heads alone. Give more steps.")
    run_tower, run_decoder = model.run_tower, model.run_decoder
    if not options.no_compile:
        run_tower, run_decoder = (torch.compile(run, dynamic=False) for run in (run_tower, run_decoder))
    loader = DataLoader(
        Batches(options, tokenizer, make), batch_size=None, sampler=range(first, options.steps),
        num_workers=options.workers, prefetch_factor=4 if options.workers else None, worker_init_fn=step_back,
    )  # fmt: skip
    log, saved = Log(folder, first), time.time()
    stable = -1 if cooled else max(first, heads_alone, options.steps - options.cooldown)
    for step, batch in zip(range(first, options.steps), loader):
        if step == stable:
            save(folder / "stable.pt", parts, optimizers, step, options, False, heads_alone)
        batch = {key: value.to(device) for key, value in batch.items()}
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["rate"] * schedule(step, options, heads_alone)
        with torch.autocast(device, torch.bfloat16, enabled=options.bfloat16):
            tower_alone = heads_alone <= step < options.tower_steps
            loss, figures, whole = compute_losses(parts, batch, words, tower_alone, run_tower, run_decoder)
        parts.zero_grad(set_to_none=True)
        loss.backward()
        if step < heads_alone:  # untrained heads would spoil what the model knows
            parts["model"].zero_grad(set_to_none=True)
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        log.add(step, figures, batch, whole)
        done = step + 1
        if done % EXPORT_EVERY == 0 or done == options.steps:  # before the state is saved: a killed run repeats it
            export(parts["model"], folder / "checkpoints" / f"{done:06d}", tokenizer)
        if time.time() - saved > SAVE_SECONDS or done == options.steps:
            save(folder / "state.pt", parts, optimizers, done, options, cooled or done > stable, heads_alone)
            saved = time.time()
    export(parts["model"], folder / "checkpoint", tokenizer)
    return parts


def share_tokenizer(folder, start=None):
    """Build the tokenizer once, or take that of the --start checkpoint; later runs read the file."""
    path = folder / "tokenizer.json"
    begun = any((folder / name).is_file() for name in STATES)
    if not path.is_file() or start and not begun:
        made = load_start(start)[1] if start else vocabulary.build_tokenizer()
        with write_whole(path) as partial:
            made.save(str(partial))
    return Tokenizer.from_file(str(path))


def build_optimizers(parts, rate, dtype=torch.float32):
    """Muon, with products in `dtype`, for the matrices of the layers; AdamW for the rest."""
    model = parts["model"]
    matrices = [p for blocks in (model.visual.blocks, model.model.layers) for p in blocks.parameters() if p.ndim == 2]
    inner = {id(p) for p in matrices}
    others = [p for p in parts.parameters() if id(p) not in inner]
    muon = Muon([{"params": matrices, "rate": MUON_RATE * rate}], dtype=dtype)
    return muon, torch.optim.AdamW([{"params": others, "rate": rate}], betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def restore(folder, parts, optimizers, options):
    """Load the newest state that this schedule can use, or the weights of --start.

    Returns the first step, whether the learning rate has begun to fall, and the steps for the heads alone.
    """
    heads_alone = HEADS_STEPS if options.start else 0
    states = [torch.load(folder / name, map_location="cpu") for name in STATES if (folder / name).is_file()]
    for state in states:
        if state["step"] > options.steps:
            raise Error(f"{folder} has run {state['step']} steps: give a larger --steps, or another folder.")
        if not state["cooling"] or state["steps"] == options.steps:
            if shapes_of(state["parts"]) != shapes_of(parts.state_dict()):
                raise Error(
                    f"{folder} was begun with other heads. Give another folder, and --start {folder / 'checkpoint'}."
                )
            parts.load_state_dict(state["parts"])
            for optimizer, stored in zip(optimizers, state["optimizers"]):
                rates = [group["rate"] for group in optimizer.param_groups]
                optimizer.load_state_dict(stored)
                for group, rate in zip(optimizer.param_groups, rates):
                    group["rate"] = rate  # as asked for now, not as when the state was saved
            return state["step"], state["cooling"], state.get("heads_alone", heads_alone)
    if states:
        raise Error(
            f"{folder} has a run of {states[0]['steps']} steps whose learning rate falls, and no stable.pt from before that. "
            f"Give --steps {states[0]['steps']}, or another folder."
        )
    if options.start:
        parts["model"].load_state_dict(load_start(options.start)[0])
    return 0, False, heads_alone


def shapes_of(tensors):
    return {name: tensor.shape for name, tensor in tensors.items()}


def load_start(folder):
    """Weights and tokenizer of a checkpoint to begin with. Raises an Error if it is not a small model."""
    try:
        weights = load_file(Path(folder) / "model.safetensors")
        text = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, SafetensorError) as cause:
        raise Error(f"--start {folder}: {cause}. Give a folder with a checkpoint of the small model.") from None
    for name, tensor in model.Model().state_dict().items():
        found = list(weights[name].shape) if name in weights else "missing"
        if found != list(tensor.shape):
            raise Error(f"--start {folder} is another model: {name} is {found}, and {list(tensor.shape)} is needed.")
    return weights, Tokenizer.from_str(text)


def schedule(step, options, heads_alone=0):
    """The learning rate as a factor of --rate: warm-up, constant, linear decay to a hundredth over the last steps.

    Before the warm-up, in the steps for the heads alone, it is HEADS_RATE.
    """
    if step < heads_alone:
        return HEADS_RATE
    left = (options.steps - step) / max(1, min(options.cooldown, options.steps - heads_alone))
    return min(1.0, (step - heads_alone + 1) / WARM_UP, max(0.01, left))


class Log:
    """A line of JSON for every LOG_EVERY steps: means of the figures, right and all answers of each task.

    Steps that a killed run logged after its last saved state are run again: their lines are deleted.
    """

    def __init__(self, folder, first=0):
        self.path, self.started = folder / "log.jsonl", time.time()
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [line for line in lines if is_whole(line) and json.loads(line)["step"] <= first]
        if kept != lines:
            with write_whole(self.path) as partial:
                partial.write_text("".join(f"{line}\n" for line in kept))
        self.clear()

    def clear(self):
        self.figures, self.right = {}, {}

    def add(self, step, figures, batch, whole):
        for key, value in figures.items():
            self.figures.setdefault(key, []).append(float(value.detach()))
        if whole is not None:
            for task, right in zip(batch["task"].tolist(), whole.tolist()):
                self.right.setdefault(TASKS[task], []).append(right)
        if (step + 1) % LOG_EVERY == 0:
            line = {"step": step + 1, "seconds": round(time.time() - self.started, 1)}
            line |= {key: round(sum(values) / len(values), 4) for key, values in self.figures.items()}
            line["right"] = {task: [sum(right), len(right)] for task, right in sorted(self.right.items())}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.clear()


def is_whole(line):
    """False for a line cut off by a kill."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def save(path, parts, optimizers, step, options, cooling, heads_alone):
    state = {"parts": parts.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    state |= {"step": step, "steps": options.steps, "cooling": cooling, "heads_alone": heads_alone}
    with write_whole(path) as partial:
        torch.save(state, partial)


def export(model, folder, tokenizer):
    """Write the checkpoint in the published format: bf16, published names, output layer tied to the embeddings."""
    write_folder(folder, tokenizer)
    tensors = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    with write_whole(folder / "model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
