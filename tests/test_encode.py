"""encode() and encode_words() equal a computation by hand, whatever the batch, the order or the thread."""

from concurrent.futures import ThreadPoolExecutor

import families
import numpy as np
import pytest
import torch
from infilling import bare_tokenizer, forwards_of

from modeling_magnet.encoding_magnet import padded

TEXTS = [
    "",
    "Tom.",
    "A cat sleeps on the mat.",
    "Rain fell all day and the river rose.",
    "🎉 naïve \0 e\u0301 \r\n\t שלום 👩‍👩‍👧",
    "She said </s> and <pad><s> a_b.",
    " ",
]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, text_magnet):
    return text_magnet(request.param)


@pytest.fixture(scope="module")
def sdpa_model(text_magnet):
    return text_magnet("sdpa")


@torch.no_grad()
def states(model, ids) -> torch.Tensor:
    """Last hidden states (L, d) of one row; a single span of context is bidirectional attention."""
    ids = torch.tensor([ids])
    return model.model(ids, attention_mode="hybrid", span_ids=torch.zeros_like(ids)).last_hidden_state[0]


def by_hand(model, tokenizer, text, prompt, normalize=True, start=None) -> np.ndarray:
    """What opens a text, [BOS] unless told; prompt text [EOS]; the state at [EOS] or the mean of all."""
    ids = tokenizer(prompt + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    start = [tokenizer.bos_token_id] if start is None else start
    hidden = states(model, [*start, *ids, tokenizer.eos_token_id])
    vector = hidden[-1] if model.config.pooling == "last_token" else hidden.mean(0)
    return (vector / vector.norm() if normalize else vector).numpy()


def assert_same(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_encode_equals_a_computation_by_hand(model, tokenizer, monkeypatch, pooling):
    monkeypatch.setattr(model.config, "pooling", pooling)
    expected = [by_hand(model, tokenizer, text, model.config.representation_prompt + " ") for text in TEXTS]
    vectors = model.encode(TEXTS, tokenizer)
    assert vectors.shape == (len(TEXTS), 64) and vectors.dtype == np.float32
    assert_same(vectors, np.stack(expected))
    assert_same(np.linalg.norm(vectors, axis=1), np.ones(len(TEXTS)))


def test_the_poolings_differ(sdpa_model, tokenizer, monkeypatch):
    last = sdpa_model.encode(TEXTS, tokenizer)
    monkeypatch.setattr(sdpa_model.config, "pooling", "mean")
    assert np.abs(sdpa_model.encode(TEXTS, tokenizer) - last).max() > 0.1


@pytest.mark.parametrize("instruction, prompt", [("", ""), ("Topic:", "Topic: ")])
def test_instruction(sdpa_model, tokenizer, instruction, prompt):
    expected = [by_hand(sdpa_model, tokenizer, text, prompt) for text in TEXTS]
    assert_same(sdpa_model.encode(TEXTS, tokenizer, instruction=instruction), np.stack(expected))
    assert np.abs(sdpa_model.encode(TEXTS, tokenizer) - expected).max() > 0.1


def test_vectors_without_normalisation(sdpa_model, tokenizer):
    expected = [by_hand(sdpa_model, tokenizer, text, "", normalize=False) for text in TEXTS]
    vectors = sdpa_model.encode(TEXTS, tokenizer, instruction="", normalize=False)
    assert_same(vectors, np.stack(expected))
    assert (np.abs(np.linalg.norm(vectors, axis=1) - 1) > 0.1).all()


@pytest.mark.parametrize("family", families.EACH)
def test_families(tokenizer, family):
    """With windows far shorter than the texts, and with padding beside them."""
    base = families.build_base(family, "sdpa", vocab_size=4096, pad_token_id=0)
    model = families.build_magnet(base=base)
    expected = [by_hand(model, tokenizer, text, model.config.representation_prompt + " ") for text in TEXTS]
    assert_same(model.encode(TEXTS, tokenizer), np.stack(expected))


@pytest.mark.parametrize("start", [[], [0]])
def test_what_opens_a_text(start):
    """Tokenizers such as Qwen's put nothing before a text; a model may have been trained with a token of its own there."""
    tokenizer = bare_tokenizer()
    base = families.build_base("qwen2", "sdpa", vocab_size=len(tokenizer), pad_token_id=None)
    model = families.build_magnet(base=base, text_start_token_id=start[0] if start else None)
    expected = [by_hand(model, tokenizer, text, "", start=start) for text in TEXTS]
    assert_same(model.encode(TEXTS, tokenizer, instruction=""), np.stack(expected))
    ids = tokenizer("Tom was 🎉", add_special_tokens=False)["input_ids"]
    hidden = states(model, [*start, *ids]).numpy()
    own = hidden[: len(ids)] if start else np.concatenate([hidden[:1], hidden[:-1]])  # the first represents itself
    (words,) = model.encode_words([["Tom", "was", "🎉"]], tokenizer)
    sizes = [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in ("Tom", " was", " 🎉")]
    assert sum(sizes) == len(ids) and sizes[2] > 1
    means = [part.mean(0) for part in np.split(own, np.cumsum(sizes)[:-1])]
    assert_same(words, np.stack(means))


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_batch_size_and_order_change_nothing(sdpa_model, tokenizer, monkeypatch, pooling, batch_size):
    monkeypatch.setattr(sdpa_model.config, "pooling", pooling)
    texts = TEXTS + [" ".join(TEXTS[2:4]) * n for n in range(1, 5)]
    expected = np.stack([sdpa_model.encode(text, tokenizer) for text in texts])
    assert_same(sdpa_model.encode(texts, tokenizer, batch_size=batch_size), expected)
    assert_same(sdpa_model.encode(texts[::-1], tokenizer, batch_size=batch_size), expected[::-1])


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_pool_ignores_padding_on_either_side(sdpa_model, monkeypatch, pooling):
    monkeypatch.setattr(sdpa_model.config, "pooling", pooling)
    hidden = torch.arange(24.0).reshape(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    expected = {
        "last_token": [[2.0, 3.0], [14.0, 15.0], [22.0, 23.0]],
        "mean": [[1.0, 2.0], [13.0, 14.0], [19.0, 20.0]],
    }
    assert sdpa_model.pool(hidden, mask).tolist() == expected[pooling]


def test_shapes(sdpa_model, tokenizer):
    single = sdpa_model.encode("Tom.", tokenizer)
    assert single.shape == (64,)
    assert (sdpa_model.encode(["Tom."], tokenizer) == single[None]).all()
    assert (sdpa_model.encode((text for text in ["Tom."]), tokenizer) == single[None]).all()
    assert sdpa_model.encode([], tokenizer).shape == (0, 64)


def test_control_tokens_stay_text(sdpa_model, tokenizer):
    text = "She said </s> and <pad><s> a_b."
    (forward,) = forwards_of(sdpa_model, lambda: sdpa_model.encode(text, tokenizer))
    (ids,) = forward["input_ids"].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids[1:-1]).endswith(f": {text}")


def test_long_texts_lose_their_end_but_not_eos(sdpa_model, tokenizer, caplog):
    long = ["Tom" + " was" * 600, "a", "Tom" + " was" * 700, "Tom" + " was" * 509]  # the last one fits exactly
    with caplog.at_level("WARNING", logger="modeling_magnet"):
        vectors = sdpa_model.encode(long, tokenizer, instruction="", batch_size=1)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("modeling_magnet")]
    assert warnings == ["2 of 4 texts are longer than 512 tokens and lose their end."]
    fitting = by_hand(sdpa_model, tokenizer, long[3], "")
    assert_same(vectors[[0, 2, 3]], np.stack([fitting] * 3))


@pytest.mark.parametrize(
    "texts, match",
    [
        ([None], r"texts\[0\]=None: must be a string"),
        (["a", 123], r"texts\[1\]=123: must be a string"),
        (["a", "b", ["c"]], r"texts\[2\]=\['c'\]: must be a string"),
        (["a", b"b"], r"texts\[1\]=b'b': must be a string"),
        (["a", "b\udc00"], r"texts\[1\]: the character at 1 is half of a surrogate pair"),
        (None, "texts=None: must be a string or a list of strings"),
        (123, "texts=123: must be a string or a list of strings"),
    ],
)
def test_what_is_no_text_is_refused(sdpa_model, tokenizer, texts, match):
    with pytest.raises(ValueError, match=match):
        sdpa_model.encode(texts, tokenizer)


@pytest.mark.parametrize("value", [0, -1, "5", 2.5, True, None])
def test_batch_size_is_checked(sdpa_model, tokenizer, value):
    for encode, inputs in [(sdpa_model.encode, ["a"]), (sdpa_model.encode_words, [["a"]])]:
        with pytest.raises(ValueError, match=f"batch_size={value!r}: must be a positive integer"):
            encode(inputs, tokenizer, batch_size=value)


def test_threads_give_the_results_of_one_thread(sdpa_model, tokenizer):
    expected = sdpa_model.encode(TEXTS, tokenizer, batch_size=2)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: sdpa_model.encode(TEXTS, tokenizer, batch_size=2), range(32)))
    assert all((result == expected).all() for result in results)


