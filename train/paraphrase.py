"""Makes sentence pairs for SSCL: each sentence of a source and its paraphrase by any sequence-to-sequence model.

    magnet paraphrase --model_name_or_path prithivida/parrot_paraphraser_on_T5 --prefix "paraphrase: " \\
        --input texts.txt --output pairs.jsonl

An interrupted run goes on where it was when it is started again, and writes what the undisturbed one would have written.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from magnet_hub.trust import check_source

from .paraphrase_arguments import ParaphraseArguments
from .reading import Document, load_texts
from .sentences import fold, long_sentences

logger = logging.getLogger(__name__)

SORTED_BATCHES = 64  # that many are sorted by length together, so that a batch has little padding
ELSEWHERE = {"input", "output", "device"}  # settings that may change between two parts of a run


def paraphrase(args: ParaphraseArguments) -> dict[str, int]:
    """
    Writes `args.output`, one `{"text", "positive"}` a line, and returns counts of what was written and left out.

    Raises:
        `ValueError` where the source, the model or an output that is there already cannot be used.
    """
    sentences, counts = select(args)
    batches = in_batches(sentences, args.batch_size)
    with locked(args.output):
        with Output(args, sentences, counts) as output:
            if output.done < len(batches):
                paraphraser = Paraphraser(args)
                steps = tqdm(
                    batches[output.done :], desc="paraphrase", unit="batch", total=len(batches), initial=output.done
                )
                for number, batch in enumerate(steps, start=output.done):
                    output.write(*paraphraser(batch, number))
    logger.info("%s: %s", args.output, ", ".join(f"{count:,} {name}" for name, count in output.counts.items()))
    return output.counts


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
    Batches of sentences of like length; which ones is a function of the sentences and the size alone.

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
    """The model and its tokenizer: `paraphraser(sentences, number)` gives pairs and counts of batch `number`."""

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
        """Token ids of a batch, and how many sentences lost their end."""
        texts = [self.args.prefix + sentence for sentence in sentences]
        options = {"split_special_tokens": True, "verbose": False}
        room = min(self.args.max_input_tokens, self.tokenizer.model_max_length)
        too_long = sum(len(ids) > room for ids in self.tokenizer(texts, **options)["input_ids"])
        options |= {"truncation": True, "max_length": room, "padding": True, "return_tensors": "pt"}
        options["return_token_type_ids"] = False
        return self.tokenizer(texts, **options), too_long


# --------------------------------------------------------------------------------------------------------------- output


@contextlib.contextmanager
def locked(output: str):
    """Refuses a second process on the same output."""
    Path(output).absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{output}.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"output={output!r}: another process is writing it. Wait for it, or end it.") from None


class Output:
    """
    The pairs, and beside them `<output>.progress`: the settings, then a line for each batch with its end in the output
    and the counts so far. A batch counts as done once its line is complete, so whatever a crash has cut off or added is
    taken away when the run goes on.
    """

    def __init__(self, args, sentences: list[str], counts: dict[str, int]):
        self.path, self.progress_path = Path(args.output), Path(f"{args.output}.progress")
        settings = {name: value for name, value in dataclasses.asdict(args).items() if name not in ELSEWHERE}
        settings["sentences"] = hashlib.blake2b("\n".join(sentences).encode(), digest_size=16).hexdigest()
        self.counts = {"sentences": 0, "pairs": 0} | counts
        self.done = 0
        if self.progress_path.exists():
            self._go_on(settings)
        elif self.path.exists():
            raise ValueError(f"output={args.output!r}: exists, and not by this command. Name another file.")
        else:
            self.progress_path.write_text(json.dumps(settings) + "\n", encoding="utf-8")

    def _go_on(self, settings):
        before, done = self._read_progress()
        changed = [name for name in settings if before and before.get(name) != settings[name]]
        if changed:
            told = "; ".join(f"{name}={before.get(name)!r}, now {settings[name]!r}" for name in changed)
            raise ValueError(
                f"output={str(self.path)!r}: was begun with other settings ({told}). Use those, or another file."
            )
        size = self.path.stat().st_size if self.path.exists() else 0
        while done and done[-1]["end"] > size:
            done.pop()
        if done:
            self.done, self.counts = len(done), done[-1]["counts"]
        if size:
            os.truncate(self.path, done[-1]["end"] if done else 0)
        temporary = Path(f"{self.progress_path}.new")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (settings, *done)), encoding="utf-8")
        temporary.replace(self.progress_path)

    def _read_progress(self) -> tuple[dict | None, list[dict]]:
        """The settings and the batches whose lines are complete."""
        lines = [line for line in self.progress_path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        try:
            settings, *done = [json.loads(line) for line in lines] or [None]
        except ValueError:
            raise ValueError(f"{self.progress_path}: damaged. Delete it and the output to start anew.") from None
        return settings, done

    def __enter__(self):
        self.file, self.progress = open(self.path, "ab"), open(self.progress_path, "ab")
        return self

    def __exit__(self, *error):
        self.file.close()
        self.progress.close()

    def write(self, pairs: list[tuple[str, str]], counts: dict[str, int]) -> None:
        """Appends the pairs of one batch."""
        for text, positive in pairs:
            self.file.write((json.dumps({"text": text, "positive": positive}, ensure_ascii=False) + "\n").encode())
        self.file.flush()
        os.fsync(self.file.fileno())  # the pairs are on the disk before the progress says so
        counts = {"sentences": len(pairs) + counts["same as the sentence"], "pairs": len(pairs)} | counts
        self.counts = self.counts | {name: self.counts.get(name, 0) + count for name, count in counts.items()}
        self.progress.write((json.dumps({"end": self.file.tell(), "counts": self.counts}) + "\n").encode())
        self.progress.flush()
        self.done += 1
