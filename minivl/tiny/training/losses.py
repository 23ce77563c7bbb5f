"""The losses: of the text of the answers, and of five auxiliary heads, which are discarded after training.

    near      on each feature of the tower: what covers its 28 x 28 pixels, and that shape's box relative to it
    far       on image tokens after layer FAR of the decoder: the same, but with the box in the whole image
    sequence  there too, for two images or a video: the number of the token's image or pair of frames, whether something
              else covers it than in the one before, and what that was
    counted   there too: the index of the shape among all, among those of its kind, and among those of its colour
    asked     on the tokens that predict an answer, after layer ASKED: the box of the shape or character it is about

In addition, features should align with the decoder's embeddings of the words for what they show.
"""

import torch
from torch import nn
from torch.nn import functional as F

from minivl.tiny.drawing import COLOURS, KINDS
from minivl.tiny.tasks.reading import CHARACTERS, LONGEST_WORD
from minivl.tiny.training import model as packed
from minivl.tiny.training.batches import MAX_PAIRS
from minivl.tiny.training.recipe import CONFIG
from minivl.tiny.training.targets import CELL_KINDS, COUNTED, FULL, NEAR

CHARACTER_WEIGHT = 3.0  # weight of the characters that are printed on a token, which are learnt last
SEQUENCE = (1, MAX_PAIRS, len(CELL_KINDS), len(COLOURS))  # logits: something new, number of image, former kind, colour
MIN_SIDE = 10  # pixels: lower limit of the width and height by which `box_loss` divides errors


def build_parts():
    """The model and the heads, in one module."""
    width = CONFIG["hidden_size"]
    heads = {
        "near": CellHead(width, unit=NEAR, box_weight=10),
        "far": CellHead(width, unit=FULL, box_weight=2),
        "sequence": nn.Linear(width, sum(SEQUENCE)),
        "counted": nn.Linear(width, 3 * COUNTED),
        "asked": nn.Linear(width, 4),
    }
    return nn.ModuleDict({"model": packed.Model(), **heads})


def compute_losses(parts, batch, words, tower_alone=False, run_tower=packed.run_tower, run_decoder=packed.run_decoder):
    """The loss to minimise, figures for the log, and which answers are right (None for the tower alone).

    words   {"kind": token ids, "colour": ..., "digit": ...}, see `word_ids`
    """
    model = parts["model"]
    if tower_alone:
        rotation = packed.tower_rotation(batch["place"])
        features = run_tower(model.visual, batch["pixels"], batch["segment"], *rotation)
    else:
        features, far_state, asked_state, last = packed.forward(model, batch, run_tower, run_decoder)
    near, figures = parts["near"].loss(features, batch, "near", batch["kind"] >= 0)
    named = naming_loss(features, batch, model.model.embed_tokens.weight.detach(), words)
    figures = {"near": near, "named": named, **figures}
    if tower_alone:
        return near + named, figures, None
    text, whole = text_loss(model, last, batch)
    at = batch["feature"].flatten()
    at, far_state = at[at >= 0], far_state.flatten(0, 1)[at >= 0]
    in_decoder = far_state.new_zeros(features.shape).index_copy(0, at, far_state)
    shown = torch.zeros_like(batch["kind"], dtype=torch.bool).index_fill(0, at, True)
    far, _ = parts["far"].loss(in_decoder, batch, "far", shown)
    truth = [batch[key].masked_fill(~shown, -1) for key in ("changed", "order", "former_kind", "former_colour")]
    sequence, found = sequence_loss(parts["sequence"], in_decoder, *truth)
    counted = counted_loss(parts["counted"], in_decoder, batch["counted"].masked_fill(~shown[:, None], -1))
    asked = asked_loss(parts["asked"], asked_state, batch)
    figures |= {"text": text, "far": far, "sequence": sequence, **found, "counted": counted, "asked": asked}
    loss = text + 0.25 * (near + named) + 0.15 * far + 0.3 * sequence + 0.15 * counted + asked
    return loss, figures, whole


