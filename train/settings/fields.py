"""MAGNET's own flags of `magnet train`, with meaning and default. Does not import torch, so that `--help` is fast.

`arguments.py` lets [`TrainingFields`] override transformers' fields.
"""

import math
from dataclasses import dataclass, field


@dataclass
class ModelArguments:
    """The base model and what is added to it."""

    model_name_or_path: str = field(metadata={"help": "A decoder or MAGNET checkpoint: a folder or a Hub id."})
    dtype: str = field(default="float32", metadata={"help": "Dtype of the base weights; LoRA weights are float32."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Keep the base weights in 8 bits (bitsandbytes)."})
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Keep the base weights in 4 bits, QLoRA (bitsandbytes)."}
    )
    mask_token: str = field(default="_", metadata={"help": "Text whose last token stands for a masked one (MNTP)."})
    text_start_token: str | None = field(
        default=None,
        metadata={"help": "Opens every text, as <|endoftext|>; else the tokenizer's own does."},
    )
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: float = field(default=32, metadata={"help": "LoRA alpha; the update is scaled by alpha / r."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"], metadata={"help": "Adapted projections."}
    )
    causal_adapter: bool = field(
        default=False, metadata={"help": "Keep the adapter on in causal mode, as the paper does."}
    )
    pooling: str = field(default="last_token", metadata={"help": "Sentence vector: last_token or mean."})
    projection_head: str = field(default="none", metadata={"help": "none, linear or mlp; used in training only."})
    representation_prompt: str = field(
        default="Given the sentence, find its representation:", metadata={"help": "Instruction put before a sentence."}
    )

    def __post_init__(self):
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit are both set: choose one.")
        check_choice("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        check_choice("pooling", self.pooling, ("last_token", "mean"))
        check_choice("projection_head", self.projection_head, ("none", "linear", "mlp"))
        check_range("lora_r", self.lora_r, 1, math.inf)
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha={self.lora_alpha}: must be positive.")
        if not self.lora_target_modules:
            raise ValueError("lora_target_modules=[]: nothing would be trained. Name at least one, such as q_proj.")

    @property
    def adapter(self) -> dict:
        """The new adapter, in the format of `MagnetLlamaConfig.adapter`."""
        return {"r": self.lora_r, "alpha": self.lora_alpha, "target_modules": self.lora_target_modules}


@dataclass
class DataArguments:
    """Where the texts and the sentence pairs come from."""

    train_file: str = field(
        metadata={
            "help": "Texts: .txt (one a line), .jsonl, either .gz, .parquet, a folder of these, or a Hub data set id."
        }
    )
    text_column: str = field(default="text", metadata={"help": "Column with the text; a list is joined by spaces."})
    pairs_file: str | None = field(default=None, metadata={"help": "Sentence pairs for SSCL: .jsonl or a Hub id."})
    pair_columns: list[str] = field(
        default_factory=lambda: ["text", "positive"],
        metadata={"help": "Columns of a sentence and its paraphrase; two lists are paired item by item."},
    )
    eval_file: str | None = field(default=None, metadata={"help": "Held-out texts, read like train_file."})
    eval_pairs_file: str | None = field(
        default=None, metadata={"help": "Held-out pairs for eval_loss_sscl, read like pairs_file."}
    )
    positives: str = field(
        default="column",
        metadata={"help": "column: the paraphrase in pairs_file; dropout: the sentence itself, seen through dropout."},
    )
    min_words: int = field(
        default=20,
        metadata={"help": "With positives=dropout and no pairs_file: sentences of train_file with more words."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read train_file while training; needs max_steps."})
    shuffle_window: int = field(
        default=1000, metadata={"help": "Documents that are shuffled together when streaming."}
    )
    on_bad: str = field(default="raise", metadata={"help": "Rows that cannot be used: raise, or skip and count them."})

    def __post_init__(self):
        check_choice("positives", self.positives, ("column", "dropout"))
        check_choice("on_bad", self.on_bad, ("raise", "skip"))
        if len(self.pair_columns) != 2:
            raise ValueError(f"pair_columns={self.pair_columns}: must name two, a sentence's and its paraphrase's.")
        check_range("min_words", self.min_words, 0, math.inf)
        if self.shuffle_window < 1:
            raise ValueError(f"shuffle_window={self.shuffle_window}: must be at least 1; 1 keeps the order.")


@dataclass
class ViewArguments:
    """How a text becomes a training view, and how long texts and sentences are (section 3.2, Appendix A)."""

    max_length: int = field(
        default=512, metadata={"help": "Tokens of a text row, with [BOS]; longer texts are cut up."}
    )
    pair_max_length: int = field(default=128, metadata={"help": "Tokens of a sentence, with prompt, [BOS] and [EOS]."})
    mask_ratio: float = field(default=0.2, metadata={"help": "Share of a row's tokens that MNTP masks."})
    mask_share: float = field(default=0.8, metadata={"help": "Share of those replaced by the mask token."})
    random_share: float = field(default=0.1, metadata={"help": "Share of those replaced by a random token."})
    mask_objective: str = field(
        default="mntp",
        metadata={"help": "Who predicts a masked token: mntp, its left neighbour; mtp, itself (App. D)."},
    )
    max_spans: int = field(default=2, metadata={"help": "Most spans of a row; 0: none."})
    span_min: int = field(default=4, metadata={"help": "Shortest span, tokens."})
    span_max: int = field(default=128, metadata={"help": "Longest span, tokens."})
    span_lengths: str = field(
        default="uniform", metadata={"help": "How lengths are drawn: uniform, or log_uniform (as many short as long)."}
    )
    max_span_share: float = field(default=0.6, metadata={"help": "Most of a row that its spans may take together."})
    sentence_span_ratio: float = field(default=0.0, metadata={"help": "Share of spans that are one whole sentence."})
    gap_layout: str = field(default="exact", metadata={"help": "exact (the paper) or mixed (half of the spans free)."})
    free_offset: int = field(default=128, metadata={"help": "Positions a free span reserves."})
    long_free_offset: int = field(
        default=0,
        metadata={"help": "Positions of a free span above free_offset; 0: such spans are exact."},
    )
    clean_context_ratio: float = field(default=0.0, metadata={"help": "Share of rows with spans and no masks."})
    all_span_ratio: float = field(default=0.0, metadata={"help": "Share of rows that are one span, i.e. causal."})
    fim_ratio: float = field(
        default=0.0, metadata={"help": "Share of rows in fill-in-the-middle order, causal, half PSM and half SPM."}
    )
    vary_length: bool = field(default=False, metadata={"help": "Crop rows at random, so that length hides the gap's."})

    def __post_init__(self):
        if self.max_length < 9:  # blocks.SHORTEST_ROW and [BOS]
            raise ValueError(
                f"max_length={self.max_length}: leaves no room for a span and its context. Use 9 or more."
            )
        if self.pair_max_length < 3:
            raise ValueError(
                f"pair_max_length={self.pair_max_length}: must hold [BOS], a token and [EOS], so 3 or more."
            )
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(
                f"mask_ratio={self.mask_ratio}: must be 0 or more and below 1, so that some context is left."
            )
        for name in ("mask_share", "random_share", "max_span_share"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("sentence_span_ratio", "clean_context_ratio", "all_span_ratio", "fim_ratio"):
            check_range(name, getattr(self, name), 0, 1)
        if self.mask_share + self.random_share > 1:
            raise ValueError(f"mask_share + random_share = {self.mask_share + self.random_share}: must be at most 1.")
        if not 1 <= self.span_min <= self.span_max:
            raise ValueError(f"span_min={self.span_min}, span_max={self.span_max}: need 1 <= span_min <= span_max.")
        if self.max_spans < 0:
            raise ValueError(f"max_spans={self.max_spans}: must be 0 (no spans) or more.")
        check_choice("mask_objective", self.mask_objective, ("mntp", "mtp"))
        if self.all_span_ratio + self.fim_ratio > 1:
            raise ValueError(
                f"all_span_ratio + fim_ratio = {self.all_span_ratio + self.fim_ratio}: must be at most 1."
            )
        check_choice("gap_layout", self.gap_layout, ("exact", "mixed"))
        check_choice("span_lengths", self.span_lengths, ("uniform", "log_uniform"))
        if self.free_offset < 1:
            raise ValueError(f"free_offset={self.free_offset}: must be positive.")
        if self.long_free_offset and self.long_free_offset <= self.free_offset:
            raise ValueError(
                f"long_free_offset={self.long_free_offset}: must be above free_offset={self.free_offset}, or 0."
            )

    @property
    def free_offsets(self) -> list[int]:
        """The offsets that a checkpoint supports, in ascending order."""
        return [self.free_offset] + ([self.long_free_offset] if self.long_free_offset else [])


@dataclass
class TrainingFields:
    """The paper's values of a run, and the weights of the joint loss (section 3.3)."""

    output_dir: str = field(default="runs/magnet", metadata={"help": "Where checkpoints, log and curves are written."})
    learning_rate: float = field(default=3e-5, metadata={"help": "AdamW's learning rate."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The rate's course; the paper's stays."})
    max_steps: int = field(default=4200, metadata={"help": "Optimizer steps."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Text rows per device and step."})
    per_device_pair_batch_size: int = field(default=64, metadata={"help": "Sentence pairs per device and step."})
    lambda_mntp: float = field(default=1.0, metadata={"help": "Weight of MNTP (lambda 1)."})
    lambda_sscl: float = field(default=9.0, metadata={"help": "Weight of SSCL (lambda 2), once it has started."})
    lambda_msg: float = field(default=1.0, metadata={"help": "Weight of MSG (lambda 3)."})
    sscl_start_step: float = field(
        default=3400, metadata={"help": "Step at which SSCL starts; below 1: that share of all steps."}
    )
    sscl_alone: bool = field(
        default=False, metadata={"help": "From sscl_start_step on train SSCL only, as LLM2Vec's second stage does."}
    )
    sscl_chunk_size: int = field(
        default=0, metadata={"help": "Pairs encoded at a time; 0: all. Same gradient, less memory, a forward more."}
    )
    sscl_dropout: float = field(default=0.0, metadata={"help": "Attention dropout while sentence pairs are encoded."})
    lambda_kl: float = field(
        default=0.0, metadata={"help": "Weight of KL(base || model) on causal rows (all_span_ratio, fim_ratio)."}
    )
    temperature: float = field(default=0.1, metadata={"help": "tau of InfoNCE."})
    resume: bool = field(
        default=False, metadata={"help": "Go on from the newest complete checkpoint in output_dir, if there is one."}
    )
    resume_changed: bool = field(
        default=False, metadata={"help": "Resume although data or settings are not those of the checkpoint."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Off: two backward passes a step; the trainer sees to parameters without gradient."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Views have columns of their own."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "A repeated row would be a false negative."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between two lines of the log."})
    save_strategy: str = field(default="steps", metadata={"help": "Intermediate checkpoints: no, steps or epoch."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Complete checkpoints that are kept."})

    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Also log to trackio, tensorboard, wandb; none: only to train_log.jsonl and curves.png."},
    )
    project: str = field(default="magnet", metadata={"help": "Project of trackio and wandb."})
    run_name: str | None = field(default=None, metadata={"help": "The run's name there; by default output_dir's."})


def check_choice(name, value, allowed):
    if value not in allowed:
        *most, last = map(repr, allowed)
        raise ValueError(f"{name}={value!r}: must be {', '.join(most)} or {last}.")


def check_range(name, value, low, high):
    if not low <= value <= high:  # also catches NaN
        what = f"lie between {low} and {high}" if high < math.inf else f"be at least {low}"
        raise ValueError(f"{name}={value}: must {what}.")
