"""Reads texts during training: an endless, shuffled stream of token blocks that resumes at any row.

Row r is the r-th block of the stream for any number of processes and data-loader workers. Each of them reads and
tokenizes the whole stream, because a document's tokens determine its number of rows, but samples views only for its
own rows.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..views import SpecialTokens, sample_view
from .blocks import Text, tokenize_documents
from .reading import HUB_ID, BadRows, document, list_files, read_records
from .sentences import PairDeck

TOKENIZED_AT_ONCE = 64  # documents; more would delay the first batch
KEPT_BATCHES = 4096  # whose positions are kept; far more than the data loader prefetches


@dataclass
class Position:
    """The position of a row's block: the `block`-th of the `document`-th of the shuffled `window` in pass `epoch`."""

    row: int = 0
    epoch: int = 0
    window: int = 0
    document: int = 0
    block: int = 0


class BlockStream:
    """
    The blocks of a source, repeated endlessly. Each window of `shuffle_window` source rows is shuffled by (seed,
    epoch, window). A block never spans two documents.
    """

    def __init__(self, source, column, tokenizer, max_length, shuffle_window=1000, seed=0, on_bad="raise"):
        self.source, self.column, self.tokenizer, self.max_length = source, column, tokenizer, max_length
        self.shuffle_window, self.seed, self.on_bad = shuffle_window, seed, on_bad

    def blocks(self, start: Position) -> Iterator[tuple[Text, Position]]:
        """Each block from `start` on with the position after it. Earlier documents are not tokenized."""
        at = start
        while True:
            whole, before = at.document == at.block == at.window == 0, at.row
            for text, at in self._pass(at):
                yield text, at
            if whole and at.row == before:
                raise ValueError(
                    f"{self.source}: column {self.column!r} holds no text that makes a row. Give another."
                )
            at = Position(at.row, at.epoch + 1)

    def _pass(self, start: Position):
        row, bad = start.row, BadRows(self.on_bad)
        for window, documents in self._windows(start.epoch, start.window, bad):
            first = start.document if window == start.window else 0
            for number, blocks in self._tokenized(documents, first):
                here = (window, number) == (start.window, start.document)
                for block in range(start.block if here else 0, len(blocks)):
                    row += 1
                    yield blocks[block], Position(row, start.epoch, window, number, block + 1)
        worker = torch.utils.data.get_worker_info()
        if worker is None or worker.id == 0:  # every worker sees the same bad rows
            bad.report(self.source)

    def _windows(self, epoch, first, bad):
        records = read_records(self.source, [self.column], start=first * self.shuffle_window, streaming=True)
        for window in itertools.count(first):
            batch = list(itertools.islice(records, self.shuffle_window))
            if not batch:
                return
            documents = [document(record, self.column, bad) for record in batch]
            order = np.random.default_rng((self.seed, epoch, window, 1)).permutation(len(batch))
            yield window, [documents[i] for i in order]

    def _tokenized(self, documents, first):
        for begin in range(first, len(documents), TOKENIZED_AT_ONCE):
            part = documents[begin : begin + TOKENIZED_AT_ONCE]
            blocks = iter(tokenize_documents([each for each in part if each], self.tokenizer, self.max_length))
            for number, each in enumerate(part, start=begin):
                yield number, next(blocks) if each else []


class StreamedDataset(torch.utils.data.IterableDataset):
    """
    The rows of a [`BlockStream`], each with its view, which depends on (seed, row), and its sentence pairs, whose
    order depends on (seed, pass over the pairs).

    Args:
        batch_rows (`int`): Rows per batch over all processes. With k data-loader workers, worker w yields the rows of
            the batches b with b % k == w, because the data loader takes batches from its workers in turn.
    """

    def __init__(
        self,
        stream: BlockStream,
        pairs: PairDeck,
        view_settings,
        tokens: SpecialTokens,
        pairs_per_row: int,
        seed: int,
        batch_rows: int,
    ):
        self.stream, self.pairs, self.view_settings, self.tokens = stream, pairs, view_settings, tokens
        self.pairs_per_row, self.seed, self.batch_rows = pairs_per_row if len(pairs) else 0, seed, batch_rows
        # the position after each batch, written by the worker that yields the batch and read by the main process
        self._behind = torch.zeros((KEPT_BATCHES, len(dataclasses.fields(Position))), dtype=torch.long).share_memory_()
        self.start(Position())

    def start(self, position: Position) -> None:
        """The next iteration starts here."""
        self.first = position
        self._behind.zero_()

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for text, behind in self.stream.blocks(self.first):
            batch, place = divmod(behind.row - 1 - self.first.row, self.batch_rows)
            if batch % workers != mine:
                continue
            if place == self.batch_rows - 1:
                self._behind[batch % KEPT_BATCHES] = torch.tensor(dataclasses.astuple(behind))
            yield self.item(behind.row - 1, text)

    def item(self, row: int, text: Text) -> dict:
        rng = np.random.default_rng((self.seed, 0, row))
        view = sample_view(text.ids, text.sentence_starts, self.view_settings, self.tokens, rng)
        places = (divmod(row * self.pairs_per_row + i, len(self.pairs)) for i in range(self.pairs_per_row))
        return {"view": view, "pairs": [self.pairs.deal(*place) for place in places], "row": row}

    def position(self, batches: int) -> Position:
        """The position after so many batches since the start."""
        if batches == 0:
            return self.first
        found = Position(*self._behind[(batches - 1) % KEPT_BATCHES].tolist())
        assert found.row == self.first.row + batches * self.batch_rows, "the batch was not read yet, or long ago"
        return found

    def origin(self, row: int) -> str:
        """The location of a row's text, found by rereading its batch."""
        before = self.position((row - self.first.row) // self.batch_rows)
        return next(text.origin for text, behind in self.stream.blocks(before) if behind.row - 1 == row)


class StreamCallback(TrainerCallback, ExportableState):
    """Saves the position after the trained rows in the checkpoint (trainer_state.json), and resumes there."""

    def __init__(self, dataset: StreamedDataset):
        self.dataset = dataset
        self.position = dataset.first

    def state(self) -> dict:
        return {"args": {}, "attributes": {"position": dataclasses.asdict(self.position)}}

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step > 0 and stored is None:
            raise ValueError(
                f"streaming=True: the checkpoint of step {state.global_step} holds no position in a stream, because it "
                "was trained without. Resume it with streaming=False, or start anew."
            )
        self.dataset.start(Position(**stored["attributes"]["position"]) if state.global_step > 0 else Position())
        self.first_step, self.position = state.global_step, self.dataset.first

    def on_step_end(self, args, state, control, **kwargs):
        steps = state.global_step - self.first_step
        self.position = self.dataset.position(steps * args.gradient_accumulation_steps)
        state.epoch = state.global_step / state.max_steps  # without skipping data, the Trainer would count from 0


def source_fingerprint(source: str) -> str:
    """A hash of the files' names, sizes and first and last bytes, or a Hub dataset's commit. Hashing whole files of a
    stream's size would take hours."""
    files = list_files(source)
    if files is None:
        hub = HUB_ID.fullmatch(source)
        return f"{source} {hub['revision'] or HfApi().dataset_info(hub['name']).sha}"
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(source) if Path(source).is_dir() else file.name} {size}\n".encode())
        with open(file, "rb") as data:
            digest.update(data.read(2**20))
            data.seek(max(0, size - 2**20))
            digest.update(data.read())
    return digest.hexdigest()
