"""SentenceTransformer(folder) gives the vectors of model.encode(), and the same folder stays a generator."""

import json

import numpy as np
import pytest
import torch
import transformers
from conftest import BASE_MODEL
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from magnet_hub.export import export_checkpoint
from magnet_hub.save import save_checkpoint
from magnet_hub.sentence_transformer import INSTRUCTIONS
from modeling_magnet.encoding_magnet import text_ids

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


def test_a_copy_made_by_sentence_transformers_is_no_language_model(folder, tmp_path):
    load(folder).save_pretrained(str(tmp_path))  # without the language-modelling head, which it never loaded
    with pytest.raises(ValueError, match="has no tensors for lm_head.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)


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
    assert set(loaded.prompts) == {"query", "document", *INSTRUCTIONS}
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


# ------------------------------------------------------------------------------------------------- other tokenizers

CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *map(chr, range(33, 127))]


def tokenizer_of(kind: str):
    """
    A small tokenizer of a family's own class. Of these, LlamaTokenizer and GemmaTokenizer put [BOS] before a text here;
    GPT2Tokenizer has a [BOS] that it never adds, as SmolLM2's, and no padding token; Qwen2Tokenizer has none.
    """
    if kind in ("LlamaTokenizer", "GemmaTokenizer"):
        pieces = {piece: i for i, piece in enumerate([*CHARACTERS, "om", "▁T", "▁Tom"])}
        merges = [("o", "m"), ("▁", "T"), ("▁T", "om")]
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        return getattr(transformers, kind)(vocab=pieces, merges=merges, add_bos_token=True, **named)
    bpe = json.loads((BASE_MODEL / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [tuple(merge) for merge in bpe["merges"]]
    if kind == "GPT2Tokenizer":
        return transformers.GPT2Tokenizer(
            vocab=bpe["vocab"], merges=merges, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
    return transformers.Qwen2Tokenizer(
        vocab=bpe["vocab"], merges=merges, unk_token=None, eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("start", [None, 3, 300])  # what the tokenizer puts there, a special token, an ordinary one
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GemmaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer"])
def test_what_opens_and_ends_a_text(text_magnet, tmp_path, kind, start):
    tokenizer = tokenizer_of(kind)
    opens = {"LlamaTokenizer": [1], "GemmaTokenizer": [1]}.get(kind, []) if start is None else [start]
    model = text_magnet(text_start_token_id=start, max_position_embeddings=64)
    save_checkpoint(model, tokenizer, tmp_path / "magnet")
    export_checkpoint(tmp_path / "magnet", tmp_path / "encoder", "encoder")
    texts = [*TEXTS[:-1], "Tom" + " was" * 80]
    expected = model.encode(texts, AutoTokenizer.from_pretrained(tmp_path / "magnet"))
    for form, atol in (("magnet", 1e-6), ("encoder", 1e-5)):
        sentences = SentenceTransformer(str(tmp_path / form), device="cpu", trust_remote_code=False)
        for text in texts:
            ids = sentences.preprocess([text], prompt="")["input_ids"][0].tolist()
            assert ids == (opens + text_ids(text, tokenizer))[:63] + [2]
        np.testing.assert_allclose(sentences.encode(texts), expected, rtol=0, atol=atol)
    by_itself = AutoTokenizer.from_pretrained(tmp_path / "encoder")  # what other engines read
    assert by_itself("Tom.").input_ids == opens + text_ids("Tom.", tokenizer) + [2]
    unchanged = AutoTokenizer.from_pretrained(tmp_path / "magnet")
    assert unchanged("Tom.").input_ids == tokenizer("Tom.").input_ids
