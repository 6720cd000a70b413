"""Trains a few steps on rows that may be spread over processes, and writes the update of the weights.

    python tests/spread.py OUT           or           torchrun --nproc_per_node 2 tests/spread.py OUT

One file `CASE.safetensors` a case. `test_spread.py` compares them.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from training import magnet, make_trainer, texts

ROWS = 8  # of every optimizer step, however they are spread
COMMON = {
    "rows": texts(3 * ROWS + 5, seed=3),
    "max_steps": 2,
    "optim": "sgd",
    "learning_rate": 1.0,  # an update as large as the weights, or their own rounding would be all there is to see
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 1,  # the first step moves nothing, so that the second is compared, not what it amplifies
    "max_grad_norm": 1.0,
    "sscl_start_step": 1,  # so the projection head has no gradient in the first step
    "lambda_sscl": 9.0,
}
CASES = {
    "lora": {},
    "projection head": {"projection_head": "mlp"},
    "checkpointed activations": {"gradient_checkpointing": True, "projection_head": "linear"},
    "chunks": {"sscl_chunk_size": 1},
    "second stage alone": {"sscl_alone": True, "projection_head": "linear"},
    "kl": {"causal_adapter": True, "lambda_kl": 1.0, "view": {"all_span_ratio": 0.4, "span_max": 8}},
    "adam": {"optim": "adamw_torch", "learning_rate": 0.1, "adam_epsilon": 1e-3, "projection_head": "linear"},
}


def update(options: dict, accumulated: int, folder: str) -> dict[str, torch.Tensor]:
    """What the run adds to each trained parameter."""
    options = COMMON | options
    settings = {key: options.pop(key) for key in ("projection_head", "causal_adapter") if key in options}
    model = magnet(**{"projection_head": "none"} | settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    size = ROWS // accumulated // int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer(
        folder, model, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, **options
    )
    trainer.train()
    assert trainer.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", 1))
    after = dict(model.named_parameters())
    return {name: (after[name].detach() - value).contiguous() for name, value in before.items()}


def main(out: Path, accumulated: int = 1) -> None:
    for name, options in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = update(dict(options), accumulated, folder)
        if int(os.environ.get("RANK", 0)) == 0:
            save_file(found, out / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
