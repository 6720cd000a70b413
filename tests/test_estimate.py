"""The memory calculator: its parts by hand, its limits, and that it agrees with what was measured."""

import json
import runpy
from dataclasses import replace

import pytest
import torch
from conftest import ADAPTER, BASE_MODEL, REPOSITORY, build_llama, build_magnet

from magnet_train.arguments import ViewArguments
from magnet_train.estimate import LOGIT_BYTES, Run, labelled_positions, memory, parameter_counts, report
from magnet_train.losses import mntp_loss
from magnet_train.model import is_trained
from magnet_train.run import main
from magnet_train.simulate import layer_memory
from modeling_magnet import MagnetLlamaConfig

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(**settings) -> MagnetLlamaConfig:
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}
    return MagnetLlamaConfig(
        **sizes | {"vocab_size": 1000, "adapter": {"r": 8, "alpha": 8, "target_modules": ALL}} | settings
    )


RUN = Run(config=llama(), rows=8, length=64, labelled=180, pairs=8, pair_length=32)


def test_parameters_are_those_of_the_model():
    model = build_magnet(llama=build_llama(), projection_head="mlp")
    layer, rest, adapter, head = parameter_counts(model.config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert head == sum(size for name, size in sizes.items() if "projection_head" in name)
    assert 3 * adapter == sum(
        size for name, size in sizes.items() if is_trained(name) and "projection_head" not in name
    )
    assert 3 * (layer + adapter) + rest + head == sum(sizes.values())


@pytest.mark.parametrize("dtype, autocast", [(torch.float32, False), (torch.bfloat16, True)])
def test_a_layer_keeps_what_a_real_one_keeps(dtype, autocast):
    """Against the tensors that autograd saves in a real model, one layer against two."""
    kept = []
    for layers in (1, 2):
        base = build_llama("sdpa", num_hidden_layers=layers).to(dtype)
        model = build_magnet(llama=base).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained(name))
        known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        sizes = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                sizes[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address comes twice
            return tensor

        ids = torch.randint(4, 97, (4, 32))
        spans = torch.zeros_like(ids)
        spans[:, 5:9] = 1
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            model.model(ids, attention_mode="hybrid", span_ids=spans)
        kept.append(sum(size for size, _ in sizes.values()))
    simulated = layer_memory(model.config, dtype, autocast, rows=4, length=32)
    assert simulated.kept == pytest.approx(kept[1] - kept[0], rel=0.02)


@pytest.mark.slow
def test_layers_count_by_themselves():
    one, two = (memory(replace(RUN, config=llama(num_hidden_layers=n))) for n in (6, 12))
    edges = 2 * one["texts"]["activations"] - two["texts"]["activations"]
    assert 0 <= edges < 0.1 * one["texts"]["activations"]


def test_each_setting_moves_its_own_part():
    base = memory(RUN)
    checkpointed = memory(replace(RUN, checkpointing=True))
    assert checkpointed["texts"]["activations"] < 0.2 * base["texts"]["activations"]
    assert checkpointed["base weights"] == base["base weights"]
    chunked = memory(replace(RUN, pairs=2))
    assert chunked["pairs"]["activations"] == pytest.approx(base["pairs"]["activations"] / 4, rel=0.05)
    assert chunked["texts"] == base["texts"]
    assert memory(replace(RUN, bits=4))["base weights"] < 0.5 * base["base weights"]
    states = memory(replace(RUN, sharding="states", processes=4))
    assert states["gradients"] == base["gradients"] / 4 and states["base weights"] == base["base weights"]
    sharded = memory(replace(RUN, sharding="weights", processes=4))
    assert sharded["base weights"] == base["base weights"] / 4 and sharded["gathered weights"] > 0
    assert memory(replace(RUN, labelled=360))["texts"]["logits"] == 2 * base["texts"]["logits"]


def test_texts_and_pairs_are_never_together():
    parts = memory(RUN)
    held = sum(size for size in parts.values() if isinstance(size, float)) - parts["peak"]
    passes = [sum(parts[name].values()) for name in ("texts", "pairs")]
    assert parts["peak"] == pytest.approx(held + max(passes))
    assert memory(replace(RUN, pairs=0))["peak"] <= parts["peak"]


def test_logits_hold_what_the_losses_hold():
    """Most bytes per logit while L_MNTP and L_MSG are made, as torch's own record has it."""
    n, vocabulary = 256, 4096
    for width, dtype in ((4, torch.float32), (2, torch.bfloat16)):
        hidden = torch.randn(n, 8).to(dtype).requires_grad_()
        head = torch.randn(8, vocabulary).to(dtype)
        first, targets = torch.arange(n) < 0.36 * n, torch.randint(vocabulary, (n,))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            logits = hidden @ head
            loss = logits[:0].sum()
            for mine in (first, ~first):
                loss = loss + mntp_loss(logits[mine], targets[mine])
                shown = logits[mine]
            del logits, shown
            loss.backward()
        held = torch.tensor([e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"])
        assert 0.7 * LOGIT_BYTES[width] < held.cumsum(0).max() / (n * vocabulary) < 1.05 * LOGIT_BYTES[width]


@pytest.mark.parametrize(
    "settings, low, high",
    [
        ({}, 0.3, 0.42),
        ({"max_spans": 0}, 0.19, 0.21),
        ({"all_span_ratio": 1.0}, 0.99, 1.0),
        ({"fim_ratio": 1.0}, 0.9, 1.1),
    ],
)
def test_labelled_positions_come_from_real_views(settings, low, high):
    assert low < labelled_positions(16, 512, ViewArguments(**settings)) / (16 * 512) < high


@pytest.mark.slow
def test_the_report_names_what_helps():
    text = report(RUN)
    assert "base weights" in text and "peak" in text
    assert "activation_checkpointing=true" in text and "float32" not in text
    assert "activation_checkpointing=true" not in report(replace(RUN, checkpointing=True))
    assert "dtype=bfloat16, bf16=true" in report(replace(RUN, dtype=torch.float32, autocast=False))


@pytest.mark.slow
def test_the_flag_prints_and_trains_nothing(tmp_path, capsys):
    flags = {"model_name_or_path": BASE_MODEL, "train_file": "absent.txt", "pairs_file": "absent.jsonl"}
    flags |= {"estimate": "true", "use_cpu": "true", "output_dir": tmp_path / "out", "max_length": 64, "span_max": 16}
    main([part for key, value in flags.items() for part in (f"--{key}", str(value))])
    assert "GiB per GPU" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_measured_peaks_are_met():
    """docs/measured/memory.json is what benchmarks/memory.py wrote; docs/scaling.md says how far off the figures are."""
    cases = json.loads((REPOSITORY / "docs/measured/memory.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) >= 4
    assert (
        {bool(case.get("checkpointing")) for case in cases}
        == {bool(case.get("bf16")) for case in cases}
        == {True, False}
    )
    for case in cases:
        assert 0.9 < case["estimated"] / case["allocated"] < 1.1, case


@pytest.mark.slow
def test_the_page_has_the_tables_of_the_calculator():
    render = runpy.run_path(str(REPOSITORY / "docs" / "make_tables.py"))["render"]
    text = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert text.count("<!-- begin") == 2
    assert render(text) == text, "run: python docs/make_tables.py"


def test_the_adapter_may_be_absent():
    assert parameter_counts(llama(adapter=None))[2] == 0
    assert parameter_counts(llama(adapter=ADAPTER))[2] > 0
