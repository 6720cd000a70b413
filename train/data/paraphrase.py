"""Makes sentence pairs for SSCL: each sentence of a source and its paraphrase by any sequence-to-sequence model.

    magnet paraphrase --model_name_or_path prithivida/parrot_paraphraser_on_T5 --prefix "paraphrase: " \\
        --input texts.txt --output pairs.jsonl
"""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from magnet_hub.trust import check_source

from .paraphrase_arguments import ParaphraseArguments
from .reading import Document, load_texts
from .sentences import fold, long_sentences

logger = logging.getLogger(__name__)

SORTED_BATCHES = 64  # batches sorted by length together, so that each has little padding


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
    sentences, counts = select(args)
    paraphraser, counts = Paraphraser(args), Counter({"sentences": len(sentences), "pairs": 0} | counts)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.part")
    with part.open("w", encoding="utf-8") as file:
        batches = in_batches(sentences, args.batch_size)
        for number, batch in enumerate(tqdm(batches, desc="paraphrase", unit="batch")):
            pairs, found = paraphraser(batch, number)
            counts.update(pairs=len(pairs), **found)
            for text, positive in pairs:
                file.write(json.dumps({"text": text, "positive": positive}, ensure_ascii=False) + "\n")
    part.replace(output)
    logger.info("%s: %s", args.output, ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return dict(counts)


# ------------------------------------------------------------------------------------------------------------ sentences


def select(args) -> tuple[list[str], dict[str, int]]:
    """The sentences to paraphrase, each once, and how many were left out."""
    documents = load_texts(args.input, args.text_column, args.on_bad)
    if args.unit == "sentence":
        found = [sentence.text for sentence in long_sentences(documents, args.min_words)]
    else:
        found = [each.text.strip() for each in documents if is_long(each, args.min_words)]
    sentences = list(dict.fromkeys(found))
    if not sentences:
        raise ValueError(
            f"min_words={args.min_words}: no {args.unit} of {args.input} has more words. Lower min_words"
            + ("." if args.unit == "sentence" else ", or set unit=sentence.")
        )
    counts = {"repeated left out": len(found) - len(sentences)}
    return sentences[: args.limit or None], counts


def is_long(document: Document, min_words: int) -> bool:
    return len(document.text.split()) > min_words


def in_batches(sentences: list[str], size: int) -> list[list[str]]:
    """
    Batches of sentences of similar length, determined by the sentences and the size alone.

    >>> in_batches(["a long one", "b", "c"], 2)
    [['b', 'c'], ['a long one']]
    """
    batches = []
    for first in range(0, len(sentences), size * SORTED_BATCHES):
        part = sorted(sentences[first : first + size * SORTED_BATCHES], key=len)
        batches += [part[start : start + size] for start in range(0, len(part), size)]
    return batches


# ---------------------------------------------------------------------------------------------------------- paraphrases


class Paraphraser:
    """The model and its tokenizer: `paraphraser(sentences, number)` returns pairs and counts of batch `number`."""

    def __init__(self, args):
        self.args = args
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        try:
            check_source(args.model_name_or_path)
            self.tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, trust_remote_code=False)
            model = AutoModelForSeq2SeqLM.from_pretrained(
                args.model_name_or_path, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model_name_or_path={args.model_name_or_path!r}: no sequence-to-sequence model with its tokenizer. {error}"
            ) from error
        self.model = model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, sentences: list[str], number: int) -> tuple[list[tuple[str, str]], dict[str, int]]:
        encoded, too_long = self.encode(sentences)
        torch.manual_seed(int(np.random.SeedSequence((self.args.seed, number)).generate_state(1)[0]))
        sampling = {"top_p": self.args.top_p, "temperature": self.args.temperature} if self.args.do_sample else {}
        sequences = self.model.generate(
            **encoded.to(self.device),
            do_sample=self.args.do_sample,
            num_beams=self.args.num_beams,
            num_return_sequences=self.args.num_return_sequences,
            max_new_tokens=self.args.max_new_tokens,
            **sampling,
        )  # (sentences x candidates, T)
        ends = torch.tensor(self.model.generation_config.eos_token_id, device=sequences.device)
        cut = ~torch.isin(sequences[:, 1:], ends).any(1)  # without the first token: BART starts with its [EOS]
        texts = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        pairs, unfinished = [], 0
        for row, sentence in enumerate(sentences):
            first = row * self.args.num_return_sequences
            candidates = range(first, first + self.args.num_return_sequences)
            chosen = next((i for i in candidates if fold(texts[i]) not in ("", fold(sentence))), None)
            if chosen is not None:
                pairs.append((sentence, texts[chosen].strip()))
                unfinished += int(cut[chosen])
        same = len(sentences) - len(pairs)
        return pairs, {"same as the sentence": same, "inputs cut": too_long, "paraphrases cut": unfinished}

    def encode(self, sentences: list[str]):
        """Token ids of a batch, and how many sentences were truncated."""
        texts = [self.args.prefix + sentence for sentence in sentences]
        options = {"split_special_tokens": True, "verbose": False}
        room = min(self.args.max_input_tokens, self.tokenizer.model_max_length)
        too_long = sum(len(ids) > room for ids in self.tokenizer(texts, **options)["input_ids"])
        options |= {"truncation": True, "max_length": room, "padding": True, "return_tensors": "pt"}
        options["return_token_type_ids"] = False
        return self.tokenizer(texts, **options), too_long
