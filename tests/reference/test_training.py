"""The trainer computes what minivl computes, and a stopped run ends as an unbroken one."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import minivl
from minivl.processing import messages as chat
from minivl.stream import run
from minivl.tiny import CHECKPOINT, scene
from minivl.tiny.tasks import FAMILIES, TRAINED, draw_example
from minivl.tiny.training import train, vocabulary
from minivl.tiny.training.batches import Batch, grow_tree
from minivl.tiny.training.losses import (
    MIN_SIDE,
    SEQUENCE,
    box_loss,
    build_parts,
    compute_losses,
    counted_loss,
    read_in_float32,
    sequence_loss,
    word_ids,
)
from minivl.tiny.training.model import attend, forward
from minivl.tiny.training.targets import COUNTED, FULL
from minivl.trace.recorder import record

PLAN = (6, 288, 6, 288)  # rows and lengths of a small batch


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Modules with random weights, and the checkpoint folder that minivl loads, in float32."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("packed")
    parts = build_parts()
    for tensor in parts["model"].parameters():  # as rounded as they are stored
        tensor.data = tensor.data.to(torch.bfloat16).float()
    train.export(parts["model"], folder, vocabulary.build_tokenizer())
    return parts, folder


def pack(examples, plan=PLAN):
    batch = Batch(*plan)
    for example in examples:
        assert batch.add(example, vocabulary.build_tokenizer())
    return {key: torch.from_numpy(value) for key, value in batch.arrays().items()}


def log_probs(parts, batch):
    """Log-probability of each token of the answers."""
    with torch.no_grad():
        last = forward(parts["model"], batch)[-1].flatten(0, 1)[batch["at"]]
        logits = last @ parts["model"].model.embed_tokens.weight.T
        return logits.log_softmax(-1).gather(1, batch["target"][:, None])[:, 0]


def test_packed_is_unpacked(trained):
    """Examples side by side give each token of each answer what it gets when its example is alone."""
    parts, _ = trained
    families = ("shapes", "pair", "video", "text", "line", "blind")
    examples = [draw_example(family, 5, most=3, branch=TRAINED) for family in families]
    together = log_probs(parts, pack(examples))
    alone = torch.cat([log_probs(parts, pack([example], (6, 288, 1, 288))) for example in examples])
    batch = pack(examples)
    order = torch.argsort(batch["answer"], stable=True)
    assert torch.equal(order, torch.arange(len(order))) and len(together) == len(alone)
    assert (together - alone).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_minivl(trained, family):
    """Prompt, positions and the logits of the first answer token, against minivl with the exported checkpoint."""
    parts, folder = trained
    example = draw_example(family, 9, most=1, branch=TRAINED)
    turn = example.conversations[0][0]
    vlm = minivl.load(folder)
    messages = chat.user(turn.question, example.images, example.videos)
    inputs = run(vlm.prepare(messages))
    tree = grow_tree(example, vocabulary.build_tokenizer())
    length = len(inputs.input_ids)
    assert np.array_equal(tree["ids"][:length], inputs.input_ids)
    found = record(vlm.answer(messages, max_new_tokens=1), keep=["lm_head", "position_ids"])
    assert np.array_equal(tree["positions"][:, :length], found["position_ids"])
    with torch.no_grad():
        batch = pack([example], (6, 576, 1, 384))
        last = forward(parts["model"], batch)[-1].flatten(0, 1)[batch["at"][0]]
        logits = (last @ parts["model"].model.embed_tokens.weight.T).numpy()
    assert np.abs(logits - found["lm_head"][-1]).max() < 1e-4 * max(1, np.abs(logits).max())


def make_small(number, ease, tokenizer):
    """A batch of two examples, as quick as a test needs it."""
    batch = Batch(2, 288, 2, 288)
    for family in ("shapes", "text"):
        batch.add(draw_example(family, number, ease=ease, most=2, branch=TRAINED), tokenizer)
    return batch.arrays()


SMALL = ["--cooldown", "2", "--tower-steps", "2", "--workers", "0", "--no-compile"]


def run_for(folder, steps, stop=None):
    options = train.parse([str(folder), "--steps", str(steps), *SMALL])

    def make(number, ease, tokenizer):
        if number == stop:
            raise KeyboardInterrupt
        return make_small(number, ease, tokenizer)

    return train.train(options, make)


def test_resumed_run_is_an_unbroken_one(tmp_path, monkeypatch):
    """Killed at step 5, of which the state after step 3 is left: the weights at the end are equal bit for bit."""
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    whole = run_for(tmp_path / "whole", 8).state_dict()
    with pytest.raises(KeyboardInterrupt):
        run_for(tmp_path / "broken", 8, stop=3)
    assert torch.load(tmp_path / "broken" / "state.pt")["step"] == 3
    monkeypatch.setattr(train, "SAVE_SECONDS", 1000)
    with pytest.raises(KeyboardInterrupt):
        run_for(tmp_path / "broken", 8, stop=5)
    assert torch.load(tmp_path / "broken" / "state.pt")["step"] == 3
    resumed = run_for(tmp_path / "broken", 8).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    minivl.load(tmp_path / "broken" / "checkpoint").ask("How many shapes are there?", max_new_tokens=2)


def test_a_state_that_cannot_be_used_is_an_error_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    run_for(tmp_path, 6)
    (tmp_path / "stable.pt").unlink()
    before = (tmp_path / "log.jsonl").read_bytes(), (tmp_path / "state.pt").read_bytes()
    for steps, message in ((9, "Give --steps 6"), (5, "larger --steps")):
        with pytest.raises(minivl.Error, match=message):
            run_for(tmp_path, steps)
    assert before == ((tmp_path / "log.jsonl").read_bytes(), (tmp_path / "state.pt").read_bytes())


def test_a_shorter_run_keeps_the_state_from_before_its_cooldown(tmp_path, monkeypatch):
    """Killed at step 5 of 9, ended at 6, gone on to 9: the rate began to fall at 5, not where --steps 6 would have it."""
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run_for(tmp_path, 9, stop=5)
    run_for(tmp_path, 6)
    assert torch.load(tmp_path / "stable.pt")["step"] == 5
    run_for(tmp_path, 9)
    assert torch.load(tmp_path / "state.pt")["step"] == 9


def test_a_line_of_the_log_that_was_cut_goes(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 25}\n{"step": 50, "right": {"way": [1, 2]}')
    train.Log(tmp_path, 50)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 25}\n'


def test_longer_run_goes_on_before_the_cooldown(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    run_for(tmp_path / "run", 6)
    run_for(tmp_path / "run", 9)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_resumed_run_takes_the_rate_that_is_asked_for(tmp_path):
    run_for(tmp_path, 6)
    options = train.parse([str(tmp_path), "--rate", "0.5", "--steps", "6", "--cooldown", "2"])
    parts = build_parts()
    optimizers = train.build_optimizers(parts, options.rate)
    assert train.restore(tmp_path, parts, optimizers, options) == (6, True, 0)
    assert [group["rate"] for one in optimizers for group in one.param_groups] == [0.5 * train.MUON_RATE, 0.5]


@pytest.fixture
def other_tokens(tmp_path):
    """The shipped checkpoint with two tokens exchanged, "Ġcircle" and "Ġred", in the tokenizer and in the table."""
    folder, made = tmp_path / "start", json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    shutil.copytree(CHECKPOINT, folder)
    ids, weights = made["model"]["vocab"], load_file(CHECKPOINT / "model.safetensors")
    a, b = (ids[word] for word in ("Ġcircle", "Ġred"))
    ids["Ġcircle"], ids["Ġred"] = b, a
    weights["model.embed_tokens.weight"][[a, b]] = weights["model.embed_tokens.weight"][[b, a]]
    (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_run_begins_with_a_checkpoints_weights_and_tokens(tmp_path, other_tokens):
    """--start: after no step at all the checkpoint is the one to begin with, whatever tokenizer a killed run had left."""
    (tmp_path / "run").mkdir()
    vocabulary.build_tokenizer().save(str(tmp_path / "run" / "tokenizer.json"))
    options = ["--start", str(other_tokens), "--steps", "0", "--workers", "0", "--no-compile"]
    train.train(train.parse([str(tmp_path / "run"), *options]), make_small)
    begun, start = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "run" / "checkpoint", other_tokens)
    )
    assert all(torch.equal(start[name], begun[name]) for name in start) and start.keys() == begun.keys()
    question, drawn = "What shape is the red thing?", scene(3).image
    assert minivl.load(tmp_path / "run" / "checkpoint").ask(question, drawn) == minivl.load().ask(question, drawn)


def run_from(folder, start, *more, stop=None):
    """A run of six steps that begins with a checkpoint."""
    options = train.parse([str(folder), "--start", str(start), "--steps", "6", *SMALL, *more])

    def make(number, ease, tokenizer):
        if number == stop:
            raise KeyboardInterrupt
        return make_small(number, ease, tokenizer)

    return train.train(options, make).state_dict()


def test_heads_are_trained_alone_at_first(tmp_path, monkeypatch):
    """Those that no checkpoint has; meanwhile the model stays as it is. Killed there, a run continues as an unbroken one."""
    monkeypatch.setattr(train, "HEADS_STEPS", 3)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    start = load_file(CHECKPOINT / "model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run_from(tmp_path / "broken", CHECKPOINT, stop=2)
    state = torch.load(tmp_path / "broken" / "state.pt")["parts"]
    assert all(torch.equal(state[f"model.{name}"], tensor.float()) for name, tensor in start.items())
    torch.manual_seed(0)
    raw = build_parts().state_dict()
    for head in ("near.linear", "far.linear", "sequence", "asked"):
        assert not torch.equal(state[f"{head}.weight"], raw[f"{head}.weight"]), head
    whole, resumed = (run_from(tmp_path / name, CHECKPOINT) for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not any(torch.equal(whole[f"model.{name}"], start[name].float()) for name in start if "layers" in name)


def test_too_few_steps_for_more_than_the_heads_are_an_error(tmp_path):
    with pytest.raises(minivl.Error, match="the first 150 steps are for the heads alone. Give more"):
        run_from(tmp_path, CHECKPOINT)


def test_a_state_with_other_heads_is_an_error(tmp_path):
    run_for(tmp_path, 3)
    state = torch.load(tmp_path / "state.pt")
    state["parts"]["near.linear.weight"] = state["parts"]["near.linear.weight"][:-1]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(minivl.Error, match="other heads"):
        run_for(tmp_path, 3)


def test_the_learning_rate_warms_up_stays_and_falls():
    for start, alone in (((), 0), (("--start", "X"), train.HEADS_STEPS)):
        options = train.parse(["run", *start, "--steps", "1000", "--cooldown", "200"])
        assert (options.tower_steps, options.ease_steps) == ((0, 0) if start else (2000, 3500))
        rates = [train.schedule(step, options, alone) for step in range(1000)]
        assert rates[:alone] == [train.HEADS_RATE] * alone and rates[alone] == 1 / train.WARM_UP
        assert rates[alone + train.WARM_UP - 1] == rates[800] == 1 and rates[900] == 0.5 and rates[-1] == 0.01


def test_a_box_is_read_in_float32_and_judged_by_its_own_size():
    true = torch.tensor([[0.1, 0.1, 0.3, 0.4]])
    assert box_loss(true, true, FULL) == 0
    assert torch.allclose(box_loss(true + 0.02, true, FULL), box_loss(2 * true + 0.04, 2 * true, FULL))
    wide, high = (torch.tensor([error]) for error in ((0.1, 0.0, 0.0, 0.0), (0.0, 0.1, 0.0, 0.0)))
    assert box_loss(true + wide, true, FULL) > box_loss(true + high, true, FULL)  # it is higher than wide
    thin, thinner = (torch.tensor([[0.1, 0.1, 0.1 + width / FULL, 0.4]]) for width in (MIN_SIDE, 1))
    assert torch.allclose(box_loss(thin + wide, thin, FULL), box_loss(thinner + wide, thinner, FULL))
    head, x = torch.nn.Linear(8, 4), torch.randn(3, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = read_in_float32(head, x)
    assert found.dtype == torch.float32 and torch.equal(found, read_in_float32(head, x))


def test_losses_of_a_sequence_and_of_numbers_judge_what_is_asked_alone():
    """What a token showed before counts where something has changed; a number counts where a shape is."""
    torch.manual_seed(0)
    x, head = torch.randn(4, 8), torch.nn.Linear(8, sum(SEQUENCE))
    none, changed = torch.full((4,), -1), torch.tensor([-1, 0, 1, 1])
    assert sequence_loss(head, x, none, none, none, none)[0] == 0
    first = [1, 2, 3, 0], [0, 1, 2, -1]  # kinds, and colours, of before
    losses = []
    for place in (None, 1, 2):
        kind, colour = (torch.tensor(values) for values in first)
        if place is not None:
            kind[place] = 5
        losses.append(float(sequence_loss(head, x, changed, none, kind, colour)[0]))
    assert losses[0] == losses[1] != losses[2]
    head = torch.nn.Linear(8, 3 * COUNTED)
    number = torch.tensor([[0, 0, 0], [1, 0, -1], [-1, -1, -1], [-1, -1, -1]])
    logits = read_in_float32(head, x).view(4, 3, COUNTED).log_softmax(-1)
    expected = -(logits[0, :, 0].sum() + logits[1, 0, 1] + logits[1, 1, 0]) / 5
    assert torch.allclose(counted_loss(head, x, number), expected)
    assert counted_loss(head, x, torch.full((4, 3), -1)) == 0


def test_characters_are_taken_for_rare_at_first():
    head = build_parts()["near"]
    bias = torch.where(head.linear.bias == -3, -3.0, 0.0).split(head.sizes)
    assert [bool((part == -3).all()) for part in bias] == [False, False, False, False, True, False, False]


def test_what_is_no_small_model_is_no_start(tmp_path):
    options = train.parse([str(tmp_path / "run"), "--start", str(tmp_path), "--workers", "0", "--no-compile"])
    with pytest.raises(minivl.Error, match="--start .* Give a folder with a checkpoint"):
        train.train(options)
    weights = load_file(CHECKPOINT / "model.safetensors")
    save_file({**weights, "model.norm.weight": torch.ones(8)}, tmp_path / "model.safetensors")
    shutil.copy(CHECKPOINT / "tokenizer.json", tmp_path)
    with pytest.raises(minivl.Error, match="another model: model.norm.weight is .8., and .192. is needed"):
        train.train(options)


def test_bfloat16_products_give_nearly_the_same_losses(trained):
    """Losses of one batch by float32 and by bfloat16 products; attention and the residual streams stay float32."""
    parts, _ = trained
    tokenizer = vocabulary.build_tokenizer()
    batch = {key: torch.from_numpy(value) for key, value in make_small(3, 1.0, tokenizer).items()}
    found = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, figures, _ = compute_losses(parts, batch, word_ids(tokenizer))
            found.append([float(value) for value in (loss, *figures.values())])
            assert forward(parts["model"], batch)[-1].dtype == torch.float32
            q = torch.ones(1, 1, 4, 8, dtype=torch.bfloat16 if enabled else torch.float32)
            assert attend(q, q, q, torch.zeros(1, 1, 4, 4)).dtype == torch.float32
    assert np.allclose(*found, rtol=0.03, atol=0.03) and found[0] != found[1]


def test_a_run_in_bfloat16_learns_and_keeps_float32_weights(tmp_path):
    parts = train.train(train.parse([str(tmp_path), "--bfloat16", *SMALL, "--steps", "4"]), make_small)
    assert {p.dtype for p in parts.parameters()} == {torch.float32}
    other = train.train(train.parse([str(tmp_path / "float32"), *SMALL, "--steps", "4"]), make_small)
    moved = [torch.equal(a, b) for a, b in zip(parts.parameters(), other.parameters())]
    assert not all(moved)
    assert all((a - b).norm() < 0.2 * b.norm() + 0.05 for a, b in zip(parts.parameters(), other.parameters()))
