"""The settings of `magnet train`: four dataclasses. Each refuses its own invalid values, `check_arguments` conflicts."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

logger = logging.getLogger(__name__)


def check_choices(arguments) -> None:
    """Refuses a value that its field's `Literal` does not name; argparse does so for flags, not for Python."""
    for name, kind in get_type_hints(type(arguments)).items():
        if get_origin(kind) is Literal and getattr(arguments, name) not in get_args(kind):
            allowed = " or ".join(map(repr, get_args(kind)))
            raise ValueError(f"{name}={getattr(arguments, name)!r}: must be {allowed}.")


def check_least(arguments, **least) -> None:
    """Refuses a number below the least that means something, NaN and infinity."""
    for name, value in least.items():
        if not value <= getattr(arguments, name) < math.inf:
            raise ValueError(f"{name}={getattr(arguments, name)}: must be {value} or more, and finite.")


@dataclass
class ModelArguments:
    """The base model and what is added to it."""

    _argument_group_name = "the base model and what is added to it"

    model_name_or_path: str = HfArg(help="Decoder-only model or MAGNET checkpoint: a folder or a Hub id.")
    dtype: Literal["float32", "bfloat16", "float16"] = HfArg(
        default="float32", help="Dtype of the base; LoRA stays in float32."
    )
    attn_implementation: str | None = HfArg(
        default=None, help="Attention: sdpa (default), eager, flex_attention, or flash_attention_2 without spans."
    )
    load_in_8bit: bool = HfArg(default=False, help="Keep the base weights in 8 bits (bitsandbytes).")
    load_in_4bit: bool = HfArg(default=False, help="Keep the base weights in 4 bits, QLoRA (bitsandbytes).")
    mask_token: str = HfArg(default="_", help="Text whose last token is the mask token (MNTP).")
    text_start_token: str | None = HfArg(default=None, help="Token at the start of a text (default: the tokenizer's).")
    lora_r: int = HfArg(default=16, help="LoRA rank.")
    lora_alpha: float = HfArg(default=32, help="LoRA alpha; the update is scaled by alpha / r.")
    lora_target_modules: list[str] = HfArg(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"], help="Projections with LoRA."
    )
    causal_adapter: bool = HfArg(default=False, help="Keep the adapter on in causal mode, as in the paper.")
    pooling: Literal["last_token", "mean"] = HfArg(default="last_token", help="Pooling of sentence vectors.")
    projection_head: Literal["none", "linear", "mlp"] = HfArg(default="none", help="Head for SSCL, in training only.")
    representation_prompt: str = HfArg(
        default="Given the sentence, find its representation:", help="Instruction before each sentence."
    )

    def __post_init__(self):
        check_choices(self)

    @property
    def adapter(self) -> dict:
        """The new adapter, in the format of `MagnetLlamaConfig.adapter`."""
        return {"r": self.lora_r, "alpha": self.lora_alpha, "target_modules": self.lora_target_modules}


@dataclass
class DataArguments:
    """Where the texts and the sentence pairs come from."""

    _argument_group_name = "texts and sentence pairs"

    train_file: str = HfArg(
        help="Texts: .txt or .jsonl, also as .gz, .parquet, a folder of these, or a Hub data set id."
    )
    text_column: str = HfArg(default="text", help="Text column; lists are joined by spaces.")
    sample_by: Literal["line", "paragraph", "document"] = HfArg(
        default="line", help="A text is a line (row), the lines between two empty ones, or a whole file."
    )
    pairs_file: str | None = HfArg(default=None, help="Sentence pairs for SSCL: .jsonl or a Hub id.")
    pair_columns: list[str] = HfArg(
        default_factory=lambda: ["text", "positive"],
        help="Columns of a sentence and its paraphrase; lists are paired by item.",
    )
    eval_file: str | None = HfArg(default=None, help="Held-out texts, read like train_file.")
    eval_pairs_file: str | None = HfArg(default=None, help="Held-out pairs for eval_loss_sscl, read like pairs_file.")
    positives: Literal["column", "dropout"] = HfArg(
        default="column", help="The paraphrase in pairs_file, or the sentence itself with dropout (SimCSE)."
    )
    min_words: int = HfArg(default=20, help="positives=dropout without pairs_file: use longer sentences only.")
    streaming: bool = HfArg(default=False, help="Stream train_file; needs max_steps.")
    shuffle_window: int = HfArg(default=1000, help="Rows shuffled together when streaming.")
    on_bad: Literal["raise", "skip"] = HfArg(default="raise", help="What to do with invalid rows.")

    def __post_init__(self):
        check_choices(self)
        check_least(self, shuffle_window=1)
        if len(self.pair_columns) != 2:
            raise ValueError(f"pair_columns={self.pair_columns}: must name two, a sentence's and its paraphrase's.")


