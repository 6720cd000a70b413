"""Turns texts and sentence pairs into batches: the dataset, the collator, and a run's data."""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_magnet.encoding_magnet import padded, start_ids

from ..settings.checks import check_pairs
from ..views import IGNORE, SpecialTokens, sample_view, special_tokens
from .blocks import Text, tokenize_sentences, tokenize_texts
from .reading import Document, load_texts
from .sentences import Pair, PairDeck, count_pairs, fold, identical_pairs, load_pairs, long_sentences
from .streaming import BlockStream, StreamCallback, StreamedDataset, source_fingerprint

logger = logging.getLogger(__name__)

ALARMS = {  # count: what it is a share of, the share above which to warn, and why
    "identical pairs": ("pairs", 0.01, "an anchor that equals its positive teaches SSCL nothing"),
    "near-identical pairs": ("pairs", 0.2, "pairs that differ in a word or two teach SSCL little"),
    "repeated sentences": ("pairs", 0.2, "the same anchors come again and again"),
    "texts too short": ("texts", 0.2, "a text of fewer than 8 tokens makes no row"),
    "rows too short for a span": ("rows", 0.2, "MSG trains on no such row; lower span_min"),
    "held-out texts found in training": ("held-out texts", 0.0, "the evaluation is not of unseen text"),
    "held-out pairs found in training": ("held-out pairs", 0.0, "eval_loss_sscl is not of unseen sentences"),
    "held-out pairs left out": ("held-out pairs", 0.0, "a held-out row brings as many as a row of training"),
}


class MagnetDataset(torch.utils.data.Dataset):
    """
    Texts, each with its view and its sentence pairs. Item i of epoch e depends only on (seed, e, i), so a resumed run
    sees the same items as an uninterrupted one, for any number of workers or processes.
    """

    def __init__(
        self, texts: list[Text], pairs: PairDeck, view_settings, tokens: SpecialTokens, pairs_per_row: int, seed: int
    ):
        self.texts, self.pairs, self.view_settings, self.tokens = texts, pairs, view_settings, tokens
        self.pairs_per_row, self.seed = pairs_per_row if len(pairs) else 0, seed
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # shared with persistent workers

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
        places = range(index * self.pairs_per_row, (index + 1) * self.pairs_per_row)
        return {"view": view, "pairs": [self.pairs.deal(epoch, place) for place in places], "row": index}

    def origin(self, row: int) -> str:
        """The location of a row's text: "texts.txt:17"."""
        return self.texts[row].origin or f"row {row}"


class LengthGroups(torch.utils.data.Sampler):
    """
    Random order in which the rows of a step have similar lengths: almost no padding. Depends only on the dataset's
    seed and epoch.

    Args:
        dataset ([`MagnetDataset`]): The rows to order.
        size (`int`): Rows per step, over all processes.
    """

    def __init__(self, dataset: MagnetDataset, size: int):
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.dataset.seed + self.dataset.epoch)
        lengths = [len(text.ids) for text in self.dataset.texts]
        order = get_length_grouped_indices(lengths, self.size, generator=generator)
        steps = [order[i : i + self.size] for i in range(0, len(order), self.size)]
        whole = len(order) // self.size  # the remainder stays at the end, where it may be dropped
        # transformers orders every fifty steps from long rows to short ones, which would be a schedule
        shuffled = torch.randperm(whole, generator=generator).tolist() + list(range(whole, len(steps)))
        return iter([row for number in shuffled for row in steps[number]])


