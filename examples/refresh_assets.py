"""Copies the model code of this clone into tests/assets/magnet-tiny, and rewrites its card: hashes of the code,
settings of the run, figures from docs/measured. The weights do not change.

python examples/refresh_assets.py
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from magnet_hub.card import write_model_card
from magnet_hub.eval_results import Measured, write_eval_results
from magnet_hub.sentence_transformer import write_sentence_transformer_files
from magnet_hub.training_summary import TrainingSummary, read_training_summary
from magnet_train.settings.recipes import CONFIGURATION, configuration, parse
from modeling_magnet import MagnetLlamaConfig

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "assets" / "magnet-tiny"
DATA = "everyday-stories"
COMMAND = "magnet evaluate infill sts --model tests/assets/magnet-tiny --data examples/assets --out report"
FIGURES = {  # key of docs/measured/stories.jsonl -> task of the Hub, task, metric, measure
    "infill_exact": ("text-generation", "Infilling", "perplexity", "perplexity of the missing sentence, given length"),
    "infill_free": ("text-generation", "Infilling", "perplexity", "perplexity of the missing sentence and its end"),
    "infill_causal": ("text-generation", "Infilling", "perplexity", "the same from the left alone, causal mode"),
    "spearman": ("sentence-similarity", "Sentence similarity", "spearman", "Spearman x 100"),
    "top1": ("sentence-similarity", "Retrieval of paraphrases", "accuracy", "top-1, percent"),
    "causal_ppl": ("text-generation", "Generation", "perplexity", "perplexity of whole stories, causal mode"),
}


def origin() -> TrainingSummary:
    """The records of a run of the recipe; the run itself was too large to ship."""
    settings = configuration(parse(["--config", "magnet_tiny"]))
    with tempfile.TemporaryDirectory() as run:
        (Path(run) / CONFIGURATION).write_text(settings, encoding="utf-8")
        shutil.copyfile(ROOT / "docs" / "magnet-tiny" / "train_log.jsonl", Path(run) / "train_log.jsonl")
        return read_training_summary(run)


def measured() -> list[Measured]:
    rows = (ROOT / "docs" / "measured" / "stories.jsonl").read_text(encoding="utf-8").splitlines()
    (row,) = (row for row in map(json.loads, rows) if Path(row["model"]).name == FOLDER.name)
    return [
        Measured(task, DATA, metric, row[key], name, measure, row.get(f"{key}_95"), COMMAND)
        for key, (task, name, metric, measure) in FIGURES.items()
    ]


def main() -> None:
    os.chdir(ROOT)  # the recipe's path of the base is relative to the clone
    for shipped in FOLDER.glob("*.py"):
        shipped.unlink()
    for source in (ROOT / "modeling_magnet").glob("*_magnet.py"):
        shutil.copyfile(source, FOLDER / source.name)
    config = MagnetLlamaConfig.from_pretrained(FOLDER)
    write_sentence_transformer_files(config, AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=False), FOLDER)
    write_eval_results(FOLDER, measured())
    write_model_card(config, FOLDER, summary=origin())


if __name__ == "__main__":
    main()
