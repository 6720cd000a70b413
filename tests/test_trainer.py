"""MagnetTrainer: the joint step against the formulas, its schedule, its log, and a whole run (section 3.3)."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from magnet_train.arguments import MagnetTrainingArguments, ViewArguments
from magnet_train.curves import CurvesCallback
from magnet_train.data import MagnetCollator, MagnetDataset, Text
from magnet_train.trainer import MagnetTrainer
from magnet_train.views import IGNORE, SpecialTokens
from modeling_magnet import MagnetLlamaForCausalLM

TOKENS = SpecialTokens(bos=1, mask=4, end=2, ordinary=np.arange(10, 97))
PAD = 3
VIEW = {"gap_layout": "mixed", "free_offset": 16, "span_max": 8}
PAIRS = [([1, 10 + i, 30 + i, 2], [1, 30 + i, 50, 10 + i, 2]) for i in range(16)]
PAIRS[1] = (PAIRS[0][0], [1, 60, 61, 2])  # the first sentence once more, with another paraphrase


def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [Text(rng.integers(10, 97, length), np.zeros(length, bool)) for length in rng.integers(12, 40, n)]


class Gradients(TrainerCallback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class RecordingCollator(MagnetCollator):
    """Keeps the batches."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batches = []

    def __call__(self, items):
        self.batches.append(super().__call__(items))
        return self.batches[-1]


@pytest.fixture
def magnet(tiny_magnet):
    """A tiny model as `build_model` hands it over: only adapter and projection head train."""

    def build(projection_head="linear", **settings):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = tiny_magnet("sdpa", mask_token_id=4, projection_head=projection_head, **settings)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name or "projection_head" in name)
        return model

    return build


@pytest.fixture
def make(tmp_path, magnet):
    """`make(model=None, rows=..., eval_rows=None, pairs=PAIRS, view=VIEW, **training)`: a trainer on a few rows."""

    def make(model=None, rows=None, eval_rows=None, pairs=PAIRS, view=VIEW, callbacks=(), **training):
        rows = texts(8) if rows is None else rows
        size = training.setdefault("per_device_train_batch_size", len(rows))
        settings = {
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "disable_tqdm": True,
            "max_steps": 1,
            "per_device_pair_batch_size": 2 * size,
            "sscl_start_step": 0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0,
            "logging_steps": 1,
        }
        args = MagnetTrainingArguments(**settings | training)

        def dataset(rows):
            return MagnetDataset(rows, pairs, ViewArguments(**view), TOKENS, args.pairs_per_row, args.seed)

        return MagnetTrainer(
            model=magnet() if model is None else model,
            args=args,
            train_dataset=dataset(rows),
            eval_dataset=None if eval_rows is None else dataset(eval_rows),
            data_collator=RecordingCollator(pairs, PAD),
            callbacks=list(callbacks),
        )

    return make


def log_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ------------------------------------------------------------------------------------------------ formulas, by hand


def token_losses_by_hand(model, batches):
    """L_MNTP and L_MSG from full logits: the mean of -log p over every target of the whole step."""
    sums, counts = {"mntp": 0.0, "msg": 0.0}, {"mntp": 0, "msg": 0}
    for batch in batches:
        fields = ("input_ids", "attention_mask", "position_ids", "span_ids")
        logits = model(**{name: batch[name] for name in fields}, attention_mode="hybrid").logits
        log_p = logits.log_softmax(-1)
        for name in sums:
            labels = batch[f"{name}_labels"]
            for row in range(len(labels)):
                for place in range(labels.shape[1]):
                    if labels[row, place] != IGNORE:
                        sums[name] = sums[name] - log_p[row, place, labels[row, place]]
                        counts[name] += 1
    return {name: sums[name] / counts[name] for name in sums}


def sscl_by_hand(model, batch, tau=0.1):
    """L_SSCL: each sentence alone, no padding; a repeated sentence is no negative."""
    vectors = []
    for ids, mask in zip(batch["pair_input_ids"], batch["pair_attention_mask"]):
        hidden = model.model(ids[mask.bool()][None], attention_mode="bidirectional").last_hidden_state
        vector = model.projection_head(hidden[0, -1])
        vectors.append(vector / vector.norm())
    n, ids = len(vectors) // 2, batch["pair_ids"].tolist()
    total = 0.0
    for i in range(n):
        scores = {j: (vectors[i] @ vectors[n + j] / tau).exp() for j in range(n) if j == i or ids[j] != ids[i]}
        total = total - (scores[i] / sum(scores.values())).log()
    return total / n


