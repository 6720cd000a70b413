"""The steps of `spread.py` with the model sharded by FSDP2 over the processes, gradients and optimizer states too.

    torchrun --nproc_per_node 2 tests/sharded.py OUT ACCUMULATED

accelerate gives FSDP to accelerators only: among CPU processes it ignores the setting and takes DDP. So its state is
told here what a run on GPUs would find in it; from then on all is accelerate's own way of sharding.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from spread import CASES, COMMON, ROWS
from torch.distributed.tensor import DTensor
from training import magnet, make_trainer

CASES = CASES | {
    "bfloat16 base": {"bf16": True, "base_dtype": torch.bfloat16, "projection_head": "linear"},
    "float32 base": {"projection_head": "linear"},
}


def shard_on_cpu(trainer) -> None:
    """What accelerate_configs/fsdp2.yaml sets up on GPUs."""
    state = trainer.accelerator.state
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=True,
    )
    if trainer.args.bf16:
        state.fsdp_plugin.set_mixed_precision("bf16")
    trainer.is_fsdp_enabled = True


def update(options: dict, accumulated: int, folder: str, shard: bool) -> dict[str, torch.Tensor]:
    """What the run adds to each trained parameter, read from the state dict that is exported."""
    options = COMMON | options
    settings = {key: options.pop(key) for key in ("projection_head", "causal_adapter") if key in options}
    base_dtype = options.pop("base_dtype", torch.float32)
    model = magnet(**{"projection_head": "none"} | settings)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(base_dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    size = ROWS // accumulated // int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer(
        folder, model, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, **options
    )
    if shard:
        shard_on_cpu(trainer)
    trainer.train()
    if shard:
        assert trainer.accelerator.is_fsdp2
        assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return {name: (weights[name].float() - value).contiguous() for name, value in before.items() if weights}


def main(out: Path, accumulated: int = 1, shard: bool = True) -> None:
    for name, options in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = update(dict(options), accumulated, folder, shard)
        if int(os.environ.get("RANK", 0)) == 0:
            save_file(found, out / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
