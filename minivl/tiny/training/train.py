"""Train the shipped model from scratch: python -m minivl.tiny.training.train RUN_FOLDER   (needs the [reference] extra)

Stage 1, the tower alone. A linear head on each token says what covers it: kind, colour, digit, and where its box lies.
Without this dense signal a tower this small does not learn shapes from captions.
Stage 2, all of it, on conversations. The tower's head stays with a small weight, and a second head, on the image's
tokens inside the decoder, says where the box lies in the whole image: rows and columns are something only the decoder
can know (M-RoPE), and answers then only have to read it off. Scenes start with one shape. Both heads are thrown away.

Resumable: run the same command again. RUN_FOLDER gets state.pt, loss.csv and checkpoint/, which minivl loads.
"""

import argparse
import csv
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minivl.helpers import write_whole
from minivl.tiny import scenes
from minivl.tiny.training import recipe
from minivl.tiny.training.batches import make_batch
from minivl.tiny.training.muon import Muon
from minivl.tiny.training.torch_model import Model

WIDTH = recipe.CONFIG["hidden_size"]
FAR, ASKED = 1, 2  # layers of the decoder whose output says where image tokens are, and what is being spoken of
MUON_RATE = 2.5  # of the learning rate, for Muon's matrices
SAVE_EVERY = 200
TOKENIZER = recipe.build_tokenizer()
WORDS = {
    "kind": [TOKENIZER.token_to_id(f"Ġ{word}") for word in scenes.KINDS],
    "colour": [TOKENIZER.token_to_id(f"Ġ{word}") for word in scenes.COLOURS],
    "digit": [TOKENIZER.token_to_id(str(digit)) for digit in range(10)],
}


class CellHead(nn.Module):
    """What covers a token: kind, colour, digit, box; one linear layer."""

    def __init__(self, width):
        super().__init__()
        self.sizes = (len(scenes.KINDS) + 2, len(scenes.COLOURS) + 1, 10, 4)
        self.linear = nn.Linear(width, sum(self.sizes))

    def loss(self, x, batch, box):
        """x [B, U, D] -> (loss, share of covered tokens whose kind is right, mean box error in units of `box`)"""
        x = F.rms_norm(x, x.shape[-1:])
        kind, colour, digit, where = self.linear(x).split(self.sizes, dim=-1)
        covered = batch["kind"] > 0
        loss = F.cross_entropy(kind[covered], batch["kind"][covered])
        loss = loss + F.cross_entropy(kind[~covered], batch["kind"][~covered])
        loss = loss + F.cross_entropy(colour[covered], batch["colour"][covered])
        if (batch["digit"] >= 0).any():
            loss = loss + F.cross_entropy(digit.flatten(0, 1), batch["digit"].flatten(), ignore_index=-1)
        shape = covered & (batch["colour"] > 0)  # how far the paper of a digit reaches cannot be seen
        right = (kind.argmax(-1) == batch["kind"])[covered].float().mean()
        if not shape.any():
            return loss, right, torch.tensor(math.nan)
        error = (where - batch[box])[shape].abs().mean()
        return loss + 10 * F.smooth_l1_loss(where[shape], batch[box][shape], beta=0.05), right, error


def naming_loss(x, batch, embedding):
    """Features x [B, U, D] should point along the embeddings of the words for what they show: " red", " circle", "7".

    Finding a shape by its name is then comparing a word with itself, and naming it is copying.
    """
    x, words = F.normalize(x, dim=-1), F.normalize(embedding, dim=-1)
    loss = 0.0
    for key, ids in WORDS.items():
        shown = batch[key] >= 0 if key == "digit" else (batch["colour"] > 0)
        if shown.any():
            target = batch[key][shown] - (0 if key == "digit" else 1)
            loss = loss + F.cross_entropy(10 * x[shown] @ words[torch.tensor(ids, device=x.device)].T, target)
    return loss


class Batches(Dataset):
    """Batch n of a stage, ready made in worker processes."""

    def __init__(self, stage, steps, size):
        self.stage, self.steps, self.size = stage, steps, size
        self.tokenizer = recipe.build_tokenizer() if stage == 2 else None

    def __len__(self):
        return self.steps

    def __getitem__(self, n):
        ease = 1.0 if self.stage == 1 else min(1.0, 0.25 + n / (0.15 * self.steps))
        made = make_batch(self.stage, n, self.size, ease, self.tokenizer)
        return {key: value if key == "size" else torch.from_numpy(value) for key, value in made.items()}


def main():
    options = parse()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    heads = {"near": CellHead(WIDTH), "far": CellHead(WIDTH), "asked": nn.Linear(WIDTH, 4)}
    parts = nn.ModuleDict({"model": Model(), **heads}).to(device)
    state = torch.load(folder / "state.pt", map_location=device) if (folder / "state.pt").is_file() else None
    first = 1
    if state:
        parts.load_state_dict(state["parts"])
        first = state["stage"]
    for stage, steps in ((1, options.steps1), (2, options.steps2)):
        if stage >= first:
            run_stage(
                stage, steps, parts, state if state and state["stage"] == stage else None, folder, device, options
            )
    export(parts["model"], folder / "checkpoint")


