"""Reads texts during training: an endless, shuffled stream of token blocks that resumes at any row.

`datasets` reads and knows its position (`IterableDataset.state_dict`). Row r is the r-th block of the stream for
any number of processes and data-loader workers: each reads and tokenizes the whole stream, because a document's tokens
determine its number of rows, but samples views only for its own rows.
"""

import copy
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub import HfApi
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..settings.arguments import DataArguments
from ..views import SpecialTokens, sample_view
from .blocks import Text, tokenize_documents
from .pairs import PairDeck
from .reading import HUB_ID, BadRows, Record, file_records, list_files, load_hub, read_documents, select

# a position: the next row, the pass it is of, and the state of that pass's `IterableDataset`
START = {"row": 0, "epoch": 0, "blocks": None}


def block_stream(data_args: DataArguments, tokenizer, max_length: int, seed: int) -> Callable:
    """
    The blocks of `train_file`: a function from the number of a pass to its [`datasets.IterableDataset`].

    Raises:
        `ValueError` for a source without a text that makes a row.
    """
    source, column = data_args.train_file, data_args.text_column
    files = list_files(source)
    if files is None:
        rows = select(load_hub(source, streaming=True), [column], source)
        rows = rows.map(as_record, with_indices=True, remove_columns=[column], fn_kwargs={"source": source})
    else:
        generator = {"files": [str(file) for file in files], "column": column}
        rows = datasets.IterableDataset.from_generator(records_of, gen_kwargs=generator)
    settings = {"data_args": data_args, "tokenizer": tokenizer, "max_length": max_length, "seed": seed}
    blocks = functools.partial(blocks_of, rows=rows, bad=BadRows(data_args.on_bad), **settings)
    if next(blocks(0).iter(batch_size=1), None) is None:
        raise ValueError(f"{source}: column {column!r} holds no text that makes a row. Give another.")
    return blocks


def blocks_of(epoch: int, rows: datasets.IterableDataset, data_args: DataArguments, **settings):
    """A pass over records. Each window of `shuffle_window` of them is shuffled by (seed, epoch, its first's number)."""
    return rows.map(
        cut_window,
        with_indices=True,
        batched=True,
        batch_size=data_args.shuffle_window,
        remove_columns=["origin", "values", "problem"],
        fn_kwargs={"epoch": epoch, "data_args": data_args} | settings,
    )


def records_of(files: list[str], column: str) -> Iterator[dict]:
    """The records of files, as rows for `datasets`."""
    for file in files:
        for record in file_records(Path(file), [column]):
            yield {"origin": record.origin, "values": record.values, "problem": record.problem}


def as_record(values: dict, number: int, source: str) -> dict:
    return {"origin": f"{source}:{number + 1}", "values": dict(values), "problem": ""}


def cut_window(
    window: dict[str, list], numbers: list[int], epoch, data_args, seed, tokenizer, max_length, bad
) -> dict:
    """The blocks of a window of records, its documents in an order of its own. No block spans two documents."""
    records, seen = map(Record, window["origin"], window["values"], window["problem"]), bad.count
    documents = list(read_documents(records, data_args.text_column, bad, data_args.sample_by))
    if seen == 0:
        bad.report(f"{data_args.train_file} (so far)")
    order = np.random.default_rng((seed, epoch, numbers[0])).permutation(len(documents))
    blocks = tokenize_documents([documents[number] for number in order], tokenizer, max_length)
    return {"block": list(itertools.chain.from_iterable(blocks))}


def read_blocks(blocks: Callable, position: dict) -> Iterator[tuple[int, Text, Callable]]:
    """The rows from a position on, without end: their numbers, their texts, and what gives the position behind them."""
    row = position["row"]
    for epoch in itertools.count(position["epoch"]):
        a_pass = blocks(epoch)
        a_pass.load_state_dict(position["blocks"] if epoch == position["epoch"] else None)
        # `iter`, for in a data-loader worker `for block in a_pass` would get only a share of them
        for batch in a_pass.iter(batch_size=1):
            row += 1
            yield row - 1, batch["block"][0], lambda: {"row": row, "epoch": epoch, "blocks": a_pass.state_dict()}