# ----------------------------------------------------------------------------------------------------------- words


def test_a_word_of_one_token_is_the_state_to_its_left(model, tokenizer):
    words = ["Tom", "was", "very", "sad", "and", "went"]
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert len(ids) == len(words)
    hidden = states(model, [tokenizer.bos_token_id, *ids]).numpy()
    (vectors,) = model.encode_words([words], tokenizer)
    assert vectors.dtype == np.float32
    assert_same(vectors, hidden[:-1])  # [BOS] represents the first word, nothing is read at the last


@pytest.mark.parametrize(
    "words, tokens_per_word",
    [
        (["Tom", "disagreement", "."], None),
        (["a", "🎉", "_", "b's", "naïve", "שלום", "!?", "x"], None),
        (["New York", "e\u0301", "</s>", "<pad>"], None),
        (["a", "🎉", "b"], [1, 5, 1]),  # the space before the four bytes is a token of theirs
        (["a", "_", "_", "."], [1, 2, 2, 1]),
    ],
)
def test_a_word_is_the_mean_of_its_tokens(model, tokenizer, words, tokens_per_word):
    pieces = [(" " if number else "") + word for number, word in enumerate(words)]
    tokens = [tokenizer(p, add_special_tokens=False, split_special_tokens=True)["input_ids"] for p in pieces]
    assert tokens_per_word is None or [len(ids) for ids in tokens] == tokens_per_word
    hidden = states(model, [tokenizer.bos_token_id, *sum(tokens, [])]).numpy()
    ends = np.cumsum([len(ids) for ids in tokens])
    expected = [hidden[end - len(ids) : end].mean(0) for ids, end in zip(tokens, ends)]
    (vectors,) = model.encode_words([words], tokenizer)
    assert_same(vectors, np.stack(expected))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_words_of_many_sentences(sdpa_model, tokenizer, batch_size):
    sentences = [["Tom", "."], ["A", "cat", "sleeps", "on", "the", "mat", "."], ("Hi",), ["🎉"] * 9, ["x"] * 40]
    expected = [sdpa_model.encode_words([sentence], tokenizer)[0] for sentence in sentences]
    vectors = sdpa_model.encode_words(sentences, tokenizer, batch_size=batch_size)
    assert [v.shape for v in vectors] == [(2, 64), (7, 64), (1, 64), (9, 64), (40, 64)]
    for actual, alone in zip(vectors, expected):
        assert_same(actual, alone)
    assert sdpa_model.encode_words([], tokenizer) == []


