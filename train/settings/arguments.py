"""The settings of `magnet train`: four dataclasses. `recipes.py` reads them from a YAML recipe and from flags.

Each class rejects invalid values; `checks.py` rejects combinations that conflict.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from .fields import DataArguments, ModelArguments, TrainingFields, ViewArguments, check_range

__all__ = ["DataArguments", "MagnetTrainingArguments", "ModelArguments", "ViewArguments"]

RANGES = {  # per setting; the paper's learning rate is 3e-5, so one above 1 is a typo
    "learning_rate": (0, 1),
    "weight_decay": (0, 1),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, 1),
    "max_grad_norm": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "per_device_train_batch_size": (1, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "per_device_pair_batch_size": (1, math.inf),
    "dataloader_num_workers": (0, math.inf),
    "lambda_mntp": (0, 1e6),
    "lambda_sscl": (0, 1e6),
    "lambda_msg": (0, 1e6),
    "lambda_kl": (0, 1e6),
    "sscl_start_step": (0, math.inf),
    "sscl_chunk_size": (0, math.inf),
    "sscl_dropout": (0, 0.9),
}


@dataclass
class MagnetTrainingArguments(TrainingFields, TrainingArguments):
    """[`TrainingArguments`] with the paper's values, and the weights of the joint loss (section 3.3)."""

    def __post_init__(self):
        for name, (low, high) in RANGES.items():
            check_range(name, getattr(self, name), low, high)
        self._check_steps()
        self._check_fixed()
        self.data_seed = self.seed if self.data_seed is None else self.data_seed  # else torch's current seed
        # without a GPU, transformers rejects bf16 unless use_cpu is set
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        self._check_checkpointing()
        self.run_name = self.run_name or Path(self.output_dir).resolve().name
        if self.lambda_mntp == self.lambda_sscl == self.lambda_msg == 0:
            raise ValueError("lambda_mntp, lambda_sscl and lambda_msg are all 0: nothing would be trained.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: must be positive. The paper's is 0.1.")
        if self.lambda_sscl > 0 and self.per_device_pair_batch_size % self.per_device_train_batch_size:
            raise ValueError(
                f"per_device_pair_batch_size={self.per_device_pair_batch_size}: must be a multiple of "
                f"per_device_train_batch_size={self.per_device_train_batch_size}, so that each text row carries its pairs. "
                "Change one of them, or set lambda_sscl=0."
            )

    def _check_steps(self):
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps={self.max_steps}: must be positive, or -1 to count num_train_epochs instead.")
        if self.max_steps == -1 and not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"num_train_epochs={self.num_train_epochs}: must be positive, or set max_steps.")
        for name in ("logging_steps", "save_steps", "eval_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be positive; below 1 it is a share of all steps.")

    def _check_fixed(self):
        """Rejects settings of [`TrainingArguments`] that are fixed here or would have no effect."""
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True: would remove the views. Leave it out.")
        if self.label_names:
            raise ValueError(f"label_names={self.label_names}: the views' labels are fixed. Leave it out.")
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: the losses have none. Leave it out."
            )

    def _check_checkpointing(self):
        kwargs = (
            self.gradient_checkpointing_kwargs or {}
        )  # the old name mirrors the new one, and more versions have it
        if kwargs.get("use_reentrant"):
            raise ValueError(
                f"activation_checkpointing_kwargs={kwargs}: reentrant checkpointing gives wrong gradients with LoRA in several "
                "processes. Leave use_reentrant out."
            )

    def __getstate__(self) -> dict:
        """The state that the Trainer pickles into every checkpoint (`training_args.bin`), without the secret token."""
        return self.__dict__ | {"hub_token": None}

    @property
    def pairs_per_row(self) -> int:
        return self.per_device_pair_batch_size // self.per_device_train_batch_size
