"""Fine-tunes the sentence embeddings of a MAGNET checkpoint on pairs, with sentence-transformers' trainer and loss.

python examples/finetune_sentences.py --output_dir runs/sentences                     # shipped model and stories
python examples/finetune_sentences.py --model path/or/hub-id --pairs pairs.jsonl --output_dir runs/sentences

Pairs are JSON lines with "text" and "positive". Only the adapter trains, so the result is a MAGNET checkpoint again:
it generates as the base does, and fills gaps with the changed adapter. On two CPU cores the defaults take about a
minute.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
from sentence_transformers.training_args import BatchSamplers
from transformers import AutoModelForCausalLM, AutoTokenizer

from magnet_eval.sts import read_graded_pairs
from magnet_eval.sts import spearman as sts_spearman
from magnet_hub.fetch import shipped_checkpoint
from magnet_hub.save import save_checkpoint

STORIES = Path(__file__).parent / "assets" / "everyday-stories"


def read_pairs(path: Path | None) -> Dataset:
    """Rows of `path`, or every sentence of the shipped training stories with its paraphrase."""
    lines = (path or STORIES / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line]
    if path is None:
        pairs = [pair for row in rows for pair in zip(row["sentences"], row["paraphrases"])]
    else:
        pairs = [(row["text"], row["positive"]) for row in rows]
    return Dataset.from_dict({"text": [pair[0] for pair in pairs], "positive": [pair[1] for pair in pairs]})


def loss_of(sentences, args):
    """With --mini_batch_size the batch, and thus the number of negatives, can exceed memory."""
    if args.mini_batch_size is None:
        return MultipleNegativesRankingLoss(sentences)
    return CachedMultipleNegativesRankingLoss(sentences, mini_batch_size=args.mini_batch_size)


def fine_tune(sentences: SentenceTransformer, pairs: Dataset, args) -> list[float]:
    """Trains the adapter in place; returns the loss of each step."""
    for name, parameter in sentences.named_parameters():
        parameter.requires_grad_("_lora." in name)  # the base stays frozen, so generation does not change
    training = SentenceTransformerTrainingArguments(
        output_dir=str(args.output_dir),
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=max(1, args.max_steps // 10),
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a paraphrase seen twice in a batch would be a false negative
        prompts=sentences.prompts["document"],  # the prompt that encode() uses
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=0,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = SentenceTransformerTrainer(sentences, training, train_dataset=pairs, loss=loss_of(sentences, args))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def save(sentences: SentenceTransformer, args) -> None:
    """Keeps generation and infilling; `sentences.save_pretrained()` would save only the decoder."""
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32)
    model.model.load_state_dict(sentences[0].model.state_dict())
    save_checkpoint(model, AutoTokenizer.from_pretrained(args.model, trust_remote_code=True), args.output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: magnet-smollm2-135m, which is fetched the first time")
    parser.add_argument("--pairs", type=Path, help="JSON lines with text and positive; default: the shipped stories")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--max_steps", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--mini_batch_size", type=int, help="what fits into memory at once; default: the whole batch")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    args = parser.parse_args()
    args.model = args.model or str(shipped_checkpoint())

    in_float32 = {"dtype": torch.float32}  # bfloat16 would lose small updates
    sentences = SentenceTransformer(args.model, trust_remote_code=True, model_kwargs=in_float32)
    graded = read_graded_pairs(STORIES / "sts.tsv")
    before = sts_spearman(sentences.encode, graded)
    losses = fine_tune(sentences, read_pairs(args.pairs), args)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"Spearman x 100 on the shipped graded pairs: {before:.1f} -> {sts_spearman(sentences.encode, graded):.1f}")
    save(sentences, args)
    print(f"Saved to {args.output_dir}")


if __name__ == "__main__":
    main()
