"""From texts to batches: tokenizing, cutting, pairing, padding, and what is said about a run's data."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from magnet_train.data.blocks import SHORTEST_ROW, Text, tokenize_sentences, tokenize_texts
from magnet_train.data.dataset import MagnetCollator, MagnetDataset
from magnet_train.data.pairs import PairDeck
from magnet_train.data.reading import Document
from magnet_train.data.training_data import active_views, build_data, hash_ids
from magnet_train.settings.arguments import DataArguments, MagnetTrainingArguments, ViewArguments
from magnet_train.views import IGNORE, SpecialTokens

TOKENS = SpecialTokens(bos=1, mask=4, end=2, ordinary=np.arange(10, 97))
STORY = 'Tom was hungry. "Is there bread?" he asked. There was none! So he baked a loaf. It took 3.5 hours.'


def documents(*texts):
    return [Document(text, f"a.txt:{number}") for number, text in enumerate(texts, start=1)]


# ------------------------------------------------------------------------------------------------------------ tokenized


def test_blocks_reassemble_the_text(tokenizer):
    text = "\n".join([STORY] * 7)  # the lines of a document are cut as one text
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    blocks = tokenize_texts(documents(text), tokenizer, max_length=17)
    assert [len(block.ids) for block in blocks[:-1]] == [16] * (len(blocks) - 1)
    together = np.concatenate([block.ids for block in blocks])
    assert len(whole) - len(together) < SHORTEST_ROW
    np.testing.assert_array_equal(together, whole[: len(together)])
    (one,) = tokenize_texts(documents(text), tokenizer, max_length=1000)
    marks = np.concatenate([block.sentence_starts for block in blocks])
    np.testing.assert_array_equal(marks, one.sentence_starts[: len(marks)])


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
    (sentence,) = tokenize_sentences([text], tokenizer, "", 256, [])
    for ids in (block.ids, sentence[:-1]):
        assert not set(ids) & set(tokenizer.all_special_ids) and tokenizer.decode(ids) == text


def test_sentence_starts_mark_the_first_token_of_each_sentence(tokenizer):
    (block,) = tokenize_texts(documents(STORY), tokenizer, max_length=256)
    borders = [*np.flatnonzero(block.sentence_starts), len(block.ids)]
    sentences = [tokenizer.decode(block.ids[a:b]).strip() for a, b in zip(borders, borders[1:])]
    assert " ".join(sentences) == STORY and len(sentences) == 5


@pytest.mark.parametrize("start", [[1], []], ids=["bos", "as Qwen and SmolLM2"])
def test_a_sentence_is_start_prompt_sentence_eos_and_keeps_its_eos(tokenizer, start):
    (whole,) = tokenize_sentences([STORY], tokenizer, "Find it:", 512, start)
    assert whole[: len(start)] == start and whole[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(whole[len(start) : -1]) == f"Find it: {STORY}"
    for length in (12, len(whole)):
        (cut,) = tokenize_sentences([STORY], tokenizer, "Find it:", length, start)
        assert cut == whole[: length - 1] + [tokenizer.eos_token_id]
    assert tokenizer.decode(tokenize_sentences(["Tom."], tokenizer, "", 64, start)[0][len(start) : -1]) == "Tom."


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
    data, other = dataset(), dataset()
    first = [data[i] for i in range(8)]
    assert all(same(other[index], first[index]) for index in (3, 0, 3, 7))
    assert not same(first[0], dataset(seed=1)[0])
    data.set_epoch(1)
    assert not any(same(a, data[i]) for i, a in enumerate(first))
    data.set_epoch(0)
    assert all(same(a, data[i]) for i, a in enumerate(first))


def test_workers_that_outlive_an_epoch_hear_of_the_next():
    data = dataset()
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        data.set_epoch(epoch)
        assert all(same(found, data[i]) for i, found in enumerate(loader))


def test_pairs_are_dealt_out_evenly():
    data = dataset(texts=6, pairs_per_row=3)
    for epoch in range(3):
        data.set_epoch(epoch)
        dealt = [pair.row for i in range(6) for pair in data[i]["pairs"]]
        assert sorted(dealt) == sorted(list(range(6)) * 3)


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
    rows = [pair.row for item in items for pair in item["pairs"]]
    assert (batch["text_rows"].tolist(), batch["pair_rows"].tolist()) == ([5, 0, 2], rows)
    masks = batch["pair_attention_mask"].chunk(2)
    for side, (ids, mask) in enumerate(zip(batch["pair_input_ids"].chunk(2), masks)):
        for row, pair in enumerate(rows):
            sentence = PAIRS[pair][side]
            assert ids[row].tolist() == sentence + [3] * (4 - len(sentence))
            assert mask[row].tolist() == [1] * len(sentence) + [0] * (4 - len(sentence))
    bare = dataset(pairs=[])
    assert not [key for key in MagnetCollator(3)([bare[0], bare[1]]) if key.startswith("pair")]


def test_pairs_that_share_a_text_share_a_pair_id():
    pairs = [([1, 20, 2], [1, 30, 2]), ([1, 21, 2], [1, 30, 2]), ([1, 30, 2], [1, 32, 2]), ([1, 23, 2], [1, 33, 2])]
    batch = MagnetCollator(3)([dataset(pairs=pairs, pairs_per_row=4, texts=1)[0]])
    by_row = dict(zip(batch["pair_rows"].tolist(), batch["pair_ids"].tolist()))
    assert by_row[0] == by_row[1] == by_row[2] != by_row[3]


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
    joined = build(sample_by="paragraph")  # six lines, no empty one: a single text, cut as such
    assert {text.origin for text in joined.train.texts} == {f"{tmp_path}/texts.txt:1"}
    assert [len(text.ids) for text in joined.train.texts[:-1]] == [31] * (len(joined.train.texts) - 1)


def test_fingerprint_changes_with_the_data_alone(build, tmp_path):
    first = build().fingerprint
    assert first == build(seed=7, mask_ratio=0.5, span_min=5).fingerprint
    texts = (tmp_path / "texts.txt").read_text()
    (tmp_path / "texts.txt").write_text(texts.replace("Mina", "Nina"))
    other = build().fingerprint
    assert other["train"] != first["train"] and other["pairs"] == first["pairs"]
    (tmp_path / "pairs.jsonl").write_text((tmp_path / "pairs.jsonl").read_text().replace("Mina", "Nina"))
    (tmp_path / "texts.txt").rename(tmp_path / "moved.txt")
    moved = build(train_file=str(tmp_path / "moved.txt")).fingerprint
    assert moved["train"] == other["train"] and moved["pairs"] != first["pairs"]


def test_fingerprint_tells_where_rows_end():
    assert hash_ids([[1, 2], [3]]) == hash_ids([np.array([1, 2]), np.array([3])])
    assert len({hash_ids([[1, 2], [3]]), hash_ids([[1], [2, 3]]), hash_ids([[1, 2, 3]]), hash_ids([[3], [1, 2]])}) == 4


@pytest.mark.parametrize(
    ("weights", "name", "empty"),
    [({}, "msg_labels", False), ({"lambda_mntp": 0}, "mntp_labels", True), ({"lambda_msg": 0}, "msg_labels", True)],
)
def test_no_view_holds_what_no_objective_reads(build, weights, name, empty):
    views = [item["view"] for item in build(**weights).train]
    assert (np.concatenate([getattr(view, name) for view in views]) == IGNORE).all() == empty
    assert all((view.span_ids == 0).all() for view in views) == ("lambda_msg" in weights)
    assert len(views) == 6  # rows carry the pairs, whatever is learnt of them


def test_spans_of_fim_rows_stay_without_msg():
    views = active_views(ViewArguments(fim_ratio=0.5), SimpleNamespace(lambda_mntp=1.0, lambda_msg=0.0))
    assert views.max_spans == 2


def test_dropout_positives_are_the_sentences_themselves(build, tokenizer):
    settings = {"positives": "dropout", "sscl_dropout": 0.1}
    of_pairs_file = build(**settings).train.pairs
    assert [anchor for anchor, _ in of_pairs_file.pairs] == [anchor for anchor, _ in build().train.pairs.pairs]
    of_texts = build(**settings, pairs_file=None, min_words=7).train.pairs
    assert all(anchor == positive for deck in (of_pairs_file, of_texts) for anchor, positive in deck.pairs)
    assert tokenizer.decode(of_texts.pairs[1][0][1:-1]).endswith("He went to the kitchen to look for bread.")
    assert of_texts.origin(1).endswith("texts.txt:2") and len(of_texts) == 6


DROPOUT = {"pairs_file": None, "positives": "dropout", "sscl_dropout": 0.1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs_file": None}, "lambda_sscl=9.0 needs pairs_file, or set lambda_sscl=0"),
        (DROPOUT, "min_words=20: no sentence of .*texts.txt"),
        (DROPOUT | {"streaming": True}, "positives='dropout' with streaming=True: .* Give pairs_file"),
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
    caplog.set_level("INFO", logger="magnet_train.data.training_data")
    build()
    assert "data: 6 pairs, 0 identical pairs, 6 texts, 6 rows, 0 texts too short, 0 rows too short" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    held_out = tmp_path / "held_out.txt"
    held_out.write_text((tmp_path / "texts.txt").read_text().splitlines()[0].upper() + "\nA text nobody has seen.\n")
    with open(tmp_path / "texts.txt", "a") as texts, open(tmp_path / "pairs.jsonl", "a") as pairs:
        texts.write("Short.\n" * 6)
        pairs.write('{"text": "Same.", "positive": "same."}\n' * 6)
    caplog.clear()
    build(eval_file=str(held_out), span_min=25, pair_max_length=6)
    for warning in (
        "data: 6 identical pairs of 12 pairs: an anchor that equals its positive teaches SSCL nothing",
        "data: 6 texts too short of 12 texts",
        "rows too short for a span of",
        "data: 1 held-out texts found in training of 2 held-out texts: the evaluation is not of unseen text",
        "12 of 12 sentences exceed pair_max_length=6 and were cut",
    ):
        assert warning in caplog.text


def test_held_out_pairs_are_those_of_their_own_file(build, tmp_path, tokenizer, caplog):
    held_out = tmp_path / "held_out.jsonl"
    rows = [{"text": f"{name} was hungry.", "positive": f"{name} had to eat."} for name in ("Ben", "Zoe", "Tom")]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held_out.txt").write_text("Nobody has seen this text so far, and nobody trains on it.\n")
    files = {"eval_file": str(tmp_path / "held_out.txt"), "eval_pairs_file": str(held_out)}
    for settings in ({}, {"positives": "dropout", "sscl_dropout": 0.1}):
        caplog.clear()
        data = build(**files, **settings)
        spelt = [tokenizer.decode(positive[1:-1]) for _, positive in data.eval.pairs.pairs]
        assert [text.rsplit(": ")[-1] for text in spelt] == [row["positive"] for row in rows]
        assert data.eval.pairs.origin(1) == f"{held_out}:2"
        assert "data: 1 held-out pairs found in training of 3 held-out pairs" in caplog.text  # Tom
        assert "data: 1 held-out pairs left out of 3 held-out pairs: a held-out row brings as many" in caplog.text
    assert len(data.eval[0]["pairs"]) == 2
    assert build(eval_file=files["eval_file"]).eval[0]["pairs"] == []
    assert len(build(**files, lambda_sscl=0).eval.pairs) == 0
