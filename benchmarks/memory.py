"""The calculator of `magnet train --estimate true` against real steps of MagnetTrainer, at sizes that run on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/memory.py

Each case trains two steps with all three objectives in a process of its own, twice: once under torch's profiler, whose
record of every allocation gives the peak in bytes of tensors, once for the peak of resident memory as the operating
system sees it (allocator and libraries included). Both over the model, which is there before. Writes
docs/measured/memory.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import ATTENTION_AND_MLP, magnet, random_llama
from tqdm import tqdm
from train_step import memory as process_memory

from magnet_train.arguments import MagnetTrainingArguments, ViewArguments
from magnet_train.data import MagnetCollator, MagnetDataset, Text
from magnet_train.estimate import Run, memory
from magnet_train.sentences import PairDeck
from magnet_train.trainer import MagnetTrainer
from magnet_train.views import IGNORE, SpecialTokens

OUT = Path(__file__).parents[1] / "docs" / "measured" / "memory.json"
VOCAB, LAYERS, WIDTH = 32000, 4, 512
CASES = [
    {"rows": 4, "length": 512, "pairs": 8, "pair_length": 128},
    {"rows": 4, "length": 512, "pairs": 8, "pair_length": 128, "bf16": True},
    {"rows": 8, "length": 512, "pairs": 8, "pair_length": 128, "bf16": True, "checkpointing": True},
    {"rows": 8, "length": 512, "pairs": 8, "pair_length": 128, "checkpointing": True},
    {"rows": 4, "length": 128, "pairs": 32, "pair_length": 128, "bf16": True},
    {"rows": 16, "length": 256, "pairs": 64, "pair_length": 64, "chunk": 8, "bf16": True},
]


def build(case):
    """A random model with its base in the dtype of the run, and only the adapter trained."""
    model = magnet(random_llama(LAYERS, WIDTH, VOCAB), 16).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("_lora." in name)
        if case.get("bf16") and "_lora." not in name:
            parameter.data = parameter.data.bfloat16()
    return model


class CountingCollator(MagnetCollator):
    """Notes the most positions with a label that a batch has: chance decides, and the logits' memory goes with it."""

    labelled = 0

    def __call__(self, items):
        batch = super().__call__(items)
        count = int(((batch["mntp_labels"] != IGNORE) | (batch["msg_labels"] != IGNORE)).sum())
        self.labelled = max(self.labelled, count)
        return batch


def trainer_of(model, case, folder) -> MagnetTrainer:
    """Rows and sentences that are all as long as they may be."""
    rng = np.random.default_rng(0)
    rows, pairs = case["rows"], case["pairs"]
    texts = [
        Text(rng.integers(6, VOCAB, case["length"] - 1), np.zeros(case["length"] - 1, bool)) for _ in range(2 * rows)
    ]
    sentences = [tuple(rng.integers(6, VOCAB, case["pair_length"]).tolist() for _ in range(2)) for _ in range(pairs)]
    tokens = SpecialTokens(bos=1, mask=5, end=2, ordinary=np.arange(6, VOCAB))
    args = MagnetTrainingArguments(
        output_dir=folder,
        use_cpu=True,
        disable_tqdm=True,
        max_steps=2,
        sscl_start_step=0,
        save_strategy="no",
        bf16=case.get("bf16", False),
        activation_checkpointing=case.get("checkpointing", False),
        per_device_train_batch_size=rows,
        per_device_pair_batch_size=pairs,
        sscl_chunk_size=case.get("chunk", 0),
    )
    data = MagnetDataset(texts, PairDeck(sentences, 0), ViewArguments(), tokens, pairs // rows, seed=0)
    return MagnetTrainer(model=model, args=args, train_dataset=data, data_collator=CountingCollator(0))


def allocated_peak(train) -> int:
    """Most bytes of tensors that were held at a time over what was held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        train()
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum(sizes).max())


def resident_peak(train) -> float:
    Path("/proc/self/clear_refs").write_text("5")  # Linux: what went before no longer counts for the peak
    before = process_memory("VmRSS")
    train()
    return (process_memory("VmHWM") - before) * 2**20


def estimated(case, config, labelled) -> float:
    """The calculator's peak, without the model and its adapter."""
    bf16 = case.get("bf16", False)
    run = Run(
        config=config,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        autocast=bf16,
        rows=case["rows"],
        length=case["length"],
        labelled=labelled,
        pairs=case.get("chunk", case["pairs"]),
        pair_length=case["pair_length"],
        checkpointing=case.get("checkpointing", False),
    )
    parts = memory(run)
    return parts["peak"] - parts["base weights"] - parts["adapter"]


def one(case, how) -> dict:
    model = build(case)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, case, folder)
        peak = {"allocated": allocated_peak, "resident": resident_peak}[how](trainer.train)
        return {how: float(peak), "labelled": trainer.data_collator.labelled}


def measure(case) -> dict:
    row = dict(case)
    for how in ("allocated", "resident"):
        command = [sys.executable, __file__, "--only", json.dumps(case), "--how", how]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
        row |= json.loads(done.stdout.splitlines()[-1])
    return row | {"estimated": estimated(case, build(case).config, row["labelled"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(one(args.only, args.how)))
        return
    rows = [measure(case) for case in tqdm(CASES)]
    shape = {
        "layers": LAYERS,
        "hidden": WIDTH,
        "vocabulary": VOCAB,
        "adapter": ATTENTION_AND_MLP,
        "torch": torch.__version__,
    }
    OUT.write_text(json.dumps(shape | {"cases": rows}, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print({key: round(value / 2**20) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main()
