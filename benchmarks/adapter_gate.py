"""What the adapter costs where it is off (causal mode) and where it is on (encode(), unmerged).

python benchmarks/adapter_gate.py
"""

import torch
from common import compared, in_a_fork, load_tokenizer, magnet, mixed_texts, random_llama, row, show, side_by_side


def causal(layers: int, hidden: int, prompt: int, new: int, repeats: int) -> dict[str, list[float]]:
    """Reading a prompt, and decoding after a short one, the stock model and ours with its adapter off. Many short rounds:
    the differences are small."""
    llama = random_llama(layers, hidden)
    ours, ids = magnet(llama, 16), torch.randint(6, 32000, (1, prompt))
    short = ids[:, :16]
    options = {"attention_mask": torch.ones_like(short), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    @torch.no_grad()
    def read(model):
        return model(ids, use_cache=False, logits_to_keep=1)

    def write(model):
        return model.generate(short, max_new_tokens=new, **options)

    assert torch.equal(write(llama), write(ours))
    calls = {
        f"{name} {what.__name__}": lambda what=what, model=model: what(model)
        for what in (read, write)
        for name, model in (("base", llama), ("ours", ours))
    }
    return side_by_side(calls, repeats)


def encoding(layers: int, hidden: int, texts: list[str], repeats: int) -> dict[str, list[float]]:
    tokenizer, llama = load_tokenizer(), random_llama(layers, hidden, 4096)
    models = {"merged": magnet(llama, None), "unmerged": magnet(llama, 16)}  # merging leaves the base's shape
    calls = {name: lambda model=model: model.encode(texts, tokenizer) for name, model in models.items()}
    return side_by_side(calls, repeats)


def main(layers: int = 8, hidden: int = 512, prompt: int = 256, new: int = 8, count: int = 32, repeats: int = 25):
    shape, answers = f"{layers} layers of {hidden}, LoRA r = 16 on all projections, float32", []
    seconds = in_a_fork(causal, layers, hidden, prompt, new, repeats)
    for what, told in (("read", f"a prompt of {prompt} tokens"), ("write", f"16 tokens and {new} new ones")):
        ratio = compared(seconds, f"ours {what}", f"base {what}")
        answers.append(row("adapter off (causal mode)", shape, f"time: ours / stock model, {told}", *ratio, "<= 1.02"))
    seconds = in_a_fork(encoding, layers, hidden, mixed_texts(count), min(repeats, 5))
    ratio = compared(seconds, "unmerged", "merged")
    how = f"time: encode() unmerged / merged (form `encoder` or `merged`), {count} mixed texts"
    return [*answers, row("adapter on, encoding", shape, how, *ratio, "<= 1.1")]


if __name__ == "__main__":
    show(main())
