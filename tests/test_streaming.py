"""The endless stream: the same rows for any number of workers and processes, and from any position on."""

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
from transformers import TrainerState

from magnet_train.data import streaming
from magnet_train.data.blocks import tokenize_documents
from magnet_train.data.dataset import MagnetCollator
from magnet_train.data.pairs import PairDeck
from magnet_train.data.reading import load_texts
from magnet_train.data.streaming import (
    START,
    StreamedDataset,
    block_stream,
    read_blocks,
    source_fingerprint,
)
from magnet_train.run import main
from magnet_train.settings.arguments import DataArguments, ViewArguments
from magnet_train.views import SpecialTokens

DOCUMENTS, WINDOW, MAX_LENGTH = 23, 6, 17
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
    def make_stream(source=source, window=WINDOW, seed=0, **settings):
        arguments = DataArguments(source, streaming=True, shuffle_window=window, **settings)
        return block_stream(arguments, tokenizer, MAX_LENGTH, seed)

    return make_stream


@pytest.fixture
def make_dataset(make_stream):
    def make_dataset(batch_rows=4, seed=0, stream=None):
        parts = PairDeck(PAIRS, seed), ViewArguments(), TOKENS, 2, seed, batch_rows
        return StreamedDataset(stream or make_stream(seed=seed), *parts)

    return make_dataset


def take(iterable, n):
    return list(itertools.islice(iterable, n))


def texts_of(stream, n, position=START):
    return [text for _, text, _ in take(read_blocks(stream, position), n)]


def origins_of(texts):
    """Each document once, in order."""
    return [origin for origin, _ in itertools.groupby(text.origin for text in texts)]


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def row_count(source, tokenizer):
    """Rows of one pass."""
    return sum(map(len, tokenize_documents(load_texts(source, "text"), tokenizer, MAX_LENGTH)))


# ---------------------------------------------------------------------------------------------------------- the stream


def test_each_pass_holds_every_document_once_and_in_an_order_of_its_own(make_stream, source, row_count, tokenizer):
    texts = texts_of(make_stream(), 2 * row_count)
    documents = {each.origin: each.text for each in load_texts(source, "text")}
    passes = [texts[:row_count], texts[row_count:]]
    for part in passes:
        cut = {}
        for text in part:
            cut.setdefault(text.origin, []).append(text.ids)
        for origin, pieces in cut.items():  # in one piece each, and nothing of another document
            found = tokenizer.decode(np.concatenate(pieces))
            assert documents[origin].startswith(found) and len(found) > len(documents[origin]) - 60
        assert len(cut) == len(origins_of(part)) == DOCUMENTS - 2
    assert origins_of(passes[0]) != origins_of(passes[1])


def test_documents_are_shuffled_within_windows(make_stream, row_count):
    def order(**settings):
        return origins_of(texts_of(make_stream(**settings), row_count))

    unshuffled = order(window=1)
    assert [origin.split("/")[-1] for origin in unshuffled[:3]] == ["a.txt:1", "a.txt:2", "a.txt:3"]
    assert order() == order() != order(seed=1)
    assert set(order()[:5]) == set(unshuffled[:5])  # a window of 6, one of them empty
    assert order()[:5] != unshuffled[:5]


def test_what_lies_before_a_position_is_not_tokenized(make_stream, row_count, monkeypatch):
    tokenized, positions = [], []

    def spy(documents, *args):
        tokenized.extend(each.origin for each in documents)
        return tokenize_documents(documents, *args)

    monkeypatch.setattr(streaming, "tokenize_documents", spy)
    stream = make_stream()
    tokenized.clear()
    texts = []
    for _, text, behind in itertools.islice(read_blocks(stream, START), row_count):
        texts.append(text)
        positions.append(behind())
    assert len(tokenized) == DOCUMENTS - 1  # the empty line is not
    tokenized.clear()
    late = row_count - 3  # in the last window
    rest = texts_of(stream, 2, positions[late])
    assert [each.origin for each in rest] == [each.origin for each in texts[late + 1 :]]
    assert len(tokenized) == DOCUMENTS - 3 * WINDOW


