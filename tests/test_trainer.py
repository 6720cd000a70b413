"""One step of MagnetTrainer: the joint loss against the formulas, and what is computed for it (section 3.3)."""

import collections
import copy
import functools

import pytest
import torch
from training import (
    PAIRS,
    TOKENS,
    Gradients,
    log_of,
    magnet,
    make_trainer,
    relative_difference,
    sscl_by_hand,
    token_losses_by_hand,
)

from magnet_train import losses
from magnet_train.views import IGNORE
from modeling_magnet import MagnetLlamaForCausalLM


@pytest.fixture
def make(tmp_path):
    return functools.partial(make_trainer, tmp_path)


@pytest.mark.parametrize(
    ("family", "accumulated", "chunk"),
    [("llama", 1, 0), ("llama", 1, 1), ("llama", 4, 0), ("gemma3_text", 4, 3)]
    + [pytest.param("llama", *spread, marks=pytest.mark.slow) for spread in ((1, 6), (2, 0))]
    + [pytest.param(name, 4, 3, marks=pytest.mark.slow) for name in ("qwen2", "mistral", "qwen3", "granite")],
)
def test_joint_gradient_equals_the_formulas(make, monkeypatch, family, accumulated, chunk):
    """Backward passes of their own, logits at labelled positions only and seven at a time, pairs in chunks, against one
    loss from full logits, whose negatives are all pairs of the step."""
    monkeypatch.setitem(losses.HEAD_ROWS, "cpu", 7)
    model, gradients = magnet(family=family), Gradients()
    reference = copy.deepcopy(model)
    sizes = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    trainer = make(model, callbacks=[gradients], optim="sgd", learning_rate=0.1, sscl_chunk_size=chunk, **sizes)
    trainer.train()
    batches = trainer.data_collator.batches
    assert len(batches) == accumulated
    pair_ids = torch.cat([batch["pair_ids"] for batch in batches]).tolist()
    assert len(pair_ids) == 16 and len(set(pair_ids)) == 15  # one sentence is there twice

    tokens = token_losses_by_hand(reference, batches)
    sscl = sscl_by_hand(reference, batches)
    loss = tokens["mntp"] + 9 * sscl + tokens["msg"]
    loss.backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    (found,) = gradients.steps
    assert found.keys() == expected.keys() and len(found) == 3 * 4 * 2 + 1
    assert relative_difference(found, expected) < 1e-6
    (line,) = log_of(trainer)
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)  # the Trainer rounds what it logs
    for name, value in (tokens | {"sscl": sscl}).items():
        assert line[f"loss_{name}"] == pytest.approx(value.item(), rel=1e-5)


def test_the_end_token_is_barred_as_in_infill(make):
    """A fill has a token at least, and a gap of known length does not end early. Everywhere else END competes."""
    model = magnet(infill_end_token_id=TOKENS.end)
    reference, gradients = copy.deepcopy(model), Gradients()
    trainer = make(model, pairs=[], lambda_mntp=0, callbacks=[gradients], optim="sgd")
    trainer.train()
    (batch,) = trainer.data_collator.batches
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "span_ids")}
    logits = reference(**inputs, attention_mode="hybrid").logits
    costs, kinds = [], collections.Counter()
    for row, place in (batch["msg_labels"] != IGNORE).nonzero().tolist():
        here, spans, labels = logits[row, place], batch["span_ids"][row].tolist(), batch["msg_labels"][row].tolist()
        ends = labels[place] == TOKENS.end
        gap = spans[place] if ends else spans[place + 1]
        free = TOKENS.end in [label for label, span in zip(labels, spans) if span == gap]
        opens = not ends and spans[place] != gap
        kinds["end" if ends else "free" if free else "exact", opens] += 1
        if opens or not free:
            here = torch.cat([here[: TOKENS.end], here[TOKENS.end + 1 :]])
        costs.append(here.logsumexp(-1) - logits[row, place, labels[place]])
    assert len(kinds) == 5 and min(kinds.values()) >= 2  # three kinds, of which END never opens a fill
    loss = torch.stack(costs).mean()
    loss.backward()
    assert log_of(trainer)[0]["loss_msg"] == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    found = {name: gradient for name, gradient in gradients.steps[0].items() if name in expected}
    assert relative_difference(found, expected) < 1e-6


# ------------------------------------------------------------------------------------------------ what a step computes


