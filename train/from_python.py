"""Prepares the model and datasets that are passed to a [`MagnetTrainer`] in Python."""

import datasets
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from magnet_hub.trust import check_source
from modeling_magnet.configuration_magnet import MagnetFields

from .data.pairs import Pair, load_pairs
from .data.reading import load_texts
from .data.training_data import Sources, TrainingData, prepare
from .model import build_model, check_lengths, prepare_model
from .settings.arguments import (
    MagnetTrainingArguments,
    ModelArguments,
    ViewArguments,
    check_arguments,
    warn_of_late_pairs,
)


def prepared(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    sets: dict[str, datasets.Dataset | None],
    view_args: ViewArguments,
    args: MagnetTrainingArguments,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, TrainingData]:
    """
    The model with everything untrained frozen, its tokenizer, and the data ready for batching.

    Args:
        sets (`dict`): `train_dataset`, `train_pairs`, `eval_dataset` and `eval_pairs` of the trainer.

    Raises:
        `ValueError` naming the argument, the reason and the fix.
    """
    if isinstance(model, str):
        set_seed(args.seed)  # for the new adapter
        check_source(model)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        model = build_model(ModelArguments(model), view_args, tokenizer)
    elif not isinstance(model.config, MagnetFields):
        raise ValueError(
            f"model: {type(model).__name__} has no attention modes. Give its name or folder, or load it with "
            "from_pretrained(..., adapter={...}) of a MAGNET class, such as MagnetLlamaForCausalLM."
        )
    elif tokenizer is None:
        raise ValueError("processing_class=None: give the model's tokenizer.")
    else:
        model = prepare_model(model, view_args, tokenizer)
    check_lengths(model.config, view_args)
    check_arguments(model.config.causal_adapter, view_args, args)
    sources = Sources(load_texts(sets["train_dataset"], "text", name="train_dataset"))
    if sets["eval_dataset"] is not None:
        sources.held_out_texts = load_texts(sets["eval_dataset"], "text", name="eval_dataset")
    if args.lambda_sscl > 0:
        sources.pairs = read_pairs(sets["train_pairs"], args)
        if sets["eval_pairs"] is not None:
            sources.held_out_pairs = load_pairs(sets["eval_pairs"], ["text", "positive"], name="eval_pairs")
    return model, tokenizer, prepare(sources, model.config, tokenizer, view_args, args)


def read_pairs(pairs: datasets.Dataset | None, args: MagnetTrainingArguments) -> list[Pair]:
    """Pairs of `text` and `positive`, or of `text` with itself (dropout positives)."""
    if pairs is None:
        return []
    warn_of_late_pairs(args)
    if "positive" in pairs.column_names:
        return load_pairs(pairs, ["text", "positive"], name="train_pairs")
    if args.sscl_dropout == 0:
        raise ValueError(
            f"train_pairs: no column 'positive'; it has {pairs.column_names}. To train on each sentence and itself, set "
            "sscl_dropout, such as 0.3."
        )
    return load_pairs(pairs, ["text"], name="train_pairs")
