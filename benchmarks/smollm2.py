"""Training SmolLM2-135M on all cores: floating-point operations a second against the machine's matrix products.

    python benchmarks/smollm2.py

The shape of SmolLM2-135M with random weights. Only the matrix products of the step count (not attention's own), and the
machine's rate is that of one product of the model's own shape, in turns with the steps; wall-clock time.
"""

import os
import time

import torch
from common import in_a_fork, magnet, row, show, side_by_side
from torch.utils.flop_counter import FlopCounterMode
from train_step import NO_END, Step, random_batch
from transformers import LlamaConfig, LlamaForCausalLM

from magnet_train.settings.precision import bf16_is_faster

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def rates(
    rows: int, length: int, pairs: int, repeats: int, bf16: bool, shape: dict
) -> tuple[list[float], list[float]]:
    """FLOP/s of the step and of a matrix product, a figure a round."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bf16 else torch.float32
    llama = LlamaForCausalLM(LlamaConfig(**shape)).to(dtype)
    batch = random_batch(rows, length, pairs, shape["vocab_size"])
    step = Step(magnet(llama, 16, **NO_END).train(), batch, bf16)
    with FlopCounterMode(display=False) as counter:  # and the warm-up
        step()
    wide = torch.randn(shape["hidden_size"], shape["intermediate_size"], dtype=dtype)
    states, products = torch.randn(rows * length, shape["hidden_size"], dtype=dtype), 50
    calls = {"step": step, "gemm": lambda: [states @ wide for _ in range(products)]}
    seconds = side_by_side(calls, repeats, time.perf_counter, warm_up=False)
    gemm = 2 * products * rows * length * wide.numel()
    return [counter.get_total_flops() / each for each in seconds["step"]], [gemm / each for each in seconds["gemm"]]


def main(rows: int = 4, length: int = 256, pairs: int = 4, repeats: int = 2, **smaller):
    bf16, why = bf16_is_faster(use_cpu=True)
    step, gemm = in_a_fork(rates, rows, length, pairs, repeats, bf16, SHAPE | smaller)
    told = f"{rows} x {length} tokens, {pairs} pairs of 128, {os.cpu_count()} threads, {'bfloat16' if bf16 else 'float32'}"
    how = f"{max(step) / 1e9:.0f} GFLOP/s of a joint step / {max(gemm) / 1e9:.0f} of one product ({why})"
    each = [a / b for a, b in zip(step, gemm)]
    ratio = max(step) / max(gemm)
    return [row("training SmolLM2-135M on all cores", told, how, ratio, [min(each), max(each)], ">= 0.7")]


if __name__ == "__main__":
    show(main())