def parse():
    parser = argparse.ArgumentParser("minivl.tiny.training.train", description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="where the state, the loss curve and the checkpoint go")
    parser.add_argument("--steps1", type=int, default=6000, help="batches for the tower alone")
    parser.add_argument("--steps2", type=int, default=5400, help="batches for the whole model")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a batch")
    parser.add_argument("--rate", type=float, default=1.2e-3, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    return parser.parse_args()


def run_stage(stage, steps, parts, state, folder, device, options):
    """Train for the rest of a stage's steps, saving on the way."""
    optimizers, trained = optimizers_of(stage, parts, options.rate)
    start = 0
    if state:
        for optimizer, stored in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(stored)
        start = state["step"]
    loader = DataLoader(
        Batches(stage, steps, options.batch), batch_size=None, sampler=range(start, steps), num_workers=options.workers
    )
    bar = tqdm(loader, total=steps, initial=start, desc=f"stage {stage}", mininterval=5)
    for step, batch in zip(range(start, steps), bar):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["rate"] * schedule(step, steps)
        batch = {key: value if key == "size" else value.to(device) for key, value in batch.items()}
        loss, figures = losses(stage, parts, batch)
        parts.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        note(folder, bar, {"stage": stage, "step": step, "loss": loss.item(), **figures})
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save(
                folder,
                {
                    "parts": parts.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "stage": stage,
                    "step": step + 1,
                },
            )
            export(parts["model"], folder / "checkpoint")


def optimizers_of(stage, parts, rate):
    """The optimizers of a stage, and all that they train: Muon for the matrices of the layers, AdamW for the rest."""
    model = parts["model"]
    if stage == 1:
        trained = nn.ModuleList([model.visual, parts["near"]])
        matrices = [p for p in model.visual.blocks.parameters() if p.ndim == 2]
    else:
        trained = nn.ModuleList([model.model, parts["far"], parts["asked"]])
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inner = {id(p) for p in matrices}
    others = [p for p in trained.parameters() if id(p) not in inner]
    muon = Muon([{"params": matrices, "rate": MUON_RATE * rate}])
    adam = torch.optim.AdamW([{"params": others, "rate": rate}], betas=(0.9, 0.98), weight_decay=0.01)
    return (muon, adam), matrices + others


def schedule(step, steps):
    """Warm up over 200 steps, then a half cosine down to 1 % of the highest rate."""
    return min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def losses(stage, parts, batch):
    """The loss to minimise, and figures for the curve."""
    height, width = batch["size"]
    grid = height // 14, width // 14
    if stage == 1:
        features = parts["model"].visual(batch["pixel_values"], *grid)
        near, kinds, pixels = parts["near"].loss(features, batch, "near")
        named = naming_loss(features, batch, parts["model"].model.embed_tokens.weight)
        figures = {"near": near, "named": named, "kinds": kinds, "near pixels": pixels * 56}
        return near + named, {key: value.item() for key, value in figures.items()}
    with torch.no_grad():  # the tower stays as stage 1 left it
        features = parts["model"].visual(batch["pixel_values"], *grid)
    logits, hidden = parts["model"](batch["input_ids"], batch["position_ids"], features, batch["turn"])
    picture = hidden[FAR][batch["input_ids"] == recipe.CONFIG["image_token_id"]].view(features.shape)
    far, _, pixels = parts["far"].loss(picture, batch, "box")
    spoken = batch["shape"] >= 0
    box = parts["asked"](F.rms_norm(hidden[ASKED][spoken], features.shape[-1:]))
    asked = 10 * F.smooth_l1_loss(box, batch["asked"][spoken], beta=0.05) if spoken.any() else torch.zeros(())
    target, weight = batch["input_ids"][:, 1:], batch["weight"][:, 1:]
    text = F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    text = (text * weight).sum() / weight.sum()
    right = logits[:, :-1].argmax(-1) == target
    figures = {"text": text.item(), "asked": asked.item(), "far": far.item(), "far pixels": pixels.item() * 336}
    for i, task in enumerate(scenes.TASKS):
        mine = batch["task"][:, 1:] == i
        figures[task] = right[mine].float().mean().item() if mine.any() else float("nan")
    return text + 0.3 * far + 0.5 * asked, figures


def note(folder, bar, figures):
    """One line of the loss curve."""
    bar.set_postfix(
        {key: f"{value:.3f}" for key, value in figures.items() if key not in ("stage", "step")}, refresh=False
    )
    path = folder / f"loss{figures['stage']}.csv"
    fresh = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, figures.keys())
        if fresh:
            writer.writeheader()
        writer.writerow({key: f"{v:.5g}" if isinstance(v, float) else v for key, v in figures.items()})


def save(folder, state):
    with write_whole(folder / "state.pt") as partial:
        torch.save(state, partial)


def export(model, folder):
    """Write the checkpoint as published ones are: bf16, published names, output layer tied to the embeddings."""
    recipe.write_folder(folder)
    tensors = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    with write_whole(folder / "model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
