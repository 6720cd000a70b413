"""Decides whether a run computes in bfloat16, if its settings leave that open (`bf16: auto`)."""

import functools
import os
import time

import torch

SHAPE = (128, 576, 1536)  # rows, and the width and feed-forward width of a small decoder
SECONDS = 0.15
MARGIN = 1.1  # autocast casts the base's weights in every step


@functools.cache
def bf16_is_faster(use_cpu: bool = False) -> tuple[bool, str]:
    """
    Chooses by measuring for half a second: CPUs differ a hundredfold in how fast they multiply in bfloat16.

    Args:
        use_cpu (`bool`, *optional*, defaults to `False`): As in [`TrainingArguments`]: the CPU even if there is a GPU.

    Returns:
        Whether to compute in bfloat16, and why, as a short sentence.

    Example:

    ```python
    >>> from magnet_train.settings.precision import bf16_is_faster
    >>> chosen, why = bf16_is_faster(use_cpu=True)
    >>> why.startswith("float32 ") and why.endswith(" GFLOP/s here")
    True

    ```
    """
    if torch.cuda.is_available() and not use_cpu:
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return has_it, "the GPU has bfloat16" if has_it else "the GPU has no bfloat16"
    if torch.backends.mps.is_available() and not use_cpu:
        return False, "float32 on MPS"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each would measure, and they might differ
        return False, "several processes on CPUs"
    rates = {dtype: gemm_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    told = ", ".join(f"{str(dtype).removeprefix('torch.')} {rate:.3g}" for dtype, rate in rates.items())
    return rates[torch.bfloat16] > MARGIN * rates[torch.float32], f"{told} GFLOP/s here"


def gemm_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of matrix products of that dtype on the CPU, over 0.15 seconds."""
    rows, width, wide = SHAPE
    one, other = torch.ones(rows, width, dtype=dtype), torch.ones(width, wide, dtype=dtype)
    one @ other  # the first one chooses a kernel
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS or not done:
        one @ other
        done += 1
    return 2 * rows * width * wide * done / spent / 1e9
