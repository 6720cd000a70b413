"""SentenceTransformer(folder) gives the vectors of model.encode(), and the same folder stays a generator."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from magnet_hub.save import save_checkpoint
from magnet_hub.sentence_transformer import INSTRUCTIONS

TEXTS = [
    "",
    "Tom.",
    "A cat sleeps on the mat, and it rains.",
    "She said </s> and <pad><s> a_b <unk>.",
    "🎉 naïve \r\n e\u0301",
    "Tom" + " was" * 600,  # beyond max_position_embeddings
]


@pytest.fixture(scope="module", params=["last_token", "mean"])
def model(request, text_magnet):
    return text_magnet(pooling=request.param)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def expected(model, tokenizer):
    return model.encode(TEXTS, tokenizer)


def load(folder):
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def assert_same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_sentence_transformer_equals_encode(loaded, expected, monkeypatch, method, side):
    monkeypatch.setattr(loaded.tokenizer, "padding_side", side)
    encode = getattr(loaded, method)
    assert_same(encode(TEXTS), expected)
    assert_same(encode(TEXTS[::-1], batch_size=2), expected[::-1])
    assert_same(encode(TEXTS[2]), expected[2])
    padding = loaded.preprocess(TEXTS)["attention_mask"] == 0
    assert padding[0, 0 if side == "left" else -1] and not padding[0, -1 if side == "left" else 0]


def test_another_instruction(loaded, model, tokenizer):
    assert_same(loaded.encode(TEXTS, prompt=""), model.encode(TEXTS, tokenizer, instruction=""))
    topic = model.encode(TEXTS, tokenizer, instruction="Topic:")
    assert_same(loaded.encode(TEXTS, prompt="Topic: "), topic)


def test_tokens_that_sentence_transformers_reads(loaded, tokenizer):
    control, long, empty = (loaded.preprocess([TEXTS[n]])["input_ids"][0].tolist() for n in (3, 5, 0))
    for ids in (control, long, empty):
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(control[1:-1]) == TEXTS[3]
    assert len(long) == 512 and len(empty) == 2


def test_a_checkpoint_without_an_instruction_and_shorter_than_its_tokenizer(text_magnet, tokenizer, tmp_path):
    model = text_magnet(representation_prompt="", max_position_embeddings=100)
    save_checkpoint(model, tokenizer, tmp_path)
    sentence_transformer = load(tmp_path)
    assert_same(sentence_transformer.encode(TEXTS), model.encode(TEXTS, tokenizer))
    assert_same(sentence_transformer.encode_query(TEXTS), model.encode(TEXTS, tokenizer))


def test_only_modules_of_sentence_transformers_are_named(folder, loaded):
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [module["type"] for module in modules]
    assert all(kind.startswith("sentence_transformers.") for kind in kinds)
    assert [kind.rsplit(".")[-1] for kind in kinds] == ["Transformer", "Pooling", "Normalize"]
    assert [f"{type(module).__module__}.{type(module).__name__}" for module in loaded] == kinds


def test_saving_again_loses_no_embedding(folder, expected, tmp_path):
    """
    sentence-transformers reads `config_kwargs` and `processor_kwargs` and does not write them. What they set reaches
    config.json and the tokenizer's files instead, so that the copy, and the copy's copy, still encode alike.
    """
    first, second = tmp_path / "first", tmp_path / "second"
    load(folder).save_pretrained(str(first))
    load(first).save_pretrained(str(second))
    for copy in (first, second):
        sentence_transformer = load(copy)
        for method in ("encode", "encode_query", "encode_document"):
            assert_same(getattr(sentence_transformer, method)(TEXTS), expected)
        assert sentence_transformer.max_seq_length == 512
        assert json.loads((copy / "config.json").read_text())["attention_mode"] == "bidirectional"


def test_a_copy_made_by_sentence_transformers_refuses_to_generate(folder, tmp_path):
    load(folder).save_pretrained(str(tmp_path))  # without the language-modelling head, which it never loaded
    copy = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    with pytest.raises(ValueError, match="attention_mode='bidirectional' cannot generate"):
        copy.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=2)


def test_the_folder_stays_a_generator(folder, model, tokenizer):
    load(folder)  # which asks for bidirectional attention, in its own copy of the config
    generator = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    saved = AutoTokenizer.from_pretrained(folder)
    assert generator.config.attention_mode == "causal"
    prompt = saved("Once upon a time", return_tensors="pt")
    assert prompt.input_ids.tolist() == tokenizer("Once upon a time", return_tensors="pt").input_ids.tolist()
    assert prompt.input_ids[0, -1] != saved.eos_token_id
    tokens = generator.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokens.tolist() == model.generate(**prompt, max_new_tokens=8, do_sample=False).tolist()
    logits = generator(prompt.input_ids).logits
    later = torch.cat([prompt.input_ids, torch.tensor([[7]])], dim=1)
    torch.testing.assert_close(generator(later).logits[:, :-1], logits, rtol=0, atol=1e-5)  # no token sees the next


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokens", [511, 512, 513, 600])
@pytest.mark.parametrize("prompt", ["", "Given the sentence, find its representation: "])
def test_texts_at_the_limit_keep_their_end_token(loaded, model, tokenizer, monkeypatch, prompt, tokens, side):
    """`tokens` counts [BOS], prompt, text and [EOS]."""
    monkeypatch.setattr(loaded.tokenizer, "padding_side", side)
    used = len(tokenizer(f"{prompt}Tom", add_special_tokens=False).input_ids) + 2
    text = "Tom" + " was" * (tokens - used)
    whole = tokenizer(prompt + text, add_special_tokens=False).input_ids
    assert len(whole) + 2 == tokens
    features = loaded.preprocess([text, "Tom."], prompt=prompt)
    ids = features["input_ids"][0][features["attention_mask"][0].bool()].tolist()
    kept = whole[: 512 - 2]
    assert ids == [tokenizer.bos_token_id, *kept, tokenizer.eos_token_id]
    assert_same(loaded.encode([text, "Tom."], prompt=prompt), model.encode([text, "Tom."], tokenizer, prompt.strip()))


def test_prompts_of_the_paper_by_name(loaded, model, tokenizer):
    instruction = "Retrieve semantically similar text"
    expected = model.encode(TEXTS, tokenizer, instruction=instruction)
    assert_same(loaded.encode(TEXTS, prompt_name="STS"), expected)
    assert np.abs(expected - model.encode(TEXTS, tokenizer)).max() > 1e-3
    assert set(loaded.prompts) == {"query", "document", "magnet", *INSTRUCTIONS}
    assert loaded.prompts["TwentyNewsgroupsClustering"] == "Identify the topic or theme of the given news articles "


def test_truncated_vectors_and_similarity(folder, loaded, expected):
    short = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", truncate_dim=16)
    vectors = short.encode(TEXTS, normalize_embeddings=True)
    lengths = np.linalg.norm(expected[:, :16], axis=1, keepdims=True)
    assert_same(vectors, expected[:, :16] / lengths)
    similarity = loaded.similarity(expected, expected).numpy()
    assert_same(similarity, expected @ expected.T)
    assert_same(similarity.diagonal(), np.ones(len(TEXTS)))


@pytest.mark.slow
def test_several_processes(loaded, expected):
    pool = loaded.start_multi_process_pool(["cpu", "cpu"])
    try:
        assert_same(loaded.encode(TEXTS, pool=pool, chunk_size=2), expected)
    finally:
        loaded.stop_multi_process_pool(pool)
