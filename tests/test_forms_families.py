"""Each form of each family computes what the checkpoint does, also beyond its sliding windows, and is the family's own class."""

import copy
import json

import pytest
import torch
from families import NAMES, WINDOW, build_base, build_magnet
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from magnet_hub.forms import export_checkpoint
from magnet_hub.save import save_checkpoint
from modeling_magnet import ATTENTION_MODES

TEXTS = [
    "",
    "Tom.",
    "A cat sleeps on the mat, and it rains.",
    "She said </s> and <pad><s> a_b <unk>.",
    "Tom" + " was" * 600,
]
FORMS = ("magnet", "merged", "encoder", "generator", "adapter")
LOCAL = {"trust_remote_code": False}


@torch.no_grad()
def logits(model, mode: str | None = None) -> torch.Tensor:
    """First outputs for two rows, one padded on the left, longer than the window."""
    ids = torch.randint(4, 4096, (2, 5 * WINDOW), generator=torch.Generator().manual_seed(0))
    mask, spans = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, :3], spans[0, 2:9], spans[1, 5:7] = 0, 1, 1
    modes = {"attention_mode": mode} if mode else {}
    return model(ids, attention_mask=mask, **modes | ({"span_ids": spans} if mode == "hybrid" else {}))[0][mask.bool()]


FAST = ("llama", "qwen3", "gemma3_text")


@pytest.fixture(
    scope="module",
    params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def made(request, tokenizer, tmp_path_factory):
    """(a family's stock base, MAGNET over it, the tokenizer that transformers gives it, the folder with its forms)."""
    folder = tmp_path_factory.mktemp(request.param)
    base = build_base(request.param, "sdpa", vocab_size=4096, max_position_embeddings=64, pad_token_id=0)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    own = AutoTokenizer.from_pretrained(folder / "base", **LOCAL)
    model = build_magnet(base=base, infill_end_token_id=2)
    save_checkpoint(model, own, folder / "checkpoint")
    for form in FORMS:
        export_checkpoint(folder / "checkpoint", folder / form, form)
    return base, model, own, folder


def test_classes(made):
    base, model, _, folder = made
    assert type(AutoModel.from_pretrained(folder / "encoder", **LOCAL)) is type(base.model)
    assert type(AutoModelForCausalLM.from_pretrained(folder / "generator", **LOCAL)) is type(base)
    for form in ("magnet", "merged", "adapter"):
        assert type(AutoModelForCausalLM.from_pretrained(folder / form, **LOCAL)) is type(model)


@pytest.mark.parametrize("form", ["magnet", "adapter"])
def test_magnet_and_adapter_are_the_checkpoint(made, form):
    loaded = AutoModelForCausalLM.from_pretrained(made[3] / form, **LOCAL)
    for mode in ATTENTION_MODES:
        assert torch.equal(logits(loaded, mode), logits(made[1], mode)), mode


def test_generator_is_the_base(made):
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(made[3] / "generator", **LOCAL)), logits(made[0]))


def test_merged_acts_in_every_mode(made):
    paper = copy.deepcopy(made[1])
    paper.config.causal_adapter = True
    merged = AutoModelForCausalLM.from_pretrained(made[3] / "merged", **LOCAL)
    assert not torch.equal(logits(paper, "causal"), logits(made[1], "causal"))
    for mode in ATTENTION_MODES:
        torch.testing.assert_close(logits(merged, mode), logits(paper, mode), rtol=0, atol=1e-4)


def test_states_of_the_encoder(made):
    """Its window is written so that transformers' own rule for it, or Gemma's, is ours: one more or less would show."""
    _, model, _, folder = made
    encoder = AutoModel.from_pretrained(folder / "encoder", **LOCAL)
    expected = logits(model.model, "bidirectional")
    torch.testing.assert_close(logits(encoder), expected, rtol=0, atol=2e-5)
    if getattr(model.config, "sliding_window", None):
        for window in (WINDOW - 1, WINDOW + 1):
            model.config.sliding_window = window
            assert (logits(model.model, "bidirectional") - expected).abs().max() > 1e-2
        model.config.sliding_window = WINDOW


def test_rotary_frequencies_at_the_top_level(made):
    """Where TEI looks for them; Gemma 3 has others in its sliding layers."""
    rope = made[1].config.rope_parameters
    assert AutoConfig.from_pretrained(made[3] / "encoder", **LOCAL).rope_parameters == rope
    found = json.loads((made[3] / "encoder" / "config.json").read_text(encoding="utf-8"))
    assert found["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    assert found.get("rope_local_base_freq") == rope.get("sliding_attention", {}).get("rope_theta")


@pytest.mark.parametrize("form", ["magnet", "merged", "encoder"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sentence_vectors(made, form, side):
    _, model, tokenizer, folder = made
    sentences = SentenceTransformer(str(folder / form), device="cpu", **LOCAL)
    sentences.tokenizer.padding_side = side
    # merged weights are rounded once more, and padding on the left turns the rotary angles of all tokens further
    atol = 1e-6 if form == "magnet" and side == "right" else 1e-5
    assert abs(sentences.encode(TEXTS) - model.encode(TEXTS, tokenizer)).max() <= atol
    assert abs(sentences.encode(TEXTS[1]) - model.encode(TEXTS[1], tokenizer)).max() <= atol


def test_cards_name_the_stock_class(made):
    base, _, _, folder = made
    assert f"`{type(base.model).__name__}`" in (folder / "encoder" / "README.md").read_text(encoding="utf-8")
    assert f"`{type(base).__name__}`" in (folder / "generator" / "README.md").read_text(encoding="utf-8")