@dataclass
class ViewArguments:
    """How a text becomes a training view, and how long texts and sentences are (section 3.2, Appendix A)."""

    _argument_group_name = "views of a text (section 3.2, Appendix A)"

    max_length: int = HfArg(default=512, help="Maximum tokens of a text row, with [BOS]; longer texts are split.")
    pair_max_length: int = HfArg(default=128, help="Maximum tokens of a sentence, with prompt, [BOS] and [EOS].")
    mask_ratio: float = HfArg(default=0.2, help="Share of tokens masked for MNTP.")
    mask_share: float = HfArg(default=0.8, help="Share of those replaced by the mask token.")
    random_share: float = HfArg(default=0.1, help="Share of those replaced by a random token.")
    mask_objective: Literal["mntp", "mtp"] = HfArg(
        default="mntp", help="Predict a masked token at the position before it (mntp), or at its own (mtp)."
    )
    max_spans: int = HfArg(default=2, help="Maximum spans per row; 0: none.")
    span_min: int = HfArg(default=4, help="Minimum span length in tokens.")
    span_max: int = HfArg(default=128, help="Maximum span length in tokens.")
    span_lengths: Literal["uniform", "log_uniform"] = HfArg(
        default="uniform", help="Distribution of span lengths; log_uniform: more short ones."
    )
    max_span_share: float = HfArg(default=0.6, help="Maximum share of a row in spans.")
    sentence_span_ratio: float = HfArg(default=0.0, help="Share of spans that are one whole sentence.")
    gap_layout: Literal["exact", "mixed"] = HfArg(default="exact", help="mixed: half of the spans have free length.")
    free_offset: int = HfArg(default=128, help="Positions reserved for a span of free length.")
    long_free_offset: int = HfArg(default=0, help="The same for spans above free_offset; 0: those are exact.")
    clean_context_ratio: float = HfArg(default=0.0, help="Share of rows with spans but no masks.")
    all_span_ratio: float = HfArg(default=0.0, help="Share of rows that are one span (causal).")
    fim_ratio: float = HfArg(default=0.0, help="Share of rows in fill-in-the-middle order (causal).")
    vary_length: bool = HfArg(
        default=False, help="Crop rows at random, so that row length does not reveal gap length."
    )

    def __post_init__(self):
        check_choices(self)
        # [BOS] and the 8 tokens of the shortest row; [BOS], a token and [EOS]
        check_least(self, max_length=9, pair_max_length=3, max_spans=0, free_offset=1)
        shares = ("mask_ratio", "mask_share", "random_share", "max_span_share")
        for name in (*shares, "sentence_span_ratio", "clean_context_ratio", "all_span_ratio", "fim_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and 1.")
        for one, other in (("mask_share", "random_share"), ("all_span_ratio", "fim_ratio")):
            if getattr(self, one) + getattr(self, other) > 1:
                raise ValueError(f"{one} + {other} = {getattr(self, one) + getattr(self, other)}: must be at most 1.")
        if not 1 <= self.span_min <= self.span_max:
            raise ValueError(f"span_min={self.span_min}, span_max={self.span_max}: need 1 <= span_min <= span_max.")
        if self.long_free_offset and self.long_free_offset <= self.free_offset:
            raise ValueError(
                f"long_free_offset={self.long_free_offset}: must be above free_offset={self.free_offset}, or 0."
            )

    @property
    def free_offsets(self) -> list[int]:
        """The offsets that a checkpoint supports, in ascending order."""
        return [self.free_offset] + ([self.long_free_offset] if self.long_free_offset else [])