class CellHead(nn.Module):
    """Predict what covers a token with one linear layer: kind, colour, digit, the colour to which a dot is joined,
    characters and their indices in their word, box (in units of `unit` pixels)."""

    def __init__(self, width, unit, box_weight):
        super().__init__()
        self.unit, self.box_weight = unit, box_weight
        self.sizes = (len(CELL_KINDS), len(COLOURS), 10, len(COLOURS), 2 * len(CHARACTERS), 2 * LONGEST_WORD, 4)
        self.linear = nn.Linear(width, sum(self.sizes))
        with torch.no_grad():
            self.linear.bias[sum(self.sizes[:4]) : sum(self.sizes[:5])] = -3.0  # characters are rare

    def loss(self, x, batch, box, drawn):
        """x [U, D] of all tokens, of which those in `drawn` bool [U] count -> loss, and figures"""
        read = read_in_float32(self.linear, x[drawn])
        kind, colour, digit, joined, characters, ordinal, where = read.split(self.sizes, dim=-1)
        true_kind, true_colour = batch["kind"][drawn], batch["colour"][drawn]
        covered, shape = true_kind > 0, true_colour >= 0
        loss = mean_of(F.cross_entropy(kind, true_kind, reduction="none"), covered)
        loss = loss + mean_of(F.cross_entropy(kind, true_kind, reduction="none"), ~covered)
        loss = loss + mean_of(F.cross_entropy(colour, true_colour.clamp(min=0), reduction="none"), shape)
        true_digit = batch["digit"][drawn]
        loss = loss + mean_of(F.cross_entropy(digit, true_digit.clamp(min=0), reduction="none"), true_digit >= 0)
        true_end = batch["joined"][drawn]
        loss = loss + mean_of(F.cross_entropy(joined, true_end.clamp(min=0), reduction="none"), true_end >= 0)
        true_characters = batch["characters"][drawn].flatten(1)
        printed = true_characters.any(dim=-1)
        spelt = F.binary_cross_entropy_with_logits(characters, true_characters, reduction="none").sum(dim=-1)
        loss = loss + CHARACTER_WEIGHT * mean_of(spelt, printed) + mean_of(spelt, ~printed)
        true_ordinal, ordinal = batch["ordinal"][drawn].flatten(), ordinal.reshape(-1, LONGEST_WORD)
        numbered = F.cross_entropy(ordinal, true_ordinal.clamp(min=0), reduction="none")
        loss = loss + mean_of(numbered, true_ordinal >= 0)
        true_box = batch[box][drawn]
        loss = loss + self.box_weight * mean_of(box_loss(where, true_box, self.unit), shape)
        with torch.no_grad():
            right = (characters > 0) == (true_characters > 0)
            figures = {
                "kinds": mean_of((kind.argmax(-1) == true_kind).float(), covered),
                "pixels": self.unit * mean_of((where - true_box).abs().mean(-1), shape),
                "characters": mean_of(right.all(dim=-1).float(), printed),
                "ordinals": mean_of((ordinal.argmax(-1) == true_ordinal).float(), true_ordinal >= 0),
                "joined": mean_of((joined.argmax(-1) == true_end).float(), true_end >= 0),
            }
        return loss, figures


def read_in_float32(head, x):
    """Normalise x and apply a linear layer in float32: bfloat16 has steps of up to 1.3 pixels for a place in 336."""
    with torch.autocast(x.device.type, enabled=False):
        return head(F.rms_norm(x.float(), x.shape[-1:]))


def box_loss(found, true, unit):
    """Smooth L1 of the sides of boxes [B, 4], each error relative to the true width or height: [B].

    Overlap depends on relative errors: two pixels are a fourteenth of a small shape and a fortieth of a large one.
    """
    size = (true[:, 2:] - true[:, :2]).clamp(min=MIN_SIDE / unit).repeat(1, 2)
    share = (found - true) / size
    return F.smooth_l1_loss(share, torch.zeros_like(share), reduction="none", beta=0.02).mean(dim=-1)


