"""Named-entity recognition from MAGNET's bidirectional hidden states.

python examples/ner.py                                              # fine-tunes on made-up sentences: CPU, offline
python examples/ner.py --train_file train.txt --validation_file valid.txt --train head --learning_rate 5e-4 --max_steps 4000

Files are in CoNLL-2003 format: one word per line, its label last, and an empty line after each sentence.

* `--train adapter` (default): transformers' Trainer fine-tunes the classifier of `AutoModelForTokenClassification` and
  MAGNET's adapter, with one label per word, at its first token.
* `--train head` is the paper's protocol (section 4.1, Appendix A): the model is frozen, a word is the mean of its
  tokens, token i is read from the output at i - 1, and a linear classifier is trained on these vectors. A base model is
  read the same way, with causal attention.

Entity F1 needs seqeval. Word F1 counts the single words that belong to a name.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
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
    """Sentences from templates, for a run without files; the context tells people from places."""
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


def words_of_tokens(words: list[str], offsets: list[tuple[int, int]]) -> list[int | None]:
    """Index of each token's word, by the token's last character; None for [BOS]. Words are joined by single spaces:
    `is_split_into_words=True` would drop the space that a byte-level tokenizer keeps in front of a word."""
    word_of_char = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])[1:]
    return [int(word_of_char[max(end - 1, 0)]) if end else None for _, end in offsets]


# ------------------------------------------------------------------------------------------ frozen, a linear classifier


def word_vectors(model, sentences, tokenizer) -> list[torch.Tensor]:
    """(words, d) for each sentence: a word is the mean of its tokens, token i is read from the output at i - 1."""
    if model.config.model_type.startswith("magnet_"):
        vectors = model.encode_words([words for words, _ in sentences], tokenizer, show_progress_bar=True)
        return [torch.from_numpy(each) for each in vectors]
    return [causal_word_vectors(model, words, tokenizer) for words, _ in tqdm(sentences, desc="encode")]


@torch.no_grad()
def causal_word_vectors(model, words: list[str], tokenizer) -> torch.Tensor:
    """The same for a base model, with causal attention."""
    row = tokenizer(" ".join(words), split_special_tokens=True, return_offsets_mapping=True, return_tensors="pt")
    states = model.base_model(row["input_ids"].to(model.device), use_cache=False).last_hidden_state[0].float().cpu()
    owner = words_of_tokens(words, row["offset_mapping"][0].tolist())
    tokens = [[i for i, word in enumerate(owner) if word == n] for n in range(len(words))]
    return torch.stack([states[[max(i - 1, 0) for i in own]].mean(0) for own in tokens])


def train_head(splits, names: list[str], tokenizer, args) -> tuple[list[list[str]], list[list[str]]]:
    """Trains the linear classifier. Returns labels and predictions of the validation sentences."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, trust_remote_code=False).eval()
    vectors = {split: word_vectors(model, rows, tokenizer) for split, rows in splits.items()}
    targets = [torch.tensor([names.index(label) for label in labels]) for _, labels in splits["train"]]
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(model.config.hidden_size, len(names)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=args.learning_rate)
    order = []
    for _ in tqdm(range(args.max_steps), desc="train"):
        if len(order) < args.batch_size:
            order += torch.randperm(len(targets)).tolist()
        chosen, order = order[: args.batch_size], order[args.batch_size :]
        logits = head(torch.cat([vectors["train"][i] for i in chosen]))  # (words, labels)
        nn.functional.cross_entropy(logits, torch.cat([targets[i] for i in chosen])).backward()
        optimizer.step()
        optimizer.zero_grad()
    head.eval()
    guesses = [[names[i] for i in head(each).argmax(-1)] for each in vectors["validation"]]
    return [labels for _, labels in splits["validation"]], guesses


# ---------------------------------------------------------------------------------------------- fine-tuned by the Trainer


def label_tokens(sentences, tokenizer, names: list[str], max_length: int) -> Dataset:
    """One label per word, at its first token; other tokens are ignored (-100)."""
    texts = [" ".join(words) for words, _ in sentences]
    rows = tokenizer(
        texts, truncation=True, max_length=max_length, split_special_tokens=True, return_offsets_mapping=True
    )
    targets = []
    for (words, labels), offsets in zip(sentences, rows["offset_mapping"]):
        owner = words_of_tokens(words, offsets)
        first = [word is not None and word != before for word, before in zip(owner, [None, *owner])]
        targets.append([names.index(labels[word]) if is_first else -100 for word, is_first in zip(owner, first)])
    return Dataset.from_dict({"input_ids": rows["input_ids"], "labels": targets})


def fine_tune(splits, names: list[str], tokenizer, args) -> tuple[list[list[str]], list[list[str]]]:
    """Trains the classifier and the adapter, and saves the model. Returns labels and predictions of the validation
    sentences."""
    data = {split: label_tokens(rows, tokenizer, names, args.max_length) for split, rows in splits.items()}
    model = AutoModelForTokenClassification.from_pretrained(
        args.model,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        dtype=torch.float32,  # bfloat16 would lose small updates
        trust_remote_code=False,
    )
    for name, parameter in model.named_parameters():  # the base stays frozen, so generation does not change
        parameter.requires_grad_("_lora." in name or name.startswith("score."))
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
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()  # with the tokenizer
    found = trainer.predict(data["validation"])
    kept, guesses = found.label_ids != -100, found.predictions.argmax(-1)
    return tuple([[names[i] for i in row[k]] for row, k in zip(ids, kept)] for ids in (found.label_ids, guesses))


# ------------------------------------------------------------------------------------------------------------- measuring


def scores(truth: list[list[str]], guesses: list[list[str]]) -> dict[str, float]:
    """Metrics of predicted against true labels."""
    gold, found = (np.array([label for row in rows for label in row]) for rows in (truth, guesses))
    labels, counts = np.unique(gold, return_counts=True)
    right = ((gold == found) & (gold != "O")).sum()
    result = {
        "accuracy": float((gold == found).mean()),
        "accuracy_of_the_commonest_label": float((gold == labels[counts.argmax()]).mean()),
        "word_f1": float(2 * right / max((gold != "O").sum() + (found != "O").sum(), 1)),
    }
    if importlib.util.find_spec("seqeval") is not None:
        from seqeval.metrics import f1_score

        result["entity_f1"] = float(f1_score(truth, guesses, zero_division=0))
    return {name: round(value, 4) for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(ASSETS / "magnet-tiny"), help="MAGNET checkpoint; for a head also a base"
    )
    parser.add_argument("--train_file", type=Path, help="default: made-up sentences")
    parser.add_argument("--validation_file", type=Path, help="default: made-up sentences with names not trained on")
    parser.add_argument("--train_sentences", type=int, help="the first N only")
    parser.add_argument("--validation_sentences", type=int, help="the first N only")
    parser.add_argument("--train", choices=["head", "adapter"], default="adapter")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ner"), help="for the fine-tuned model")
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="the paper: 5e-4, for 4000 steps of 8")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a sentence while fine-tuning")
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
            "train": read_conll(args.train_file, args.train_sentences),
            "validation": read_conll(args.validation_file, args.validation_sentences),
        }
    names = sorted({label for rows in splits.values() for _, labels in rows for label in labels})
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    torch.manual_seed(args.seed)
    measured = scores(*(train_head if args.train == "head" else fine_tune)(splits, names, tokenizer, args))
    print(json.dumps(measured))
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
