"""infill() against stock generate() with the same model and context, and against naive re-forwarding.

    OMP_NUM_THREADS=1 python benchmarks/infill_speed.py

Prints CPU seconds and ratios, one JSON line a context length. Prefill and decoding are both in the time.
"""

import argparse
import json

import torch
from common import magnet, random_llama, side_by_side

from modeling_magnet.gaps_magnet import Document, Gap, InfilledGap


def documents(context: torch.Tensor, span: int) -> list[Document]:
    """One text of random tokens with a gap in its middle, as infill() holds it after tokenization."""
    half = len(context) // 2
    return [Document(["a", "b"], [Gap(length=span)], [context[:half].tolist(), context[half:].tolist()], [None])]


class NoTokenizer:
    """Stands in for a tokenizer where only token ids matter."""

    bos_token_id, all_special_ids = 1, [0, 1, 2]

    def decode(self, ids, **kwargs):
        return ""


@torch.no_grad()
def naive(model, context, span) -> list[int]:
    """The whole text with the hybrid mask again for every token; logits at the one position that is needed."""
    half = len(context) // 2
    ids = torch.cat([context[:half], torch.zeros(span, dtype=torch.long), context[half:]])[None]
    span_ids = torch.zeros_like(ids)
    span_ids[0, half : half + span] = 1
    for t in range(span):
        keep = torch.tensor([half + t - 1])
        logits = model(ids, attention_mode="hybrid", span_ids=span_ids, logits_to_keep=keep).logits[0, 0]
        logits[[0, 1, 2]] = -torch.inf
        ids[0, half + t] = logits.argmax()
    return ids[0, half : half + span].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--span", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    llama = random_llama()
    plain, adapted = magnet(llama, None), magnet(llama, 16)
    for size in args.contexts:
        context = torch.randint(3, 32000, (size,), generator=torch.Generator().manual_seed(0))
        context[0] = 1

        def infill(model):
            answer = model._fill_all(
                documents(context, args.span), "sequential", 1, NoTokenizer(), {"do_sample": False}
            )
            fill: InfilledGap = answer[0][0].fills[0]
            return fill.token_ids

        prompt = context[None]
        options = {"max_new_tokens": args.span, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        options |= {"suppress_tokens": [0, 1, 2], "attention_mask": torch.ones_like(prompt)}
        assert infill(plain) == naive(plain, context, args.span), "infill and re-forwarding disagree"
        seconds = side_by_side(
            {
                "generate": lambda: llama.generate(prompt, **options),
                "infill": lambda: infill(plain),
                "infill_adapter": lambda: infill(adapted),
                "naive": lambda: naive(plain, context, args.span),
            },
            args.repeats,
        )
        base = seconds["generate"]
        ratios = {
            "infill / generate": seconds["infill"] / base,
            "infill with LoRA / generate": seconds["infill_adapter"] / base,
            "naive / infill": seconds["naive"] / seconds["infill"],
        }
        row = {"context": size, "span": args.span, "seconds": seconds, "ratios": ratios}
        print(json.dumps(row, default=float), flush=True)


if __name__ == "__main__":
    main()
