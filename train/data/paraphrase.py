"""Makes sentence pairs for SSCL: each sentence of a source and its paraphrase by any sequence-to-sequence model.

    magnet paraphrase --model_name_or_path prithivida/parrot_paraphraser_on_T5 --prefix "paraphrase: " \\
        --input texts.txt --output pairs.jsonl
"""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, set_seed
from transformers.hf_argparser import HfArg

from magnet_hub.trust import check_source

from ..settings.arguments import check_choices
from .reading import load_texts
from .sentences import fold, long_sentences

logger = logging.getLogger(__name__)

AS_TEXT = {"split_special_tokens": True}  # "</s>" in a sentence is text


@dataclass
class ParaphraseArguments:
    """The settings of `magnet paraphrase`. How candidates are sampled stands in the model's generation_config.json."""

    model_name_or_path: str = HfArg(help="Sequence-to-sequence model: a folder or a Hub id.")
    input: str = HfArg(help="Texts, as train_file of magnet train: a file, a folder or a Hub id.")
    output: str = HfArg(help="The .jsonl that is written; rows have text and positive.")
    text_column: str = HfArg(default="text", help="Column with the text; a list is joined by spaces.")
    unit: Literal["line", "sentence"] = HfArg(default="line", help="Whole texts (one a line), or each sentence.")
    min_words: int = HfArg(default=20, help="Only lines or sentences with more words.")
    limit: int | None = HfArg(default=None, help="Only the first so many.")
    prefix: str = HfArg(default="", help="Put before each, as 'paraphrase: ' for Parrot.")
    batch_size: int = HfArg(default=32, help="Sentences at a time.")
    num_beams: int = HfArg(default=4, help="Beams; 1: none.")
    num_return_sequences: int = HfArg(
        default=4, help="Candidates for a sentence; the first that differs from it is taken."
    )
    max_new_tokens: int = HfArg(default=128, help="Most tokens of a paraphrase.")
    seed: int = HfArg(default=0, help="Of sampling.")
    on_bad: Literal["raise", "skip"] = HfArg(default="raise", help="What happens to rows that cannot be used.")

    def __post_init__(self):
        check_choices(self)


def paraphrase(args: ParaphraseArguments) -> dict[str, int]:
    """
    Writes `args.output`, one `{"text", "positive"}` per line, and returns counts of what was written and left out. The
    file appears when it is complete.

    Raises:
        `ValueError` if the source, the model or the output cannot be used.
    """
    output = Path(args.output)
    if output.exists():
        raise ValueError(f"output={args.output!r}: exists. Name another file, or delete it.")
    found = select(args)
    model, tokenizer = load(args.model_name_or_path)
    lengths = map(len, tokenizer([args.prefix + text for text in found], **AS_TEXT, verbose=False)["input_ids"])
    sentences = [text for text, length in zip(found, lengths) if length <= tokenizer.model_max_length]
    set_seed(args.seed)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    part, counts = output.with_name(f"{output.name}.part"), Counter(sentences=len(found), pairs=0)
    with part.open("w", encoding="utf-8") as file:
        for first in tqdm(range(0, len(sentences), args.batch_size), desc="paraphrase", unit="batch", disable=None):
            batch = sentences[first : first + args.batch_size]
            texts, is_cut = candidates(model, tokenizer, batch, args)
            for number, sentence in enumerate(batch):
                own = range(number * args.num_return_sequences, (number + 1) * args.num_return_sequences)
                chosen = next((i for i in own if fold(texts[i]) not in ("", fold(sentence))), None)
                if chosen is not None:
                    counts.update(pairs=1, **{"paraphrases cut by max_new_tokens": is_cut[chosen]})
                    row = {"text": sentence, "positive": texts[chosen].strip()}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    part.replace(output)
    counts["longer than the model reads, left out"] = len(found) - len(sentences)
    counts["same as the sentence, left out"] = len(sentences) - counts["pairs"]
    logger.info("%s: %s", args.output, ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return dict(counts)


def select(args: ParaphraseArguments) -> list[str]:
    """The sentences to paraphrase, each once, short ones first: a batch then has little padding."""
    documents = load_texts(args.input, args.text_column, args.on_bad)
    if args.unit == "sentence":
        documents = long_sentences(documents, args.min_words)
    texts = [each.text.strip() for each in documents]
    found = list(dict.fromkeys(text for text in texts if len(text.split()) > args.min_words))[: args.limit]
    if not found:
        raise ValueError(
            f"min_words={args.min_words}: no {args.unit} of {args.input} has more words. Lower min_words"
            + ("." if args.unit == "sentence" else ", or set unit=sentence.")
        )
    return sorted(found, key=len)


def load(path: str):
    try:
        check_source(path)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModelForSeq2SeqLM.from_pretrained(path, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model_name_or_path={path!r}: no sequence-to-sequence model with its tokenizer. {error}"
        ) from error
    return model.to(torch.accelerator.current_accelerator() or "cpu").eval(), tokenizer


@torch.inference_mode()
def candidates(model, tokenizer, sentences: list[str], args: ParaphraseArguments) -> tuple[list[str], list[bool]]:
    """`num_return_sequences` texts for each sentence, and whether `max_new_tokens` cut them."""
    encoded = tokenizer(
        [args.prefix + sentence for sentence in sentences],
        **AS_TEXT,
        padding=True,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    sequences = model.generate(
        **encoded.to(model.device),
        num_beams=args.num_beams,
        num_return_sequences=args.num_return_sequences,
        max_new_tokens=args.max_new_tokens,
    )  # (sentences x candidates, T)
    ends = torch.tensor(model.generation_config.eos_token_id, device=sequences.device)
    is_cut = ~torch.isin(sequences[:, 1:], ends).any(1)  # without the first token: BART starts with its [EOS]
    return tokenizer.batch_decode(sequences, skip_special_tokens=True), is_cut.tolist()
