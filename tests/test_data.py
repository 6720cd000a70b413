"""From texts to batches: tokenizing, cutting, pairing, padding, and what is said about a run's data."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from magnet_train.data.blocks import SHORTEST_ROW, Text, tokenize_sentences, tokenize_texts
from magnet_train.data.dataset import LengthGroups, MagnetCollator, MagnetDataset, active_views, build_data, hash_ids
from magnet_train.data.reading import Document
from magnet_train.data.sentences import PairDeck
from magnet_train.settings.arguments import DataArguments, MagnetTrainingArguments, ViewArguments
from magnet_train.views import IGNORE, SpecialTokens

TOKENS = SpecialTokens(bos=1, mask=4, end=2, ordinary=np.arange(10, 97))
STORY = 'Tom was hungry. "Is there bread?" he asked. There was none! So he baked a loaf. It took 3.5 hours.'


def documents(*texts):
    return [Document(text, f"a.txt:{number}") for number, text in enumerate(texts, start=1)]


def sentence_ids(sentence, tokenizer, prompt, max_length):
    return tokenize_sentences([sentence], tokenizer, prompt, max_length, [tokenizer.bos_token_id])[0]


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


def test_a_sentence_without_bos(tokenizer):
    """Qwen and SmolLM2 have none; `encode()` then puts nothing before a sentence."""
    whole = tokenize_sentences([STORY], tokenizer, "Find it:", 64, [])[0]
    assert tokenizer.decode(whole[:-1]) == f"Find it: {STORY}" and whole[-1] == tokenizer.eos_token_id
    cut = tokenize_sentences([STORY], tokenizer, "Find it:", 12, [])[0]
    assert len(cut) == 12 and cut == whole[:11] + [tokenizer.eos_token_id]


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
    return MagnetDataset(rows, PairDeck(pairs, seed), ViewArguments(**view_settings), TOKENS, pairs_per_row, seed)


def same(one, other):
    return one["pairs"] == other["pairs"] and all(
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


def test_rows_of_a_step_are_of_like_length():
    rows, size = 403, 4
    data = dataset(rows)
    np.random.default_rng(0).shuffle(data.texts)
    lengths = np.array([len(text.ids) for text in data.texts])
    order = list(LengthGroups(data, size))
    assert sorted(order) == list(range(rows)) and order == list(LengthGroups(data, size))
    steps = lengths[order[: rows - rows % size]].reshape(-1, size)
    assert np.ptp(steps, axis=1).mean() < np.ptp(lengths) / 20
    assert abs(np.corrcoef(steps.mean(1), np.arange(len(steps)))[0, 1]) < 0.3  # steps of all lengths come at any time
    data.set_epoch(1)
    assert list(LengthGroups(data, size)) != order


def test_pairs_are_dealt_out_evenly():
    data = dataset(texts=6, pairs_per_row=3)
    for epoch in range(3):
        data.set_epoch(epoch)
        dealt = [pair.row for i in range(6) for pair in data[i]["pairs"]]
        assert sorted(dealt) == sorted(list(range(6)) * 3)
    assert dataset(pairs=[], pairs_per_row=3)[0]["pairs"] == []


def test_collator_pads_texts_and_stacks_anchors_on_positives():
    data = dataset(gap_layout="mixed", span_max=8)
    items = [data[i] for i in (5, 0, 2)]
    batch = MagnetCollator(pad_token_id=3)(items)
    width = 36  # [BOS] and the longest text
    padding = {"input_ids": 3, "position_ids": 0, "span_ids": 0, "mntp_labels": IGNORE, "msg_labels": IGNORE}
    for row, item in enumerate(items):
        n = len(item["view"].input_ids)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (width - n)
        for name, value in padding.items():
            assert batch[name][row].tolist() == [*getattr(item["view"], name).tolist(), *[value] * (width - n)]
            assert batch[name].dtype == torch.long
    pair_ids = [pair.row for item in items for pair in item["pairs"]]
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
    assert not [key for key in MagnetCollator(3)([data[0], data[1]]) if key.startswith("pair")]


def test_repeated_sentences_share_a_pair_id():
    pairs = [([1, 20, 2], [1, 30, 2]), ([1, 21, 2], [1, 31, 2]), ([1, 20, 2], [1, 32, 2]), ([1, 20, 2], [1, 33, 2])]
    data = dataset(pairs=pairs, pairs_per_row=4, texts=1)
    item = data[0]
    ids = MagnetCollator(3)([item])["pair_ids"].tolist()
    anchors = [pair.anchor[1] for pair in item["pairs"]]
    for i in range(4):
        for j in range(4):
            assert (ids[i] == ids[j]) == (anchors[i] == anchors[j])


def test_pairs_that_share_a_text_on_either_side_share_a_pair_id():
    pairs = [([1, 20, 2], [1, 30, 2]), ([1, 21, 2], [1, 30, 2]), ([1, 30, 2], [1, 32, 2]), ([1, 23, 2], [1, 33, 2])]
    batch = MagnetCollator(3)([dataset(pairs=pairs, pairs_per_row=4, texts=1)[0]])
    by_row = dict(zip(batch["pair_rows"].tolist(), batch["pair_ids"].tolist()))
    assert by_row[0] == by_row[1] == by_row[2] != by_row[3]


def test_a_batch_tells_its_rows_and_pairs_and_where_they_stand():
    data = dataset()
    data.texts[5].origin = "texts.txt:17"
    data.pairs.origins = [f"pairs.jsonl:{number}" for number in range(1, 7)]
    items = [data[5], data[2]]
    batch = MagnetCollator(3)(items)
    assert batch["text_rows"].tolist() == [5, 2]
    assert batch["pair_rows"].tolist() == [pair.row for item in items for pair in item["pairs"]]
    assert (data.origin(5), data.origin(2)) == ("texts.txt:17", "row 2")
    assert data.pairs.origin(3) == "pairs.jsonl:4"
    assert PairDeck(PAIRS, 0).origin(3) == "pair 3"


def test_workers_that_outlive_an_epoch_hear_of_the_next():
    data, seen = dataset(), []
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        data.set_epoch(epoch)
        seen.append(list(loader))
        assert all(same(found, data[i]) for i, found in enumerate(seen[epoch]))
    assert not any(same(a, b) for a, b in zip(*seen))


# ------------------------------------------------------------------------------------------------------- a run's data


@pytest.fixture
def build(tmp_path, tokenizer, text_magnet):
    """`build(**settings)`: the data of a run on the files of `tmp_path`, told any field of its arguments."""
    story = "{} was hungry. He went to the kitchen to look for bread. There was no bread. So he baked a loaf."
    names = ["Tom", "Mina", "Jorge", "Elif", "Sam", "Ada"]
    (tmp_path / "texts.txt").write_text("".join(f"{story.format(name)}\n" for name in names))
    rows = [{"text": f"{name} was hungry.", "positive": f"{name} wanted food."} for name in names]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(tokenizer=tokenizer, **settings):
        given = {
            "train_file": str(tmp_path / "texts.txt"),
            "pairs_file": str(tmp_path / "pairs.jsonl"),
            "output_dir": str(tmp_path / "out"),
            "max_length": 32,
            "per_device_train_batch_size": 2,
            "per_device_pair_batch_size": 4,
            "use_cpu": True,
        } | settings
        groups = []
        for kind in (DataArguments, ViewArguments, MagnetTrainingArguments):
            names = {field.name for field in dataclasses.fields(kind)}
            groups.append(kind(**{name: value for name, value in given.items() if name in names}))
        return build_data(text_magnet().config, tokenizer, *groups)

    return build


def test_data_of_two_files(build, tmp_path, tokenizer):
    data = build()
    assert data.eval is None and data.callbacks == []
    assert data.train.origin(0) == f"{tmp_path}/texts.txt:1"
    assert data.train.pairs.origin(5) == f"{tmp_path}/pairs.jsonl:6"
    batch = data.collator([data.train[i] for i in range(4)])
    assert len(batch["pair_ids"]) == 8
    assert "wanted food." in tokenizer.decode(batch["pair_input_ids"][8])


def test_fingerprint_changes_with_the_data_alone(build, tmp_path):
    first = build().fingerprint
    assert first == build(seed=7, mask_ratio=0.5, span_min=5).fingerprint
    texts = (tmp_path / "texts.txt").read_text()
    (tmp_path / "texts.txt").write_text(texts.replace("Mina", "Nina"))
    other = build().fingerprint
    assert other["train"] != first["train"] and other["pairs"] == first["pairs"]
    (tmp_path / "pairs.jsonl").write_text((tmp_path / "pairs.jsonl").read_text().replace("Mina", "Nina"))
    assert build().fingerprint["pairs"] != first["pairs"]
    (tmp_path / "texts.txt").rename(tmp_path / "moved.txt")
    assert build(train_file=str(tmp_path / "moved.txt")).fingerprint["train"] == other["train"]


def test_fingerprint_tells_where_rows_end():
    assert hash_ids([[1, 2], [3]]) == hash_ids([np.array([1, 2]), np.array([3])])
    assert len({hash_ids([[1, 2], [3]]), hash_ids([[1], [2, 3]]), hash_ids([[1, 2, 3]]), hash_ids([[3], [1, 2]])}) == 4


def test_no_view_holds_what_no_objective_reads(build):
    whole, no_masks, no_spans = build(), build(lambda_mntp=0), build(lambda_msg=0)
    for name, data, empty in (
        ("mntp_labels", no_masks, True),
        ("msg_labels", no_spans, True),
        ("msg_labels", whole, False),
    ):
        labels = np.concatenate([getattr(data.train[i]["view"], name) for i in range(len(data.train))])
        assert (labels == IGNORE).all() == empty
    assert all((no_spans.train[i]["view"].span_ids == 0).all() for i in range(len(no_spans.train)))
    assert len(build(lambda_mntp=0, lambda_msg=0).train) == len(whole.train)  # rows that carry the pairs


def test_spans_of_fim_rows_stay_without_msg():
    views = active_views(ViewArguments(fim_ratio=0.5), SimpleNamespace(lambda_mntp=1.0, lambda_msg=0.0))
    assert views.max_spans == 2


def test_dropout_positives_are_the_sentences_themselves(build, tokenizer):
    settings = {"positives": "dropout", "sscl_dropout": 0.1}
    of_pairs_file = build(**settings)
    assert [anchor for anchor, _ in of_pairs_file.train.pairs.pairs] == [
        anchor for anchor, _ in build().train.pairs.pairs
    ]
    of_texts = build(**settings, pairs_file=None, min_words=7)
    for data in (of_pairs_file, of_texts):
        assert all(anchor == positive for anchor, positive in data.train.pairs.pairs)
    (first, *_), origin = of_texts.train.pairs.pairs[1], of_texts.train.pairs.origin(1)
    assert tokenizer.decode(first[1:-1]).endswith("He went to the kitchen to look for bread.")
    assert origin.endswith("texts.txt:2") and len(of_texts.train.pairs) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs_file": None}, "lambda_sscl=9.0 needs pairs_file, or set lambda_sscl=0"),
        (
            {"pairs_file": None, "positives": "dropout", "sscl_dropout": 0.1},
            "min_words=20: no sentence of .*texts.txt",
        ),
        (
            {"pairs_file": None, "positives": "dropout", "sscl_dropout": 0.1, "streaming": True},
            "positives='dropout' with streaming=True: .* Give pairs_file",
        ),
    ],
)
def test_data_that_cannot_be_built_are_refused(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_without_sscl_no_pairs_are_read(build, caplog):
    data = build(lambda_sscl=0, pairs_file="gone.jsonl")
    assert len(data.train.pairs) == 0 and "pair_ids" not in data.collator([data.train[0]])
    assert "lambda_sscl=0: pairs_file=gone.jsonl is not read" in caplog.text


def test_what_is_in_the_data_is_logged_and_what_is_alarming_warned_of(build, tmp_path, caplog):
    caplog.set_level("INFO", logger="magnet_train.data.dataset")
    build()
    assert "data: 6 pairs, 0 identical pairs, 0 near-identical pairs, 0 repeated sentences, 6 texts" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    held_out = tmp_path / "held_out.txt"
    held_out.write_text(
        (tmp_path / "texts.txt").read_text().splitlines()[0].upper() + "\nA text that nobody has seen so far.\n"
    )
    with open(tmp_path / "texts.txt", "a") as texts, open(tmp_path / "pairs.jsonl", "a") as pairs:
        texts.write("Short.\n" * 6)
        pairs.write('{"text": "Same.", "positive": "same."}\n' * 6)
    caplog.clear()
    build(eval_file=str(held_out), span_min=25)
    for warning in (
        "data: 6 identical pairs of 12 pairs: an anchor that equals its positive teaches SSCL nothing",
        f"data: the first identical pairs stand at {tmp_path}/pairs.jsonl:7, {tmp_path}/pairs.jsonl:8, ",
        "data: 5 repeated sentences of 12 pairs",
        "data: 6 texts too short of 12 texts",
        "rows too short for a span of",
        "data: 1 held-out texts found in training of 2 held-out texts: the evaluation is not of unseen text",
    ):
        assert warning in caplog.text


def test_held_out_pairs_are_those_of_their_own_file(build, tmp_path, tokenizer, caplog):
    held_out = tmp_path / "held_out.jsonl"
    names = ["Ben", "Zoe", "Tom"]  # Tom is in the training pairs
    rows = [{"text": f"{name} was hungry.", "positive": f"{name} had to eat."} for name in names]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held_out.txt").write_text("Nobody has seen this text so far, and nobody trains on it.\n")
    files = {"eval_file": str(tmp_path / "held_out.txt"), "eval_pairs_file": str(held_out)}
    for settings in ({}, {"positives": "dropout", "sscl_dropout": 0.1}):
        caplog.clear()
        data = build(**files, **settings)
        spelt = [tokenizer.decode(positive[1:-1]) for _, positive in data.eval.pairs.pairs]
        assert [text.rsplit(": ")[-1] for text in spelt] == [row["positive"] for row in rows]
        assert data.eval.pairs.origin(1) == f"{held_out}:2"
        assert "data: 1 held-out pairs found in training of 3 held-out pairs" in caplog.text
        assert "data: 1 held-out pairs left out of 3 held-out pairs: a held-out row brings as many" in caplog.text
    assert len(data.eval[0]["pairs"]) == 2
    assert build(eval_file=files["eval_file"]).eval[0]["pairs"] == []
    assert len(build(**files, lambda_sscl=0).eval.pairs) == 0


def test_sentences_that_are_cut_are_counted(build, caplog):
    build(pair_max_length=6)
    assert "6 of 6 sentences exceed pair_max_length=6 and were cut" in caplog.text