class MagnetCollator:
    """
    Pads views to (B, L) and a batch's sentences to (2 P, S): first all anchors, then all positives.

    `text_rows` (B,) and `pair_rows` (P,) number the rows and pairs of the batch. Pairs with equal `pair_ids` (P,)
    share a text and are not negatives of each other.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        padding = {"input_ids": self.pad_token_id, "position_ids": 0, "span_ids": 0}
        padding |= {"mntp_labels": IGNORE, "msg_labels": IGNORE}
        batch = {"text_rows": torch.tensor([item["row"] for item in items])}
        for name, value in padding.items():
            batch[name], mask = padded([getattr(item["view"], name) for item in items], value=value)
        batch["attention_mask"] = mask
        pairs = [pair for item in items for pair in item["pairs"]]
        if pairs:
            sentences = [pair.anchor for pair in pairs] + [pair.positive for pair in pairs]
            batch["pair_rows"] = torch.tensor([pair.row for pair in pairs])
            batch["pair_ids"] = torch.tensor([pair.group for pair in pairs])
            batch["pair_input_ids"], batch["pair_attention_mask"] = padded(sentences, value=self.pad_token_id)
        return batch


# --------------------------------------------------------------------------------------------------------- a run's data


@dataclass
class Sources:
    """The texts and sentence pairs of a run, as read; held-out ones are only evaluated."""

    texts: list[Document]
    pairs: list[Pair] = field(default_factory=list)
    held_out_texts: list[Document] = field(default_factory=list)
    held_out_pairs: list[Pair] = field(default_factory=list)


@dataclass
class TrainingData:
    """A trainer's data. A resumed run compares `fingerprint` to verify that they are still those of its checkpoint."""

    train: MagnetDataset | StreamedDataset
    eval: MagnetDataset | None
    collator: MagnetCollator
    fingerprint: dict[str, str]
    callbacks: list[TrainerCallback] = field(default_factory=list)


def build_data(config, tokenizer, data_args, view_args, training_args) -> TrainingData:
    """Loads and tokenizes texts and pairs according to the arguments, and logs their counts."""
    check_pairs(data_args, training_args)

    def load(source):
        return load_texts(source, data_args.text_column, data_args.on_bad) if source else []

    texts, held_out = load(None if data_args.streaming else data_args.train_file), load(data_args.eval_file)
    sources = Sources(texts, read_pairs(data_args, training_args, texts), held_out)
    if training_args.lambda_sscl > 0 and data_args.eval_pairs_file:
        # both columns, whatever `positives` is: without dropout a sentence equals itself
        sources.held_out_pairs = load_pairs(data_args.eval_pairs_file, data_args.pair_columns, data_args.on_bad)
    blocks = None
    if data_args.streaming:
        blocks = BlockStream(
            data_args.train_file,
            data_args.text_column,
            tokenizer,
            view_args.max_length,
            data_args.shuffle_window,
            training_args.seed,
            data_args.on_bad,
        )
    return prepare(sources, config, tokenizer, view_args, training_args, blocks)


def prepare(sources, config, tokenizer, view_args, training_args, blocks: BlockStream | None = None) -> TrainingData:
    """Tokenizes the sources and logs their counts; streamed training rows come from `blocks`."""

    def deck(pairs):
        reading = (tokenizer, config.representation_prompt, view_args.pair_max_length, start_ids(config, tokenizer))
        return PairDeck(tokenize_pairs(pairs, *reading), training_args.seed, [pair.origin for pair in pairs])

    settings = active_views(view_args, training_args)
    parts = (settings, special_tokens(config, tokenizer), training_args.pairs_per_row, training_args.seed)
    pairs, held_out_pairs = deck(sources.pairs), deck(sources.held_out_pairs)
    counts, callbacks = count_pairs(sources.pairs), []
    if has_own_positives(sources.pairs):
        del counts["identical pairs"]  # intentional
    if blocks is not None:
        train, callbacks = stream(blocks, training_args, pairs, *parts)
        fingerprint = source_fingerprint(blocks.source)
    else:
        texts = tokenize_texts(sources.texts, tokenizer, view_args.max_length)
        train, fingerprint = MagnetDataset(texts, pairs, *parts), hash_ids(text.ids for text in texts)
        counts |= count_texts(sources.texts, texts, settings) | count_held_out_texts(sources)
    held_out = (
        tokenize_texts(sources.held_out_texts, tokenizer, view_args.max_length) if sources.held_out_texts else []
    )
    counts |= count_held_out_pairs(sources, len(held_out) * training_args.pairs_per_row)
    report(counts, sources.pairs)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TrainingData(
        train=train,
        eval=MagnetDataset(held_out, held_out_pairs, *parts) if held_out else None,
        collator=MagnetCollator(pad),
        fingerprint={"train": fingerprint, "pairs": hash_ids(ids for pair in pairs.pairs for ids in pair)},
        callbacks=callbacks,
    )


