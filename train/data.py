"""From files to rows: texts cut into blocks, sentence pairs, and the collator that pads a batch."""

import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from .views import IGNORE, SpecialTokens, sample_view, special_tokens

SENTENCE_END = re.compile(r"[.!?]['\")\]]*\s+")
SHORTEST_ROW = 8  # tokens; a shorter rest of a text has no room for a span and its context


def load_rows(source: str, columns: list[str]) -> datasets.Dataset:
    """
    Loads `.txt` (one text a line), `.jsonl` / `.json`, each also as `.gz`, or the train split of a Hub data set.

    Raises:
        `ValueError` naming the file, or the columns it has where one is missing.
    """
    kind = {".txt": "text", ".jsonl": "json", ".json": "json"}.get(Path(source.removesuffix(".gz")).suffix)
    if kind is None:
        rows = datasets.load_dataset(source, split="train")
    elif not Path(source).is_file():
        raise ValueError(f"{source}: no such file.")
    else:
        try:
            rows = datasets.load_dataset(kind, data_files=source, split="train")
        except (StopIteration, datasets.exceptions.DatasetGenerationError) as error:
            raise ValueError(f"{source}: empty, or no proper {kind} file. {error.__cause__ or ''}".strip()) from error
    for column in columns:
        if column not in rows.column_names:
            raise ValueError(f"{source}: no column {column!r}; it has {rows.column_names}.")
    return rows


def load_texts(source: str, column: str) -> list[str]:
    """The non-empty texts of a file; a column of lists is joined by spaces."""
    texts = []
    for number, value in enumerate(load_rows(source, [column])[column], start=1):
        pieces = value if isinstance(value, list) else [value or ""]
        if not all(isinstance(piece, str) for piece in pieces):
            raise ValueError(f"{source}, row {number}: {column!r} holds {value!r}, which is no text.")
        texts.append(" ".join(pieces))
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(f"{source}: column {column!r} holds no text.")
    return texts


def load_pairs(source: str, columns: list[str]) -> list[tuple[str, str]]:
    """Sentence pairs; two columns of lists are paired item by item."""
    rows = load_rows(source, columns)
    pairs = []
    for number, (text, positive) in enumerate(zip(rows[columns[0]], rows[columns[1]]), start=1):
        lists = isinstance(text, list) and isinstance(positive, list)
        texts, positives = (text, positive) if lists else ([text], [positive])
        filled = all(isinstance(sentence, str) and sentence.strip() for sentence in [*texts, *positives])
        if len(texts) != len(positives) or not filled:
            raise ValueError(f"{source}, row {number}: {columns[0]!r} and {columns[1]!r} must both be filled.")
        pairs += list(zip(texts, positives))
    return pairs


@dataclass
class Text:
    """A block of a text: token ids without [BOS], and where sentences start; both of shape (n,)."""

    ids: np.ndarray
    sentence_starts: np.ndarray


