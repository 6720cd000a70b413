"""Loading a checkpoint, importing the package, and `magnet --help`.

python benchmarks/loading.py
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import compared, in_a_fork, load_tokenizer, magnet, random_llama, row, show, side_by_side
from transformers import LlamaForCausalLM
from transformers.utils import logging

from magnet_hub.export import export_checkpoint
from magnet_hub.save import save_checkpoint
from modeling_magnet import MagnetLlamaForCausalLM

IMPORTS = {
    "stock": "import torch; from transformers import LlamaForCausalLM",
    "ours": "import modeling_magnet",
}


def loads(layers: int, hidden: int, repeats: int) -> dict[str, list[float]]:
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch, name) for name in ("magnet", "merged", "generator")}
        save_checkpoint(magnet(random_llama(layers, hidden), 16), load_tokenizer(), folders["magnet"])
        for form in ("merged", "generator"):
            export_checkpoint(folders["magnet"], folders[form], form)
        calls = {
            "stock": lambda: LlamaForCausalLM.from_pretrained(folders["generator"]),
            "merged": lambda: MagnetLlamaForCausalLM.from_pretrained(folders["merged"]),
            "adapter": lambda: MagnetLlamaForCausalLM.from_pretrained(folders["magnet"]),
        }
        return side_by_side(calls, repeats)


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processes(repeats: int) -> dict[str, list[float]]:
    """CPU seconds of a process that imports."""
    calls = {
        name: lambda code=code: subprocess.run([sys.executable, "-c", code], check=True)
        for name, code in IMPORTS.items()
    }
    return side_by_side(calls, repeats, children_seconds)


def help_seconds(repeats: int) -> list[float]:
    """Wall-clock seconds of `magnet --help`."""
    magnet_command = shutil.which("magnet", path=str(Path(sys.executable).parent))
    call = {"help": lambda: subprocess.run([magnet_command, "--help"], check=True, stdout=subprocess.DEVNULL)}
    return side_by_side(call, repeats, time.perf_counter)["help"]


def main(layers: int = 8, hidden: int = 512, repeats: int = 3):
    seconds, shape = in_a_fork(loads, layers, hidden, 3 * repeats), f"{layers} layers of {hidden}, float32"
    how = "time: MagnetLlamaForCausalLM.from_pretrained, {} / LlamaForCausalLM.from_pretrained"
    answers = [
        row("loading", shape, how.format("merged"), *compared(seconds, "merged", "stock"), "<= 1.2"),
        row("loading", shape, how.format("with its adapter"), *compared(seconds, "adapter", "stock"), None),
    ]
    ratio = compared(processes(repeats), "ours", "stock")
    how = "CPU time of a process: `import modeling_magnet` / `import torch; from transformers import LlamaForCausalLM`"
    answers.append(row("importing", "a new process", how, *ratio, "<= 1.05"))
    spent = help_seconds(repeats)
    how = "wall-clock seconds"
    return [*answers, row("`magnet --help`", "a new process", how, min(spent), [min(spent), max(spent)], "<= 0.3")]


if __name__ == "__main__":
    show(main())
