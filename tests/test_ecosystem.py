"""Pipelines, sentence-transformers and PEFT where this project is not installed; heads and encode() agree; chat templates."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_ecosystem import TEXTS
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from magnet_hub.save import save_checkpoint


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def classifier(folder, tokenizer, tmp_path_factory):
    """A token classifier with a random head: (model, its folder)."""
    path = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=4).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, path


# -------------------------------------------------------------------------------------------------- a fresh process


@pytest.fixture(scope="module")
def fresh(folder, classifier, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("fresh")
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(tmp_path / "copy"))
    settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | settings
    script = Path(__file__).with_name("fresh_ecosystem.py")
    paths = [folder, tmp_path / "copy", classifier[1], tmp_path / "results.json"]
    command = [sys.executable, "-I", *map(str, [script, *paths])]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads((tmp_path / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "copy"])
def test_sentence_vectors_there(fresh, model, tokenizer, name):
    """`copy` was saved by sentence-transformers: the remote code travels with it."""
    np.testing.assert_allclose(fresh[f"vectors_{name}"], model.encode(TEXTS, tokenizer), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_text_generation_pipeline_there(fresh, model, tokenizer):
    prompt = tokenizer(TEXTS[0], return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0]
    assert fresh["generated"] == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode, name", [("bidirectional", "features"), ("causal", "causal_features")])
def test_feature_extraction_pipeline_there(fresh, model, tokenizer, mode, name):
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        states = model.model(ids, attention_mode=mode).last_hidden_state
    np.testing.assert_allclose(fresh[name], states.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_token_classification_pipeline_there(fresh, classifier, tokenizer):
    for text, tags in zip(TEXTS, fresh["tags"]):
        with torch.no_grad():
            labels = classifier[0](**tokenizer(text, return_tensors="pt")).logits[0].argmax(-1)
        special = len(labels) - len(tags)
        assert tags == [f"LABEL_{label}" for label in labels[special:].tolist()]


@pytest.mark.slow
def test_an_adapter_on_top_there(fresh):
    assert fresh["trainable"] and all(".default." in name for name in fresh["trainable"])


# ----------------------------------------------------------------------------------------------- heads and encode()


def test_token_head_reads_what_encode_words_gives(classifier, model, tokenizer):
    head = classifier[0]
    words = ["Tom", "was", "hungry", "."]
    (vectors,) = model.encode_words([words], tokenizer)
    tokens = tokenizer(" ".join(words), return_tensors="pt", return_offsets_mapping=True)
    ends = [end for _, end in tokens.pop("offset_mapping")[0].tolist()]
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    with torch.no_grad():
        logits = head(**tokens).logits[0]
        expected = head.score(torch.from_numpy(vectors))
    for n in range(len(words)):  # a word's vector is the mean of its tokens, and the head is linear
        own = [i for i, end in enumerate(ends) if starts[n] < end <= starts[n + 1]]
        torch.testing.assert_close(logits[own].mean(0), expected[n], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pad_token", ["<pad>", "</s>"])
def test_sequence_head_reads_what_encode_gives(folder, model, tokenizer, pad_token):
    """Also where a tokenizer pads with [EOS], whose last copy by id would be the first of the padding."""
    head = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    to_encode = {"add_bos_token": True, "add_eos_token": True, "pad_token": pad_token, "split_special_tokens": True}
    rows = AutoTokenizer.from_pretrained(folder, **to_encode)(TEXTS, return_tensors="pt", padding=True)
    vectors = torch.from_numpy(model.encode(TEXTS, tokenizer, instruction="", normalize=False))
    with torch.no_grad():
        torch.testing.assert_close(head(**rows).logits, head.score(vectors), rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- chat templates

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"


def test_a_chat_template_travels_and_is_left_alone(model, folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = model.encode(TEXTS, tokenizer), model.infill("Tom <|gap|> it.", tokenizer, length=3, do_sample=False)
    tokenizer.chat_template = TEMPLATE
    save_checkpoint(model, tokenizer, tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Hello."}]
    assert saved.chat_template == TEMPLATE
    assert saved.apply_chat_template(messages, tokenize=False) == "<s>user: Hello.</s>"
    np.testing.assert_array_equal(model.encode(TEXTS, saved), before[0])
    assert model.infill("Tom <|gap|> it.", saved, length=3, do_sample=False) == before[1]
    sentences = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(sentences.encode(TEXTS), before[0], rtol=0, atol=1e-5)
    sentences.save_pretrained(str(tmp_path / "copy"))
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template == TEMPLATE
