"""A run that stops at any step and goes on ends at the weights of the undisturbed run, bit for bit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import magnet, make_trainer, texts

STEPS = 7
RUN = {
    "rows": texts(13),  # 3 batches of 4 an epoch, so epochs end at steps 3 and 6
    "per_device_train_batch_size": 4,
    "max_steps": STEPS,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "sscl_start_step": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}  # 6 batches: 4, then 2, an epoch
VARIANTS = {
    "plain": {},
    "one token loss after another": {"lambda_msg": 0.0, "lambda_sscl": 0.0},
    "accumulated": ACCUMULATED,
    "accumulated and in chunks": ACCUMULATED | {"sscl_chunk_size": 1},
    "dropout": {"sscl_dropout": 0.3, "sscl_chunk_size": 3},
    "second stage alone": {"sscl_alone": True},
    "two workers": {"dataloader_num_workers": 2},
    "two workers that stay": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    "checkpointed activations": {"gradient_checkpointing": True},
    "bfloat16": {"bf16": True},
}

FAST = ("plain",)


def train(folder, options, resume_from=None):
    model = magnet(projection_head="linear")
    trainer = make_trainer(folder, model, **RUN | options)
    torch.manual_seed(987)  # whatever else the process has drawn
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    return model.state_dict()


@pytest.mark.parametrize(
    "variant", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_resumed_at_any_step_the_weights_are_the_same(variant, tmp_path, record_property):
    options = VARIANTS[variant]
    whole = train(tmp_path / "whole", options)
    stops = range(1, STEPS) if variant == "accumulated" else (2, 3, 5)
    for step in stops:
        resumed = train(tmp_path / "resumed", options, tmp_path / "whole" / f"checkpoint-{step}")
        record_property("resumed", step)
        apart = max((whole[name].double() - resumed[name].double()).abs().max().item() for name in whole)
        record_property("difference", apart)
        assert apart == 0.0, f"resumed at step {step}"
        shutil.rmtree(tmp_path / "resumed")


@pytest.mark.slow
def test_the_variants_are_different_runs(tmp_path):
    """Else the test above would compare the same thing ten times."""
    differ = ("plain", "one token loss after another", "dropout", "second stage alone", "bfloat16")
    ends = [torch.cat([w.flatten() for w in train(tmp_path / name, VARIANTS[name]).values()]) for name in differ]
    assert all(not torch.equal(one, other) for i, one in enumerate(ends) for other in ends[:i])
    helped = train(tmp_path / "helped", VARIANTS["two workers that stay"])
    assert torch.equal(torch.cat([w.flatten() for w in helped.values()]), ends[0])  # workers change nothing


def test_both_passes_over_a_chunk_draw_the_same_dropout(tmp_path):
    """Else the gradients of the first pass would belong to other vectors than those of the second."""
    options = RUN | {"sscl_dropout": 0.3, "sscl_chunk_size": 3, "sscl_start_step": 0, "max_steps": 2}
    trainer = make_trainer(tmp_path, **options | ACCUMULATED)
    encode, seen = trainer.sentence_vectors, {}

    def recorded(model, chunk, number=0):
        vectors = encode(model, chunk, number)
        seen.setdefault((trainer.state.global_step, number), []).append((vectors.requires_grad, vectors.detach()))
        return vectors

    trainer.sentence_vectors = recorded
    trainer.train()
    assert len(seen) == 8 + 4  # 4 micro-batches of 4 pairs in 2 chunks each, then the 2 that are left in the epoch
    for (first_has_graph, first), (second_has_graph, second) in seen.values():
        assert (first_has_graph, second_has_graph) == (False, True)
        assert torch.equal(first, second)
    vectors = [passes[0][1] for passes in seen.values()]
    assert not torch.equal(vectors[0], vectors[8])  # another step, another draw


@pytest.mark.slow
def test_the_optimizer_finds_its_parameters_in_every_process():
    """It stores its state by number: parameters in another order would be given each other's moments."""
    code = "from training import magnet; print([name for name, p in magnet().named_parameters() if p.requires_grad])"
    orders = set()
    for seed in ("1", "2"):  # of Python's hashes, by which sets are ordered
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        orders.add(done.stdout)
    assert len(orders) == 1 and "q_proj_lora.A" in orders.pop()
