"""The model of a run: a base with a fresh adapter, or a MAGNET checkpoint that is trained further."""

import logging

import torch
from transformers import AutoConfig, LlamaForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM

from .arguments import DataArguments, ModelArguments, ViewArguments

logger = logging.getLogger(__name__)


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
