"""Adapts a plain model of any family for some steps, then checks on real weights what the tests check on random ones.

    python benchmarks/real_families.py path/to/model texts.txt              # proofs alone, with a random adapter
    python benchmarks/real_families.py path/to/model texts.txt --steps 20 >> docs/measured/real_families.jsonl

The model is a folder of any supported family, as saved by transformers. If there is only a GGUF file, make a folder
once: dequantise it with `AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)`, copy its weights into a model
of the same class whose configuration has no `quantization_config`, and save that model and
`AutoTokenizer.from_pretrained(folder, gguf_file=name)`. Texts are one per line; the last 32 of at most 300 characters
are held out.

Prints one line of JSON. Any mismatch of a bit or a pair of tokens ends the script with an error.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed

from magnet_eval.scoring import GapExample, infill_perplexity
from magnet_train import MagnetTrainer, MagnetTrainingArguments, ViewArguments
from modeling_magnet import FAMILIES
from modeling_magnet.configuration_magnet import ADAPTER_TARGETS
from modeling_magnet.encoding_magnet import start_ids, text_ids
from modeling_magnet.infilling_magnet import continuation_ids
from modeling_magnet.scoring_magnet import span_logprobs

LENGTH, OFFSET, FILL = 64, 64, 12  # tokens of a row, positions of a free gap, tokens of a fill
ADAPTER = {"r": 32, "alpha": 64, "target_modules": list(ADAPTER_TARGETS)}


def load(folder: Path, tokenizer):
    """The model with an adapter, in float32."""
    family = FAMILIES[AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type]
    fields = {"infill_end_token_id": tokenizer.eos_token_id, "infill_free_offsets": [OFFSET]}
    set_seed(0)
    return family.from_pretrained(folder, adapter=ADAPTER, dtype=torch.float32, **fields).eval()


# ------------------------------------------------------------------------------------------------------ some steps


def adapt(model, tokenizer, texts: list[str], held_out: list[str], steps: int, batch_size: int, rate: float) -> dict:
    """Trains MNTP and MSG; returns losses of held-out texts, in nats per token, before and after."""
    gaps = held_out_gaps(held_out, model.config, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = MagnetTrainingArguments(
            folder,
            max_steps=steps,
            learning_rate=rate,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            lambda_mntp=0.1,
            lambda_sscl=0.0,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = MagnetTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_dict({"text": texts[: steps * batch_size]}),
            eval_dataset=Dataset.from_dict({"text": held_out}),
            view_args=ViewArguments(
                max_length=LENGTH, span_max=16, gap_layout="mixed", free_offset=OFFSET, clean_context_ratio=0.5
            ),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)  # print only the line of JSON
        before = losses(trainer, gaps)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        after = losses(trainer, gaps)
    figures = {"steps": steps, "rows": steps * batch_size, "length": LENGTH, "learning_rate": rate}
    figures |= {"gaps": len(gaps), "seconds": round(seconds), "before": before, "after": after}
    return figures | {"left_to_right": nats(trainer.model, gaps, "causal")}


def held_out_gaps(texts: list[str], config, tokenizer) -> list[GapExample]:
    """One gap of 4 to 16 tokens in each text, with at least one token on both sides."""
    rng, gaps = np.random.default_rng(0), []
    for number, text in enumerate(texts):
        ids = (start_ids(config, tokenizer) + text_ids(text, tokenizer))[:LENGTH]
        length = int(rng.integers(4, 17))
        if len(ids) > length + 1:
            gaps.append(GapExample(ids, [(int(rng.integers(1, len(ids) - length)), length)], number))
    return gaps


def losses(trainer, gaps: list[GapExample]) -> dict:
    """Losses of MNTP and MSG on the trainer's views, and of the gaps read from both sides."""
    found = trainer.evaluate()
    figures = {name: round(found[f"eval_loss_{name}"], 3) for name in ("mntp", "msg")}
    return figures | {f"gaps_{layout}": nats(trainer.model, gaps, layout) for layout in ("exact", "free")}


def nats(model, gaps: list[GapExample], layout: str) -> float:
    model.eval()
    return round(float(np.log(infill_perplexity(model, gaps, layout, batch_size=8).value)), 3)


# ------------------------------------------------------------------------------------------------------ the proofs


