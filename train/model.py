"""The model of a run: a base with a fresh adapter, or a MAGNET checkpoint that is trained further."""

import importlib.util
import logging
from dataclasses import replace

import torch
from accelerate import PartialState
from transformers import AutoConfig, BitsAndBytesConfig

from modeling_magnet import MagnetLlamaConfig, MagnetLlamaForCausalLM
from modeling_magnet.decoding_magnet import end_twins

from .arguments import DataArguments, ModelArguments, ViewArguments
from .fim import MOST_MARKER_TOKENS

logger = logging.getLogger(__name__)


def build_model(model_args: ModelArguments, view_args: ViewArguments, tokenizer) -> MagnetLlamaForCausalLM:
    """The base with a fresh adapter, or a MAGNET checkpoint as it is; only adapter and projection head train."""
    kind = AutoConfig.from_pretrained(model_args.model_name_or_path).model_type
    if kind == "magnet_llama":
        logger.warning("A MAGNET checkpoint: its own settings and adapter are trained further, not the flags'.")
        model = MagnetLlamaForCausalLM.from_pretrained(model_args.model_name_or_path, **loading(model_args))
        if model.config.mask_token_id is None:
            model.config.mask_token_id = mask_token_id(model_args.mask_token, tokenizer)
    elif kind == "llama":
        model = _adapted_base(model_args, mask_token_id(model_args.mask_token, tokenizer))
    else:
        raise ValueError(
            f"model_name_or_path={model_args.model_name_or_path!r}: its model_type is {kind!r}, and MAGNET extends Llama "
            "only. Choose a Llama checkpoint."
        )
    if view_args.gap_layout == "mixed":  # a checkpoint that is trained further may have been trained without it
        model.config.infill_end_token_id = tokenizer.eos_token_id
        model.config.infill_free_offsets = view_args.free_offsets
        if twins := end_twins(model, tokenizer.eos_token_id)[1:]:
            logger.warning(
                "gap_layout=mixed: %d tokens have the output row of the end token, all never written in pretraining. Training "
                "cannot tell them apart; infill() counts what they have together as the end's.",
                len(twins),
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # The Trainer trains a quantised model only inside PEFT's wrapper, which would hide attention modes from generate();
    # our adapter is PEFT's without the wrapper.
    model.is_quantized = False
    return model


def _adapted_base(model_args, mask_id) -> MagnetLlamaForCausalLM:
    """Loads a Llama's weights straight into MAGNET's classes, so that they may be quantised or sharded on the way."""
    config = MagnetLlamaConfig.from_llama(
        AutoConfig.from_pretrained(model_args.model_name_or_path),
        causal_adapter=model_args.causal_adapter,
        pooling=model_args.pooling,
        representation_prompt=model_args.representation_prompt,
        mask_token_id=mask_id,
    )
    model = MagnetLlamaForCausalLM.from_pretrained(model_args.model_name_or_path, config=config, **loading(model_args))
    model.add_magnet_adapter(model_args.adapter)
    model.add_projection_head(model_args.projection_head)
    return model


def is_trained(name: str) -> bool:
    """Whether the parameter of this name is trained: adapter and projection head are, the base is frozen."""
    return "lora_" in name or "projection_head" in name


def loading(model_args: ModelArguments) -> dict:
    """
    How `from_pretrained` is to load the base: its dtype, or 8 or 4 bits through bitsandbytes.

    Raises:
        `ValueError` where bitsandbytes is not installed.
    """
    how = {"dtype": model_args.dtype}
    bits = 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None
    if bits is None:
        return how
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"load_in_{bits}bit=True: needs bitsandbytes, which is not installed. Run: pip install 'magnet-llm[quantized]'."
        )
    how["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",  # QLoRA's data type, compute dtype and double quantisation
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["lm_head", "projection_head", r".*\.lora_[AB]"],  # these stay exact
    )
    how["device_map"] = {"": PartialState().device}  # each process fills its own device
    return how


def unquantised(weights, model_args: ModelArguments, view_args: ViewArguments, tokenizer):
    """
    The trained adapter over the base as it is on the disk.

    Args:
        weights (`dict`): The trained model's state dict.
    """
    stored = AutoConfig.from_pretrained(model_args.model_name_or_path).dtype or getattr(torch, model_args.dtype)
    plain_args = replace(model_args, load_in_4bit=False, load_in_8bit=False, dtype=str(stored).removeprefix("torch."))
    plain = build_model(plain_args, view_args, tokenizer)
    trained = {name: weight for name, weight in weights.items() if is_trained(name)}
    loaded = plain.load_state_dict(trained, strict=False)
    assert not loaded.unexpected_keys and not any(map(is_trained, loaded.missing_keys))
    return plain


def mask_token_id(text: str, tokenizer) -> int:
    """The id of the mask token, resolved once: `_` is `▁_` or `_` depending on the tokenizer."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"mask_token={text!r}: the tokenizer makes no token of it.")
    return ids[-1]


def check_lengths(config, data_args: DataArguments, view_args: ViewArguments) -> None:
    """Free gaps move positions to the right; all must stay inside what the base was trained on."""
    offset = max(view_args.free_offsets)
    jump = view_args.max_spans * offset if view_args.gap_layout == "mixed" else 0
    jump = max(jump, MOST_MARKER_TOKENS + 1 if view_args.fim_ratio > 0 else 0)
    if data_args.max_length + jump > config.max_position_embeddings:
        raise ValueError(
            f"max_length={data_args.max_length} with {view_args.max_spans} free gaps of {offset} reaches "
            f"position {data_args.max_length + jump}, beyond max_position_embeddings={config.max_position_embeddings}. "
            "Lower max_length, max_spans or free_offset."
        )