class Calls:
    """The attention mode of each forward."""

    def __init__(self, model):
        self.modes = []
        model.model.register_forward_pre_hook(self._mode, with_kwargs=True)

    def _mode(self, module, args, kwargs):
        self.modes.append(kwargs["attention_mode"])


@pytest.mark.parametrize("start", [2, 0.5])
def test_no_pair_forward_before_sscl_starts(make, start):
    model = magnet()
    calls = Calls(model)
    trainer = make(model, max_steps=4, sscl_start_step=start, lambda_sscl=3.0)
    trainer.train()
    assert calls.modes == ["hybrid"] * 2 + ["hybrid", "bidirectional"] * 2
    lines = log_of(trainer)
    assert [line["lambda_sscl"] for line in lines] == [0, 0, 3, 3]
    assert ["loss_sscl" in line for line in lines] == [False, False, True, True]
    for line in lines:
        weighted = sum(line[f"lambda_{name}"] * line.get(f"loss_{name}", 0) for name in ("mntp", "sscl", "msg"))
        assert line["loss"] == pytest.approx(weighted, rel=1e-4)


def test_no_pair_forward_without_pairs(make):
    model = magnet()
    calls = Calls(model)
    make(model, pairs=[]).train()
    assert calls.modes == ["hybrid"]


def test_accumulated_steps_equal_one_large_batch(make):
    found = []
    for size in (8, 2):
        gradients = Gradients()
        trainer = make(
            magnet("none"),
            callbacks=[gradients],
            lambda_sscl=0,
            optim="sgd",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        trainer.train()
        found.append((gradients.steps[0], log_of(trainer)[0]))
        targets = [(batch["mntp_labels"] != IGNORE).sum().item() for batch in trainer.data_collator.batches]
    assert len(set(targets)) > 1  # the micro-batches weigh differently
    (whole, line), (parts, other_line) = found
    assert relative_difference(parts, whole) < 1e-6
    for name in ("loss", "loss_mntp", "loss_msg"):
        assert line[name] == pytest.approx(other_line[name], rel=1e-5)


def test_a_batch_without_any_target_trains_nothing(make):
    gradients = Gradients()
    trainer = make(
        magnet("none"), view={"mask_ratio": 0, "max_span_share": 0}, lambda_sscl=0, callbacks=[gradients], optim="sgd"
    )
    trainer.train()
    (line,) = log_of(trainer)
    assert line["loss"] == line["loss_mntp"] == line["loss_msg"] == line["accuracy_mntp"] == 0
    assert all((gradient == 0).all() for gradient in gradients.steps[0].values())


def test_a_batch_of_one_repeated_pair_has_no_negative(make):
    gradients = Gradients()
    trainer = make(magnet(), pairs=PAIRS[:1], lambda_mntp=0, lambda_msg=0, callbacks=[gradients], optim="sgd")
    trainer.train()
    (line,) = log_of(trainer)
    assert line["loss_sscl"] == pytest.approx(0, abs=1e-6)
    assert line["accuracy_sscl"] == 1
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients.steps[0].values())


def test_causal_control_is_next_token_prediction(make, tiny_llama):
    """All tokens one span, MSG alone, the adapter on in causal mode: at step 0 exactly the stock Llama's loss."""
    llama = tiny_llama("sdpa")
    adapter = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    model = MagnetLlamaForCausalLM.from_llama(copy.deepcopy(llama), adapter=adapter, causal_adapter=True)
    settings = {"pairs": [], "view": {"all_span_ratio": 1}, "learning_rate": 0}
    settings |= {"lambda_mntp": 0, "lambda_sscl": 0, "lambda_msg": 1}
    trainer = make(model, **settings)
    trainer.train()
    (batch,) = trainer.data_collator.batches
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    stock = llama(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    (line,) = log_of(trainer)
    assert line["loss_msg"] == pytest.approx(stock.item(), rel=1e-6)
    assert line["loss_mntp"] == 0 and "loss_sscl" not in line

    acting = magnet("none", causal_adapter=True)  # its adapter is no identity
    tokens = make(acting, **settings).text_loss(acting, batch, {"mntp": 0, "msg": 1})
    causal = acting(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, attention_mode="causal")
    assert tokens.item() == pytest.approx(causal.loss.item(), rel=1e-6)
    assert abs(tokens.item() - stock.item()) > 1e-3
