"""The one prepared run on a GPU: training, encoding, decoding and attention kernels at the shape of Llama-2-7B.

    python benchmarks/gpu.py --output_dir runs/gpu                # random weights in bfloat16; at most 9 minutes
    python benchmarks/gpu.py --dry_run --output_dir runs/dry      # the same steps on a CPU, tiny

Wall-clock time, synchronised; the best of a few calls. `gpu.json` is written after each part, so that what is done is
kept; copy it to docs/measured, from where `run.py` takes it into the report. A part that fails says so in its row.
"""

import argparse
import gc
import json
import time
import traceback
from pathlib import Path

import torch
from common import load_tokenizer, magnet, mixed_texts, random_llama, row, show
from infill import words
from train_step import NO_END, Step, random_batch

from modeling_magnet import Gap

LLAMA2_7B = {
    "model": {
        "layers": 32,
        "hidden": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "max_position_embeddings": 8192,
    },
    "rows": 32,
    "length": 512,
    "pairs": 64,
    "pair_length": 128,
    "texts": 2048,
    "prompt": 64,
    "new": 128,
    "context": 448,
    "span": 64,
    "attention": {"layers": 4, "lengths": (512, 2048, 8192), "tokens": 16384},
}
TINY = {
    "model": {"layers": 2, "hidden": 64, "intermediate_size": 172, "max_position_embeddings": 1024},
    "rows": 2,
    "length": 32,
    "pairs": 4,
    "pair_length": 16,
    "texts": 8,
    "prompt": 8,
    "new": 4,
    "context": 24,
    "span": 4,
    "attention": {"layers": 1, "lengths": (32, 64), "tokens": 64},
}


class Machine:
    """The device, how to wait for it, and how often to measure."""

    def __init__(self, dry_run: bool):
        self.name = "cpu" if dry_run else "cuda"
        self.is_gpu, self.repeats = not dry_run, 1 if dry_run else 3

    def seconds(self, call) -> float:
        """The best of some calls, after one that is not counted."""
        call()
        spent = []
        for _ in range(self.repeats):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            spent.append(time.perf_counter() - started)
        return min(spent)

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def llama(self, sizes: dict, **settings):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)  # made on the device, in its dtype: 13.5 GB
        try:
            with torch.device(self.name):
                return random_llama(**sizes["model"] | settings)
        finally:
            torch.set_default_dtype(before)


def to(batch: dict, device: str) -> dict:
    return {name: value.to(device) for name, value in batch.items()}


def training(machine: Machine, sizes: dict) -> list[dict]:
    """x^m alone, then with pairs; LoRA on all projections, no checkpointing, without the optimizer's update."""
    rows, length, pairs, width = (sizes[name] for name in ("rows", "length", "pairs", "pair_length"))
    batch = to(random_batch(rows, length, pairs, 32000, width), machine.name)
    step = Step(magnet(machine.llama(sizes), 16, **NO_END).train(), batch, bf16=True)
    step.trainer.args.lambda_sscl = 0.0
    text = machine.seconds(step)
    peak = torch.cuda.max_memory_allocated() / 1e9 if machine.is_gpu else None
    step.trainer.args.lambda_sscl = 9.0
    joint = machine.seconds(step)
    hours = (3400 * text + 800 * joint) / 3600
    shape, joint_shape = f"{rows} x {length} tokens", f"and {pairs} pairs of {width}"
    return [
        row("training step, x^m", shape, "seconds (the paper's A100: 6.0)", text, None, "<= 1.11"),
        row("training step, x^m", shape, "peak, GB, no checkpointing", peak, None, "<= 118"),
        row("training step, joint", f"{shape} {joint_shape}", "seconds", joint, None, "<= 2.2"),
        row("the paper's schedule", "3,400 steps of x^m, 800 joint", "hours", hours, None, "<= 1.55"),
    ]


