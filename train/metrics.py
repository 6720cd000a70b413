"""Metrics and messages of a run: loss and accuracy of each objective, tokens per second, and why it stopped."""

import time

import torch

OBJECTIVES = ("mntp", "sscl", "msg", "kl")


class Metrics:
    """
    Sums over the batches since the last log line; a line shows means over their targets, across all processes.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Sums over processes.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.lambdas = {}
        self._sums = {}  # objective -> [sum of losses x count, count, right], float64
        self._tokens, self._seconds, self._started = 0, 0.0, None

    def record(self, name: str, total: torch.Tensor, count: torch.Tensor, right: torch.Tensor) -> None:
        """Adds a sum of losses over `count` targets, `right` of them predicted correctly. Does not synchronise."""
        kept = self._sums.setdefault(name, torch.zeros(3, dtype=torch.float64, device=total.device))
        kept += torch.stack([total.detach().double(), count.double(), right.double()])

    def count_tokens(self, attention_mask: torch.Tensor) -> None:
        self._tokens = self._tokens + attention_mask.sum()

    def start_clock(self) -> None:
        self._started = time.perf_counter()

    def stop_clock(self) -> None:
        self._seconds += time.perf_counter() - self._started

    def line(self, prefix: str) -> dict[str, float]:
        """The entries of one log line, `prefix` is `""` or `"eval_"`; resets the sums. All processes must call it."""
        line = {}
        for name in OBJECTIVES:
            if prefix + name in self._sums:
                sums = self.accelerator.reduce(self._sums.pop(prefix + name), reduction="sum")
                total, count, right = sums.tolist()
                line[f"{prefix}loss_{name}"] = total / max(count, 1)
                if name != "kl":
                    line[f"{prefix}accuracy_{name}"] = right / max(count, 1)
        return line if prefix else line | {f"lambda_{name}": weight for name, weight in self.lambdas.items()}

    def tokens_per_second(self) -> float:
        """Tokens per second since the last call: texts and sentences, without padding, over all processes."""
        tokens = torch.as_tensor(self._tokens, dtype=torch.float64, device=self.accelerator.device)
        total = self.accelerator.reduce(tokens, reduction="sum").item()
        seconds, self._tokens, self._seconds = self._seconds, 0, 0.0
        return total / max(seconds, 1e-9)


def not_finite(name: str, value: float, step: int, rows: list[str]) -> str:
    """The message for a loss that is NaN or infinite."""
    rows = list(dict.fromkeys(rows))
    shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return (
        f"loss_{name} is {value} at step {step}, in {shown}: training stopped before the weights took it in. Lower "
        "learning_rate, or look at these rows."
    )


def out_of_memory(inputs: dict, step: int, error: Exception) -> str:
    """The message for a step that does not fit: its contents, and the settings that make it smaller."""
    rows, length = inputs["input_ids"].shape
    pairs = (
        f" and {len(inputs['pair_ids'])} pairs of {inputs['pair_input_ids'].shape[1]}" if "pair_ids" in inputs else ""
    )
    return (
        f"Out of memory at step {step}, with {rows} rows of {length} tokens{pairs} tokens a sentence ({error}). "
        "Set activation_checkpointing=true, or lower per_device_train_batch_size and raise gradient_accumulation_steps as "
        "much (the gradient stays the same), or set sscl_chunk_size."
    )
