"""`bf16: auto` of a recipe: what a machine multiplies faster in, told with its reason."""

import pytest
import torch

from magnet_train.settings import precision
from magnet_train.settings.precision import bf16_is_faster
from magnet_train.settings.recipes import parse

BASE = ["--config", "default", "--model_name_or_path", "base", "--train_file", "t.txt", "--pairs_file", "p.jsonl"]


@pytest.fixture(autouse=True)
def measured_anew(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    bf16_is_faster.cache_clear()
    yield
    bf16_is_faster.cache_clear()


@pytest.fixture
def rates(monkeypatch):
    """Sets what the machine multiplies at, in GFLOP/s, for float32 and bfloat16."""

    def set_rates(float32, bfloat16):
        found = {torch.float32: float32, torch.bfloat16: bfloat16}
        monkeypatch.setattr(precision, "gemm_rate", found.__getitem__)

    return set_rates


def parsed(tmp_path, *flags):
    model, _, _, training = parse([*BASE, "--output_dir", str(tmp_path), *flags])
    return model.dtype, training.bf16


def test_the_faster_one_is_taken_and_told(rates, tmp_path, caplog):
    caplog.set_level("INFO", logger="magnet_train")
    rates(132.4, 1.19)
    assert parsed(tmp_path) == ("float32", False)
    for name, chosen in (("dtype", "float32"), ("bf16", "False")):
        assert f"{name}: auto is {chosen}, float32 132, bfloat16 1.19 GFLOP/s here" in caplog.messages


def test_bfloat16_must_be_faster_by_a_tenth(rates):
    rates(100.0, 105.0)
    assert not bf16_is_faster()[0]
    bf16_is_faster.cache_clear()
    rates(100.0, 240.0)
    assert bf16_is_faster()[0]


def test_flags_win(rates, tmp_path):
    rates(100.0, 1.0)
    assert parsed(tmp_path, "--bf16", "true") == ("float32", True)


def test_a_resumed_run_goes_on_as_it_began(rates, tmp_path, caplog):
    caplog.set_level("INFO", logger="magnet_train")
    rates(1.0, 100.0)
    (tmp_path / "training_config.yaml").write_text("bf16: false\n")
    assert parsed(tmp_path, "--resume", "true") == ("float32", False)
    assert "bf16: auto is False, as the run that is resumed" in caplog.messages


def test_several_processes_on_cpus_do_not_measure(rates, monkeypatch):
    rates(1.0, 100.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert bf16_is_faster() == (False, "several processes on CPUs")


@pytest.mark.parametrize("has_it", [False, True])
def test_a_gpu_tells_by_itself(monkeypatch, has_it):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_it)
    assert bf16_is_faster()[0] is has_it


def test_a_rate_is_measured():
    assert precision.gemm_rate(torch.float32) > 0.01
