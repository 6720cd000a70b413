"""Time and peak memory of a joint training step, with logits at labelled positions only and with logits everywhere.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py

Time is measured in one process, with variants taking turns; peak memory in a separate process for each, since page
faults would disturb the time. The script checks that both give the same loss.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import magnet, random_llama, side_by_side

from magnet_train.data.dataset import MagnetCollator, MagnetDataset, Text
from magnet_train.data.pairs import PairDeck
from magnet_train.losses import mntp_loss, msg_loss, sscl_loss
from magnet_train.settings.arguments import ViewArguments
from magnet_train.views import IGNORE, SpecialTokens

VOCAB = 32000


def batch(rows: int, length: int, pairs: int) -> dict:
    """Random texts with the paper's masks and spans, and random sentence pairs."""
    rng = np.random.default_rng(0)
    texts = [Text(rng.integers(3, VOCAB, length - 1), np.zeros(length - 1, bool)) for _ in range(rows)]
    sentences = [tuple(rng.integers(3, VOCAB, 128).tolist() for _ in range(2)) for _ in range(pairs)]
    tokens = SpecialTokens(bos=1, mask=5, end=2, ordinary=np.arange(6, VOCAB))
    data = MagnetDataset(texts, PairDeck(sentences, 0), ViewArguments(), tokens, pairs // rows, seed=0)
    return MagnetCollator(0)([data[i] for i in range(rows)])


def step(model, inputs, gathered: bool) -> float:
    """Forward and backward of L with lambda (1, 9, 1). `gathered=False` is a plain implementation."""
    views = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids", "span_ids")}
    labelled = (inputs["mntp_labels"] != IGNORE) | (inputs["msg_labels"] != IGNORE)
    keep = labelled if gathered else torch.ones_like(labelled)
    logits = model(**views, attention_mode="hybrid", logits_to_keep=keep, use_cache=False).logits
    total = 0.0
    for name, function in (("mntp_labels", mntp_loss), ("msg_labels", msg_loss)):
        targets = inputs[name][keep]
        if gathered:
            mine = targets != IGNORE
            total = total + function(logits[mine], targets[mine])
        else:
            total = total + F.cross_entropy(logits.float(), targets, ignore_index=IGNORE)
    if gathered:  # the two graphs are never in memory together
        total.backward()
        total = total.detach()
    no_head = torch.full_like(inputs["pair_input_ids"], not gathered, dtype=torch.bool)
    outputs = model(
        inputs["pair_input_ids"],
        attention_mask=inputs["pair_attention_mask"],
        attention_mode="bidirectional",
        logits_to_keep=no_head,
        output_hidden_states=True,
    )
    vectors = F.normalize(model.pool(outputs.hidden_states[-1], inputs["pair_attention_mask"]), dim=-1)
    loss = total + 9 * sscl_loss(*vectors.chunk(2))
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def build(layers: int):
    model = magnet(random_llama(layers), 16).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("_lora." in name)
    return model


def memory(field: str) -> float:
    """A field of /proc/self/status in MB: VmRSS is current memory, VmHWM its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak_over_model(variant: str, layers: int) -> float:
    """MB that a step adds to the process's peak, measured in a separate process."""
    command = [sys.executable, __file__, "--only", variant, "--layers", str(layers)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--only", choices=("full", "gathered"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    model, inputs = build(args.layers), batch(rows=4, length=512, pairs=8)
    if args.only:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak after building the model
        before = memory("VmRSS")
        step(model, inputs, args.only == "gathered")
        print(memory("VmHWM") - before)
        return
    full, gathered = step(model, inputs, False), step(model, inputs, True)
    assert abs(full - gathered) < 1e-4 * abs(full), (full, gathered)
    variants = {"full": False, "gathered": True}
    seconds = side_by_side({k: lambda v=v: step(model, inputs, v) for k, v in variants.items()}, args.repeats)
    megabytes = {name: peak_over_model(name, args.layers) for name in variants}
    ratios = {
        "time full / gathered": seconds["full"] / seconds["gathered"],
        "peak gathered / full": megabytes["gathered"] / megabytes["full"],
    }
    print(json.dumps({"layers": args.layers, "seconds": seconds, "peak_mb_over_model": megabytes, "ratios": ratios}))


if __name__ == "__main__":
    main()
