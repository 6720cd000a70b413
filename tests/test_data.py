"""From texts to batches: tokenizing, cutting, pairing, padding, and what is said about a run's data."""

import numpy as np
import pytest
import torch

from magnet_train.arguments import ViewArguments
from magnet_train.blocks import SHORTEST_ROW, Text, tokenize_sentences, tokenize_texts
from magnet_train.data import MagnetCollator, MagnetDataset
from magnet_train.reading import Document
from magnet_train.views import IGNORE, SpecialTokens

TOKENS = SpecialTokens(bos=1, mask=4, end=2, ordinary=np.arange(10, 97))
STORY = 'Tom was hungry. "Is there bread?" he asked. There was none! So he baked a loaf. It took 3.5 hours.'


def documents(*texts):
    return [Document(text, f"a.txt:{number}") for number, text in enumerate(texts, start=1)]


def sentence_ids(sentence, tokenizer, prompt, max_length):
    return tokenize_sentences([sentence], tokenizer, prompt, max_length)[0]


# ----------------------------------------------------------------------------------------------------- tokenized texts


def test_blocks_reassemble_the_text(tokenizer):
    text = " ".join([STORY] * 7)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    blocks = tokenize_texts(documents(text), tokenizer, max_length=17)
    assert [len(block.ids) for block in blocks[:-1]] == [16] * (len(blocks) - 1)
    together = np.concatenate([block.ids for block in blocks])
    assert len(whole) - len(together) < SHORTEST_ROW
    np.testing.assert_array_equal(together, whole[: len(together)])
    assert tokenizer.decode(together) == text[: len(tokenizer.decode(together))]


def test_a_text_that_fits_is_one_block_and_a_short_one_is_none(tokenizer):
    n = len(tokenizer(STORY, add_special_tokens=False)["input_ids"])
    assert [len(block.ids) for block in tokenize_texts(documents("Hi.", STORY), tokenizer, max_length=n + 1)] == [n]
    assert [len(block.ids) for block in tokenize_texts(documents(STORY), tokenizer, max_length=n)] == [n - 1]
    with pytest.raises(ValueError, match="a.txt:1: neither this text nor one after it has 8 tokens"):
        tokenize_texts(documents("Hi.", "Ho."), tokenizer, max_length=64)


@pytest.mark.parametrize("control", ["<s>", "</s>", "<pad>", "<unk>"])
def test_control_tokens_spelt_out_in_a_text_stay_text(tokenizer, control):
    text = f"Tom wrote {control} on the wall, then {control}{control} on the door."
    (block,) = tokenize_texts(documents(text), tokenizer, max_length=256)
    assert not set(block.ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(block.ids) == text
    sentence = sentence_ids(text, tokenizer, "", 256)
    assert not set(sentence[1:-1]) & set(tokenizer.all_special_ids)


def test_sentence_starts_mark_the_first_token_of_each_sentence(tokenizer):
    (block,) = tokenize_texts(documents(STORY), tokenizer, max_length=256)
    borders = [*np.flatnonzero(block.sentence_starts), len(block.ids)]
    sentences = [tokenizer.decode(block.ids[a:b]).strip() for a, b in zip(borders, borders[1:])]
    assert sentences == [
        "Tom was hungry.",
        '"Is there bread?" he asked.',
        "There was none!",
        "So he baked a loaf.",
        "It took 3.5 hours.",
    ]


def test_sentence_starts_follow_the_blocks(tokenizer):
    (whole,) = tokenize_texts(documents(STORY), tokenizer, max_length=256)
    blocks = tokenize_texts(documents(STORY), tokenizer, max_length=10)
    marks = np.concatenate([block.sentence_starts for block in blocks])
    np.testing.assert_array_equal(marks, whole.sentence_starts[: len(marks)])


# --------------------------------------------------------------------------------------------------- tokenized sentences


def test_a_sentence_is_bos_prompt_sentence_eos(tokenizer):
    ids = sentence_ids("Tom was hungry.", tokenizer, "Find it:", 64)
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:-1]) == "Find it: Tom was hungry."
    assert tokenizer.decode(sentence_ids("Tom.", tokenizer, "", 64)[1:-1]) == "Tom."


