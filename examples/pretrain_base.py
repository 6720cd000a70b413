"""Pretrains a tiny Llama and its tokenizer from scratch on any text; made tests/assets/magnet-tiny-base.

    python examples/pretrain_base.py --text novels.txt.gz:16000 "tinystories.txt.gz*3" stories.txt \\
        --minutes 68 --output_dir runs/magnet-tiny-base

Texts have one document per line (`PATH`, `PATH:FIRST_LINES` or `PATH*COPIES`). Windows of 256 tokens, Muon for the
matrices and AdamW for the rest, linear decay in the second half of the time.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from prepare_tiny_data import read_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WINDOW = 256  # tokens
BOS, EOS = 1, 2


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every string can be encoded and decoded without loss."""
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=2 * WINDOW, **names)


def tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2 * WINDOW,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlamaForCausalLM(config)


def windows(texts: list[str], tokenizer) -> torch.Tensor:
    """All documents as `<s> ... </s>`, one after another, cut into windows: (windows, 256)."""
    ids = []
    for first in range(0, len(texts), 1000):
        batch = tokenizer(texts[first : first + 1000], add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        ids += [token for row in batch for token in [BOS, *row, EOS]]
    count = len(ids) // WINDOW
    if count < 2:
        raise SystemExit(f"the texts have {len(ids)} tokens; at least {2 * WINDOW} are needed.")
    return torch.from_numpy(np.array(ids[: count * WINDOW]).reshape(count, WINDOW))


def optimizers(model) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, done: float) -> float:
    """Warm-up over 60 steps, constant in the first half of the run, then linear decay to 2 %."""
    return min(1.0, (step + 1) / 60) * min(1.0, max(0.02, (1 - done) / 0.5))


def pretrain(model, data: torch.Tensor, minutes: float, batch_size: int, held_out: int) -> None:
    steppers = optimizers(model)
    tuned = [(group, group["lr"]) for optimizer in steppers for group in optimizer.param_groups]
    generator, started, step, order = torch.Generator().manual_seed(0), time.monotonic(), 0, []
    with tqdm(total=round(minutes * 60), unit="s") as bar:
        while (done := (time.monotonic() - started) / (minutes * 60)) < 1:
            if len(order) < batch_size:
                order = (torch.randperm(len(data) - held_out, generator=generator) + held_out).tolist()
            rows, order = data[order[:batch_size]], order[batch_size:]
            for group, base in tuned:
                group["lr"] = base * learning_rate_factor(step, done)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(input_ids=rows, labels=rows).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in steppers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            bar.update(round(time.monotonic() - started) - bar.n)
            bar.set_postfix(step=step, loss=f"{loss.item():.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="PATH, PATH:LINES or PATH*COPIES")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--minutes", type=float, default=68)
    parser.add_argument("--batch_size", type=int, default=16, help="windows a step")
    parser.add_argument("--vocab_size", type=int, default=4096)
    args = parser.parse_args()

    random.seed(0)
    torch.manual_seed(0)
    texts = [text for source in args.text for text in read_texts(source)]
    random.shuffle(texts)
    tokenizer = train_tokenizer(texts[:8000], args.vocab_size)
    data, model = windows(texts, tokenizer), tiny_llama(args.vocab_size)
    held_out = min(32, len(data) // 2)
    pretrain(model, data, args.minutes, min(args.batch_size, len(data) - held_out), held_out)
    with torch.no_grad():
        loss = model.eval()(input_ids=data[:held_out], labels=data[:held_out]).loss.item()
    print(f"held-out loss {loss:.3f} nats a token")
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(args.output_dir)
    # stored in bfloat16, loaded in float32: no figure depends on how a CPU rounds bfloat16
    config = Path(args.output_dir) / "config.json"
    config.write_text(config.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
