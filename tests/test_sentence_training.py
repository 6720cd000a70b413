"""sentence-transformers' own trainer on a MAGNET checkpoint: the adapter trains, and what is saved encodes alike."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
from transformers import AutoModelForCausalLM, AutoTokenizer

from magnet_hub.save import save_checkpoint

ROOT = Path(__file__).parents[1]
NAMES = ["Tom", "Mina", "Jorge", "Elif", "Sam", "Ada", "Kim", "Lee"]
TEXTS = [f"{name} was hungry." for name in NAMES]
PAIRS = {"text": TEXTS, "positive": [f"There was no food for {name}." for name in NAMES]}


@pytest.fixture(scope="module")
def folder(text_magnet, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(text_magnet(), tokenizer, folder)
    return folder


def with_frozen_base(folder) -> SentenceTransformer:
    """As transformers loads it, all would be trained."""
    sentences = SentenceTransformer(str(folder), device="cpu")
    for name, parameter in sentences.named_parameters():
        parameter.requires_grad_("_lora." in name)
    return sentences


def train(sentences, loss, folder, steps=6) -> list[float]:
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        prompts=sentences.prompts["document"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=0,
    )
    trainer = SentenceTransformerTrainer(sentences, arguments, train_dataset=Dataset.from_dict(PAIRS), loss=loss)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_adapter_alone_trains_and_comes_back(folder, tmp_path):
    sentences = with_frozen_base(folder)
    before = {name: parameter.clone() for name, parameter in sentences.named_parameters()}
    losses = train(sentences, MultipleNegativesRankingLoss(sentences), tmp_path)
    assert losses[-1] < losses[0] / 2
    changed = {name for name, parameter in sentences.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "_lora." in name}
    vectors = sentences.encode(TEXTS)
    sentences.save_pretrained(str(tmp_path / "saved"))
    np.testing.assert_array_equal(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), vectors)
    magnet = AutoModelForCausalLM.from_pretrained(folder)
    magnet.model.load_state_dict(sentences[0].model.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    np.testing.assert_allclose(magnet.encode(TEXTS, tokenizer), vectors, rtol=0, atol=1e-5)


def test_the_cached_loss_has_the_gradients_of_the_whole_batch(folder):
    sentences = with_frozen_base(folder).train()
    features = [sentences.preprocess(PAIRS[column]) for column in ("text", "positive")]
    gradients = []
    for loss in (
        MultipleNegativesRankingLoss(sentences),
        CachedMultipleNegativesRankingLoss(sentences, mini_batch_size=3),
    ):
        sentences.zero_grad()
        loss([dict(feature) for feature in features], None).backward()
        gradients.append({n: p.grad.clone() for n, p in sentences.named_parameters() if p.requires_grad})
    assert gradients[0] and all("_lora." in name for name in gradients[0])
    assert max(gradient.abs().max() for gradient in gradients[0].values()) > 1e-3
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_example(monkeypatch, capsys, tmp_path, folder):
    """On the tiny random model, whose figures mean nothing: it learns, and writes a checkpoint that still generates."""
    pairs = "\n".join(json.dumps({"text": a, "positive": b}) for a, b in zip(*PAIRS.values()))
    (tmp_path / "pairs.jsonl").write_text(pairs)
    flags = {"model": folder, "pairs": tmp_path / "pairs.jsonl", "output_dir": tmp_path / "out", "max_steps": 4}
    flags |= {"batch_size": 8, "mini_batch_size": 4, "learning_rate": 1e-2}
    monkeypatch.setattr(sys, "argv", ["x", *(str(part) for key, v in flags.items() for part in (f"--{key}", v))])
    runpy.run_path(str(ROOT / "examples" / "finetune_sentences.py"), run_name="__main__")
    printed = capsys.readouterr().out
    first, last = printed.split("loss ")[1].split("\n")[0].split(" -> ")
    assert float(last) < float(first) and "Spearman x 100" in printed
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "out"))
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(after(ids).logits, before(ids).logits)
        assert not torch.equal(
            after(ids, attention_mode="bidirectional").logits, before(ids, attention_mode="bidirectional").logits
        )
    assert SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS).shape == (8, 64)