def encoding(machine: Machine, sizes: dict) -> list[dict]:
    """Mixed lengths, without an adapter, as the form `encoder` is."""
    model, tokenizer, texts = magnet(machine.llama(sizes), None), load_tokenizer(), mixed_texts(sizes["texts"])
    prompt = model.config.representation_prompt
    tokens = sum(len(tokenizer(f"{prompt} {text}")["input_ids"]) + 1 for text in texts)
    spent = machine.seconds(lambda: model.encode(texts, tokenizer, batch_size=64, show_progress_bar=False))
    shape = f"{len(texts)} mixed texts, {tokens:,} tokens"
    return [row("encode()", shape, "real tokens a second", tokens / spent, None, ">= 30000")]


def decoding(machine: Machine, sizes: dict) -> list[dict]:
    """Batch 1. With a static cache `generate()` compiles the step on a GPU."""
    model, tokenizer, answers = magnet(machine.llama(sizes), None), load_tokenizer(), []
    prompt = torch.randint(6, 4096, (1, sizes["prompt"]), device=machine.name)
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "eos_token_id": None}
    shape = f"prompt of {sizes['prompt']}, {sizes['new']} tokens, batch 1"
    for cache, least in (("dynamic", None), ("static", ">= 200")):

        def write(new, cache=cache):
            return model.generate(prompt, max_new_tokens=new, cache_implementation=cache, **options)

        spent = machine.seconds(lambda: write(1 + sizes["new"])) - machine.seconds(lambda: write(1))
        how = f"further tokens a second, {cache} cache"
        answers.append(row("generate()", shape, how, sizes["new"] / spent, None, least))
    half = sizes["context"] // 2
    parts = [words(half - 1, tokenizer, 1), Gap(length=sizes["span"]), words(half, tokenizer, 2)]
    spent = machine.seconds(lambda: model.infill(parts, tokenizer, cache_implementation="static"))
    shape = f"context {sizes['context']}, gap of {sizes['span']}, batch 1"
    return [*answers, row("infill()", shape, "seconds a call, static cache", spent, None, "<= 0.35")]


def attention(machine: Machine, sizes: dict) -> list[dict]:
    """A few layers of full width, forward and backward through an adapter: the hybrid mask in two backends."""
    settings, answers = sizes["attention"], []
    model = magnet(machine.llama(sizes, layers=settings["layers"], max_position_embeddings=16384), 16).train()
    for length in settings["lengths"]:
        rows = max(settings["tokens"] // length, 1)
        batch = to(random_batch(rows, length, 0), machine.name)
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "span_ids")}

        def step(inputs=inputs):
            model.model(**inputs, attention_mode="hybrid", use_cache=False).last_hidden_state.sum().backward()
            model.zero_grad(set_to_none=True)

        model.set_attn_implementation("sdpa")
        dense, flex = machine.seconds(step), None
        if machine.is_gpu:  # on a CPU it has no backward pass
            model.set_attn_implementation("flex_attention")
            flex = machine.seconds(step)
        shape = f"{rows} x {length} tokens, {settings['layers']} layers"
        how = f"time: SDPA with a dense mask ({dense:.3f} s) / FlexAttention"
        answers.append(row("hybrid attention", shape, how, flex and dense / flex, None, None))
    return answers


PARTS = (training, encoding, decoding, attention)  # the most wanted first


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--seconds", type=float, default=540, help="no part is begun after that time")
    args = parser.parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    machine, sizes = Machine(args.dry_run), TINY if args.dry_run else LLAMA2_7B
    answers, started = [], time.monotonic()
    for part in PARTS:
        name = part.__name__
        if time.monotonic() - started > args.seconds:
            answers.append(row(name, "", f"not run: {args.seconds:.0f} seconds are spent", None, None, None))
            continue
        try:
            answers += part(machine, sizes)
        except Exception as error:  # the machine is lent once: the other parts still run
            traceback.print_exc()
            answers.append(row(name, "", f"failed: {type(error).__name__}: {error}"[:300], None, None, None))
        gc.collect()
        if machine.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        device = torch.cuda.get_device_name() if machine.is_gpu else "cpu, dry run"
        report = {"device": device, "torch": torch.__version__, "rows": answers}
        (args.output_dir / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return answers


if __name__ == "__main__":
    show(main())
