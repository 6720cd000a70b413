"""Evaluates systems on tables; each result is kept in a file and not computed again."""

import importlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm.auto import tqdm

from magnet_hub.eval_results import weights_of

from .data import Settings, files
from .figures import Figure
from .systems import System, load_system

logger = logging.getLogger(__name__)

TABLES = {
    "words": "Table 1: chunking, NER and POS tagging from frozen word vectors",
    "sts": "Table 2: semantic textual similarity",
    "clustering": "Table 3: clustering",
    "infill": "Table 4: infilling perplexity",
    "appropriate": "Table 5: fills that suit their story",
    "repetition": "Table 6, Figure 5: repetition",
    "knowledge": "Table 7: knowledge and reasoning",
    "norms": "Table 8: norms of the adapter",
    "ablation": "Table 9: ablation of the objectives",
    "prompting": "Table 11: fills by prompting",
    "generations": "Tables 12 and 13: sample fills and continuations",
    "mtp": "Figure 6: MNTP against MTP",
    "modes": "The three modes",
}
BY_SET = ("infill", "sts")  # each data set is a result of its own: all of them take hours on a CPU
PACKAGES = ("magnet-llm", "torch", "transformers", "numpy", "scipy", "scikit-learn")


@dataclass
class Result:
    """The results of a system in a table, with what is needed to reproduce them."""

    table: str
    system: str
    figures: list[Figure]
    extra: dict = field(default_factory=dict)
    about: dict = field(
        default_factory=dict
    )  # command, seed, versions, commit, hardware, seconds; and what it depends on

    def save(self, path: Path) -> None:
        content = vars(self) | {"figures": [figure.as_json() for figure in self.figures]}
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    @classmethod
    def read(cls, path: Path) -> "Result":
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {"figures": [Figure(**figure) for figure in content["figures"]]})


def table_module(name: str):
    """
    The module of a table.

    Raises:
        `ValueError` for an unknown one.
    """
    if name not in TABLES:
        raise ValueError(f"table={name!r}: unknown. Choose from {', '.join(TABLES)}, or all.")
    return importlib.import_module(f"magnet_eval.{name}")


def run(
    tables: list[str],
    systems: list[tuple[str, str]],
    settings: Settings,
    out: Path,
    about: dict,
    load: Callable[[str, str], System] = load_system,
) -> tuple[list[Result], dict[str, str]]:
    """
    Evaluates each system on the tables that apply to it, with one system in memory at a time.

    Args:
        tables (`list[str]`): Names, or `["all"]`: those with data; the others are reported, not an error.
        systems (`list[tuple[str, str]]`): Names and paths; the first is compared with the others.
        settings ([`Settings`]): Data and limits.
        out (`Path`): Report folder; its `results` folder caches the results, those of `BY_SET` one a data set.
        about (`dict`): Written into each result.
        load (`Callable`, *optional*): Loads a system from its name and path.

    Returns:
        The results, with those of earlier commands in the same folder (whose systems then need not be named again), and the
        reason for each table that was not evaluated.
    """
    every, left_out = tables == ["all"], {}
    names = [name for name in (TABLES if every else tables) if name != "ablation"]
    if not every and "ablation" in tables:
        names = list(dict.fromkeys([*names, *table_module("ablation").TABLES]))
    modules = {name: table_module(name) for name in names}
    for name, module in list(modules.items()):
        try:
            if module.FILES and not settings.tasks:
                files(settings.data, module.FILES)
        except ValueError as error:
            if not every:
                raise
            left_out[name] = str(error)
            del modules[name]
    folder, results = out / "results", []
    folder.mkdir(parents=True, exist_ok=True)
    rivals = {rival.name: rival for module in modules.values() for rival in getattr(module, "RIVALS", ())}
    for name, path in tqdm([*systems, *((name, "") for name in rivals)], desc="systems", disable=None):
        system = rivals.get(name)
        wanted = {table: module for table, module in modules.items() if System(name).kind in module.KINDS}
        if system is not None:
            wanted = {table: module for table, module in wanted.items() if system in getattr(module, "RIVALS", ())}
        weights = path and (weights_of(path) or path)  # in folders; a hub id has none here
        for table, module in tqdm(wanted.items(), desc=name, leave=False, disable=None):
            for part, chosen in by_set(table, module, settings):
                depends = depends_on(module, weights, chosen, about)
                file = folder / f"{table}.{name}{part}.json".replace(" ", "_")
                if file.is_file() and (done := Result.read(file)).about.get("depends") == depends:
                    results.append(done)
                    continue
                system, start = system or load(name, path), time.monotonic()
                try:
                    figures, extra = module.measure(system, chosen)
                except ValueError as error:
                    if not every:
                        raise ValueError(f"{table}, {name}: {error}") from error
                    left_out[f"{table}, {name}{part}"] = str(error)
                    continue
                seconds = {"seconds": round(time.monotonic() - start, 1)}
                results.append(Result(table, name, figures, extra, about | seconds | {"depends": depends}))
                results[-1].save(file)
    for name, why in left_out.items():
        logger.warning("%s: not measured: %s", name, why)
    return results + earlier(folder, results, settings, about), left_out


def by_set(table: str, module, settings: Settings) -> list[tuple[str, Settings]]:
    """What is measured at a time, and how its file's name ends: all data, or each set."""
    if table not in BY_SET or settings.tasks:
        return [("", settings)]
    found = files(settings.data, module.FILES)
    return [(f".{path.parent.name}.{path.name}", replace(settings, data=path)) for path in found]


def earlier(folder: Path, results: list[Result], settings: Settings, about: dict) -> list[Result]:
    """What earlier commands measured on the same data, as much of it, with the same seed and dtype: one report of all."""
    done = {identity(result) for result in results}
    found = [Result.read(path) for path in sorted(folder.glob("*.json"))]
    return [result for result in found if identity(result) not in done and same_data(result, settings, about)]


def identity(result: Result) -> tuple:
    data = tuple(result.about["depends"]["data"]) if result.table in BY_SET else ()
    return result.table, result.system, data


def same_data(result: Result, settings: Settings, about: dict) -> bool:
    then, module = result.about["depends"], table_module(result.table)
    try:
        parts = [depends_on(module, "", chosen, about) for _, chosen in by_set(result.table, module, settings)]
    except ValueError:  # the data folder has none of this table's files
        return False
    return any(all(then.get(key) == now[key] for key in ("data", "sampling", "tasks")) for now in parts)


def sampling(settings: Settings, about: dict) -> dict:
    return {name: getattr(settings, name) for name in ("limit", "fast", "seed")} | {"dtype": about.get("dtype")}


def depends_on(module, weights: dict[str, str] | str, settings: Settings, about: dict) -> dict:
    """What a result depends on; any change runs the table again. Weights are known by their sha256, wherever they lie."""
    data = files(settings.data, module.FILES) if module.FILES and not settings.tasks else []
    return {
        "weights": weights,
        "data": {f"{each.parent.name}/{each.name}": each.stat().st_size for each in data},
        "sampling": sampling(settings, about),
        "tasks": list(settings.tasks),
        "judge": settings.judge.name
        if settings.judge and module.__name__.split(".")[-1] in ("appropriate", "prompting")
        else None,
    }


def provenance(command: str, settings: Settings, dtype: str) -> dict:
    """Command, seed, versions, commit and hardware of a run."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "command": command,
        "seed": settings.seed,
        "dtype": dtype,
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "commit": git.stdout.strip() or "not in a git repository",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {gpu}",
        "date": time.strftime("%Y-%m-%d"),
    }
