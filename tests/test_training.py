"""Whole trainings: they repeat, resume, learn, stop at a broken loss, and leave a log."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from training import (
    HELD_OUT,
    PAD,
    VIEW,
    Gradients,
    log_of,
    magnet,
    make_trainer,
    sscl_by_hand,
    texts,
    token_losses_by_hand,
)
from transformers import TrainerState

from magnet_train.curves import CurvesCallback
from magnet_train.data.dataset import MagnetCollator, Text
from magnet_train.trainer import EpochCallback
from magnet_train.views import IGNORE, SpecialTokens


@pytest.fixture
def make(tmp_path):
    return functools.partial(make_trainer, tmp_path)


# ------------------------------------------------------------------------------------------------------- whole trainings


def test_bfloat16_keeps_the_adapter_in_float32(make):
    found, lines = [], []
    for bf16 in (False, True):
        model, gradients = magnet(), Gradients()
        trainer = make(model, callbacks=[gradients], optim="sgd", bf16=bf16)
        trainer.train()
        found.append(torch.cat([gradient.flatten() for gradient in gradients.steps[0].values()]))
        lines.append(log_of(trainer)[0])
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not torch.equal(*found)
    assert torch.cosine_similarity(*found, dim=0) > 0.99
    for name in ("mntp", "msg", "sscl"):
        assert lines[1][f"loss_{name}"] == pytest.approx(lines[0][f"loss_{name}"], rel=0.02)


def test_only_adapter_and_projection_head_change(make):
    model = magnet("mlp")
    before = copy.deepcopy(model.state_dict())
    make(model, max_steps=3, learning_rate=1e-2, weight_decay=0.1).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "_lora." in name or "projection_head" in name}
    assert len(changed) == 3 * 4 * 2 + 4


def repeated_patterns(n):
    """Texts that go round in circles of three tokens: whoever has read a few knows the next."""
    rng = np.random.default_rng(1)
    return [Text(np.tile(rng.choice(np.arange(10, 16), 3, replace=False), 8), np.zeros(24, bool)) for _ in range(n)]


@pytest.mark.parametrize(
    "objective", ["msg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mntp", "sscl"))]
)
def test_each_objective_alone_is_learnt(make, objective):
    lambdas = {f"lambda_{name}": float(name == objective) for name in ("mntp", "msg", "sscl")}
    trainer = make(
        magnet(),
        rows=repeated_patterns(16),
        pairs=[([1, 10 + i, 2], [1, 40 + 5 * i % 16, 2]) for i in range(16)],  # nothing alike: to be memorised
        view={"span_max": 6, "max_spans": 1},
        max_steps=25,
        learning_rate=1e-2,
        **lambdas,
    )
    trainer.train()
    losses = [line[f"loss_{objective}"] for line in log_of(trainer)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    accuracies = [line[f"accuracy_{objective}"] for line in log_of(trainer)]
    assert np.mean(accuracies[-5:]) > np.mean(accuracies[:3]) + 0.1


def test_every_epoch_has_views_of_its_own(make):
    trainer = make(magnet("none"), pairs=[], lambda_sscl=0, max_steps=6, per_device_train_batch_size=4)
    trainer.train()
    epochs = [trainer.data_collator.batches[i : i + 2] for i in (0, 2, 4)]
    rows = [{tuple(row.tolist()) for batch in epoch for row in batch["msg_labels"]} for epoch in epochs]
    assert trainer.train_dataset.epoch == 2
    assert not rows[0] & rows[1] and not rows[1] & rows[2]


def test_the_data_set_learns_its_epoch_among_processes_too(make):
    """accelerate alone leaves it at 0 where two processes share the data, and every epoch would repeat the views."""
    trainer = make()
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, EpochCallback)]
    loader = torch.utils.data.DataLoader(trainer.train_dataset, batch_size=2, shuffle=True, collate_fn=list)
    loader = prepare_data_loader(loader, num_processes=2, process_index=0, use_seedable_sampler=True)
    state = TrainerState(epoch=3.5)  # resumed in mid-epoch
    callback.on_epoch_begin(trainer.args, state, trainer.control, train_dataloader=loader)
    loader.set_epoch(3)
    assert trainer.train_dataset.epoch == 3


@pytest.mark.parametrize(
    ("objective", "broken", "view"),
    [
        ("mntp", "_lora.A", VIEW),
        ("msg", "_lora.A", VIEW | {"clean_context_ratio": 1.0}),
        ("sscl", "projection_head", VIEW),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(make, objective, broken, view):
    model = magnet()
    parameter = next(p for name, p in model.named_parameters() if broken in name)
    with torch.no_grad():
        parameter[0, 0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    trainer = make(model, view=view, max_steps=3, learning_rate=1e-2)
    with pytest.raises(FloatingPointError, match=f"loss_{objective} is nan at step 0"):
        trainer.train()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def in_float16(model, scale=1.0):
    """What `dtype: float16` loads, with logits `scale` times as large; what is trained stays in float32."""
    with torch.no_grad():
        model.lm_head.weight *= scale
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.half()
    return model


def test_logits_whose_sum_overflows_leave_the_loss_as_it_is(make):
    """In float16 anything above 65,504 is infinite: the sum of all logits was, and 0 times it the loss."""
    trainer = make(in_float16(magnet("none"), scale=300.0), pairs=[], learning_rate=0)
    logits = []
    trainer.model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output.detach()))
    trainer.train()
    logits = torch.cat(logits)
    assert logits.dtype == torch.float16 and logits.isfinite().all() and logits.abs().sum() > 65504
    (line,) = log_of(trainer)
    assert line["loss"] == pytest.approx(line["loss_mntp"] + line["loss_msg"], rel=1e-4)


@pytest.mark.parametrize(("objective", "clean"), [("mntp", 0.0), ("msg", 1.0)])
def test_a_loss_that_is_not_finite_stops_a_run_in_float16_too(make, objective, clean):
    trainer = make(in_float16(magnet("none"), scale=1e5), pairs=[], view=VIEW | {"clean_context_ratio": clean})
    with pytest.raises(FloatingPointError, match=f"loss_{objective} is (nan|inf) at step 0"):
        trainer.train()


# ------------------------------------------------------------------------------------------------- log and evaluation


def test_log_file_and_curves(make, tmp_path):
    trainer = make(magnet(), max_steps=4, sscl_start_step=2, callbacks=[CurvesCallback()], logging_steps=2)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4]
    for line, names in zip(steps, (["mntp", "msg"], ["mntp", "msg", "sscl"])):
        for name in names:
            assert line[f"loss_{name}"] > 0
            assert 0 <= line[f"accuracy_{name}"] <= 1
    assert [line["lambda_sscl"] for line in steps] == [0, 9]
    assert all(line["lambda_mntp"] == line["lambda_msg"] == 1 for line in steps)
    picture = (tmp_path / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 10_000

    make(magnet(), callbacks=[CurvesCallback()]).train()  # a new run into the same folder starts a new log
    steps = [json.loads(line)["step"] for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert steps == [1, 1]  # the step and the run's summary


def test_logged_losses_are_means_over_the_targets_since_the_last_line(make):
    each, together = (make(magnet(), max_steps=3, learning_rate=0, logging_steps=n) for n in (1, 3))
    each.train()
    together.train()
    counts = [(batch["msg_labels"] != IGNORE).sum().item() for batch in each.data_collator.batches[:3]]
    assert len(set(counts)) > 1
    (line,) = log_of(together)
    expected = np.average([each_line["loss_msg"] for each_line in log_of(each)], weights=counts)
    assert line["loss_msg"] == pytest.approx(expected, rel=1e-6)
    expected = np.mean([each_line["loss_sscl"] for each_line in log_of(each)])
    assert line["loss_sscl"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rows", [3, 11])
def test_evaluation_takes_every_row(make, rows):
    """Fewer rows than a batch, and a batch and a rest."""
    model = magnet()
    trainer = make(model, eval_rows=texts(rows, seed=9), per_device_eval_batch_size=8)
    metrics = trainer.evaluate()
    items = [trainer.eval_dataset[i] for i in range(rows)]
    with torch.no_grad():
        expected = token_losses_by_hand(model, [MagnetCollator(PAD)(items)])
    for name, value in expected.items():
        assert metrics[f"eval_loss_{name}"] == pytest.approx(value.item(), rel=1e-5)
        assert 0 <= metrics[f"eval_accuracy_{name}"] <= 1
    assert not any(key.startswith("lambda") for key in metrics)
    assert trainer.args.dataloader_drop_last  # training still drops its last batch
    assert all(p.grad is None for p in model.parameters())


def test_held_out_pairs_are_measured_and_those_of_training_are_not(make):
    """An evaluation batch has the pairs of its rows as negatives of each other; all are held out."""
    model = magnet()
    trainer = make(model, eval_rows=texts(6, seed=9), per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    halves = [MagnetCollator(PAD)([trainer.eval_dataset[i] for i in rows]) for rows in (range(3), range(3, 6))]
    sentences = {tuple(ids[ids != PAD].tolist()) for batch in halves for ids in batch["pair_input_ids"]}
    assert sentences == {tuple(ids) for pair in HELD_OUT for ids in pair}
    with torch.no_grad():
        by_hand = [sscl_by_hand(model, [batch]).item() for batch in halves]
    assert metrics["eval_loss_sscl"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert abs(by_hand[0] - by_hand[1]) > 1e-3

    without = make(model, eval_rows=texts(6, seed=9), eval_pairs=[]).evaluate()
    assert without["eval_loss_mntp"] == pytest.approx(metrics["eval_loss_mntp"], rel=1e-5)
    assert not {"eval_loss_sscl", "eval_accuracy_sscl"} & set(without)


def test_a_broken_held_out_pair_is_named(make):
    model = magnet()
    trainer = make(model, eval_rows=texts(6, seed=9), lambda_mntp=0, lambda_msg=0)
    with torch.no_grad():
        model.model.embed_tokens.weight[84] = float("nan")
    trainer.eval_dataset.pairs.origins = [f"held_out.jsonl:{number}" for number in range(1, 8)]
    for text in trainer.eval_dataset.texts:
        text.ids[text.ids == 84] = 11
    trainer.eval_dataset.tokens = SpecialTokens(1, 4, 2, np.arange(10, 80))
    with pytest.raises(FloatingPointError, match="loss_sscl is nan at step 0, in held_out.jsonl:5:"):
        trainer.evaluate()


def test_evaluation_does_not_change_the_training(make):
    weights = []
    for options in ({}, {"eval_rows": texts(5, seed=9), "eval_strategy": "steps", "eval_steps": 1}):
        model = magnet()
        trainer = make(model, max_steps=3, learning_rate=1e-2, **options)
        trainer.train()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len([entry for entry in trainer.state.log_history if "eval_loss_mntp" in entry]) == 3
