"""The data of a run: what its settings name is read, tokenized, counted, and made into a trainer's data sets."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from transformers import TrainerCallback

from modeling_magnet.encoding_magnet import start_ids

from ..settings.arguments import check_pairs
from ..views import special_tokens
from .blocks import Text, tokenize_sentences, tokenize_texts
from .dataset import MagnetCollator, MagnetDataset
from .pairs import Pair, PairDeck, load_pairs
from .reading import Document, load_texts
from .sentences import fold, long_sentences
from .streaming import StreamCallback, StreamedDataset, block_stream, source_fingerprint

logger = logging.getLogger(__name__)

ALARMS = {  # count: what it is a share of, the share above which to warn, and why
    "identical pairs": ("pairs", 0.01, "an anchor that equals its positive teaches SSCL nothing"),
    "texts too short": ("texts", 0.2, "a text of fewer than 8 tokens makes no row"),
    "rows too short for a span": ("rows", 0.2, "MSG trains on no such row; lower span_min"),
    "held-out texts found in training": ("held-out texts", 0.0, "the evaluation is not of unseen text"),
    "held-out pairs found in training": ("held-out pairs", 0.0, "eval_loss_sscl is not of unseen sentences"),
    "held-out pairs left out": ("held-out pairs", 0.0, "a held-out row brings as many as a row of training"),
}


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
        return load_texts(source, data_args.text_column, data_args.on_bad, sample_by=data_args.sample_by)

    sources = Sources([] if data_args.streaming else load(data_args.train_file))
    sources.pairs = read_pairs(data_args, training_args, sources.texts)
    if data_args.eval_file:
        sources.held_out_texts = load(data_args.eval_file)
    if training_args.lambda_sscl > 0 and data_args.eval_pairs_file:
        # both columns, whatever `positives` is: without dropout a sentence equals itself
        sources.held_out_pairs = load_pairs(data_args.eval_pairs_file, data_args.pair_columns, data_args.on_bad)
    if not data_args.streaming:
        return prepare(sources, config, tokenizer, view_args, training_args)
    blocks = block_stream(data_args, tokenizer, view_args.max_length, training_args.seed)
    data = prepare(sources, config, tokenizer, view_args, training_args, blocks)
    data.fingerprint["train"] = source_fingerprint(data_args.train_file)
    return data


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


def prepare(
    sources: Sources, config, tokenizer, view_args, training_args, blocks: Callable | None = None
) -> TrainingData:
    """Tokenizes the sources and logs their counts; streamed training rows come from `blocks`."""
    start = start_ids(config, tokenizer)

    def texts_of(documents: list[Document]) -> list[Text]:
        return tokenize_texts(documents, tokenizer, view_args.max_length) if documents else []

    def deck(pairs: list[Pair]) -> PairDeck:
        reading = (tokenizer, config.representation_prompt, view_args.pair_max_length, start)
        anchors = positives = tokenize_sentences([pair.text for pair in pairs], *reading)
        if not are_their_own(pairs):
            positives = tokenize_sentences([pair.positive for pair in pairs], *reading)
        return PairDeck(list(zip(anchors, positives)), training_args.seed, [pair.origin for pair in pairs])

    settings = active_views(view_args, training_args)
    parts = (settings, special_tokens(config, tokenizer), training_args.pairs_per_row, training_args.seed)
    pairs, texts, held_out = deck(sources.pairs), texts_of(sources.texts), texts_of(sources.held_out_texts)
    callbacks = []
    if blocks is None:
        train = MagnetDataset(texts, pairs, *parts)
    else:
        train = StreamedDataset(blocks, pairs, *parts, training_args.train_batch_size * training_args.world_size)
        callbacks = [StreamCallback(train)]
        training_args.ignore_data_skip = True  # the stream itself resumes at the checkpoint's position
        training_args.accelerator_config.dispatch_batches = (
            False  # batches differ in length; each process reads its own
        )
    report(count(sources, texts, settings, len(held_out) * training_args.pairs_per_row))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    fingerprint = {"train": hash_ids(text.ids for text in texts)}
    fingerprint["pairs"] = hash_ids(ids for pair in pairs.pairs for ids in pair)
    return TrainingData(
        train=train,
        eval=MagnetDataset(held_out, deck(sources.held_out_pairs), *parts) if held_out else None,
        collator=MagnetCollator(pad),
        fingerprint=fingerprint,
        callbacks=callbacks,
    )


def active_views(view_args, training_args):
    """The view settings without what no objective uses: no masks without MNTP, no spans without MSG."""
    changes = {"mask_ratio": 0.0} if training_args.lambda_mntp == 0 else {}
    if training_args.lambda_msg == 0 and view_args.fim_ratio == 0:
        changes["max_spans"] = 0
    return dataclasses.replace(view_args, **changes)


def hash_ids(rows: Iterable) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for ids in rows:
        data = np.asarray(ids, dtype=np.int32).tobytes()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------------- counts


def are_their_own(pairs: list[Pair]) -> bool:
    """Whether each sentence is its own positive (dropout positives)."""
    return all(pair.positive is pair.text for pair in pairs)


def count(sources: Sources, texts: list[Text], settings, room: int) -> dict[str, int]:
    """
    What a run has read.

    Args:
        room (`int`): How many pairs the held-out rows bring.
    """
    counts = {"pairs": len(sources.pairs)}
    if not are_their_own(sources.pairs):
        counts["identical pairs"] = sum(fold(pair.text) == fold(pair.positive) for pair in sources.pairs)
    if sources.texts:

        def has_room(n):  # as in views.sample_spans: [BOS] precedes the n tokens
            return n >= settings.span_min + 2 and int(n * settings.max_span_share) >= settings.span_min

        counts |= {"texts": len(sources.texts), "rows": len(texts)}
        counts["texts too short"] = len(sources.texts) - len({text.origin for text in texts})
        counts["rows too short for a span"] = sum(settings.max_spans > 0 and not has_room(len(t.ids)) for t in texts)
    if sources.held_out_texts:
        held_out, seen = ([(each.text,) for each in part] for part in (sources.held_out_texts, sources.texts))
        counts |= {"held-out texts": len(held_out), "held-out texts found in training": found(held_out, seen)}
    if sources.held_out_pairs:
        held_out, seen = ([(p.text, p.positive) for p in part] for part in (sources.held_out_pairs, sources.pairs))
        counts |= {"held-out pairs": len(held_out), "held-out pairs found in training": found(held_out, seen)}
        counts["held-out pairs left out"] = max(len(held_out) - room, 0)
    return counts


def found(held_out: list[tuple[str, ...]], training: list[tuple[str, ...]]) -> int:
    """How many of the held-out texts or pairs share a text with the training data, ignoring case and spacing."""
    seen = {hash(fold(text)) for texts in training for text in texts}  # hashes: the texts themselves would fill memory
    return sum(any(hash(fold(text)) in seen for text in texts) for texts in held_out)


def report(counts: dict[str, int]) -> None:
    """Logs the counts, with a warning for each high one."""
    logger.info("data: %s", ", ".join(f"{number:,} {name}" for name, number in counts.items()))
    for name, (whole, share, why) in ALARMS.items():
        if counts.get(name, 0) > share * counts.get(whole, 0):
            logger.warning("data: %d %s of %d %s: %s.", counts[name], name, counts[whole], whole, why)
