"""Table 3: k-means clustering, V-measure x 100.

As in mteb: mini-batch k-means with as many clusters as labels, averaged over three seeds. `--tasks TwentyNewsgroupsClustering
BiorxivClusteringP2P` downloads mteb's own data sets instead.
"""

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from .data import Settings, files, name_of, read_labelled
from .embedding import LEXICAL, encoders
from .figures import Figure
from .sts import by_mteb
from .systems import BOTH_WAYS, LEFT_TO_RIGHT, System

FILES = ("clustering/*.tsv",)
KINDS = (*BOTH_WAYS, *LEFT_TO_RIGHT, "encoder", "lexical")
RIVALS = LEXICAL
COMPARED = ("",)
INSTRUCTION = "Identify the topic or theme of the given news articles"
STARTS = 3
SETS = ("Biorxiv", "20newsgroups", "Medrxiv")
PAPER = {
    "Echo": (25.92, 23.42, 24.30),
    "LLM2Vec": (34.69, 30.76, 29.49),
    "MAGNET": (35.10, 53.31, 30.21),
}
PAPER = {name: {f"{data}: v-measure x 100": value for data, value in zip(SETS, row)} for name, row in PAPER.items()}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """The mean V-measure over the seeds."""
    if settings.tasks:
        return [by_mteb(system, task, way) for task in settings.tasks for way in encoders(system)], {}
    found = []
    for way, encode in encoders(system, settings.batch_size).items():
        for path in files(settings.data, FILES):
            labels, texts = zip(*read_labelled(path, settings.limit and 5 * settings.limit))
            if len(set(labels)) < 2:
                raise ValueError(f"{path}: all texts have the label {labels[0]!r}. Use two or more.")
            vectors = encode(list(texts), INSTRUCTION)
            numbers = np.unique(labels, return_inverse=True)[1]
            clusters = [k_means(vectors, len(set(labels)), settings.seed + start) for start in range(STARTS)]
            data = name_of(path).removesuffix("-subjects")
            found.append(Figure(data, "v-measure x 100", "v_measure", [numbers, np.stack(clusters, 1)], way))
    return found, {}


def k_means(vectors, clusters: int, seed: int) -> np.ndarray:
    return MiniBatchKMeans(clusters, batch_size=500, n_init="auto", random_state=seed).fit(vectors).labels_
