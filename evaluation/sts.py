"""Table 2: semantic textual similarity, Spearman x 100; and retrieval of a sentence by its paraphrase.

Every system gets the paper's instruction (Table 10); MAGNET and LLM2Vec also their own prompt, which for LLM2Vec is none.
`--tasks STS12 STSBenchmark` downloads mteb's own data sets instead. Published averages of the seven sets: SGPT-125M (causal,
supervised) 75.60; SimCSE, BERT-base, unsupervised 76.25; LLM2Vec, Sheared-LLaMA-1.3B, unsupervised 70.81.
"""

import numpy as np

from modeling_magnet.encoding_magnet import text_ids

from .data import Settings, files, name_of, read_graded_pairs, read_stories
from .embedding import LEXICAL, cosines, encoders, found_their_own
from .figures import Figure
from .systems import BOTH_WAYS, LEFT_TO_RIGHT, System

FILES = ("sts/*.tsv", "sts.tsv", "validation.jsonl")
KINDS = (*BOTH_WAYS, *LEFT_TO_RIGHT, "encoder", "lexical")
RIVALS = LEXICAL
COMPARED = ("", "own prompt")
INSTRUCTION = "Retrieve semantically similar text"
SETS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R")
PAPER = {
    "Llama-2-7B, last token": (50.98, 74.02, 62.86, 67.09, 71.03, 63.56, 67.22),
    "Echo": (52.40, 72.40, 61.24, 72.67, 73.51, 65.73, 64.39),
    "LLM2Vec": (65.39, 79.26, 72.98, 82.72, 81.02, 78.32, 71.77),
    "MAGNET": (67.98, 84.66, 77.67, 84.17, 79.44, 82.88, 78.77),
    "RoBERTa-L, SimCSE": (72.86, 83.99, 75.62, 84.77, 81.80, 81.98, 71.26),
}
PAPER = {name: {f"{data}: Spearman x 100": value for data, value in zip(SETS, row)} for name, row in PAPER.items()}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """Figures of every set in the folder, for each way to encode with the system."""
    if settings.tasks:
        return [by_mteb(system, task, way) for task in settings.tasks for way in encoders(system)], {}
    found = []
    for way, encode in ways(system, settings).items():
        for path in files(settings.data, FILES):
            data = {"STSB-dev": "STS-B", "SICKR-trial": "SICK-R"}.get(path.stem, name_of(path))
            if path.suffix == ".tsv":
                pairs = read_graded_pairs(path, settings.limit)
                columns = [cosines(encode, pairs), [pair[0] for pair in pairs]]
                found.append(Figure(data, "Spearman x 100", "spearman", columns, way, tokens_of(system, pairs)))
                continue
            stories = [story for story in read_stories(path, settings.limit) if story.get("paraphrases")]
            if stories:
                both = ([text for story in stories for text in story[key]] for key in ("sentences", "paraphrases"))
                right = 100.0 * found_their_own(encode, *both)
                found.append(Figure(data, "retrieval, top-1 %", "ratio_of_sums", [right, np.ones(len(right))], way))
    return found, {}


def ways(system: System, settings: Settings) -> dict:
    """The ways to encode: with the instruction, and as MAGNET and LLM2Vec were trained, with their own prompt or none."""
    found = {}
    for way, encode in encoders(system, settings.batch_size).items():
        found[way] = lambda texts, encode=encode: encode(texts, INSTRUCTION)
        if system.kind in BOTH_WAYS:
            found["own prompt"] = encode
    return found


def tokens_of(system: System, pairs) -> int | None:
    if system.kind in ("lexical", "encoder"):
        return None
    return sum(len(text_ids(text, system.tokenizer)) for pair in pairs for text in pair[1:])


def spearman(encode, pairs) -> float:
    """
    Spearman correlation, times 100, of cosine similarity with the grades.

    Args:
        encode (`Callable[[list[str]], np.ndarray]`): Texts to unit vectors, (N, d).
        pairs: Score and two sentences each.
    """
    return Figure("", "", "spearman", [cosines(encode, pairs), [pair[0] for pair in pairs]]).value


# -------------------------------------------------------------------------------------------------------------- mteb


class ForMteb:
    """Wraps an encoder for mteb."""

    def __init__(self, system: System, encode):
        from mteb.models.model_meta import ModelMeta

        self.encode_texts = encode
        self.mteb_model_meta = ModelMeta.create_empty({"name": f"magnet/{system.name.replace(' ', '-')}"})

    def encode(self, inputs, *, task_metadata, **_) -> np.ndarray:
        vectors = self.encode_texts(
            [text for batch in inputs for text in batch["text"]], instruction_of(task_metadata)
        )
        return vectors.toarray() if hasattr(vectors, "toarray") else vectors

    def similarity(self, one, other):
        return np.asarray(one) @ np.asarray(other).T

    def similarity_pairwise(self, one, other):
        return (np.asarray(one) * np.asarray(other)).sum(1)


def instruction_of(task_metadata) -> str:
    """Table 10's instruction for an mteb task."""
    from magnet_hub.sentence_transformer import INSTRUCTIONS

    return INSTRUCTIONS.get(task_metadata.name) or INSTRUCTIONS.get(task_metadata.type) or ""


def by_mteb(system: System, task, way: str) -> Figure:
    """
    The main score of an mteb task, x 100; without an interval, as mteb keeps no score per pair.

    Args:
        task (`str` or `mteb.AbsTask`): A task, or its name to download its data.
    """
    try:
        import mteb
    except ImportError:
        raise ValueError(f"tasks={task}: needs mteb. Run pip install 'magnet-llm[eval]'.") from None
    tasks = mteb.get_tasks(tasks=[task]) if isinstance(task, str) else [task]
    model = ForMteb(system, encoders(system)[way])
    found = mteb.evaluate(model, tasks, cache=None, co2_tracker=False, encode_kwargs={"batch_size": 64})
    score = 100 * found.task_results[0].get_score()
    name = tasks[0].metadata.name
    return Figure(name, f"mteb: {tasks[0].metadata.main_score} x 100", "ratio_of_sums", [[score], [1]], way)