def tokenize_texts(texts: list[str], tokenizer, max_length: int) -> list[Text]:
    """Tokenizes texts with special-token parsing off and cuts long ones into blocks of `max_length` - 1 tokens."""
    blocks = []
    for first in tqdm(range(0, len(texts), 1000), desc="tokenize", unit="k texts", leave=False):
        batch = texts[first : first + 1000]
        encoded = tokenizer(
            batch, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        for text, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"]):
            whole = Text(np.array(ids), _sentence_starts(text, offsets))
            blocks += _cut(whole, max_length - 1)
    if not blocks:
        raise ValueError(f"train_file: no text has {SHORTEST_ROW} tokens or more.")
    return blocks


def _sentence_starts(text, offsets) -> np.ndarray:
    starts = {0} | {match.end() for match in SENTENCE_END.finditer(text)}
    ends = np.array([end for _, end in offsets])
    marks = np.zeros(len(offsets), bool)
    first = np.searchsorted(ends, sorted(starts), side="right")  # the token that holds the sentence's first character
    marks[first[first < len(offsets)]] = True
    return marks


def _cut(text: Text, size: int) -> list[Text]:
    pieces = [Text(text.ids[i : i + size], text.sentence_starts[i : i + size]) for i in range(0, len(text.ids), size)]
    return [piece for piece in pieces if len(piece.ids) >= SHORTEST_ROW]


def tokenize_sentence(sentence: str, tokenizer, prompt: str, max_length: int) -> list[int]:
    """[BOS] prompt sentence [EOS]; a sentence that is too long loses its end, never its [EOS]."""
    text = f"{prompt} {sentence}" if prompt else sentence
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [tokenizer.bos_token_id, *ids[: max_length - 2], tokenizer.eos_token_id]


class MagnetDataset(torch.utils.data.Dataset):
    """
    Texts, each with its view and its sentence pairs. Item i of epoch e is a function of (seed, e, i) alone, so a resumed
    run sees what the undisturbed one saw, however many workers or processes there are.
    """

    def __init__(self, texts: list[Text], pairs, view_settings, tokens: SpecialTokens, pairs_per_row: int, seed: int):
        self.texts, self.pairs, self.view_settings, self.tokens = texts, pairs, view_settings, tokens
        self.pairs_per_row, self.seed = pairs_per_row if pairs else 0, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._pair_order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        text = self.texts[index]
        view = sample_view(text.ids, text.sentence_starts, self.view_settings, self.tokens, rng)
        slots = range(index * self.pairs_per_row, (index + 1) * self.pairs_per_row)
        return {"view": view, "pair_ids": [int(self._pair_order[slot % len(self.pairs)]) for slot in slots]}


class MagnetCollator:
    """Pads views to (B, L) and a batch's sentences to (2 P, S): first all anchors, then all positives."""

    def __init__(self, pairs: list[tuple[list[int], list[int]]], pad_token_id: int):
        self.pairs, self.pad_token_id = pairs, pad_token_id
        first_use = {}  # the same sentence twice in a batch is no negative of itself
        self._groups = [first_use.setdefault(tuple(anchor), number) for number, (anchor, _) in enumerate(pairs)]

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        views = [item["view"] for item in items]
        batch = {
            "input_ids": _pad([view.input_ids for view in views], self.pad_token_id),
            "attention_mask": _pad([np.ones(len(view.input_ids), dtype=np.int64) for view in views], 0),
            "position_ids": _pad([view.position_ids for view in views], 0),
            "span_ids": _pad([view.span_ids for view in views], 0),
            "mntp_labels": _pad([view.mntp_labels for view in views], IGNORE),
            "msg_labels": _pad([view.msg_labels for view in views], IGNORE),
        }
        pair_ids = [pair_id for item in items for pair_id in item["pair_ids"]]
        if pair_ids:
            sentences = [self.pairs[i][0] for i in pair_ids] + [self.pairs[i][1] for i in pair_ids]
            batch["pair_ids"] = torch.tensor([self._groups[i] for i in pair_ids])
            batch["pair_input_ids"] = _pad(sentences, self.pad_token_id)
            batch["pair_attention_mask"] = _pad([[1] * len(ids) for ids in sentences], 0)
        return batch


@dataclass
class TrainingData:
    """What a trainer reads."""

    train: torch.utils.data.Dataset
    eval: torch.utils.data.Dataset | None
    collator: MagnetCollator


def build_data(config, tokenizer, data_args, view_args, training_args) -> TrainingData:
    """Loads and tokenizes texts and pairs, as the arguments say."""
    sentences = load_pairs(data_args.pairs_file, data_args.pair_columns) if data_args.pairs_file else []
    pairs = [
        tuple(
            tokenize_sentence(sentence, tokenizer, config.representation_prompt, data_args.pair_max_length)
            for sentence in pair
        )
        for pair in sentences
    ]
    if training_args.lambda_sscl > 0 and not pairs:
        raise ValueError(f"lambda_sscl={training_args.lambda_sscl} needs pairs_file, or set lambda_sscl=0.")
    tokens = special_tokens(config, tokenizer)

    def dataset(source):
        texts = tokenize_texts(load_texts(source, data_args.text_column), tokenizer, data_args.max_length)
        return MagnetDataset(texts, pairs, view_args, tokens, training_args.pairs_per_row, training_args.seed)

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TrainingData(
        train=dataset(data_args.train_file),
        eval=dataset(data_args.eval_file) if data_args.eval_file else None,
        collator=MagnetCollator(pairs, pad),
    )


def _pad(rows, value) -> torch.Tensor:
    return pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=value)
