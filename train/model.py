"""The model of a run: a base with a new adapter, or a MAGNET checkpoint to train further."""

import importlib.util
import logging
from dataclasses import replace

import torch
from accelerate import PartialState
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from modeling_magnet import FAMILIES
from modeling_magnet.encoding_magnet import check_tokenizer

from .fim import MOST_MARKER_TOKENS
from .settings.arguments import ModelArguments, ViewArguments

logger = logging.getLogger(__name__)


def build_model(model_args: ModelArguments, view_args: ViewArguments, tokenizer) -> PreTrainedModel:
    """The base with a new adapter, or a MAGNET checkpoint as is; only adapter and projection head are trained."""
    path, settings = model_args.model_name_or_path, {}
    family, is_magnet = family_of(path)
    if is_magnet:
        logger.warning("A MAGNET checkpoint: its own settings and adapter are trained further, not the flags'.")
    else:
        names = ("adapter", "causal_adapter", "pooling", "projection_head", "representation_prompt")
        settings = {name: getattr(model_args, name) for name in names}
        if model_args.text_start_token is not None:
            settings["text_start_token_id"] = text_start_token_id(model_args.text_start_token, tokenizer)
    model = family.from_pretrained(path, **settings, **loading(model_args))
    return prepare_model(model, view_args, tokenizer, model_args.mask_token)


def family_of(path: str) -> tuple[type[PreTrainedModel], bool]:
    """
    The class for a checkpoint, and whether it is already a MAGNET one.

    Raises:
        `ValueError` for a model of an unsupported family.
    """
    kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    family = FAMILIES.get(kind.removeprefix("magnet_"))
    if family is None:
        raise ValueError(
            f"model_name_or_path={str(path)!r}: its model_type is {kind!r}. MAGNET knows these families: "
            f"{', '.join(FAMILIES)}."
        )
    return family, kind.startswith("magnet_")


def prepare_model(model, view_args: ViewArguments, tokenizer, mask_token: str = "_") -> PreTrainedModel:
    """
    Sets the configuration values that the training views rely on, and freezes everything that is not trained.

    Raises:
        `ValueError` for a model that has nothing to train.
    """
    check_tokenizer(tokenizer, model.config)
    if model.config.mask_token_id is None:
        model.config.mask_token_id = mask_token_id(mask_token, tokenizer)
    if view_args.gap_layout == "mixed":  # a checkpoint to train further may lack it
        model.config.infill_end_token_id = tokenizer.eos_token_id
        model.config.infill_free_offsets = view_args.free_offsets
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "model: it has no adapter, so nothing would be trained. Load it with adapter={'r': 16, 'alpha': 32, "
            "'target_modules': ['q_proj', 'k_proj', 'v_proj', 'o_proj']}."
        )
    # the Trainer rejects a quantised model without a PEFT wrapper; here the base is frozen, the adapter is not
    model.is_quantized = False
    return model


def is_trained(name: str) -> bool:
    """Whether the parameter with this name is trained: adapter and projection head are, the base is frozen."""
    return "_lora." in name or "projection_head" in name


def loading(model_args: ModelArguments) -> dict:
    """
    How `from_pretrained` loads the base: its dtype and attention, or 8 or 4 bits through bitsandbytes.

    Raises:
        `ValueError` if bitsandbytes is not installed.
    """
    how = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
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
        llm_int8_skip_modules=["lm_head", "projection_head"],  # not quantised
    )
    how["device_map"] = {"": PartialState().device}  # each process fills its own device
    return how


def unquantised(weights, model_args: ModelArguments, view_args: ViewArguments, tokenizer):
    """
    The trained adapter on the unquantised base from disk.

    Args:
        weights (`dict`): The trained model's state dict.
    """
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, trust_remote_code=False)
    stored = config.dtype or getattr(torch, model_args.dtype)
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


def text_start_token_id(text: str, tokenizer) -> int:
    """The id of the token that opens every text; unlike in texts, special tokens are parsed."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"text_start_token={text!r}: must be one token of the tokenizer, and is {len(ids)}.")
    return ids[0]


def check_lengths(config, view_args: ViewArguments) -> None:
    """Free gaps shift positions right; all must stay within the range the base was trained on."""
    offset = max(view_args.free_offsets)
    jump = view_args.max_spans * offset if view_args.gap_layout == "mixed" else 0
    jump = max(jump, MOST_MARKER_TOKENS + 1 if view_args.fim_ratio > 0 else 0)
    if view_args.max_length + jump > config.max_position_embeddings:
        raise ValueError(
            f"max_length={view_args.max_length} with {view_args.max_spans} free gaps of {offset} reaches "
            f"position {view_args.max_length + jump}, beyond max_position_embeddings={config.max_position_embeddings}. "
            "Lower max_length, max_spans or free_offset."
        )
