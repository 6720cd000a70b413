"""A random Llama large enough to show ratios on a CPU, and side-by-side timing."""

import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM

ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_llama(layers: int = 8, hidden: int = 512, vocab: int = 32000) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=2048,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def magnet(llama: LlamaForCausalLM, r: int | None) -> MagnetLlamaForCausalLM:
    adapter = None if r is None else {"r": r, "alpha": r, "target_modules": ATTENTION_AND_MLP}
    return MagnetLlamaForCausalLM.from_base(llama, adapter=adapter, mask_token_id=5, infill_end_token_id=2)


def side_by_side(calls: dict, repeats: int) -> dict[str, float]:
    """Best CPU seconds of each call; calls take turns, so that a slow spell affects all of them."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()  # warm-up
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - started)
    return best
