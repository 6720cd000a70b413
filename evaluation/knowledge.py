"""Table 7: knowledge and reasoning, with lm-eval.

The default tasks are ARC-easy from `arc_easy.jsonl` and the lm-eval task files (`lm_eval/*.yaml`) in the data folder;
`--tasks hellaswag arc_easy arc_challenge mmlu bbh_fewshot nq_open` downloads lm-eval's own. With the gated adapter, every
answer equals the base's. Published for SmolLM2-135M-Instruct (lm-eval, 0-shot): HellaSwag 42.99, ARC-easy 54.12,
ARC-challenge 27.73, PIQA 66.92.
"""

import tempfile
from pathlib import Path

import yaml

from .data import Settings, files, json_rows
from .figures import Figure, means
from .systems import System

FILES = ("arc_easy.jsonl", "lm_eval/*.yaml")
KINDS = ("magnet", "llm2vec", "mtp", "base", "causal")
COMPARED = ("",)
SHOTS = {"mmlu": 5, "bbh_fewshot": 3, "nq_open": 5}  # as in the paper; others 0
ARC = {
    "task": "arc_easy_local",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
    "metadata": {"version": 1.0},
}
SETS = ("hellaswag: acc_norm %", "bbh_fewshot: exact_match %", "arc_easy: acc %", "arc_challenge: acc_norm %")
PAPER = {"Llama-2-7B": (75.51, 33.57, 73.95, 44.28), "MAGNET": (75.08, 32.22, 74.33, 44.52)}
PAPER = {name: dict(zip(SETS, row)) for name, row in PAPER.items()}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """The share of correct answers on each task; questions are resampled."""
    if settings.tasks:
        return [figure for task in settings.tasks for figure in asked(system, [task], settings, SHOTS.get(task))], {}
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for path in files(settings.data, FILES):
            task = yaml.safe_load(path.read_text(encoding="utf-8")) if path.suffix == ".yaml" else arc(path)
            tasks.append(task["task"])
            Path(folder, f"{task['task']}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        return asked(system, tasks, settings, include=folder), {}


def arc(path: Path) -> dict:
    """The lm-eval task of a local ARC-easy file."""
    json_rows(path, ("query", "choices", "gold"))
    return ARC | {"dataset_kwargs": {"data_files": {"test": str(path.resolve())}}}


def asked(
    system: System, tasks: list[str], settings: Settings, shots: int | None = None, include=None
) -> list[Figure]:
    """Runs lm-eval on a loaded model."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError("knowledge: needs lm-eval. Run pip install 'magnet-llm[eval]'.") from None
    model = HFLM(
        pretrained=system.model,
        tokenizer=system.tokenizer,
        batch_size=settings.batch_size,
        device=str(system.model.device),
    )
    result = simple_evaluate(
        model,
        tasks=tasks,
        num_fewshot=shots,
        limit=settings.limit,
        task_manager=TaskManager(include_path=include),
        bootstrap_iters=0,
        random_seed=settings.seed,
        confirm_run_unsafe_code=False,
    )
    found = []
    for task, samples in sorted(result["samples"].items()):
        samples = sorted(samples, key=lambda sample: sample["doc_id"])
        for metric in sorted({name for sample in samples for name in sample.get("metrics", [])}):
            if all(isinstance(sample.get(metric), (int, float)) for sample in samples):
                found += means(task.removesuffix("_local"), {f"{metric} %": [100.0 * s[metric] for s in samples]})
    return found
