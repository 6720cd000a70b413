"""Table 1: chunking, NER and POS tagging on CoNLL-2003, from frozen word vectors.

As in section 4.1 and Appendix A: a linear classifier on each word's vector, 4000 steps of 8 sentences, learning rate 5e-4,
dropout 0.1. Accuracy counts every word, "O" included, as in the paper; F1 counts whole chunks and entities (seqeval), and for
POS is the mean over tags. Baseline: each word's most frequent training label.
"""

from collections import Counter

import numpy as np
from sklearn.neural_network import MLPClassifier
from tqdm.auto import tqdm

from .data import Settings, files, read_conll
from .embedding import SUPERVISED, encode_words
from .figures import Figure
from .systems import System

FILES = ("conll*/valid.txt", "conll*/train.txt")  # in this order
KINDS = ("magnet", "llm2vec", "mtp", "base", "causal", "encoder", "lexical")
RIVALS = [System("lexical frequent labels")]
COMPARED = ("",)
TASKS = {"chunking": 2, "NER": 3, "POS": 1}  # columns of the file
STEPS, SENTENCES, RATE, DROPOUT = 4000, 8, 5e-4, 0.1
PAPER = {
    "Llama-2-7B": (88.23, 96.59, 91.53),
    "LLM2Vec": (89.66, 96.05, 90.53),
    "LLM2Vec [MNTP]": (91.61, 97.16, 92.61),
    "MAGNET": (92.64, 98.31, 93.34),
    "StructBERT-L": (89.99, 97.31, 90.86),
}
PAPER = {name: {f"{task}: accuracy %": value for task, value in zip(TASKS, row)} for name, row in PAPER.items()}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """Accuracy and F1 of the three tasks; words whose label never occurs in training count as errors and are reported."""
    path = files(settings.data, FILES)[0]
    train, valid = (read_conll(path.with_name(f"{split}.txt"), settings.limit) for split in ("train", "valid"))
    words = [[[row[0] for row in sentence] for sentence in split] for split in (train, valid)]
    vectors = (
        None if system.kind == "lexical" else [encode_words(system, split, settings.batch_size) for split in words]
    )
    found, unseen = [], {}
    for task, column in TASKS.items():
        labels, truth = ([[row[column] for row in sentence] for sentence in split] for split in (train, valid))
        if vectors is None:
            guesses = frequent_labels(words[0], labels, words[1])
        else:
            guesses = probe(vectors[0], labels, vectors[1], 50 if settings.fast else STEPS, settings.seed, task)
        known = {label for row in labels for label in row}
        if odd := Counter(label for row in truth for label in row if label not in known):
            unseen[f"{task}: words whose label is not in the training set"] = dict(odd)
        found += scored(task, truth, guesses, SUPERVISED if system.kind == "encoder" else "")
    return found, unseen


def probe(
    train: list, labels: list[list[str]], valid: list, steps: int, seed: int = 0, name: str = ""
) -> list[list[str]]:
    """
    Labels of the validation words, from a linear classifier trained on the training words.

    Args:
        train, valid (lists of `np.ndarray` of shape `(words, d)`): Word vectors of each sentence.
        labels (`list[list[str]]`): Of the training words.
        steps (`int`): Steps of Adam, on 8 sentences each.

    Returns:
        A list of labels for each validation sentence.
    """
    rng, order = np.random.default_rng(seed), []
    classes = sorted({label for row in labels for label in row})
    linear = MLPClassifier(hidden_layer_sizes=(), alpha=0, learning_rate_init=RATE, random_state=seed)
    for _ in tqdm(range(steps), desc=f"probe {name}", leave=False, disable=None):
        if len(order) < min(SENTENCES, len(train)):
            order += rng.permutation(len(train)).tolist()
        chosen, order = order[:SENTENCES], order[SENTENCES:]
        inputs = np.concatenate([train[i] for i in chosen])  # (words, d)
        inputs = inputs * (rng.random(inputs.shape, np.float32) >= DROPOUT) / np.float32(1 - DROPOUT)
        linear.set_params(batch_size=len(inputs))  # one step of Adam per call
        linear.partial_fit(inputs, [label for i in chosen for label in labels[i]], classes=classes)
    return [linear.predict(each).tolist() for each in valid]


def frequent_labels(train: list[list[str]], labels: list[list[str]], valid: list[list[str]]) -> list[list[str]]:
    """Each word's most frequent label in training; for new words, the most frequent of all."""
    counts, every = {}, Counter()
    for words, row in zip(train, labels):
        for word, label in zip(words, row):
            counts.setdefault(word, Counter())[label] += 1
            every[label] += 1
    return [[counts.get(word, every).most_common(1)[0][0] for word in words] for words in valid]


def scored(task: str, truth: list[list[str]], guesses: list[list[str]], way: str = "") -> list[Figure]:
    """Accuracy and F1 of predicted labels; sentences are resampled."""
    pairs = list(zip(truth, guesses))
    right = [100 * sum(a == b for a, b in zip(*pair)) for pair in pairs]
    lengths = [len(row) for row in truth]
    if task == "POS":
        tags = {tag: n for n, tag in enumerate(sorted({tag for row in truth for tag in row}))}
        hits, total = np.zeros((2, len(pairs), len(tags) + 1), int)  # last column: tags that are never true
        for n, pair in enumerate(pairs):
            for one, other in zip(*pair):
                total[n, tags[one]] += 1
                total[n, tags.get(other, -1)] += 1
                hits[n, tags[one]] += one == other
        hits, total = hits[:, :-1], total[:, :-1]
    else:
        try:
            from seqeval.metrics.sequence_labeling import get_entities
        except ImportError:
            raise ValueError("words: needs seqeval. pip install 'magnet-llm[eval]'.") from None

        found = [[set(get_entities(row)) for row in pair] for pair in pairs]
        hits = [len(a & b) for a, b in found]
        total = [len(a) + len(b) for a, b in found]
    return [
        Figure(task, "accuracy %", "ratio_of_sums", [right, lengths], way, sum(lengths)),
        Figure(task, "F1 %", "f1", [hits, total], way, sum(lengths)),
    ]