def test_a_long_sentence_keeps_its_eos(tokenizer):
    whole = sentence_ids(STORY, tokenizer, "Find it:", 512)
    cut = sentence_ids(STORY, tokenizer, "Find it:", 12)
    assert len(cut) == 12 < len(whole)
    assert cut == whole[:11] + [tokenizer.eos_token_id]
    assert sentence_ids(STORY, tokenizer, "Find it:", len(whole)) == whole


# ------------------------------------------------------------------------------------------------- data set and collator


PAIRS = [([1, 20 + i, 2], [1, 40 + i, 41 + i, 2]) for i in range(6)]


def dataset(texts=8, pairs=PAIRS, pairs_per_row=2, seed=0, **view_settings):
    rng = np.random.default_rng(5)
    rows = [Text(rng.integers(10, 97, n), np.zeros(n, bool)) for n in range(30, 30 + texts)]
    return MagnetDataset(rows, pairs, ViewArguments(**view_settings), TOKENS, pairs_per_row, seed)


def same(one, other):
    return one["pair_ids"] == other["pair_ids"] and all(
        np.array_equal(a, b) for a, b in zip(vars(one["view"]).values(), vars(other["view"]).values())
    )


def test_items_are_a_function_of_seed_epoch_and_index():
    one, other = dataset(), dataset()
    assert len(one) == 8
    for index in (3, 0, 3, 7):
        assert same(one[index], other[index])
    assert not same(one[0], dataset(seed=1)[0])


def test_epochs_differ_and_come_back():
    data = dataset()
    first = [data[i] for i in range(8)]
    data.set_epoch(1)
    second = [data[i] for i in range(8)]
    assert not any(same(a, b) for a, b in zip(first, second))
    data.set_epoch(0)
    assert all(same(a, data[i]) for i, a in enumerate(first))


def test_pairs_are_dealt_out_evenly():
    data = dataset(texts=6, pairs_per_row=3)
    for epoch in range(3):
        data.set_epoch(epoch)
        dealt = [pair for i in range(6) for pair in data[i]["pair_ids"]]
        assert sorted(dealt) == sorted(list(range(6)) * 3)
    assert dataset(pairs=[], pairs_per_row=3)[0]["pair_ids"] == []


def test_collator_pads_texts_and_stacks_anchors_on_positives():
    data = dataset(gap_layout="mixed", span_max=8)
    items = [data[i] for i in (5, 0, 2)]
    batch = MagnetCollator(PAIRS, pad_token_id=3)(items)
    width = 36  # [BOS] and the longest text
    padding = {"input_ids": 3, "position_ids": 0, "span_ids": 0, "mntp_labels": IGNORE, "msg_labels": IGNORE}
    for row, item in enumerate(items):
        n = len(item["view"].input_ids)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (width - n)
        for name, value in padding.items():
            assert batch[name][row].tolist() == [*getattr(item["view"], name).tolist(), *[value] * (width - n)]
            assert batch[name].dtype == torch.long
    pair_ids = [pair for item in items for pair in item["pair_ids"]]
    assert batch["pair_ids"].tolist() == pair_ids
    anchors, positives = batch["pair_input_ids"].chunk(2)
    masks = batch["pair_attention_mask"].chunk(2)
    for side, ids, mask in ((0, anchors, masks[0]), (1, positives, masks[1])):
        for row, pair in enumerate(pair_ids):
            sentence = PAIRS[pair][side]
            assert ids[row].tolist() == sentence + [3] * (4 - len(sentence))
            assert mask[row].tolist() == [1] * len(sentence) + [0] * (4 - len(sentence))


def test_collator_without_pairs_has_no_pair_stream():
    data = dataset(pairs=[])
    assert not [key for key in MagnetCollator([], 3)([data[0], data[1]]) if key.startswith("pair")]


def test_repeated_sentences_share_a_pair_id():
    pairs = [([1, 20, 2], [1, 30, 2]), ([1, 21, 2], [1, 31, 2]), ([1, 20, 2], [1, 32, 2]), ([1, 20, 2], [1, 33, 2])]
    data = dataset(pairs=pairs, pairs_per_row=4, texts=1)
    item = data[0]
    ids = MagnetCollator(pairs, 3)([item])["pair_ids"].tolist()
    anchors = [pairs[i][0][1] for i in item["pair_ids"]]
    for i in range(4):
        for j in range(4):
            assert (ids[i] == ids[j]) == (anchors[i] == anchors[j])