@pytest.mark.parametrize("accumulated", [1, 2])
def test_joint_gradient_equals_the_formulas(make, magnet, accumulated):
    """Two backward passes with logits at labelled positions only, against one loss from full logits."""
    model, gradients = magnet(), Gradients()
    reference = copy.deepcopy(model)
    sizes = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    trainer = make(model, callbacks=[gradients], optim="sgd", learning_rate=0.1, **sizes)
    trainer.train()
    batches = trainer.data_collator.batches
    assert len(batches) == accumulated
    assert len(set(batches[0]["pair_ids"].tolist())) < len(batches[0]["pair_ids"]) or accumulated > 1

    tokens = token_losses_by_hand(reference, batches)
    sscl = sum(sscl_by_hand(reference, batch) for batch in batches) / accumulated
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


def relative_difference(found, expected) -> float:
    one, other = (torch.cat([part[name].flatten() for name in expected]) for part in (found, expected))
    return ((one - other).norm() / other.norm()).item()


# ------------------------------------------------------------------------------------------------ what a step computes


class Calls:
    """The attention mode of each forward and the number of rows the LM head saw."""

    def __init__(self, model):
        self.modes, self.rows = [], []
        model.model.register_forward_pre_hook(self._mode, with_kwargs=True)
        model.lm_head.register_forward_pre_hook(lambda _, args: self.rows.append(args[0].numel() // args[0].shape[-1]))

    def _mode(self, module, args, kwargs):
        self.modes.append(kwargs["attention_mode"])


def test_logits_only_at_labelled_positions(make, magnet):
    model = magnet()
    calls = Calls(model)
    trainer = make(model)
    trainer.train()
    (batch,) = trainer.data_collator.batches
    labelled = (batch["mntp_labels"] != IGNORE).sum() + (batch["msg_labels"] != IGNORE).sum()
    assert calls.modes == ["hybrid", "bidirectional"]
    assert calls.rows == [labelled, 0]
    assert 0 < labelled < batch["attention_mask"].sum()


@pytest.mark.parametrize("start", [2, 0.5])
def test_no_pair_forward_before_sscl_starts(make, magnet, start):
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


@pytest.mark.parametrize("options", [{"lambda_sscl": 0}, {"pairs": []}])
def test_no_pair_forward_without_sscl(make, magnet, options):
    model = magnet()
    calls = Calls(model)
    make(model, **options).train()
    assert calls.modes == ["hybrid"]


def test_accumulated_steps_equal_one_large_batch(make, magnet):
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


def test_a_batch_without_any_target_trains_nothing(make, magnet):
    gradients = Gradients()
    trainer = make(
        magnet("none"), view={"mask_ratio": 0, "max_span_share": 0}, lambda_sscl=0, callbacks=[gradients], optim="sgd"
    )
    trainer.train()
    (line,) = log_of(trainer)
    assert line["loss"] == line["loss_mntp"] == line["loss_msg"] == line["accuracy_mntp"] == 0
    assert all((gradient == 0).all() for gradient in gradients.steps[0].values())


def test_causal_control_is_next_token_prediction(make, magnet, tiny_llama):
    """All tokens one span, MSG alone, the adapter on in causal mode: at step 0 exactly the stock Llama's loss."""
    llama = tiny_llama("sdpa")
    adapter = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    model = MagnetLlamaForCausalLM.from_llama(copy.deepcopy(llama), adapter=adapter, causal_adapter=True)
    trainer = make(
        model, pairs=[], view={"all_span_ratio": 1}, lambda_mntp=0, lambda_sscl=0, lambda_msg=1, learning_rate=0
    )
    trainer.train()
    (batch,) = trainer.data_collator.batches
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    stock = llama(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    (line,) = log_of(trainer)
    assert line["loss_msg"] == pytest.approx(stock.item(), rel=1e-6)
    assert line["loss_mntp"] == 0 and "loss_sscl" not in line

    acting = magnet("none", causal_adapter=True)  # its adapter is no identity
    tokens = trainer.text_loss(acting, batch, {"mntp": 0, "msg": 1})
    causal = acting(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, attention_mode="causal")
    assert tokens.item() == pytest.approx(causal.loss.item(), rel=1e-6)
    assert abs(tokens.item() - stock.item()) > 1e-3


# ------------------------------------------------------------------------------------------------------- whole trainings


def test_same_seed_twice_gives_identical_weights(make, magnet):
    weights = []
    for seed in (3, 3, 4):
        model = magnet()
        trainer = make(
            model, rows=texts(12), per_device_train_batch_size=4, max_steps=5, learning_rate=1e-2, seed=seed
        )
        trainer.train()  # 5 steps of 4 rows: into the second epoch
        weights.append(model.state_dict())
    first, again, other = weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_only_adapter_and_projection_head_change(make, magnet):
    model = magnet("mlp")
    before = copy.deepcopy(model.state_dict())
    make(model, max_steps=3, learning_rate=1e-2, weight_decay=0.1).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name or "projection_head" in name}
    assert len(changed) == 3 * 4 * 2 + 4


def repeated_patterns(n):
    """Texts that go round in circles of three tokens: whoever has read a few knows the next."""
    rng = np.random.default_rng(1)
    return [Text(np.tile(rng.choice(np.arange(10, 16), 3, replace=False), 8), np.zeros(24, bool)) for _ in range(n)]


@pytest.mark.parametrize("objective", ["mntp", "msg", "sscl"])
def test_each_objective_alone_is_learnt(make, magnet, objective):
    lambdas = {f"lambda_{name}": float(name == objective) for name in ("mntp", "msg", "sscl")}
    trainer = make(
        magnet(),
        rows=repeated_patterns(16),
        view={"span_max": 6, "max_spans": 1},
        max_steps=40,
        learning_rate=1e-2,
        **lambdas,
    )
    trainer.train()
    losses = [line[f"loss_{objective}"] for line in log_of(trainer)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    accuracies = [line[f"accuracy_{objective}"] for line in log_of(trainer)]
    assert np.mean(accuracies[-5:]) > np.mean(accuracies[:3]) + 0.1


def test_every_epoch_has_views_of_its_own(make, magnet):
    trainer = make(magnet("none"), pairs=[], lambda_sscl=0, max_steps=6, per_device_train_batch_size=4)
    trainer.train()
    epochs = [trainer.data_collator.batches[i : i + 2] for i in (0, 2, 4)]
    rows = [{tuple(row.tolist()) for batch in epoch for row in batch["msg_labels"]} for epoch in epochs]
    assert trainer.train_dataset.epoch == 2
    assert not rows[0] & rows[1] and not rows[1] & rows[2]


@pytest.mark.parametrize(
    ("objective", "broken", "view"),
    [
        ("mntp", "lora_A", VIEW),
        ("msg", "lora_A", VIEW | {"clean_context_ratio": 1.0}),
        ("sscl", "projection_head", VIEW),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(make, magnet, objective, broken, view):
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


# ------------------------------------------------------------------------------------------------- log and evaluation


def test_log_file_and_curves(make, magnet, tmp_path):
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


def test_logged_losses_are_means_over_the_targets_since_the_last_line(make, magnet):
    each, together = (
        log_of(trainer)
        for trainer in (make(magnet(), max_steps=3, learning_rate=0, logging_steps=n) for n in (1, 3))
        if trainer.train()
    )
    trainer = make(magnet(), max_steps=3, learning_rate=0)
    trainer.train()
    counts = [(batch["msg_labels"] != IGNORE).sum().item() for batch in trainer.data_collator.batches[:3]]
    assert len(set(counts)) > 1
    expected = np.average([line["loss_msg"] for line in each], weights=counts)
    assert together[0]["loss_msg"] == pytest.approx(expected, rel=1e-6)
    assert together[0]["loss_sscl"] == pytest.approx(np.mean([line["loss_sscl"] for line in each]), rel=1e-6)


@pytest.mark.parametrize("rows", [3, 11])
def test_evaluation_takes_every_row(make, magnet, rows):
    """Fewer rows than a batch, and a batch and a rest."""
    model = magnet()
    trainer = make(model, eval_rows=texts(rows, seed=9), per_device_eval_batch_size=8)
    metrics = trainer.evaluate()
    batch = MagnetCollator(PAIRS, PAD)([trainer.eval_dataset[i] for i in range(rows)])
    with torch.no_grad():
        expected = token_losses_by_hand(model, [batch])
    for name, value in expected.items():
        assert metrics[f"eval_loss_{name}"] == pytest.approx(value.item(), rel=1e-5)
        assert 0 <= metrics[f"eval_accuracy_{name}"] <= 1
    assert metrics["eval_loss_sscl"] > 0
    assert not any(key.startswith("lambda") for key in metrics)
    assert trainer.args.dataloader_drop_last  # training still drops its last batch
    assert all(p.grad is None for p in model.parameters())


def test_evaluation_does_not_change_the_training(make, magnet):
    weights = []
    for options in ({}, {"eval_rows": texts(5, seed=9), "eval_strategy": "steps", "eval_steps": 1}):
        model = magnet()
        trainer = make(model, max_steps=3, learning_rate=1e-2, **options)
        trainer.train()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len([entry for entry in trainer.state.log_history if "eval_loss_mntp" in entry]) == 3