def test_the_lines_of_a_paragraph_are_one_text(make_stream, tmp_path, tokenizer):
    lines = ["The boy went home again.", "He was hungry and tired.", "", "The girl stayed where she was, and sang."]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    texts = texts_of(make_stream(source=str(tmp_path / "lines.txt"), sample_by="paragraph"), 2)
    assert sorted(text.origin.split(":")[-1] for text in texts) == ["1", "4"]
    joined = tokenizer("\n".join(lines[:2]), add_special_tokens=False)["input_ids"][: MAX_LENGTH - 1]
    assert joined in [text.ids.tolist() for text in texts]


def test_a_stream_without_text_is_refused(make_stream, tmp_path):
    (tmp_path / "short.txt").write_text("Hi.\n\nHo.\n")
    with pytest.raises(ValueError, match="short.txt: column 'text' holds no text that makes a row"):
        make_stream(source=str(tmp_path / "short.txt"))


def test_bad_rows_of_a_stream(make_stream, tmp_path, caplog):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"text": "The boy went home again and again, for he was hungry."})
    path.write_text(f"{good}\n{{\n{good}\n")
    with pytest.raises(ValueError, match="bad.jsonl:2: no JSON object"):
        make_stream(source=str(path))
    texts = texts_of(make_stream(source=str(path), on_bad="skip"), 5)
    assert {text.origin for text in texts} == {f"{path}:1", f"{path}:3"}
    assert caplog.text.count("1 bad rows skipped. The first: ") == 1  # not in every window and pass


def test_fingerprint_of_a_source(source, tmp_path):
    first = source_fingerprint(source)
    (tmp_path / "texts").rename(tmp_path / "moved")
    assert source_fingerprint(str(tmp_path / "moved")) == first
    with open(tmp_path / "moved/b.jsonl", "a") as file:
        file.write("\n")
    assert source_fingerprint(str(tmp_path / "moved")) != first
    assert source_fingerprint("owner/name:part@abc") == "owner/name:part@abc abc"


# ------------------------------------------------------------------------------------------------------- the data set


