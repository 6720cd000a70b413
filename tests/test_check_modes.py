"""magnet check on models that compute something else than they should: attention, gate, threads, gaps, vectors."""

import time

import pytest
from damage import CONFIG, change_json, change_tensors, found

from magnet_check.behaviour import check_encode, check_gate, check_infill, check_threads
from magnet_check.checkpoint import Checkpoint
from magnet_check.modes import check_modes, check_padding
from magnet_check.outcome import Failed
from magnet_hub.forms import export_checkpoint
from modeling_magnet import modeling_magnet


@pytest.fixture(scope="module")
def loaded(healthy) -> Checkpoint:
    """For damage of the code: patched, and mended after the test."""
    return Checkpoint(healthy)


def looks_everywhere(span_ids):
    return lambda batch, head, query, key: span_ids[batch, key] >= 0


def causal_in_context(span_ids):
    return lambda batch, head, query, key: key <= query


def through_spans(span_ids):
    """Adjacent spans taken for one: what a bool mask would do."""

    def rule(batch, head, query, key):
        both = (span_ids[batch, key] > 0) & (span_ids[batch, query] > 0)
        return (span_ids[batch, key] == 0) | (both & (key <= query))

    return rule


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (looks_everywhere, "hybrid, batch 1: token 0 notices token 2 to its right"),
        (causal_in_context, "hybrid, batch 1: token 0 does not notice token 1 to its right"),
        (through_spans, "hybrid, batch 1: token 4 notices token 2 to its left"),
    ],
)
def test_a_hybrid_rule_that_is_another(loaded, monkeypatch, backend, rule, message):
    monkeypatch.setattr(modeling_magnet, "span_attention_rule", rule)
    with pytest.raises(Failed, match=message):
        check_modes(loaded, backend)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("causal", "bidirectional, batch 1: token 0 does not notice token 1 to its right"),
        ("bidirectional", "causal, batch 1: token 0 notices token 1 to its right"),
    ],
)
def test_a_mode_that_is_silently_another(loaded, monkeypatch, backend, mode, message):
    states = loaded.states

    def same_mode(asked, ids, mask=None, spans=None):
        return states(asked if asked == "hybrid" else mode, ids, mask, spans)

    monkeypatch.setattr(loaded, "states", same_mode)
    with pytest.raises(Failed, match=message):
        check_modes(loaded, backend)


def test_a_mode_that_is_another_only_when_padded(loaded, monkeypatch):
    states = loaded.states
    monkeypatch.setattr(
        loaded,
        "states",
        lambda mode, ids, mask=None, spans=None: (
            states("causal" if mask is not None else mode, ids, mask)
            if mode == "bidirectional"
            else states(mode, ids, mask, spans)
        ),
    )
    with pytest.raises(Failed, match="bidirectional, padded on the left: token 0 does not notice token 1"):
        check_modes(loaded, "sdpa")


@pytest.mark.parametrize("form", ["encoder", "generator"])
def test_a_stock_form_with_the_other_attention(healthy, tmp_path, form):
    """is_causal is one word in config.json, and nobody would notice."""
    export_checkpoint(healthy, tmp_path / form, form)
    change_json(tmp_path / form / CONFIG, is_causal=form == "encoder")
    words = {"encoder": "bidirectional, batch 1: token 0 does not", "generator": "causal, batch 1: token 0 notices"}
    assert words[form] in found(tmp_path / form, "modes, sdpa")
    if form == "encoder":
        assert "config.json has is_causal=True" in found(tmp_path / form, "settings")


def test_padding_that_is_attended_to(loaded, monkeypatch):
    states = loaded.states
    monkeypatch.setattr(loaded, "states", lambda mode, ids, mask=None, spans=None: states(mode, ids, None, spans))
    with pytest.raises(Failed, match="padded on the left: the padding's own tokens change the vectors"):
        check_padding(loaded, "sdpa")


def test_padding_that_moves_the_text(loaded, monkeypatch):
    """As positions would that are absolute and count the padding."""
    states = loaded.states

    def moved(mode, ids, mask=None, spans=None):
        found = states(mode, ids, mask, spans)
        return found if mask is None else found + 0.01 * mask.argmax(1)[:, None, None]

    monkeypatch.setattr(loaded, "states", moved)
    with pytest.raises(Failed, match="padded on the left: vectors change by"):
        check_padding(loaded, "sdpa")


def test_padding_in_half_precision_is_compared_exactly(healthy):
    assert "change nothing" in check_padding(Checkpoint(healthy, dtype="bfloat16"), "sdpa")


def test_a_gate_that_stays_open(loaded, monkeypatch):
    gate = modeling_magnet.adapter_gate
    monkeypatch.setattr(modeling_magnet, "adapter_gate", lambda is_open: gate(True))
    with pytest.raises(Failed, match="causal mode is not the base: states differ by up to"):
        check_gate(loaded)


def test_an_adapter_that_does_nothing(folder):
    change_tensors(folder, lambda tensors: [t.zero_() for name, t in tensors.items() if name.endswith("_lora.B")])
    assert "the adapter does nothing" in found(folder, "adapter's gate")
    change_json(folder / CONFIG, causal_adapter=True)
    assert "causal_adapter=true, but causal mode is the base" in found(folder, "adapter's gate")


def test_a_causal_adapter_passes(folder):
    change_json(folder / CONFIG, causal_adapter=True)
    assert "acts in causal mode too" in check_gate(Checkpoint(folder))


def test_a_mode_that_threads_share(loaded, monkeypatch):
    states, shared = loaded.states, {}

    def toggled(mode, ids, mask=None, spans=None):
        shared["mode"] = mode
        time.sleep(0.002)
        return states(shared["mode"], ids, mask, spans)

    monkeypatch.setattr(loaded, "states", toggled)
    with pytest.raises(Failed, match="in 6 threads: vectors differ by"):
        check_threads(loaded)


def test_an_infill_that_changes_the_text(loaded, monkeypatch):
    infill = loaded.model.infill

    def changed(*args, **kwargs):
        output = infill(*args, **kwargs)
        output.text = output.text.replace("Tom", "Tim")
        return output

    monkeypatch.setattr(loaded.model, "infill", changed)
    with pytest.raises(Failed, match="the text around the gap did not come back: 'Tim was hungry"):
        check_infill(loaded)


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite"), (2.0, "not of length 1")])
def test_vectors_that_are_none(loaded, monkeypatch, value, message):
    encode = loaded.model.encode
    monkeypatch.setattr(loaded.model, "encode", lambda *args, **kwargs: encode(*args, **kwargs) * value)
    with pytest.raises(Failed, match=message):
        check_encode(loaded)