def active_views(view_args, training_args):
    """The view settings without what no objective uses: no masks without MNTP, no spans without MSG."""
    changes = {"mask_ratio": 0.0} if training_args.lambda_mntp == 0 else {}
    if training_args.lambda_msg == 0 and view_args.fim_ratio == 0:
        changes["max_spans"] = 0
    return dataclasses.replace(view_args, **changes)


def read_pairs(data_args, training_args, documents: list[Document]) -> list[Pair]:
    """The sentence pairs of `pairs_file`, or long sentences of the texts paired with themselves."""
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


def has_own_positives(pairs: list[Pair]) -> bool:
    """Whether each sentence is its own positive (dropout positives)."""
    return bool(pairs) and all(pair.positive is pair.text for pair in pairs)


def tokenize_pairs(pairs: list[Pair], *reading) -> list[tuple[list[int], list[int]]]:
    """Tokenizes both sides of each pair with [`tokenize_sentences`]."""
    anchors = tokenize_sentences([pair.text for pair in pairs], *reading)
    if has_own_positives(pairs):
        return list(zip(anchors, anchors))
    return list(zip(anchors, tokenize_sentences([pair.positive for pair in pairs], *reading)))


def stream(blocks: BlockStream, training_args, *parts) -> tuple[StreamedDataset, list[TrainerCallback]]:
    """The streamed dataset, and the callback that saves its position in checkpoints."""
    train = StreamedDataset(blocks, *parts, batch_rows=training_args.train_batch_size * training_args.world_size)
    training_args.ignore_data_skip = True  # the stream itself resumes at the checkpoint's position
    training_args.accelerator_config.dispatch_batches = False  # batches differ in length; each process reads its own
    return train, [StreamCallback(train)]


def check_rows(dataset: MagnetDataset, args) -> None:
    """
    Rejects fewer rows than one batch: the run would silently end after 0 steps.

    Raises:
        `ValueError` naming rows and batch size.
    """
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and len(dataset) < batch:
        processes = f" in each of {args.world_size} processes" if args.world_size > 1 else ""
        raise ValueError(
            f"per_device_train_batch_size={args.per_device_train_batch_size}: {len(dataset)} rows fill no batch{processes}, so "
            "nothing would be trained. Lower it, or give more texts."
        )


# ------------------------------------------------------------------------------------------- counts and fingerprints


def count_texts(documents, texts: list[Text], settings) -> dict[str, int]:
    def has_room(n):  # as in views.sample_spans: [BOS] precedes the n tokens
        return n >= settings.span_min + 2 and int(n * settings.max_span_share) >= settings.span_min

    short = sum(not has_room(len(text.ids)) for text in texts)
    counts = {"texts": len(documents), "texts too short": len(documents) - len({text.origin for text in texts})}
    return counts | {"rows": len(texts), "rows too short for a span": short if settings.max_spans else 0}


def count_held_out_texts(sources: Sources) -> dict[str, int]:
    """How many held-out texts also occur in the training data, ignoring case and spacing."""
    if not sources.held_out_texts:
        return {}
    seen = {hash(fold(text.text)) for text in sources.texts}  # hashes: the texts themselves would fill memory
    found = sum(hash(fold(text.text)) in seen for text in sources.held_out_texts)
    return {"held-out texts": len(sources.held_out_texts), "held-out texts found in training": found}


def count_held_out_pairs(sources: Sources, room: int) -> dict[str, int]:
    """How many held-out pairs share a sentence with a training pair, and how many exceed the held-out rows' `room`."""
    if not sources.held_out_pairs:
        return {}
    seen = {hash(fold(side)) for pair in sources.pairs for side in (pair.text, pair.positive)}
    found = sum(not seen.isdisjoint(hash(fold(side)) for side in (p.text, p.positive)) for p in sources.held_out_pairs)
    total = len(sources.held_out_pairs)
    counts = {"held-out pairs": total, "held-out pairs found in training": found}
    return counts | {"held-out pairs left out": max(total - room, 0)}


def report(counts: dict[str, int], pairs: list[Pair]) -> None:
    """Logs the counts, with a warning for each high one."""
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