class StreamedDataset(torch.utils.data.IterableDataset):
    """
    The rows of a [`block_stream`], each with its view, which depends on (seed, row), and its sentence pairs, whose
    order depends on (seed, pass over the pairs).

    Args:
        batch_rows (`int`): Rows per batch over all processes. With k data-loader workers, worker w yields the rows of
            the batches b with b % k == w, because the data loader takes batches from its workers in turn.
    """

    def __init__(
        self, blocks: Callable, pairs: PairDeck, view_settings, tokens: SpecialTokens, pairs_per_row, seed, batch_rows
    ):
        self.blocks, self.pairs, self.view_settings, self.tokens = blocks, pairs, view_settings, tokens
        self.pairs_per_row, self.seed, self.batch_rows = pairs_per_row if len(pairs) else 0, seed, batch_rows
        self.start(START)

    def start(self, position: dict) -> None:
        """The next iteration starts here."""
        self.first, self._known = position, {0: position}
        self._positions = torch.multiprocessing.Queue()  # from the worker that reads a batch to the main process

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for row, text, behind in read_blocks(self.blocks, self.first):
            batch, place = divmod(row - self.first["row"], self.batch_rows)
            if batch % workers != mine:
                continue
            if place == self.batch_rows - 1:
                self._positions.put((batch + 1, behind()))
            yield self.item(row, text)

    def item(self, row: int, text: Text) -> dict:
        rng = np.random.default_rng((self.seed, 0, row))
        view = sample_view(text.ids, text.sentence_starts, self.view_settings, self.tokens, rng)
        places = (divmod(row * self.pairs_per_row + i, len(self.pairs)) for i in range(self.pairs_per_row))
        return {"view": view, "pairs": [self.pairs.deal(*place) for place in places], "row": row}

    def position(self, batches: int) -> dict:
        """The position after so many batches since the start, of which earlier ones are forgotten."""
        while batches not in self._known:
            self._known.update([self._positions.get()])
        self._known = {number: position for number, position in self._known.items() if number >= batches}
        return self._known[batches]

    def origin(self, row: int) -> str:
        """The location of a row's text, found by reading again from the last position that was asked for."""
        before = self._known[min(self._known)]
        rows = read_blocks(copy.deepcopy(self.blocks), before)  # the other reader's state stays as it is
        return next(text.origin for number, text, _ in rows if number == row)


class StreamCallback(TrainerCallback, ExportableState):
    """Saves the position after the trained rows in the checkpoint (trainer_state.json), and resumes there."""

    def __init__(self, dataset: StreamedDataset):
        self.dataset, self.position = dataset, dataset.first

    def state(self) -> dict:
        return {"args": {}, "attributes": {"position": self.position}}

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get(type(self).__name__) if state.global_step > 0 else None
        self.dataset.start(stored["attributes"]["position"] if stored else START)
        self.first_step, self.position = state.global_step, self.dataset.first

    def on_step_end(self, args, state, control, **kwargs):
        steps = state.global_step - self.first_step
        self.position = self.dataset.position(steps * args.gradient_accumulation_steps)
        state.epoch = state.global_step / state.max_steps  # without skipping data, the Trainer would count from 0


def source_fingerprint(source: str) -> str:
    """A hash of the files' names, sizes and first bytes, or a Hub data set's commit: whole files would take hours."""
    files = list_files(source)
    if files is None:
        hub = HUB_ID.fullmatch(source)
        return f"{source} {hub['revision'] or HfApi().dataset_info(hub['name']).sha}"
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with open(file, "rb") as data:
            digest.update(data.read(2**20))
    return digest.hexdigest()