@dataclass
class MagnetTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with the paper's values, and the weights of the joint loss (section 3.3)."""

    _argument_group_name = "training; what is MAGNET's own comes last"

    output_dir: str = HfArg(default="runs/magnet", help="Output folder for checkpoints, log and curves.")
    learning_rate: float = HfArg(default=3e-5, help="Learning rate of AdamW.")
    lr_scheduler_type: str = HfArg(default="constant", help="Learning rate schedule; constant in the paper.")
    max_steps: int = HfArg(default=4200, help="Optimizer steps; -1: use num_train_epochs.")
    per_device_train_batch_size: int = HfArg(default=32, help="Text rows per device and step.")
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="Keep off: a step has two backward passes.")
    remove_unused_columns: bool = HfArg(default=False, help="Keep off: training views need all columns.")
    dataloader_drop_last: bool = HfArg(default=True, help="Drop the last, incomplete batch of an epoch.")
    logging_steps: float = HfArg(default=20, help="Steps between log entries.")
    save_total_limit: int | None = HfArg(default=2, help="Number of checkpoints to keep.")
    report_to: list[str] = HfArg(default_factory=lambda: ["none"], help="Also log to trackio, tensorboard or wandb.")
    project: str = HfArg(default="magnet", help="Project name for trackio and wandb.")
    run_name: str | None = HfArg(default=None, help="Run name there (default: output_dir's).")

    lambda_mntp: float = HfArg(default=1.0, help="Weight of MNTP (lambda 1).")
    lambda_sscl: float = HfArg(default=9.0, help="Weight of SSCL (lambda 2), once it has started.")
    lambda_msg: float = HfArg(default=1.0, help="Weight of MSG (lambda 3).")
    lambda_kl: float = HfArg(default=0.0, help="Weight of KL(base || model) on causal rows.")
    per_device_pair_batch_size: int = HfArg(default=64, help="Sentence pairs per device and step.")
    temperature: float = HfArg(default=0.1, help="Temperature (tau) of InfoNCE.")
    sscl_start_step: float = HfArg(default=3400, help="Step at which SSCL starts; below 1: that share of all steps.")
    sscl_alone: bool = HfArg(default=False, help="Train only SSCL from sscl_start_step on, as LLM2Vec does.")
    sscl_chunk_size: int = HfArg(default=0, help="Pairs encoded at a time, with the same gradient; 0: all.")
    sscl_dropout: float = HfArg(default=0.0, help="Attention dropout when encoding sentence pairs.")
    resume: bool = HfArg(default=False, help="Resume from the latest complete checkpoint in output_dir.")
    resume_changed: bool = HfArg(default=False, help="Resume even if data or settings have changed.")

    def __post_init__(self):
        if self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "train_sampling_strategy='group_by_length': the rows of a batch are packed, which leaves no padding to save. "
                "Leave it out."
            )
        self.data_seed = self.seed if self.data_seed is None else self.data_seed  # else torch's current seed
        # without a GPU, transformers rejects bf16 unless use_cpu is set
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        self.run_name = self.run_name or Path(self.output_dir).resolve().name
        check_least(self, lambda_mntp=0, lambda_sscl=0, lambda_msg=0, lambda_kl=0, sscl_start_step=0)
        check_least(self, sscl_chunk_size=0, per_device_train_batch_size=1, gradient_accumulation_steps=1)
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature}: must be positive. The paper's is 0.1; an infinite one learns nothing."
            )
        if not 0 <= self.sscl_dropout < 1:
            raise ValueError(f"sscl_dropout={self.sscl_dropout}: must be 0 or more and below 1.")
        if self.max_steps < 1 and not self.num_train_epochs > 0:
            raise ValueError(
                f"num_train_epochs={self.num_train_epochs} with max_steps={self.max_steps}: nothing would be trained. Set "
                "one of them above 0."
            )
        pairs, rows = self.per_device_pair_batch_size, self.per_device_train_batch_size
        if self.lambda_sscl > 0 and (pairs < 1 or pairs % rows):
            raise ValueError(
                f"per_device_pair_batch_size={pairs}: must be a multiple of per_device_train_batch_size={rows}, so that each "
                "text row carries its pairs. Change one of them, or set lambda_sscl=0."
            )
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: the losses have none. Leave it out."
            )
        if (self.gradient_checkpointing_kwargs or {}).get("use_reentrant"):  # mirrors activation_checkpointing_kwargs
            raise ValueError(
                "activation_checkpointing_kwargs: use_reentrant=True gives wrong gradients with LoRA in several "
                "processes. Leave it out."
            )

    def __getstate__(self) -> dict:
        """The state that the Trainer pickles into every checkpoint (`training_args.bin`), without the secret token."""
        return self.__dict__ | {"hub_token": None}

    @property
    def pairs_per_row(self) -> int:
        return self.per_device_pair_batch_size // self.per_device_train_batch_size


