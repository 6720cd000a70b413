"""From texts and sentence pairs to batches: the data set, the collator, and all of a run's data."""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from .blocks import Text, tokenize_sentences, tokenize_texts
from .checks import check_pairs
from .reading import Document, load_texts
from .sentences import Pair, PairOrder, count_pairs, fold, group_pairs, identical_pairs, load_pairs, long_sentences
from .streaming import BlockStream, StreamCallback, StreamedDataset, source_fingerprint
from .views import IGNORE, SpecialTokens, sample_view, special_tokens

logger = logging.getLogger(__name__)

ALARMS = {  # a count, what it is a share of, the share from which it is a warning, and why
    "identical pairs": ("pairs", 0.01, "an anchor that equals its positive teaches SSCL nothing"),
    "near-identical pairs": ("pairs", 0.2, "pairs that differ in a word or two teach SSCL little"),
    "repeated sentences": ("pairs", 0.2, "the same anchors come again and again"),
    "texts too short": ("texts", 0.2, "a text of fewer than 8 tokens makes no row"),
    "rows too short for a span": ("rows", 0.2, "MSG trains on no such row; lower span_min"),
    "held-out texts found in training": ("held-out texts", 0.0, "the evaluation is not of unseen text"),
}


class MagnetDataset(torch.utils.data.Dataset):
    """
    Texts, each with its view and its sentence pairs. Item i of epoch e is a function of (seed, e, i) alone, so a resumed
    run sees what the undisturbed one saw, however many workers or processes there are.
    """

    def __init__(self, texts: list[Text], pairs, view_settings, tokens: SpecialTokens, pairs_per_row: int, seed: int):
        self.texts, self.pairs, self.view_settings, self.tokens = texts, pairs, view_settings, tokens
        self.pairs_per_row, self.seed = pairs_per_row if pairs else 0, seed
        self._pair_order = PairOrder(len(pairs), seed)
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # workers that outlive an epoch see it change

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict:
        epoch = self.epoch
        rng = np.random.default_rng((self.seed, epoch, index))
        text = self.texts[index]
        view = sample_view(text.ids, text.sentence_starts, self.view_settings, self.tokens, rng)
        slots = range(index * self.pairs_per_row, (index + 1) * self.pairs_per_row)
        pair_ids = [int(self._pair_order.of(epoch)[slot % len(self.pairs)]) for slot in slots]
        return {"view": view, "pair_ids": pair_ids, "row": index}

    def origin(self, row: int) -> str:
        """Where a row's text stands: "texts.txt:17"."""
        return self.texts[row].origin or f"row {row}"


class MagnetCollator:
    """
    Pads views to (B, L) and a batch's sentences to (2 P, S): first all anchors, then all positives.

    `text_rows` (B,) and `pair_rows` (P,) number the rows and pairs of the batch; `pair_ids` (P,) is equal for pairs that
    share a text and so are no negatives of each other.
    """

    def __init__(self, pairs: list[tuple[list[int], list[int]]], pad_token_id: int, pair_origins: list[str] = ()):
        self.pairs, self.pad_token_id, self.pair_origins = pairs, pad_token_id, pair_origins
        self._groups = group_pairs([(tuple(anchor), tuple(positive)) for anchor, positive in pairs])

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        views = [item["view"] for item in items]
        batch = {
            "input_ids": _pad([view.input_ids for view in views], self.pad_token_id),
            "attention_mask": _pad([np.ones(len(view.input_ids), dtype=np.int64) for view in views], 0),
            "position_ids": _pad([view.position_ids for view in views], 0),
            "span_ids": _pad([view.span_ids for view in views], 0),
            "mntp_labels": _pad([view.mntp_labels for view in views], IGNORE),
            "msg_labels": _pad([view.msg_labels for view in views], IGNORE),
            "text_rows": torch.tensor([item["row"] for item in items]),
        }
        rows = [pair for item in items for pair in item["pair_ids"]]
        if rows:
            sentences = [self.pairs[i][0] for i in rows] + [self.pairs[i][1] for i in rows]
            batch["pair_rows"] = torch.tensor(rows)
            batch["pair_ids"] = torch.tensor([self._groups[i] for i in rows])
            batch["pair_input_ids"] = _pad(sentences, self.pad_token_id)
            batch["pair_attention_mask"] = _pad([[1] * len(ids) for ids in sentences], 0)
        return batch

    def pair_origin(self, row: int) -> str:
        """Where a pair stands: "pairs.jsonl:17"."""
        return self.pair_origins[row] if self.pair_origins else f"pair {row}"


def _pad(rows, value) -> torch.Tensor:
    return pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=value)


# --------------------------------------------------------------------------------------------------------- a run's data


@dataclass
class TrainingData:
    """What a trainer reads. By `fingerprint` a resumed run sees whether the data are still those of its checkpoint."""

    train: MagnetDataset | StreamedDataset
    eval: MagnetDataset | None
    collator: MagnetCollator
    fingerprint: dict[str, str]
    callbacks: list[TrainerCallback] = field(default_factory=list)