@torch.no_grad()
def causal_equality(model, base, tokenizer, texts: list[str]) -> dict:
    """All logits of padded texts, and 32 greedy tokens after each, equal those of transformers' stock class."""
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=LENGTH)
    logits = model(**batch, attention_mode="causal").logits, base(**batch).logits  # (B, L, V) each
    assert torch.equal(*logits), f"logits differ by {(logits[0] - logits[1]).abs().max()}"
    greedy = {"max_new_tokens": 32, "do_sample": False}
    prompts = {name: values[:, : LENGTH // 2] for name, values in batch.items()}
    written = model.generate(**prompts, **greedy), base.generate(**prompts, **greedy)
    assert torch.equal(*written), "greedy search writes something else"
    adapted = model(**batch, attention_mode="hybrid", span_ids=torch.ones_like(batch["input_ids"])).logits
    moved = float((adapted - logits[1])[batch["attention_mask"].bool()].abs().max())
    return {"logits": logits[0].numel(), "generated": 32 * len(texts), "adapter_moves": round(moved, 2)}


def allowed(spans: list[int], positions: list[int], window: int | None = None) -> torch.Tensor:
    """The rule of section 3.1 as a double loop, (L, L): may query q attend to key k?"""
    places = range(len(spans))
    pairs = [[spans[k] == 0 or (spans[k] == spans[q] and k <= q) for k in places] for q in places]
    near = [[window is None or abs(positions[q] - positions[k]) < window for k in places] for q in places]
    return torch.tensor(pairs) & torch.tensor(near)


def in_mode(mode: str, length: int) -> tuple[list[int], list[int], dict]:
    """Span ids of the rule, positions, and the arguments of a forward. In hybrid mode one of two gaps is free."""
    third = length // 3
    spans = {"causal": [1] * length, "bidirectional": [0] * length}.get(mode)
    spans = spans or [0] * third + [1] * 4 + [0] * third + [2] * 5 + [0] * (length - 2 * third - 9)
    jump = OFFSET - 4 if mode == "hybrid" else 0
    positions = [place + jump * (place >= third + 4) for place in range(length)]
    arguments = {"attention_mode": mode, "position_ids": torch.tensor([positions]), "use_cache": False}
    return spans, positions, arguments | ({"span_ids": torch.tensor([spans])} if mode == "hybrid" else {})


@torch.no_grad()
def modes_by_perturbation(model, ids: list[int]) -> int:
    """Changes each token in turn: exactly the outputs that may attend to it change, in all three modes."""
    ids = torch.tensor([ids])  # (1, L)
    for mode in ("causal", "bidirectional", "hybrid"):
        spans, positions, arguments = in_mode(mode, ids.shape[1])
        plain = model.model(ids, **arguments).last_hidden_state
        reached = []
        for place in range(ids.shape[1]):
            changed = ids.clone()
            changed[0, place] = ids[0, place - 1] if ids[0, place - 1] != ids[0, place] else ids[0, place - 2]
            reached.append((model.model(changed, **arguments).last_hidden_state != plain).any(-1)[0])
        assert torch.equal(torch.stack(reached, dim=1), allowed(spans, positions)), f"{mode}: other tokens are seen"
    return 3 * ids.shape[1] ** 2


@torch.no_grad()
def modes_by_brute_force(model, base, ids: list[int]) -> float:
    """Without its adapter each mode equals the stock class with a double loop's mask; returns the largest difference."""
    ids, differences = torch.tensor([ids]), []
    kinds = getattr(base.config, "layer_types", None)
    for mode in ("causal", "bidirectional", "hybrid"):
        spans, positions, arguments = in_mode(mode, ids.shape[1])
        mask = {None: allowed(spans, positions)[None, None], "full_attention": allowed(spans, positions)[None, None]}
        mask["sliding_attention"] = allowed(spans, positions, model.model.window)[None, None]
        mask = mask[None] if kinds is None else {kind: mask[kind] for kind in set(kinds)}
        expected = base.model(ids, attention_mask=mask, position_ids=arguments["position_ids"], use_cache=False)
        with model.adapter_disabled():
            found = model.model(ids, **arguments)
        differences.append((found.last_hidden_state - expected.last_hidden_state).abs().max())
    return float(max(differences))


def fills_are_the_hybrid_forward(model, tokenizer, left: str, right: str) -> dict:
    """Log-probabilities of cached decoding against one hybrid forward over the whole row, in float64; returns the
    largest difference."""
    model.double()
    ids = [start_ids(model.config, tokenizer) + text_ids(left, tokenizer), continuation_ids(right, tokenizer)]
    at, figures = len(ids[0]), {"context": sum(map(len, ids))}
    for layout, length in (("exact", FILL), ("free", (FILL, FILL))):
        output = model.infill([left, model.Gap(length=length), right], tokenizer, return_dict=True)
        (fill,) = output.gaps
        width = FILL if layout == "exact" else OFFSET
        positions = [*range(at), *range(at + width, at + width + len(ids[1]))]
        expected, _ = span_logprobs(model, ids[0] + ids[1], positions, at, fill.token_ids, layout == "free")
        figures[layout] = max(abs(a - b) for a, b in zip(fill.token_logprobs, expected, strict=True))
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=6e-4)
    args = parser.parse_args()

    texts = args.texts.read_text(encoding="utf-8").splitlines()
    held_out = [text for text in texts if len(text) <= 300][-32:]
    texts = [text for text in texts if text not in held_out]
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    model = load(args.model, tokenizer)
    figures = {"model": args.model.name, "class": type(model).__name__}
    figures |= {"parameters": sum(weight.numel() for weight in model.parameters())}
    if args.steps:
        figures["training"] = adapt(model, tokenizer, texts, held_out, args.steps, args.batch_size, args.learning_rate)
    else:  # a nonzero adapter, so that its absence in causal mode shows
        for name, weight in model.named_parameters():
            if name.endswith("_lora.B"):
                torch.nn.init.normal_(weight.data, std=0.02)
    model.eval()
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, trust_remote_code=False).eval()
    joined, enough = " ".join(held_out), (model.model.window or 128) + 100  # more tokens than a window holds
    long = start_ids(model.config, tokenizer) + text_ids(joined, tokenizer)[:enough]
    half = joined.index(". ", 5 * enough) + 1
    figures["causal"] = causal_equality(model, base, tokenizer, held_out[:4])
    figures["pairs_perturbed"] = modes_by_perturbation(model, long[:30])
    figures["brute_force"] = {"tokens": len(long), "difference": modes_by_brute_force(model, base, long)}
    figures["infill"] = fills_are_the_hybrid_forward(model, tokenizer, joined[:half], joined[half : half + 200])
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
