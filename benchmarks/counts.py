"""What is counted, not timed: the same on every machine.

    python benchmarks/counts.py

tests/test_counts.py holds them to their targets.
"""

import numpy as np
import torch
from common import ATTENTION_AND_MLP, in_a_fork, load_tokenizer, magnet, mixed_texts, random_llama, row, show
from torch.utils.flop_counter import FlopCounterMode
from train_step import Step, random_batch

from magnet_train.data.blocks import Text
from magnet_train.data.dataset import MagnetCollator, MagnetDataset
from magnet_train.data.pairs import PairDeck
from magnet_train.settings.arguments import ViewArguments
from magnet_train.views import IGNORE, SpecialTokens
from modeling_magnet.encoding_magnet import pack, start_ids, text_ids

LAYERS, HIDDEN, VOCAB, R = 3, 128, 1000, 8
ROWS, LENGTH, PAIRS, PAIR_LENGTH = 4, 64, 8, 16
TOKENS = SpecialTokens(bos=1, mask=5, end=2, ordinary=np.arange(6, VOCAB))


def joint_step(**settings) -> tuple[Step, list[list]]:
    """A step of a small model, and its passes through the decoder: the attention mode, and the rows that the LM head
    then gets."""
    model, passes = magnet(random_llama(LAYERS, HIDDEN, VOCAB), R).train(), []

    def count_rows(module, args):
        passes[-1][1] += args[0][..., 0].numel()

    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append([kwargs["attention_mode"], 0]), with_kwargs=True
    )
    model.lm_head.register_forward_pre_hook(count_rows)
    return Step(model, random_batch(ROWS, LENGTH, PAIRS, VOCAB, PAIR_LENGTH), **settings), passes


def labels(batch: dict) -> int:
    return sum(int((batch[name] != IGNORE).sum()) for name in ("mntp_labels", "msg_labels"))


def flops() -> tuple[int, int]:
    """Operations in the matrix products of a joint step (not attention's own): counted, and the least possible."""
    step, _ = joint_step()
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops(), least_flops(step.trainer.model.config, step.batch)


def least_flops(config, batch: dict) -> int:
    """
    Forward, and backward to the inputs of the frozen weights and to the adapter. A product of T rows with a matrix of
    m x n takes 2 T m n. The first layer's queries, keys and values need no gradient of their input.
    """
    hidden, wide, r = config.hidden_size, config.intermediate_size, config.adapter["r"]
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    from_states = [(hidden, queries), (hidden, keys), (hidden, keys)]
    others = [(queries, hidden), (hidden, wide), (hidden, wide), (wide, hidden)]
    tokens = batch["input_ids"].numel() + batch["pair_input_ids"].numel()

    def linear(m: int, n: int, wants_input: bool) -> int:
        base = m * n * (1 + wants_input)
        adapter = (m * r + r * n) + (r * n + m * r) + (r * n + m * r * wants_input)  # forward, weights, inputs
        return 2 * tokens * (base + adapter)

    layers = sum(
        sum(linear(*each, wants_input=layer > 0) for each in from_states)
        + sum(linear(*each, wants_input=True) for each in others)
        for layer in range(config.num_hidden_layers)
    )
    head = 2 * 2 * labels(batch) * hidden * config.vocab_size
    contrast = 3 * 2 * len(batch["pair_ids"]) ** 2 * hidden
    return layers + head + contrast


def saved_bytes(hidden: int = 128) -> float:
    """
    Bytes kept for the backward pass, per token, layer and unit of width: bfloat16 base, float32 LoRA on all projections,
    autocast, the proportions of Llama-2-7B. What does not grow with the tokens or the layers cancels out.
    """

    def saved(layers: int, rows: int) -> int:
        wide = hidden * 43 // 16
        model = magnet(random_llama(layers, hidden, VOCAB, intermediate_size=wide).to(torch.bfloat16), R)
        batch, kept = random_batch(rows, LENGTH, 0, VOCAB), []
        step = Step(model, batch, bf16=True, lambda_sscl=0)

        def keep(tensor):
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step()
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        return sum(storages.values())

    tokens = 2 * LENGTH
    grown = saved(4, 4) - saved(4, 2) - saved(2, 4) + saved(2, 2)
    return grown / (2 * tokens * hidden)


