"""Puts a training run together: arguments -> model, data -> MagnetTrainer -> checkpoint.

    magnet train --config demo
    magnet train --config default --model_name_or_path HuggingFaceTB/SmolLM2-135M --train_file texts.txt \\
        --pairs_file pairs.jsonl --output_dir runs/smol
"""

import logging
import sys

from transformers import AutoTokenizer, set_seed

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.export import save_checkpoint

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments, ViewArguments
from .curves import CurvesCallback
from .data import build_data
from .model import build_model, check_lengths
from .recipes import parse
from .trainer import MagnetTrainer

logger = logging.getLogger(__name__)


def main(args: list[str] | None = None) -> None:
    try:
        arguments = parse(args)
    except ValueError as error:
        sys.exit(f"magnet train: {error}")
    train(*arguments)


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    view_args: ViewArguments,
    training_args: MagnetTrainingArguments,
) -> MagnetLlamaForCausalLM:
    """Trains, writes the checkpoint to `output_dir`, and returns the model."""
    set_seed(training_args.seed)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = build_model(model_args, view_args, tokenizer)
    check_lengths(model.config, data_args, view_args)
    training_args.eval_on_start = bool(training_args.do_eval and data_args.eval_file)
    data = build_data(model.config, tokenizer, data_args, view_args, training_args)
    trainer = MagnetTrainer(
        model=model,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.collator,
        processing_class=tokenizer,
        callbacks=[CurvesCallback()],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        save_checkpoint(trainer.accelerator.unwrap_model(trainer.model), tokenizer, training_args.output_dir)
    return model