def test_views_and_pairs_are_a_function_of_seed_and_row(make_dataset):
    rows, again = (take(make_dataset(), 20) for _ in range(2))
    other = take(make_dataset(seed=1, stream=make_dataset().blocks), 20)
    assert [row["row"] for row in rows] == list(range(20))
    dealt = [pair.row for row in rows for pair in row["pairs"]]
    turns = [dealt[i : i + len(PAIRS)] for i in range(0, 35, len(PAIRS))]
    assert all(sorted(turn) == list(range(len(PAIRS))) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1  # each pass over the pairs in an order of its own
    spans = [[row["view"].span_ids.tolist() for row in each] for each in (rows, again, other)]
    assert spans[0] == spans[1] != spans[2]
    text = texts_of(make_dataset().blocks, 1)[0]
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


SLOW = pytest.mark.slow
SPREADS = [(0, 1), (2, 1), (0, 2), pytest.param(1, 1, marks=SLOW), pytest.param(2, 2, marks=SLOW)]


@pytest.mark.parametrize(("workers", "processes"), SPREADS)
def test_the_same_rows_for_any_number_of_workers_and_processes(make_dataset, workers, processes):
    """Also from a position on, as a resumed run reads them, and where the stream has started anew."""
    expected = batches_of(make_dataset(), 24)
    assert [batch["text_rows"].tolist() for batch in expected] == np.arange(96).reshape(24, 4).tolist()
    dataset = make_dataset(batch_rows=4 * processes)
    found = batches_of(dataset, 24, workers, processes)
    assert len(found) == 24 and all(same(one, other) for one, other in zip(expected, found))
    middle = json.loads(json.dumps(dataset.position(12 // processes)))  # as trainer_state.json holds it
    assert middle["row"] == 48
    dataset.start(middle)
    rest = batches_of(dataset, 12, workers, processes)
    assert all(same(one, other) for one, other in zip(expected[12:], rest))


def test_data_sets_of_the_hub_stream_too(make_dataset, make_stream, source, monkeypatch, row_count):
    texts = {int(each.text.split()[1][:-1]): each.text for each in load_texts(source, "text") if "Story" in each.text}
    rows = datasets.Dataset.from_dict({"n": range(DOCUMENTS), "text": [texts.get(n, "") for n in range(DOCUMENTS)]})
    rows = rows.to_iterable_dataset(num_shards=4)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    hub = make_dataset(stream=make_stream(source="owner/name"))
    expected = batches_of(hub, 24)
    assert len({tuple(row.tolist()) for batch in expected for row in batch["input_ids"]}) > row_count // 2
    assert hub.origin(0).startswith("owner/name:")
    found = batches_of(make_dataset(stream=make_stream(source="owner/name")), 24, workers=2)
    assert all(same(one, other) for one, other in zip(expected, found))
    hub.start(hub.position(10))
    assert all(same(one, other) for one, other in zip(expected[10:], batches_of(hub, 14)))


def test_a_row_tells_where_it_stands(make_dataset):
    dataset = make_dataset()
    origins = [text.origin for text in texts_of(dataset.blocks, 40)]
    batches_of(dataset, 10, workers=2)
    dataset.position(2)
    assert [dataset.origin(row) for row in (8, 11, 17, 39)] == [origins[row] for row in (8, 11, 17, 39)]
    dataset.start(dataset.position(2))
    batches = iter(DataLoader(dataset, batch_size=4, collate_fn=MagnetCollator(0)))
    next(batches)
    assert dataset.origin(18) == origins[18]
    assert next(batches)["text_rows"].tolist() == [12, 13, 14, 15]  # looking for it has not moved the stream


# ------------------------------------------------------------------------------------------------------------ training


STEPS = 8  # of two batches of 4 rows; SSCL starts at step 3


@pytest.fixture
def train(source, tokenizer, tmp_path):
    """`train(out, workers=0)`: `magnet train` into this folder, resuming what is there; returns its final weights."""
    build_llama("sdpa", vocab_size=4096, pad_token_id=0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "pairs.jsonl").write_text("".join(f'{{"text": "a {i}", "positive": "b {i}"}}\n' for i in range(7)))
    flags = f"--model_name_or_path {tmp_path}/base --train_file {source} --pairs_file {tmp_path}/pairs.jsonl --use_cpu"
    flags += f" --streaming --max_length {MAX_LENGTH} --span_max 8 --max_steps {STEPS} --sscl_start_step 3"
    flags += " --per_device_train_batch_size 4 --per_device_pair_batch_size 8 --gradient_accumulation_steps 2"
    flags += (
        " --learning_rate 1e-2 --sscl_dropout 0.1 --save_steps 3 --save_total_limit 9 --disable_tqdm true --resume"
    )

    def train(out, workers=0):
        main(shlex.split(f"{flags} --output_dir {tmp_path / out} --dataloader_num_workers {workers}"))
        return (tmp_path / out / "model.safetensors").read_bytes()

    return train


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_at_the_same_weights(train, tmp_path, row_count, workers):
    undisturbed = train("whole", workers)
    assert 3 * 8 < row_count < 6 * 8  # the stream starts anew between the checkpoints
    for step in (3, 6):
        checkpoint = shutil.copytree(tmp_path / f"whole/checkpoint-{step}", tmp_path / f"{step}/checkpoint-{step}")
        state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
        assert state.stateful_callbacks["StreamCallback"]["attributes"]["position"]["row"] == step * 8
        assert state.epoch == step / STEPS
        assert train(str(step), workers) == undisturbed
    steps = [json.loads(line)["step"] for line in (tmp_path / "3/train_log.jsonl").read_text().splitlines()]
    assert steps[-1] == STEPS
