"""MagnetTrainer: L = lambda_1 L_MNTP + lambda_2 L_SSCL + lambda_3 L_MSG (section 3.3) on transformers' Trainer."""

import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft.helpers import disable_input_dtype_casting
from torch.distributed.nn.functional import all_gather
from transformers import Trainer, TrainerCallback

from .losses import mntp_loss, msg_loss, sscl_loss
from .views import IGNORE

LABELS = {"mntp": "mntp_labels", "msg": "msg_labels"}


class EpochCallback(TrainerCallback):
    """Tells the data set its epoch. Where processes share the data, accelerate tells the sampler and stops there."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch))


class MagnetTrainer(Trainer):
    """
    Trains the three objectives together. A step is one hybrid forward of the texts (MNTP and MSG) and, once SSCL has
    started, one bidirectional forward of both sides of the sentence pairs; each has a backward pass of its own, so the
    two graphs are never in memory at once.

    Each token loss is a sum divided by the number of its targets in the whole step, over all accumulated batches and
    all processes. Takes what [`Trainer`] takes, with `args` a [`MagnetTrainingArguments`].

    Raises:
        `FloatingPointError` as soon as a loss is not finite, naming the objective and the step.
    """

    loss_is_scaled_for_ga = True  # the losses below are normalised over the accumulated batch

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(EpochCallback())
        self.label_names = list(LABELS.values())  # so that evaluation computes a loss
        self._logged = {}  # objective -> [sum of losses x count, count, correct], float64

    def train(self, *args, **kwargs):
        # under autocast PEFT's copy of every layer input to float32 is undone at once; it costs a third of the memory
        cast_off = disable_input_dtype_casting(self.model, active=self.args.bf16)
        with cast_off:
            return super().train(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None):
        """All held-out rows: `dataloader_drop_last` is for training."""
        before, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = before

    # ------------------------------------------------------------------------------------------------ the objectives

    def lambdas(self) -> dict[str, float]:
        """The weights at this step: SSCL counts from `sscl_start_step` on (Appendix A)."""
        args, start = self.args, self.args.sscl_start_step
        start = start * self.state.max_steps if start < 1 else start
        sscl = args.lambda_sscl if self.state.global_step >= start else 0.0
        return {"mntp": args.lambda_mntp, "sscl": sscl, "msg": args.lambda_msg}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        lambdas, training = self.lambdas(), model.training
        self._last_lambdas = lambdas  # when a log line is written, global_step is the next step's already
        loss = self.text_loss(model, inputs, lambdas, num_items_in_batch)
        if "pair_input_ids" in inputs and (lambdas["sscl"] > 0 or not training) and self.args.lambda_sscl > 0:
            if training:
                with self._no_sync(model):
                    self.accelerator.backward(loss)
                loss = loss.detach()
            loss = loss + (lambdas["sscl"] or self.args.lambda_sscl) * self.pair_loss(model, inputs)
        return (loss, {}) if return_outputs else loss

    def text_loss(self, model, inputs, lambdas, num_items=None) -> torch.Tensor:
        """lambda_1 L_MNTP + lambda_3 L_MSG, with logits only where there is a label."""
        labelled = (inputs["mntp_labels"] != IGNORE) | (inputs["msg_labels"] != IGNORE)  # (B, L)
        fields = ("input_ids", "attention_mask", "position_ids", "span_ids")
        logits = model(
            **{name: inputs[name] for name in fields},
            attention_mode="hybrid",
            logits_to_keep=labelled,
            use_cache=False,
        ).logits  # (labelled, V)
        loss = logits.sum() * 0.0  # keeps the graph whole where a batch has no target at all
        world = self.accelerator.num_processes if num_items is not None else 1  # DDP averages over processes
        for name, function in (("mntp", mntp_loss), ("msg", msg_loss)):
            targets = inputs[LABELS[name]][labelled]  # (labelled,)
            mine = targets != IGNORE
            count = mine.sum() if num_items is None else num_items[name]
            part = function(logits[mine], targets[mine], count) * world
            correct = (logits[mine].argmax(-1) == targets[mine]).sum()
            self._record(name, part * count / world, mine.sum(), correct, model.training)
            loss = loss + lambdas[name] * part
        return loss

    def pair_loss(self, model, inputs) -> torch.Tensor:
        """L_SSCL of this micro-batch, over the positives of all processes; its share of the accumulated step."""
        vectors = self.sentence_vectors(model, inputs["pair_input_ids"], inputs["pair_attention_mask"])  # (2 P, d)
        anchors, positives = vectors.chunk(2)
        pair_ids, first = inputs["pair_ids"], 0
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            first = len(anchors) * dist.get_rank()
            positives = torch.cat(all_gather(positives))
            all_ids = self.accelerator.gather(pair_ids)
        else:
            all_ids = pair_ids
        own = torch.arange(len(anchors), device=anchors.device) + first
        loss = sscl_loss(anchors, positives, self.args.temperature, own, pair_ids[:, None] == all_ids[None])
        hits = (all_ids[(anchors @ positives.T).argmax(-1)] == pair_ids).sum()  # a repeated text is right too
        self._record("sscl", loss * len(anchors), torch.tensor(len(anchors), device=loss.device), hits, model.training)
        return loss / (self.current_gradient_accumulation_steps if model.training else 1)

    def sentence_vectors(self, model, input_ids, attention_mask) -> torch.Tensor:
        """e = head(h), of unit length, (B, d). The language-modelling head sees no row at all."""
        outputs = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            attention_mode="bidirectional",
            logits_to_keep=torch.zeros_like(input_ids, dtype=torch.bool),
            output_hidden_states=True,
            use_cache=False,
        )
        magnet = self.accelerator.unwrap_model(model)
        vectors = magnet.pool(outputs.hidden_states[-1], attention_mask)
        if magnet.projection_head is not None:
            vectors = magnet.projection_head(vectors)
        return F.normalize(vectors.float(), dim=-1)

    def _no_sync(self, model):
        """The first of two backward passes leaves the averaging of gradients to the second."""
        return model.no_sync() if self.accelerator.num_processes > 1 else contextlib.nullcontext()

    # --------------------------------------------------------------------------------------------- counts and the log

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Counts the targets of each objective over the whole step: all its micro-batches, all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = (
            torch.stack([sum((b[key] != IGNORE).sum() for b in batches) for key in LABELS.values()])
            if batches
            else None
        )
        if counts is None:
            return batches, None
        counts = self.accelerator.reduce(counts.to(device), reduction="sum")
        return batches, dict(zip(LABELS, counts))

    def _record(self, name, total, count, correct, training):
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"loss_{name} is {total.item()} at step {self.state.global_step}: training stopped before the weights took "
                "it in. Lower learning_rate, or look at the data of this step."
            )
        key = name if training else f"eval_{name}"
        kept = self._logged.setdefault(key, torch.zeros(3, dtype=torch.float64, device=total.device))
        kept += torch.stack([total.detach().double(), count.double(), correct.double()])

    def log(self, logs, start_time=None):
        """Adds loss, accuracy and weight of each objective since the last line, over all processes."""
        prefix = "eval_" if "eval_loss" in logs else ""
        names = [name for name in ("mntp", "sscl", "msg") if prefix + name in self._logged]
        if prefix or "loss" in logs:
            for name in names:
                total, count, correct = self.accelerator.reduce(
                    self._logged.pop(prefix + name), reduction="sum"
                ).tolist()
                logs[f"{prefix}loss_{name}"] = total / max(count, 1)
                logs[f"{prefix}accuracy_{name}"] = correct / max(count, 1)
            if not prefix:
                logs |= {f"lambda_{name}": value for name, value in self._last_lambdas.items()}
        super().log(logs, start_time)
