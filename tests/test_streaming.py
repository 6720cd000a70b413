"""The endless stream: the same rows for any number of workers and processes, and from any position on."""

import dataclasses
import itertools
import json
import shlex
import shutil

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from conftest import build_llama
from torch.utils.data import DataLoader
from training import magnet
from transformers import TrainerState

from magnet_train.data import streaming
from magnet_train.data.blocks import tokenize_documents
from magnet_train.data.dataset import MagnetCollator, stream
from magnet_train.data.reading import load_texts
from magnet_train.data.sentences import PairDeck
from magnet_train.data.streaming import BlockStream, Position, StreamedDataset, source_fingerprint
from magnet_train.run import main
from magnet_train.settings.arguments import MagnetTrainingArguments, ViewArguments
from magnet_train.trainer import MagnetTrainer
from magnet_train.views import SpecialTokens

DOCUMENTS = 23
MAX_LENGTH = 17
TOKENS = SpecialTokens(bos=1, mask=66, end=2, ordinary=np.arange(100, 4000))
PAIRS = [([1, 100 + i, 2], [1, 300 + i, 301 + i, 2]) for i in range(7)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """`datasets` writes its cache into a folder of the test's own, and says nothing."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.fixture
def source(tmp_path):
    """A folder of three files of texts of one to four blocks, with an empty line and one that is too short."""
    texts = [f"Story {i}: " + " ".join(["the boy went home again"] * (2 + i % 9)) for i in range(DOCUMENTS)]
    texts[5], texts[11] = "", "Hi."
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"{text}\n" for text in texts[:9]))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[9:16]))
    pyarrow.parquet.write_table(pyarrow.table({"n": [0] * 7, "text": texts[16:]}), folder / "c.parquet")
    return str(folder)


@pytest.fixture
def make_stream(source, tokenizer):
    def make_stream(source=source, window=6, seed=0, **settings):
        return BlockStream(source, "text", tokenizer, MAX_LENGTH, window, seed, **settings)

    return make_stream


@pytest.fixture
def make_dataset(make_stream):
    def make_dataset(batch_rows=4, pairs=PAIRS, pairs_per_row=2, seed=0, stream=None, **view):
        stream = stream or make_stream(seed=seed)
        return StreamedDataset(
            stream, PairDeck(pairs, seed), ViewArguments(**view), TOKENS, pairs_per_row, seed, batch_rows
        )

    return make_dataset


def take(iterable, n):
    return list(itertools.islice(iterable, n))


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def row_count(source, tokenizer):
    """Rows of one pass."""
    documents = load_texts(source, "text")
    return sum(len(blocks) for blocks in tokenize_documents(documents, tokenizer, MAX_LENGTH))


# ---------------------------------------------------------------------------------------------------------- the stream


def test_each_pass_holds_every_document_once_and_in_an_order_of_its_own(make_stream, source, row_count, tokenizer):
    blocks = take(make_stream().blocks(Position()), 2 * row_count)
    passes = blocks[:row_count], blocks[row_count:]
    documents = {each.origin: each.text for each in load_texts(source, "text")}
    orders = []
    for epoch, part in enumerate(passes):
        assert {position.epoch for _, position in part} == {epoch}
        cut = {}
        for text, _ in part:
            cut.setdefault(text.origin, []).append(text.ids)
        for origin, pieces in cut.items():  # in one piece each, and nothing of another document
            found = tokenizer.decode(np.concatenate(pieces))
            assert documents[origin].startswith(found) and len(found) > len(documents[origin]) - 60
        assert len(cut) == DOCUMENTS - 2
        orders.append([origin for origin, _ in itertools.groupby(text.origin for text, _ in part)])
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_documents_are_shuffled_within_windows(make_stream, row_count):
    def order(**settings):
        blocks = take(make_stream(**settings).blocks(Position()), row_count)
        return [origin for origin, _ in itertools.groupby(text.origin for text, _ in blocks)]

    unshuffled = order(window=1)
    assert [origin.split("/")[-1] for origin in unshuffled[:3]] == ["a.txt:1", "a.txt:2", "a.txt:3"]
    assert order() == order() != order(seed=1)
    assert set(order()[:5]) == set(unshuffled[:5])  # a window of 6, one of them empty
    assert order()[:5] != unshuffled[:5]


def test_the_stream_goes_on_from_any_position(make_stream, row_count):
    stream = make_stream()
    whole = take(stream.blocks(Position()), 2 * row_count + 3)
    for row in (0, 1, 2, row_count - 1, row_count, row_count + 7):
        rest = take(stream.blocks(whole[row][1]), 4)
        for (text, position), (again, found) in zip(whole[row + 1 :], rest):
            assert position == found and text.origin == again.origin
            np.testing.assert_array_equal(text.ids, again.ids)
            np.testing.assert_array_equal(text.sentence_starts, again.sentence_starts)


def test_what_lies_before_a_position_is_not_tokenized(make_stream, row_count, monkeypatch):
    tokenized = []

    def spy(documents, *args):
        tokenized.extend(each.origin for each in documents)
        return tokenize_documents(documents, *args)

    monkeypatch.setattr(streaming, "tokenize_documents", spy)
    stream = make_stream()
    positions = [position for _, position in take(stream.blocks(Position()), row_count)]
    read = len(tokenized)
    assert read == DOCUMENTS - 1  # the empty line is not
    late = next(position for position in positions if position.window == 3 and position.document == 2)
    tokenized.clear()
    take(stream.blocks(late), row_count - late.row)
    assert len(tokenized) == DOCUMENTS - 3 * 6 - 2


def test_a_stream_without_text_is_refused(make_stream, tmp_path):
    (tmp_path / "short.txt").write_text("Hi.\n\nHo.\n")
    with pytest.raises(ValueError, match="short.txt: column 'text' holds no text that makes a row"):
        take(make_stream(source=str(tmp_path / "short.txt")).blocks(Position()), 1)


def test_bad_rows_of_a_stream(make_stream, tmp_path, caplog):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"text": "The boy went home again and again, for he was hungry."})
    path.write_text(f"{good}\n{{\n{good}\n")
    with pytest.raises(ValueError, match="bad.jsonl:2: no JSON object"):
        take(make_stream(source=str(path)).blocks(Position()), 1)
    blocks = take(make_stream(source=str(path), on_bad="skip").blocks(Position()), 3)
    assert {text.origin for text, _ in blocks} == {f"{path}:1", f"{path}:3"}
    assert caplog.text.count("1 bad rows skipped. The first: ") == 1  # a pass


def test_fingerprint_of_a_source(source, tmp_path):
    first = source_fingerprint(source)
    assert source_fingerprint(source) == first
    (tmp_path / "texts").rename(tmp_path / "moved")
    assert source_fingerprint(str(tmp_path / "moved")) == first
    with open(tmp_path / "moved/b.jsonl", "a") as file:
        file.write("\n")
    assert source_fingerprint(str(tmp_path / "moved")) != first
    assert source_fingerprint("owner/name:part@abc") == "owner/name:part@abc abc"


# ------------------------------------------------------------------------------------------------------- the data set


def test_views_and_pairs_are_a_function_of_seed_and_row(make_dataset):
    rows = take(make_dataset(), 20)
    assert [row["row"] for row in rows] == list(range(20))
    dealt = [pair.row for row in rows for pair in row["pairs"]]
    turns = [dealt[i : i + len(PAIRS)] for i in range(0, 35, len(PAIRS))]
    assert all(sorted(turn) == list(range(len(PAIRS))) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1  # each pass over the pairs in an order of its own
    again, other = take(make_dataset(), 20), take(make_dataset(seed=1, stream=make_dataset().stream), 20)
    for one, same_seed, other_seed in zip(rows, again, other):
        np.testing.assert_array_equal(one["view"].input_ids, same_seed["view"].input_ids)
        np.testing.assert_array_equal(one["view"].span_ids, same_seed["view"].span_ids)
    assert any(not np.array_equal(a["view"].span_ids, b["view"].span_ids) for a, b in zip(rows, other))
    text, _ = next(make_dataset().stream.blocks(Position()))
    views = [make_dataset().item(row, text)["view"] for row in range(10)]
    assert len({tuple(view.mntp_labels) for view in views}) > 5  # each row has a view of its own


def batches_of(dataset, n, workers=0, processes=1):
    """The first n batches of all processes, in order."""
    shards = [
        IterableDatasetShard(dataset, 4, num_processes=processes, process_index=rank) if processes > 1 else dataset
        for rank in range(processes)
    ]
    loaders = [DataLoader(shard, batch_size=4, num_workers=workers, collate_fn=MagnetCollator(0)) for shard in shards]
    return [batch for step in zip(*(take(loader, n // processes) for loader in loaders)) for batch in step]


@pytest.mark.parametrize(
    ("workers", "processes"),
    [
        pytest.param(1, 1, marks=pytest.mark.slow),
        (2, 1),
        (0, 2),
        pytest.param(2, 2, marks=pytest.mark.slow),
    ],
)
def test_the_same_rows_for_any_number_of_workers_and_processes(make_dataset, workers, processes):
    expected = batches_of(make_dataset(), 24)
    assert [batch["text_rows"].tolist() for batch in expected] == np.arange(96).reshape(24, 4).tolist()
    dataset = make_dataset(batch_rows=4 * processes)
    found = batches_of(dataset, 24, workers, processes)
    assert len(found) == 24 and all(same(one, other) for one, other in zip(expected, found))
    steps = 24 // processes
    assert dataset.position(steps) == take(make_dataset().stream.blocks(Position()), 96)[-1][1]

    dataset.start(dataset.position(steps // 2))  # a resumed run
    rest = batches_of(dataset, 12, workers, processes)
    assert all(same(one, other) for one, other in zip(expected[12:], rest))


def test_data_sets_of_the_hub_stream_too(make_dataset, make_stream, source, monkeypatch, row_count):
    rows = datasets.Dataset.from_dict({"n": range(DOCUMENTS), "text": [""] * DOCUMENTS})
    texts = {int(each.text.split()[1][:-1]): each.text for each in load_texts(source, "text") if "Story" in each.text}
    rows = rows.map(lambda row: {"text": texts.get(row["n"], "")}).to_iterable_dataset(num_shards=4)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    hub = make_dataset(stream=make_stream(source="owner/name"))
    expected = batches_of(hub, 24)
    assert len({tuple(row.tolist()) for batch in expected for row in batch["input_ids"]}) > row_count // 2
    found = batches_of(make_dataset(stream=make_stream(source="owner/name")), 24, workers=2)
    assert all(same(one, other) for one, other in zip(expected, found))
    hub.start(hub.position(10))
    assert all(same(one, other) for one, other in zip(expected[10:], batches_of(hub, 14)))


def test_a_row_tells_where_it_stands(make_dataset):
    dataset = make_dataset()
    origins = [text.origin for text, _ in take(dataset.stream.blocks(Position()), 40)]
    batches_of(dataset, 10, workers=2)
    assert [dataset.origin(row) for row in (0, 3, 4, 17, 39)] == [origins[row] for row in (0, 3, 4, 17, 39)]
    dataset.start(dataset.position(2))
    batches_of(dataset, 3)
    assert dataset.origin(18) == origins[18]


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture
def train(source, tokenizer, tmp_path):
    """`train(steps, resume=None, workers=0)`: the weights after so many steps, and the data set."""

    def train(steps, resume=None, workers=0):
        args = MagnetTrainingArguments(
            output_dir=str(tmp_path / "out"),
            use_cpu=True,
            disable_tqdm=True,
            max_steps=steps,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            per_device_pair_batch_size=8,
            gradient_accumulation_steps=2,
            sscl_start_step=3,
            sscl_dropout=0.1,
            lr_scheduler_type="constant",
            save_strategy="steps",
            save_steps=3,
            save_total_limit=None,
            dataloader_num_workers=workers,
        )
        blocks = BlockStream(source, "text", tokenizer, MAX_LENGTH, 6, args.seed)
        dataset, callbacks = stream(blocks, args, PairDeck(PAIRS, 0), ViewArguments(span_max=8), TOKENS, 2, 0)
        model = magnet(base=build_llama("sdpa", vocab_size=4096))
        trainer = MagnetTrainer(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=MagnetCollator(0),
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=resume)
        return {name: value.clone() for name, value in model.state_dict().items()}, dataset

    return train


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_at_the_same_weights(train, tmp_path, row_count, workers):
    undisturbed, dataset = train(8, workers=workers)
    assert 3 * 8 < row_count < 6 * 8  # the stream starts anew between the checkpoints
    assert dataset.position(16).row == 64
    for step in (3, 6):
        resumed, dataset = train(8, resume=str(tmp_path / f"out/checkpoint-{step}"), workers=workers)
        assert dataset.first.row == step * 8
        assert max((undisturbed[name] - resumed[name]).abs().max() for name in undisturbed) == 0
    stored = TrainerState.load_from_json(tmp_path / "out/checkpoint-6/trainer_state.json")
    position = Position(**stored.stateful_callbacks["StreamCallback"]["attributes"]["position"])
    assert position.row == 48 and position.epoch == 1
    assert stored.epoch == 6 / 8


def test_a_checkpoint_without_a_position_is_refused(train, tmp_path):
    train(3)
    path = tmp_path / "out/checkpoint-3/trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["StreamCallback"]
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="streaming=True: the checkpoint of step 3 holds no position in a stream"):
        train(6, resume=str(path.parent))


@pytest.mark.slow
def test_the_command_streams_and_resumes(source, base_model_path, tmp_path):
    stories = base_model_path.parent / "everyday-stories" / "train.jsonl"
    flags = f"--config demo --model_name_or_path {base_model_path} --train_file {source} --text_column text --streaming true"
    flags += f" --pairs_file {stories} --max_length {MAX_LENGTH} --span_max 8 --max_steps 6 --sscl_start_step 1 --bf16 false"
    flags += " --per_device_train_batch_size 4 --per_device_pair_batch_size 4 --save_strategy steps --save_steps 4"
    for out, resume, workers in (("whole", "false", 0), ("cut", "false", 2), ("cut", "true", 0)):
        if resume == "true":
            shutil.rmtree(tmp_path / "cut/checkpoint-6")
        more = f" --output_dir {tmp_path / out} --resume {resume} --dataloader_num_workers {workers}"
        main(shlex.split(flags + more))
    whole, cut = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "cut"))
    assert whole == cut
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/train_log.jsonl").read_text().splitlines()]
    assert steps[-1] == 6


def test_a_position_is_plain_numbers():
    assert json.loads(json.dumps(dataclasses.asdict(Position(8, 1, 2, 3, 4)))) == vars(Position(8, 1, 2, 3, 4))
