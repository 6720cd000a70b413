"""Launch configurations, FSDP2 against one process, and torch.compile against eager."""

import os
import subprocess
import sys
from pathlib import Path

import families
import pytest
import sharded
import torch
from accelerate.commands.config.config_args import load_config_from_file
from conftest import REPOSITORY
from safetensors.torch import load_file
from training import log_of, magnet, make_trainer, relative_difference, texts

CONFIGS = {path.stem: load_config_from_file(str(path)) for path in (REPOSITORY / "accelerate_configs").glob("*.yaml")}


def test_every_configuration_is_accelerates_own():
    kinds = {name: config.distributed_type.value for name, config in CONFIGS.items()}
    assert kinds == {
        "single_gpu": "NO",
        "multi_gpu": "MULTI_GPU",
        "fsdp2": "FSDP",
        "zero2": "DEEPSPEED",
        "zero3": "DEEPSPEED",
    }
    assert [CONFIGS[name].deepspeed_config["zero_stage"] for name in ("zero2", "zero3")] == [2, 3]
    assert not any(config.use_cpu for config in CONFIGS.values())


@pytest.mark.parametrize("family", families.NAMES)
def test_fsdp_shards_the_layers_of_the_model(family):
    """The configuration names none, so accelerate takes the model's own list."""
    settings = CONFIGS["fsdp2"].fsdp_config
    assert settings["fsdp_version"] == 2 and "fsdp_transformer_layer_cls_to_wrap" not in settings
    model = families.build_magnet(family)
    assert set(model._no_split_modules) == {type(model.model.layers[0]).__name__}


# ------------------------------------------------------------------------------------------------ FSDP2, two processes


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The updates of one process that takes all 8 rows at once."""
    out = tmp_path_factory.mktemp("one_process")
    sharded.main(out, shard=False)
    return out


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory):
    """The same with the model sharded over 2 gloo processes, each of which accumulates 2 batches of 2 rows."""
    out = tmp_path_factory.mktemp("two_shards")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(Path(sharded.__file__)), str(out), "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in sharded.CASES if case != "bfloat16 base"])
def test_fsdp2_gives_the_update_of_one_process(one_process, two_shards, case):
    expected, found = (load_file(folder / f"{case}.safetensors") for folder in (one_process, two_shards))
    assert expected.keys() == found.keys() and expected
    assert relative_difference(found, expected) < 1e-6


@pytest.mark.slow
def test_fsdp2_takes_a_bfloat16_base_with_a_float32_adapter(one_process, two_shards):
    """Two dtypes in a shard. The update may differ from one process's by less than bfloat16 itself does."""
    case = "bfloat16 base"
    alone, spread = (load_file(folder / f"{case}.safetensors") for folder in (one_process, two_shards))
    exact = load_file(one_process / "float32 base.safetensors")
    assert all(update.dtype == torch.float32 for update in spread.values())
    assert relative_difference(spread, alone) < relative_difference(alone, exact)


# ----------------------------------------------------------------------------------------------------- torch.compile


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_step_has_the_losses_of_an_eager_one(tmp_path, backend):
    lines = []
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": backend}):
        trainer = make_trainer(tmp_path, magnet("linear"), rows=texts(8), **compiled)
        trainer.train()
        lines += log_of(trainer)
    eager, compiled = lines
    for name in ("loss_mntp", "loss_sscl", "loss_msg", "grad_norm"):
        assert compiled[name] == pytest.approx(eager[name], rel=1e-4), name
