"""A joint training step: MagnetTrainer's against a plain loop of transformers and PEFT, time and peak memory.

    python benchmarks/train_step.py

The plain loop: `LlamaForCausalLM` with PEFT's LoRA in its defaults, one forward for x^m and one for each side of the
pairs, logits everywhere, two cross entropies over all of them, one graph. Both compute the same loss, which is checked.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import ATTENTION_AND_MLP, compared, in_a_fork, magnet, peak_mib, random_llama, row, show, side_by_side
from peft import LoraConfig, get_peft_model

from magnet_train.data.blocks import Text
from magnet_train.data.dataset import MagnetCollator, MagnetDataset
from magnet_train.data.pairs import PairDeck
from magnet_train.losses import sscl_loss
from magnet_train.model import is_trained
from magnet_train.settings.arguments import MagnetTrainingArguments, ViewArguments
from magnet_train.settings.precision import bf16_is_faster
from magnet_train.trainer import MagnetTrainer
from magnet_train.views import IGNORE, SpecialTokens
from modeling_magnet.encoding_magnet import pooled
from modeling_magnet.modeling_magnet import span_attention_rule

PAIR_LENGTH = 128
NO_END = {"infill_end_token_id": None}  # with one, the trainer bars it where a fill begins; a plain loop would not


def random_batch(rows: int, length: int, pairs: int, vocab: int = 32000, pair_length: int = PAIR_LENGTH) -> dict:
    """Random texts with the paper's masks and spans, and random sentence pairs; no padding."""
    rng = np.random.default_rng(0)
    texts = [Text(rng.integers(6, vocab, length - 1), np.zeros(length - 1, bool)) for _ in range(rows)]
    sentences = [tuple(rng.integers(6, vocab, pair_length).tolist() for _ in range(2)) for _ in range(pairs)]
    tokens = SpecialTokens(bos=1, mask=5, end=2, ordinary=np.arange(6, vocab))
    views = ViewArguments(max_length=length, span_max=min(128, length // 2))
    data = MagnetDataset(texts, PairDeck(sentences, 0), views, tokens, pairs // rows, seed=0)
    return MagnetCollator(0)([data[i] for i in range(rows)])


class Step:
    """A step of MagnetTrainer without the optimizer's update, on the same batch at each call; returns the loss."""

    def __init__(self, model, batch: dict, bf16: bool = False, **settings):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained(name))
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        folder = Path(tempfile.gettempdir(), "magnet-benchmark")
        settings = {"sscl_start_step": 0, "use_cpu": not batch["input_ids"].is_cuda} | settings
        args = MagnetTrainingArguments(str(folder), bf16=bf16, disable_tqdm=True, **settings)
        self.batch, self.trainer = batch, MagnetTrainer(model, args)
        self.model = self.trainer.accelerator.prepare(model)

    def __call__(self) -> float:
        _, counts = self.trainer.get_batch_samples(iter([self.batch]), 1, self.batch["input_ids"].device)
        loss = self.trainer.training_step(self.model, self.batch, counts)
        self.model.zero_grad(set_to_none=True)
        return float(loss)


class PlainStep:
    """The plain loop's step."""

    def __init__(self, llama, batch: dict):
        lora = LoraConfig(r=16, lora_alpha=16, target_modules=ATTENTION_AND_MLP, task_type="CAUSAL_LM")
        self.model, self.batch = get_peft_model(llama, lora).train(), batch

    def __call__(self) -> float:
        batch, spans = self.batch, self.batch["span_ids"]
        rows, places = torch.arange(len(spans)), torch.arange(spans.shape[1])
        mask = span_attention_rule(spans)(rows[:, None, None], 0, places[None, :, None], places[None, None, :])
        view = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        logits = self.model(**view, attention_mask=mask[:, None]).logits.float()
        labels = [batch["mntp_labels"].flatten(), batch["msg_labels"].flatten()]
        loss = sum(F.cross_entropy(logits.flatten(0, 1), each, ignore_index=IGNORE) for each in labels)
        vectors = []
        sides = zip(batch["pair_input_ids"].chunk(2), batch["pair_attention_mask"].chunk(2))
        for ids, real in sides:  # anchors, then positives
            both_ways = real[:, None, None, :].bool().expand(-1, 1, ids.shape[1], -1)
            output = self.model(ids, attention_mask=both_ways, output_hidden_states=True, use_cache=False)
            vectors.append(F.normalize(pooled(output.hidden_states[-1], real, "last_token").float(), dim=-1))
        loss = loss + 9 * sscl_loss(*vectors)
        loss.backward()
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach())


def steps(layers: int, hidden: int, batch: dict, bf16: bool) -> dict:
    """The plain loop's step, ours, and ours without an adapter; each has a model of its own."""
    dtype = torch.bfloat16 if bf16 else torch.float32

    def model(r):
        return magnet(random_llama(layers, hidden).to(dtype), r, **NO_END).train()

    frozen = model(None)  # the gradient flows through it as with an adapter
    frozen.model.embed_tokens.register_forward_hook(lambda module, args, output: output.requires_grad_())
    return {
        "naive": PlainStep(random_llama(layers, hidden).to(dtype), batch),
        "ours": Step(model(16), batch, bf16),
        "frozen": Step(frozen, batch, bf16),
    }


def timed(layers: int, hidden: int, batch: dict, bf16: bool, repeats: int) -> dict[str, list[float]]:
    calls = steps(layers, hidden, batch, bf16)
    naive, ours = calls["naive"](), calls["ours"]()
    assert abs(naive - ours) < (0.02 if bf16 else 1e-4) * abs(naive), (naive, ours)
    return side_by_side(calls, repeats)


def main(layers: int = 4, hidden: int = 512, rows: int = 2, length: int = 512, pairs: int = 4, repeats: int = 3):
    batch = random_batch(rows, length, pairs)
    shape = f"{layers} layers of {hidden}; {rows} x {length} tokens, {pairs} pairs of {PAIR_LENGTH}"
    fast, why = bf16_is_faster(use_cpu=True)
    answers = []
    for bf16, name, least in ((False, "float32", ">= 1.35"), (True, "bfloat16", ">= 1.7")):
        question = f"joint training step, {name}"
        if bf16 and not fast:
            answers.append(row(question, shape, f"not run, it is not fast here: {why}", None, None, least))
            continue
        peaks = {
            each: peak_mib(lambda each=each: steps(layers, hidden, batch, bf16)[each]) for each in ("naive", "ours")
        }
        seconds = in_a_fork(timed, layers, hidden, batch, bf16, repeats)
        how = "time: plain transformers and PEFT loop / MagnetTrainer"
        answers.append(row(question, shape, how, *compared(seconds, "naive", "ours"), least))
        how = f"peak over the model: ours / plain loop ({peaks['ours']:.0f} / {peaks['naive']:.0f} MiB)"
        answers.append(row(question, shape, how, peaks["ours"] / peaks["naive"], None, "<= 0.55"))
    how = "time: with adapter / frozen base without one, gradient through it"
    question = f"cost of LoRA in training, {'bfloat16' if fast else 'float32'}"
    answers.append(row(question, shape, how, *compared(seconds, "ours", "frozen"), "<= 1.15"))
    return answers


if __name__ == "__main__":
    show(main())
