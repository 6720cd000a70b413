"""Names in text: a token classifier on MAGNET's bidirectional states, trained with transformers' Trainer.

python examples/ner.py --output_dir runs/ner                                   # made-up sentences, CPU, offline
python examples/ner.py --train_file train.txt --validation_file valid.txt --output_dir runs/ner --train head

Files are CoNLL-2003's: a word a line with its label last, an empty line behind each sentence. By default
MAGNET's adapter is trained with the classifier; `--train head` is the paper's protocol (section 4.1): the model is frozen. Entity F1 is
seqeval's where it is installed; token accuracy (words, O included) is what the paper and LLM2Vec report.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

import modeling_magnet  # noqa: F401  (lets the Auto classes load MAGNET; without it, pass trust_remote_code=True)

ASSETS = Path(__file__).parent / "assets"
TEMPLATES = [
    "One day , PER went to LOC with his dog .",
    "PER and PER lived in a house near LOC .",
    "The old man from LOC gave PER a red apple .",
    "In LOC it rained all day , so PER stayed at home .",
    '" Come here , PER , " said the woman .',
    "They took the train to LOC and came back at night .",
]
PEOPLE = "Tom|Mina|Anna Smith|Ben|Lily Brown|Sam|Max White|Sara|Jack Hill|Lucy"
PLACES = "Paris|New York|London|Green Lake|Rome|Old Bridge|Boston|Long Beach|Spain|Red Rock"
NEW_PEOPLE = "Peter|Emma Stone|Mary|Bob Miller|Jane|Leo Carter"
NEW_PLACES = "Berlin|Blue River|Texas|White Valley|Oslo|Cape Town"


def read_conll(path: Path, limit: int | None = None) -> list[tuple[list[str], list[str]]]:
    """Sentences as (words, labels)."""
    sentences, words, labels = [], [], []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("-DOCSTART-"):
            continue
        if line.strip():
            words.append(line.split()[0])
            labels.append(line.split()[-1])
        elif words:
            sentences.append((words, labels))
            words, labels = [], []
    return sentences[:limit]


def made_up(number: int, people: list[str], places: list[str]) -> list[tuple[list[str], list[str]]]:
    """Sentences of templates, for a run without any file: who is a person and what a place, told by the words around."""
    rng = np.random.default_rng(len(people))
    sentences = []
    for template in rng.choice(TEMPLATES, number):
        words, labels = [], []
        for word in template.split():
            if word in ("PER", "LOC"):
                names = rng.choice(people if word == "PER" else places).split()
                words += names
                labels += [f"B-{word}"] + [f"I-{word}"] * (len(names) - 1)
            else:
                words.append(word)
                labels.append("O")
        sentences.append((words, labels))
    return sentences


def encode(sentences, tokenizer, names: list[str], max_length: int) -> Dataset:
    """One label a word, at its first token; the others are not learnt (-100). Words are joined by single spaces, because
    `is_split_into_words=True` would leave out the space that a byte-level tokenizer keeps in front of a word."""
    texts = [" ".join(words) for words, _ in sentences]
    rows = tokenizer(
        texts, truncation=True, max_length=max_length, split_special_tokens=True, return_offsets_mapping=True
    )
    targets = []
    for (words, labels), offsets in zip(sentences, rows["offset_mapping"]):
        word_of_char = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])[1:]
        target, before = [], None
        for _, end in offsets:
            # a token belongs to the word of its last character; [BOS] has none
            word = int(word_of_char[max(end - 1, 0)]) if end else None
            target.append(-100 if word in (None, before) else names.index(labels[word]))
            before = word
        targets.append(target)
    return Dataset.from_dict({"input_ids": rows["input_ids"], "labels": targets})


def scores(names: list[str]):
    """The Trainer's `compute_metrics`: token accuracy, and entity precision, recall and F1 where seqeval is installed."""

    def compute(prediction) -> dict[str, float]:
        kept = prediction.label_ids != -100
        found = prediction.predictions.argmax(-1)
        result = {"accuracy": float((found == prediction.label_ids)[kept].mean())}
        if importlib.util.find_spec("seqeval") is not None:
            from seqeval.metrics import f1_score, precision_score, recall_score

            truth = [[names[i] for i in row[k]] for row, k in zip(prediction.label_ids, kept)]
            guess = [[names[i] for i in row[k]] for row, k in zip(found, kept)]
            for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
                result[name] = float(score(truth, guess, zero_division=0))
        return result

    return compute


def build(args, names: list[str]):
    model = AutoModelForTokenClassification.from_pretrained(
        args.model,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        dtype=torch.float32,  # a checkpoint's own bfloat16 would lose small updates
    )
    if args.train == "head":
        model.base_model.requires_grad_(False)
    return model


def train(model, tokenizer, data, names, args) -> Trainer:
    training = TrainingArguments(
        output_dir=str(args.output_dir),
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=32,
        learning_rate=args.learning_rate,
        logging_steps=max(1, args.max_steps // 10),
        save_strategy="no",
        report_to="none",
        seed=args.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model,
        training,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=scores(names),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def baseline(train_sentences, validation_sentences) -> float:
    """Token accuracy of the commonest label, always."""
    labels, counts = np.unique([label for _, row in train_sentences for label in row], return_counts=True)
    truth = np.array([label for _, row in validation_sentences for label in row])
    return float((truth == labels[counts.argmax()]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ASSETS / "magnet-tiny"))
    parser.add_argument("--train_file", type=Path, help="default: made-up sentences")
    parser.add_argument("--validation_file", type=Path, help="default: made-up sentences with names not trained on")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--train", choices=["head", "adapter"], default="adapter")
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="the paper: 5e-4, for 4000 steps of 8")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--validation_sentences", type=int, help="the first N only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="a file to which a line of JSON with the scores is added")
    args = parser.parse_args()

    if (args.train_file is None) != (args.validation_file is None):
        parser.error("--train_file and --validation_file go together: their labels must agree.")
    if args.train_file is None:
        splits = {
            "train": made_up(200, PEOPLE.split("|"), PLACES.split("|")),
            "validation": made_up(100, NEW_PEOPLE.split("|"), NEW_PLACES.split("|")),
        }
    else:
        splits = {
            "train": read_conll(args.train_file),
            "validation": read_conll(args.validation_file, args.validation_sentences),
        }
    names = sorted({label for rows in splits.values() for _, labels in rows for label in labels})
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    data = {split: encode(rows, tokenizer, names, args.max_length) for split, rows in splits.items()}
    torch.manual_seed(args.seed)  # the head's first weights
    model = build(args, names)
    trainer = train(model, tokenizer, data, names, args)
    measured = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
    measured = {key: round(measured[key], 4) for key in ("accuracy", "precision", "recall", "f1") if key in measured}
    measured["accuracy_of_the_commonest_label"] = round(baseline(splits["train"], splits["validation"]), 4)
    print(json.dumps(measured))
    trainer.save_model()
    tokenizer.save_pretrained(args.output_dir)
    if args.results is not None:
        settings = {key: str(value) for key, value in vars(args).items() if key not in ("output_dir", "results")}
        settings |= {
            key: "/".join(Path(settings[key]).parts[-2:]) for key in ("model", "train_file", "validation_file")
        }
        sizes = {f"{split}_sentences": len(rows) for split, rows in splits.items()}
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"settings": settings | sizes, "scores": measured}) + "\n")


if __name__ == "__main__":
    main()