def mean_of(values, chosen):
    """The mean of the chosen values, 0 if there are none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def text_loss(model, last, batch):
    """Weighted cross entropy of the answers' tokens; for each answer, whether all its tokens are right."""
    x = last.flatten(0, 1)[batch["at"]]
    logits = F.linear(x, model.model.embed_tokens.weight)
    loss = F.cross_entropy(logits, batch["target"], reduction="none")
    loss = (loss * batch["weight"]).sum() / batch["weight"].sum()
    right = (logits.argmax(-1) == batch["target"]).float()
    whole = torch.ones(len(batch["task"]), device=right.device)
    return loss, whole.scatter_reduce(0, batch["answer"], right, "amin")


def sequence_loss(head, x, changed, order, former_kind, former_colour):
    """Sum of cross entropies for tokens x [U, D]: of `changed`, where 1 and 0 have equal weight, of `order`, and, where
    something has changed, of what was there before.

    Targets are -1 where nothing is asked. Also returns the shares of right predictions.
    """
    new, number, kind, colour = read_in_float32(head, x).split(SEQUENCE, dim=-1)
    new, yes, no, known = new[:, 0], changed == 1, changed == 0, order >= 0
    error = F.softplus(torch.where(yes, -new, new))
    placed = mean_of(F.cross_entropy(number, order.clamp(min=0), reduction="none"), known)
    for logits, former in ((kind, former_kind), (colour, former_colour)):
        placed = placed + mean_of(F.cross_entropy(logits, former.clamp(min=0), reduction="none"), yes & (former >= 0))
    with torch.no_grad():
        right = (mean_of((new > 0).float(), yes) + mean_of((new <= 0).float(), no)) / 2
        figures = {"changes": right, "order": mean_of((number.argmax(-1) == order).float(), known)}
    return mean_of(error, yes) + mean_of(error, no) + placed, figures


def counted_loss(head, x, number):
    """Cross entropy for tokens x [U, D] of the three indices [U, 3] of their shape, -1 without one."""
    logits = read_in_float32(head, x).view(-1, COUNTED)
    error = F.cross_entropy(logits, number.flatten().clamp(min=0), reduction="none")
    return mean_of(error, number.flatten() >= 0)


def asked_loss(head, hidden, batch):
    """Loss of the box that each answer token is about, predicted from the token before by a linear layer."""
    has_box = batch["has_box"]
    if not has_box.any():
        return hidden.sum() * 0
    x = hidden.flatten(0, 1)[batch["at"][has_box]]
    return box_loss(read_in_float32(head, x), batch["box"][has_box], FULL).mean()


def naming_loss(features, batch, embedding, words):
    """Cross entropy that aligns features with the embeddings of the words for what they show: " red", " circle", "7".

    To find a shape by name, a word is then compared with itself; to name a shape, the word is copied.
    """
    x, vectors = F.normalize(features, dim=-1), F.normalize(embedding, dim=-1)
    loss = features.sum() * 0
    for key, shift in (("kind", 1), ("colour", 0), ("digit", 0)):
        ids = torch.tensor(words[key], device=features.device)
        target = batch[key] - shift
        shown = (target >= 0) & (target < len(ids)) & ((batch["colour"] >= 0) | (batch["digit"] >= 0))
        if shown.any():
            loss = loss + F.cross_entropy(10 * x[shown] @ vectors[ids].T, target[shown])
    return loss


def word_ids(tokenizer):
    """Token ids of the words for kinds, colours and digits."""
    return {
        "kind": [tokenizer.token_to_id(f"Ġ{word}") for word in KINDS],
        "colour": [tokenizer.token_to_id(f"Ġ{word}") for word in COLOURS],
        "digit": [tokenizer.token_to_id(str(digit)) for digit in range(10)],
    }