def check_arguments(
    causal_adapter: bool,
    view_args: ViewArguments,
    training_args: MagnetTrainingArguments,
    data_args: DataArguments | None = None,
) -> None:
    """
    Refuses settings that are valid alone but together train nothing, or not what they say.

    Args:
        causal_adapter (`bool`): The model's: whether its adapter is on in causal mode.
        data_args ([`DataArguments`], *optional*): Those of `magnet train`; `MagnetTrainer` is given its data.

    Raises:
        `ValueError` naming the parameters, the reason and the fix.
    """
    views, training, causal = view_args, training_args, view_args.all_span_ratio + view_args.fim_ratio
    of_texts = training.lambda_mntp + training.lambda_msg + training.lambda_kl
    if of_texts == 0 and (training.lambda_sscl == 0 or training.sscl_start_step > 0):
        raise ValueError(
            f"lambda_mntp=0, lambda_msg=0, lambda_sscl={training.lambda_sscl}, sscl_start_step={training.sscl_start_step}: the "
            "first step would train nothing. Set a weight above 0, or sscl_start_step=0 for SSCL alone."
        )
    if views.max_spans == 0 and (views.fim_ratio > 0 or (training.lambda_msg > 0 and causal == 0)):
        raise ValueError(
            f"max_spans=0: MSG (lambda_msg={training.lambda_msg}) or fill-in-the-middle (fim_ratio={views.fim_ratio}) would "
            "have no span to learn. Set them to 0, or max_spans to 1 or more."
        )
    if views.max_spans > 0 and views.span_max >= views.max_length:
        raise ValueError(
            f"span_max={views.span_max}: must be below max_length={views.max_length}, a row needs context. "
            "Lower span_max or raise max_length."
        )
    if training.lambda_mntp > 0 and (views.mask_ratio == 0 or causal >= 1):
        raise ValueError(
            f"lambda_mntp={training.lambda_mntp}: no token would be masked with mask_ratio={views.mask_ratio} and "
            f"all_span_ratio + fim_ratio = {causal}. Set lambda_mntp=0, or change these."
        )
    if training.lambda_kl > 0 and not causal_adapter:
        raise ValueError(
            f"lambda_kl={training.lambda_kl}: with causal_adapter=False causal mode is the base already. "
            "Set lambda_kl=0, or causal_adapter=True."
        )
    if training.lambda_kl > 0 and causal == 0:
        raise ValueError(
            f"lambda_kl={training.lambda_kl}: there are no causal rows to measure it on. Set all_span_ratio."
        )
    if training.sscl_alone and training.lambda_sscl == 0:
        raise ValueError("sscl_alone=True: lambda_sscl=0 leaves nothing to train. Set lambda_sscl=1.")
    if data_args is None:
        return
    if training.lambda_sscl > 0 and data_args.positives == "dropout" and training.sscl_dropout == 0:
        raise ValueError(
            "positives='dropout': with sscl_dropout=0 both views of a sentence would be equal. Set it, such as to 0.3."
        )
    if data_args.eval_pairs_file and not data_args.eval_file:
        raise ValueError(
            f"eval_pairs_file={data_args.eval_pairs_file!r}: they come with the rows of held-out texts. Set eval_file."
        )
    if training.save_total_limit == 1:
        raise ValueError(
            "save_total_limit=1: the Trainer deletes the old checkpoint before the new one is complete. Set 2 or more."
        )
    if training.lambda_sscl > 0:
        warn_of_late_pairs(training)


def check_pairs(data_args: DataArguments, training_args: MagnetTrainingArguments) -> None:
    """Refuses SSCL without pairs. Not part of [`check_arguments`]: reading a recipe needs no data."""
    if training_args.lambda_sscl == 0 or data_args.pairs_file:
        return
    if data_args.positives == "column":
        raise ValueError(f"lambda_sscl={training_args.lambda_sscl} needs pairs_file, or set lambda_sscl=0.")
    if data_args.streaming:
        raise ValueError(
            "positives='dropout' with streaming=True: sentences are not known in advance. Give pairs_file."
        )


def warn_of_late_pairs(training_args: MagnetTrainingArguments) -> None:
    """Warns if a run would never train on its pairs."""
    if 0 < training_args.max_steps <= training_args.sscl_start_step:
        reached = training_args.sscl_start_step, training_args.max_steps
        logger.warning("sscl_start_step=%g: not reached in max_steps=%d steps, so SSCL is never trained.", *reached)


def refuse_data_parallel(training_args: MagnetTrainingArguments) -> None:
    """Several GPUs in one process: threads of `nn.DataParallel` do not inherit the adapter gate, which is thread-local."""
    if training_args.n_gpu > 1:
        raise ValueError(
            f"{training_args.n_gpu} GPUs in one process would be trained by nn.DataParallel, which MAGNET does not support. "
            f"Start one process a GPU: torchrun --nproc_per_node {training_args.n_gpu}, or accelerate launch."
        )
