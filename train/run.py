"""Puts a training run together: arguments -> model, data -> MagnetTrainer -> checkpoint.

    magnet train --config demo
    magnet train --config default --model_name_or_path HuggingFaceTB/SmolLM2-135M --train_file texts.txt \\
        --pairs_file pairs.jsonl --output_dir runs/smol
"""

import logging
import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, set_seed

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.export import save_checkpoint

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments, ViewArguments, parse
from .curves import CurvesCallback
from .data import MagnetCollator, MagnetDataset, load_pairs, load_texts, tokenize_sentence, tokenize_texts
from .trainer import MagnetTrainer
from .views import SpecialTokens

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
    trainer = build_trainer(model, tokenizer, data_args, view_args, training_args)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        save_checkpoint(trainer.accelerator.unwrap_model(trainer.model), tokenizer, training_args.output_dir)
    return model


def build_model(model_args: ModelArguments, view_args: ViewArguments, tokenizer) -> MagnetLlamaForCausalLM:
    """The base with a fresh adapter, or a MAGNET checkpoint as it is; only adapter and projection head train."""
    path, dtype = model_args.model_name_or_path, getattr(torch, model_args.dtype)
    if AutoConfig.from_pretrained(path).model_type == "magnet_llama":
        model = MagnetLlamaForCausalLM.from_pretrained(path, dtype=dtype)
        logger.warning("%s is a MAGNET checkpoint: its own settings and adapter are trained further.", path)
        if model.config.mask_token_id is None:
            model.config.mask_token_id = mask_token_id(model_args.mask_token, tokenizer)
    else:
        model = MagnetLlamaForCausalLM.from_llama(
            LlamaForCausalLM.from_pretrained(path, dtype=dtype),
            adapter={
                "r": model_args.lora_r,
                "alpha": model_args.lora_alpha,
                "target_modules": model_args.lora_target_modules,
            },
            causal_adapter=model_args.causal_adapter,
            pooling=model_args.pooling,
            projection_head=model_args.projection_head,
            representation_prompt=model_args.representation_prompt,
            mask_token_id=mask_token_id(model_args.mask_token, tokenizer),
        )
    if view_args.gap_layout == "mixed":  # a checkpoint that is trained further may have been trained without it
        model.config.infill_end_token_id = tokenizer.eos_token_id
        model.config.infill_free_offsets = [view_args.free_offset]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "projection_head" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def mask_token_id(text: str, tokenizer) -> int:
    """The id of the mask token, resolved once: `_` is `▁_` or `_` depending on the tokenizer."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"mask_token={text!r}: the tokenizer makes no token of it.")
    return ids[-1]


def check_lengths(config, data_args: DataArguments, view_args: ViewArguments) -> None:
    """Free gaps move positions to the right; all must stay inside what the base was trained on."""
    jump = view_args.max_spans * view_args.free_offset if view_args.gap_layout == "mixed" else 0
    if data_args.max_length + jump > config.max_position_embeddings:
        raise ValueError(
            f"max_length={data_args.max_length} with {view_args.max_spans} free gaps of {view_args.free_offset} reaches "
            f"position {data_args.max_length + jump}, beyond max_position_embeddings={config.max_position_embeddings}. "
            "Lower max_length, max_spans or free_offset."
        )


def build_trainer(model, tokenizer, data_args, view_args, training_args) -> MagnetTrainer:
    prompt = model.config.representation_prompt
    sentences = load_pairs(data_args.pairs_file, data_args.pair_columns) if data_args.pairs_file else []
    pairs = [
        tuple(tokenize_sentence(sentence, tokenizer, prompt, data_args.pair_max_length) for sentence in pair)
        for pair in sentences
    ]
    if training_args.lambda_sscl > 0 and not pairs:
        raise ValueError(f"lambda_sscl={training_args.lambda_sscl} needs pairs_file, or set lambda_sscl=0.")
    tokens = special_tokens(model.config, tokenizer)

    def dataset(source):
        texts = tokenize_texts(load_texts(source, data_args.text_column), tokenizer, data_args.max_length)
        return MagnetDataset(texts, pairs, view_args, tokens, training_args.pairs_per_row, training_args.seed)

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return MagnetTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset(data_args.train_file),
        eval_dataset=dataset(data_args.eval_file) if data_args.eval_file else None,
        data_collator=MagnetCollator(pairs, pad),
        processing_class=tokenizer,
        callbacks=[CurvesCallback()],
    )


def special_tokens(config, tokenizer) -> SpecialTokens:
    special = set(tokenizer.all_special_ids) | {config.mask_token_id}
    ordinary = np.array([i for i in range(config.vocab_size) if i not in special])
    return SpecialTokens(tokenizer.bos_token_id, config.mask_token_id, config.infill_end_token_id, ordinary)
