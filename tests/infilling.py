"""What the tests of infill() share: the naive way to fill a gap, which defines what is correct, and what makes a model write."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from modeling_magnet import Gap

TEXTS = ["Tom was very hungry.", " He went to the kitchen and ate", " his bed. Good night!"]
TEXT = "<|gap|>".join(TEXTS)
FREE_OFFSET = 64  # the `text_magnet` fixture's
ALL_KINDS = [
    "Tom ",
    Gap(5, prefix="ver"),
    " and </s> ",
    Gap("auto", 9, stop="line"),
    " he ",
    Gap(candidates=["a", "b"]),
]
BATCH = [
    TEXT,
    [TEXTS[0], Gap(length=3), TEXTS[1] * 5],
    "A<|gap|>",
    ["", Gap(), "." + TEXTS[2], Gap(length=7), " Then", Gap(length="auto", max_new_tokens=5)],
]


def token_pieces(texts, tokenizer, start=None) -> list[list[int]]:
    """What opens a text, [BOS] unless told, and the tokens of each; without a space at a seam no further care is needed."""
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [[*([tokenizer.bos_token_id] if start is None else start), *pieces[0]], *pieces[1:]]


@torch.no_grad()
def next_logits(model, pieces, budgets, gap, fill, ends=False) -> torch.Tensor:
    """Logits (V,) of the token behind `fill` in gap number `gap`, by one hybrid forward; the other gaps stay open,
    `budgets[i]` wide. A trained END is barred, as in a gap of known length, unless `ends`."""
    ids, spans, positions, here, start = [], [], [], 0, 0
    for number, piece in enumerate(pieces):
        ids += piece
        spans += [0] * len(piece)
        positions += range(start, start + len(piece))
        start += len(piece)
        if number == gap:
            ids += fill
            spans += [1] * len(fill)
            positions += range(start, start + len(fill))
            here = len(ids) - 1
        if number < len(budgets):
            start += budgets[number]
    row, spans, positions = torch.tensor([ids, spans, positions])[:, None]  # (1, L) each
    arguments = {"span_ids": spans, "position_ids": positions, "attention_mode": "hybrid", "use_cache": False}
    logits = model(row, **arguments).logits[0, here]
    if not ends and model.config.infill_end_token_id is not None:
        logits[model.config.infill_end_token_id] = -torch.inf
    return logits


def naive_fill(model, tokenizer, pieces, budgets, gap, steps, end=None, end_bias=0.0, choose=torch.argmax):
    """Tokens of a gap and their raw logits (steps, V), re-forwarding the whole text for each; control tokens are forbidden,
    `end` ends the gap, `choose` takes a token from its scores."""
    forbidden = [token for token in tokenizer.all_special_ids if token != end]
    fill, recorded = [], []
    while len(fill) < steps:
        logits = next_logits(model, pieces, budgets, gap, fill, ends=True)
        recorded.append(logits)
        scores = logits.clone()
        scores[forbidden] = -torch.inf
        if end is not None:
            scores[end] += end_bias
        token = int(choose(scores))
        if token == end:
            break
        fill.append(token)
    return fill, torch.stack(recorded)


def naive_beams(model, tokenizer, pieces, budgets, gap, beams) -> list[list[int]]:
    """Beam search by hand, the best sequence first. All have one length, so no length penalty matters."""
    kept = [([], 0.0)]
    for _ in range(budgets[gap]):
        candidates = []
        for fill, score in kept:
            logprobs = next_logits(model, pieces, budgets, gap, fill).log_softmax(-1)
            logprobs[tokenizer.all_special_ids] = -torch.inf
            best = logprobs.topk(beams)
            candidates += [([*fill, int(t)], score + float(p)) for p, t in zip(best.values, best.indices)]
        kept = sorted(candidates, key=lambda candidate: -candidate[1])[:beams]
    return [fill for fill, _ in kept]


def fills_of(output) -> list[list[int]]:
    return [gap.token_ids for gap in output.gaps]


def forwards_of(model, call) -> list[dict]:
    """What `call()` makes the decoder read: the arguments of each of its forwards."""
    seen = []

    def record(module, args, kwargs):
        seen.append(kwargs | ({"input_ids": args[0]} if args else {}))

    handle = model.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        call()
    finally:
        handle.remove()
    return seen


class Write(LogitsProcessor):
    """Makes a gap begin with these tokens, then go on as the model would."""

    def __init__(self, ids):
        self.ids, self.start = list(ids), None

    def __call__(self, input_ids, scores):
        self.start = input_ids.shape[1] if self.start is None else self.start
        step = input_ids.shape[1] - self.start
        if step < len(self.ids):
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self.ids[step]] = 0
        return scores


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts nothing before a text, as those of Qwen and SmolLM2 do."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