def padded_over_real(masks: list[torch.Tensor]) -> tuple[float, float]:
    """Of batches with these masks: as the collator pads them, and as the trainer packs them for the decoder."""
    real = sum(int(mask.sum()) for mask in masks)
    packed = sum(pack({"input_ids": mask}, mask)[0]["input_ids"].numel() for mask in masks)
    return sum(mask.numel() for mask in masks) / real, packed / real


def padding_in_training(rows: int = 3200, size: int = 32) -> tuple[float, float]:
    """Of texts of log-normal length, in random order."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.5, 0.8, rows), 8, 511).astype(int)
    texts = [Text(rng.integers(6, VOCAB, length), np.zeros(length, bool)) for length in lengths]
    data, collate = MagnetDataset(texts, PairDeck([], 0), ViewArguments(), TOKENS, 0, seed=0), MagnetCollator(0)
    batches = ([data[i] for i in range(start, start + size)] for start in range(0, rows, size))
    return padded_over_real([collate(batch)["attention_mask"] for batch in batches])


def padding_of_pairs(rows: int = 320, size: int = 32) -> tuple[float, float]:
    """Of both sides of the sentence pairs of a step, two pairs a row."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.3, 0.4, (2 * rows, 2)), 12, 128).astype(int)
    pairs = [tuple(rng.integers(6, VOCAB, length).tolist() for length in both) for both in lengths]
    text = Text(np.arange(10, 30), np.zeros(20, bool))
    data = MagnetDataset([text] * rows, PairDeck(pairs, 0), ViewArguments(), TOKENS, 2, seed=0)
    batches = [[data[i] for i in range(start, start + size)] for start in range(0, rows, size)]
    return padded_over_real([MagnetCollator(0)(batch)["pair_attention_mask"] for batch in batches])


def padding_in_encode(count: int = 1000) -> float:
    """Padded over real tokens of one call of encode()."""
    model, tokenizer, texts = magnet(random_llama(1, 64, 4096), None), load_tokenizer(), mixed_texts(count)
    padded = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: padded.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    model.encode(texts, tokenizer, show_progress_bar=False)
    prompt = model.config.representation_prompt
    around = len(start_ids(model.config, tokenizer)) + 1  # [BOS] and [EOS]
    return sum(padded) / sum(around + len(text_ids(f"{prompt} {text}", tokenizer)) for text in texts)


def passes() -> tuple[list[list], list[list], int]:
    """Passes through the decoder, each with the rows of the LM head: in a joint step and without SSCL; and the labels."""
    joint, seen = joint_step()
    joint()
    without_sscl, seen_without = joint_step(lambda_sscl=0)
    without_sscl()
    return seen, seen_without, labels(joint.batch)


def main() -> list[dict]:
    shape = f"{LAYERS} layers of {HIDDEN}, LoRA r = {R} on all projections"
    counted, least = in_a_fork(flops)
    joint, without_sscl, label_count = in_a_fork(passes)
    on_texts, on_pairs = (sum(rows for mode, rows in joint if mode == each) for each in ("hybrid", "bidirectional"))
    step, lengths = "joint training step", "texts of log-normal length, batches of 32"
    texts, pairs = padding_in_training(), padding_of_pairs()
    training, encoding = "padded over real tokens, training", "padded over real tokens, encode()"
    return [
        row(step, shape, "matrix products: FLOPs counted / analytic minimum", counted / least, None, "<= 1.02"),
        row(step, shape, "rows through the LM head / labels", on_texts / label_count, None, "<= 1.0"),
        row(step, shape, "rows through the LM head on the pairs", on_pairs, None, "<= 0"),
        row(step, shape, "passes through the decoder", len(joint), None, "<= 2"),
        row(step, shape, "the same while lambda_2 = 0", len(without_sscl), None, "<= 1"),
        row(
            step,
            f"width 128, proportions of Llama-2-7B, LoRA r = {R} on {len(ATTENTION_AND_MLP)} projections, bfloat16",
            "bytes saved for backward, per token, layer and unit of width",
            in_a_fork(saved_bytes),
            None,
            "<= 46",
        ),
        row(training, f"3,200 {lengths}", "rows of a batch packed", texts[1], None, "<= 1.05"),
        row(training, f"3,200 {lengths}", "the same batches padded", texts[0], None, None),
        row(training, "64 pairs a step", "their sentences packed", pairs[1], None, "<= 1.05"),
        row(training, "64 pairs a step", "their sentences padded", pairs[0], None, None),
        row(encoding, "1,000 mixed texts", "one call", padding_in_encode(), None, "<= 1.05"),
    ]


if __name__ == "__main__":
    show(main())