def build_data(config, tokenizer, data_args, view_args, training_args) -> TrainingData:
    """Loads and tokenizes texts and pairs, as the arguments say, and logs what is in them."""
    check_pairs(data_args, training_args)

    def load(source):
        return load_texts(source, data_args.text_column, data_args.on_bad) if source else []

    documents, held_out = load(None if data_args.streaming else data_args.train_file), load(data_args.eval_file)
    sentences = read_pairs(data_args, training_args, documents)
    pairs = tokenize_pairs(sentences, tokenizer, config.representation_prompt, data_args.pair_max_length)
    settings = active_views(view_args, training_args)
    parts = (pairs, settings, special_tokens(config, tokenizer), training_args.pairs_per_row, training_args.seed)
    counts = count_pairs(sentences)
    if data_args.positives == "dropout":
        del counts["identical pairs"]  # all are, on purpose
    if data_args.streaming:
        train, callbacks = stream(tokenizer, data_args, training_args, parts)
        fingerprint = source_fingerprint(data_args.train_file)
    else:
        texts, callbacks = tokenize_texts(documents, tokenizer, data_args.max_length), []
        train, fingerprint = MagnetDataset(texts, *parts), hash_ids(text.ids for text in texts)
        counts |= count_texts(documents, texts, settings) | count_held_out(documents, held_out)
    report(counts, sentences)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    held_out = tokenize_texts(held_out, tokenizer, data_args.max_length) if held_out else None
    return TrainingData(
        train=train,
        eval=held_out and MagnetDataset(held_out, *parts),
        collator=MagnetCollator(pairs, pad, [pair.origin for pair in sentences]),
        fingerprint={"train": fingerprint, "pairs": hash_ids(ids for pair in pairs for ids in pair)},
        callbacks=callbacks,
    )


def active_views(view_args, training_args):
    """The view settings without what no objective reads: no mask without MNTP, no span without MSG."""
    changes = {"mask_ratio": 0.0} if training_args.lambda_mntp == 0 else {}
    if training_args.lambda_msg == 0 and view_args.fim_ratio == 0:
        changes["max_spans"] = 0
    return dataclasses.replace(view_args, **changes)


def read_pairs(data_args, training_args, documents: list[Document]) -> list[Pair]:
    """The sentence pairs of `pairs_file`, or long sentences of the texts, each with itself."""
    if training_args.lambda_sscl == 0:
        if data_args.pairs_file:
            logger.warning("lambda_sscl=0: pairs_file=%s is not read.", data_args.pairs_file)
        return []
    if data_args.pairs_file:
        columns = data_args.pair_columns if data_args.positives == "column" else data_args.pair_columns[:1]
        return load_pairs(data_args.pairs_file, columns, data_args.on_bad)
    found = [Pair(each.text, each.text, each.origin) for each in long_sentences(documents, data_args.min_words)]
    if not found:
        raise ValueError(
            f"min_words={data_args.min_words}: no sentence of {data_args.train_file} has more words. "
            "Lower min_words, or give pairs_file."
        )
    return found


def tokenize_pairs(pairs: list[Pair], tokenizer, prompt: str, max_length: int) -> list[tuple[list[int], list[int]]]:
    anchors = tokenize_sentences([pair.text for pair in pairs], tokenizer, prompt, max_length)
    if all(pair.positive is pair.text for pair in pairs):  # dropout positives
        return list(zip(anchors, anchors))
    return list(zip(anchors, tokenize_sentences([pair.positive for pair in pairs], tokenizer, prompt, max_length)))


def stream(tokenizer, data_args, training_args, parts) -> tuple[StreamedDataset, list[TrainerCallback]]:
    """The streamed data set, and the callback that keeps its position in checkpoints."""
    blocks = BlockStream(
        data_args.train_file,
        data_args.text_column,
        tokenizer,
        data_args.max_length,
        data_args.shuffle_window,
        training_args.seed,
        data_args.on_bad,
    )
    train = StreamedDataset(blocks, *parts, batch_rows=training_args.train_batch_size * training_args.world_size)
    training_args.ignore_data_skip = True  # the stream itself goes on where the checkpoint was
    training_args.accelerator_config.dispatch_batches = False  # batches differ in length; each process reads its own
    return train, [StreamCallback(train)]


# ------------------------------------------------------------------------------------------- counts and fingerprints


def count_texts(documents, texts: list[Text], settings) -> dict[str, int]:
    def has_room(n):  # as views.sample_spans counts: [BOS] stands before the n tokens
        return n >= settings.span_min + 2 and int(n * settings.max_span_share) >= settings.span_min

    short = sum(not has_room(len(text.ids)) for text in texts)
    counts = {"texts": len(documents), "texts too short": len(documents) - len({text.origin for text in texts})}
    return counts | {"rows": len(texts), "rows too short for a span": short if settings.max_spans else 0}


def count_held_out(documents, held_out) -> dict[str, int]:
    """How many held-out texts are, but for case and spacing, texts of the training data too."""
    if not held_out:
        return {}
    seen = {hash(fold(document.text)) for document in documents}  # hashes: the texts themselves would fill memory
    found = sum(hash(fold(document.text)) in seen for document in held_out)
    return {"held-out texts": len(held_out), "held-out texts found in training": found}


def report(counts: dict[str, int], pairs: list[Pair]) -> None:
    """One line of counts, and a warning for each that is alarming."""
    logger.info("data: %s", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    if counts.get("identical pairs"):
        first = ", ".join(pair.origin for pair in itertools.islice(identical_pairs(pairs), 3))
        logger.warning("data: the first identical pairs stand at %s.", first)
    for name, (whole, share, why) in ALARMS.items():
        if counts.get(name, 0) > share * counts.get(whole, 0):
            logger.warning("data: %d %s of %d %s: %s.", counts[name], name, counts[whole], whole, why)


def hash_ids(rows: Iterable) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for ids in rows:
        data = np.asarray(ids, dtype=np.int32).tobytes()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