@pytest.mark.parametrize(
    "sentences, number",
    [
        ([[]], 0),
        ([["a"], []], 1),
        ([["a"], ["b", ""]], 1),
        ([["a", " "]], 0),
        ([["a"], "b c"], 1),
        (["a b"], 0),
        ([["a"], ["b", 5]], 1),
        ([["a"], ["b"], None], 2),
    ],
)
def test_what_are_no_words_is_refused(sdpa_model, tokenizer, sentences, number):
    with pytest.raises(ValueError, match=rf"sentences\[{number}\]=.*: must be a list of words, none of them empty"):
        sdpa_model.encode_words(sentences, tokenizer)


def test_half_of_a_surrogate_pair_is_no_word(sdpa_model, tokenizer):
    with pytest.raises(ValueError, match=r"sentences\[1\]: the character at 3 is half of a surrogate pair"):
        sdpa_model.encode_words([["a"], ["b", "c\ud800"]], tokenizer)


def test_rows_are_padded_on_the_right():
    ids, mask = padded([[5, 6, 7], [], [8]], value=9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]] and mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.long and padded([[5]])[0].tolist() == [[5]]


def test_a_sentence_too_long_for_its_words_is_refused(sdpa_model, tokenizer):
    (vectors,) = sdpa_model.encode_words([["Tom"] + ["was"] * 510], tokenizer)
    assert vectors.shape == (511, 64)
    with pytest.raises(ValueError, match=r"sentences\[1\] has 513 tokens: at most .*512 fit\. Split the sentence"):
        sdpa_model.encode_words([["Hi"], ["Tom"] + ["was"] * 511], tokenizer)
