"""MagnetTrainer: L = lambda_1 L_MNTP + lambda_2 L_SSCL + lambda_3 L_MSG (section 3.3) on transformers' Trainer."""

import contextlib
import functools

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from modeling_magnet.encoding_magnet import pack
from modeling_magnet.modeling_magnet import adapter_gate

from .contrastive import pair_chunks, vector_gradients, with_value
from .data.dataset import MagnetDataset, check_rows
from .data.streaming import StreamedDataset
from .from_python import prepared
from .losses import head_logits, kl_loss, loss_in_chunks, mntp_loss, msg_loss, sscl_loss
from .metrics import Metrics, not_finite, out_of_memory
from .settings.arguments import MagnetTrainingArguments, ViewArguments, refuse_data_parallel
from .views import IGNORE

LABELS = {"mntp": "mntp_labels", "msg": "msg_labels"}


class MagnetTrainer(Trainer):
    """
    Trains the three objectives jointly. A step is one hybrid forward pass over the texts (MNTP and MSG) and, once SSCL
    has started, one bidirectional forward pass over both sides of the sentence pairs. Each has its own backward pass,
    so the two graphs are never in memory at once.

    The gradient of a step does not depend on how its rows are split: each token loss is a sum divided by the number of
    targets in the whole step, and the negatives of a sentence are all pairs of the step, across accumulated batches
    and processes. Random choices depend only on (seed, step, place), so a resumed run repeats them.

    Args:
        model ([`PreTrainedModel`] or `str`):
            A MAGNET model with an adapter, or the name of a base model, which gets a rank-16 adapter on its attention.
            Only adapter and projection head are trained.
        args ([`MagnetTrainingArguments`], *optional*):
            Weights of the losses and everything in [`TrainingArguments`].
        train_dataset, eval_dataset ([`datasets.Dataset`], *optional*):
            Texts, in a column `text`. They are tokenized and cut into rows, and every epoch samples new views of them.
        train_pairs, eval_pairs ([`datasets.Dataset`], *optional*):
            Sentence pairs for SSCL, in columns `text` and `positive`. Without them SSCL is not trained, or not
            evaluated.
        view_args ([`ViewArguments`], *optional*):
            How views are sampled, and how long rows and sentences are. Defaults to the paper's.
        processing_class ([`PreTrainedTokenizerBase`], *optional*):
            The model's tokenizer.
        data_collator, kwargs (*optional*):
            As in [`Trainer`].

    Raises:
        `ValueError` for settings that would train nothing, or conflict.
        `FloatingPointError` as soon as a loss or a gradient is not finite, naming the objective, the step and the rows.

    docs/train.md, section "From Python", has an example.
    """

    loss_is_scaled_for_ga = True  # the losses below are normalised over the accumulated batch

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: MagnetTrainingArguments | None = None,
        *,
        train_dataset=None,
        eval_dataset=None,
        train_pairs: datasets.Dataset | None = None,
        eval_pairs: datasets.Dataset | None = None,
        view_args: ViewArguments | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator=None,
        **kwargs,
    ):
        args = args or MagnetTrainingArguments()
        refuse_data_parallel(args)
        if isinstance(train_dataset, datasets.Dataset):
            sets = {"train_dataset": train_dataset, "train_pairs": train_pairs}
            sets |= {"eval_dataset": eval_dataset, "eval_pairs": eval_pairs}
            model, processing_class, data = prepared(model, processing_class, sets, view_args or ViewArguments(), args)
            train_dataset, eval_dataset, data_collator = data.train, data.eval, data_collator or data.collator
        elif not isinstance(train_dataset, MagnetDataset | StreamedDataset | None):
            raise ValueError(
                f"train_dataset: {type(train_dataset).__name__} is no datasets.Dataset with a column 'text'. A source that is "
                "read while it is trained on needs `magnet train --streaming`."
            )
        if isinstance(train_dataset, MagnetDataset):
            check_rows(train_dataset, args)
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        self.add_callback(EpochCallback())
        self.add_callback(StepCallback(self))
        self.label_names = list(LABELS.values())  # so that evaluation computes a loss
        self.metrics = Metrics(self.accelerator)
        self._micro_batches, self._texts_done = [], 0  # of this step
        self._vector_gradients, self._chunks_done = None, 0

    def get_eval_dataloader(self, eval_dataset=None):
        """All held-out rows: `dataloader_drop_last` is for training."""
        before, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = before

    # ------------------------------------------------------------------------------------------------ the joint loss

    def lambdas(self) -> dict[str, float]:
        """The loss weights at this step; SSCL starts at `sscl_start_step` (Appendix A)."""
        args, start = self.args, self.args.sscl_start_step
        start = start * self.state.max_steps if start < 1 else start
        started = self.state.global_step >= start
        texts = 0.0 if started and args.sscl_alone else 1.0
        return {
            "mntp": args.lambda_mntp * texts,
            "sscl": args.lambda_sscl if started else 0.0,
            "msg": args.lambda_msg * texts,
            "kl": args.lambda_kl * texts,
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted loss of one micro-batch. Runs backward for all its forward passes but the last."""
        lambdas = self.lambdas()
        self.metrics.lambdas = lambdas  # by the time of the log line, global_step has advanced
        if not model.training:
            loss = self.evaluation_loss(model, inputs)
            return (loss, {}) if return_outputs else loss
        passes = self.text_passes(model, inputs, lambdas, num_items_in_batch)
        passes += self.pair_passes(model, inputs, lambdas["sscl"])
        if not passes:
            raise ValueError(f"At step {self.state.global_step} the weights are {lambdas}: nothing would be trained.")
        total = 0.0
        for one_pass in passes[:-1]:
            with self.more_to_come(model):
                loss = one_pass()
                self.accelerator.backward(loss, **self._backward_options())
            total = total + loss.detach()
        return total + passes[-1]()

    @contextlib.contextmanager
    def more_to_come(self, model):
        """A forward and backward pass before the micro-batch's last: processes do not exchange gradients yet."""
        before, self.accelerator.sync_gradients = self.accelerator.sync_gradients, False
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            self.accelerator.sync_gradients = before

    def _backward_options(self):
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        return {"scale_wrt_gas": False} if deepspeed else {}  # as in the Trainer: the losses are already scaled

    def evaluation_loss(self, model, inputs):
        """Includes objectives that start later, so that their curves begin at the run's start."""
        args = self.args
        loss = self.text_loss(model, inputs, {"mntp": args.lambda_mntp, "msg": args.lambda_msg, "kl": args.lambda_kl})
        if args.lambda_sscl > 0 and "pair_input_ids" in inputs:
            (chunk,) = pair_chunks(inputs, 0)
            loss = loss + args.lambda_sscl * self.contrast(self.sentence_vectors(model, chunk), [chunk], False)
        return loss

    # -------------------------------------------------------------------------------------------- texts: MNTP and MSG

    def text_passes(self, model, inputs, lambdas, num_items) -> list:
        if not (lambdas["mntp"] or lambdas["msg"] or lambdas["kl"]):
            return []
        self.metrics.count_tokens(inputs["attention_mask"])
        self._texts_done += 1
        return [functools.partial(self.text_loss, model, inputs, lambdas, num_items)]

    def text_loss(self, model, inputs, lambdas, num_items=None) -> torch.Tensor:
        """lambda_1 L_MNTP + lambda_3 L_MSG (+ lambda_kl KL), with logits only where there is a target, a few at a time."""
        self.prepare_dropout(model, self.model.config.attention_dropout, 0, self._texts_done)
        places = targets_of(inputs)  # (B, L) each
        places = places if lambdas.get("kl", 0) > 0 else {name: places[name] for name in LABELS}
        base = self.base_states(model, inputs) if "kl" in places else None
        states = self.decoder_states(model, inputs, "hybrid")  # (B, L, d)
        loss = self._idle_projection_head(lambdas)
        for name, place in places.items():
            count = place.sum() if num_items is None else num_items[name]

            def loss_of(some: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
                where = torch.zeros_like(place).masked_scatter(place, chosen)
                with self.accelerator.autocast():
                    return self._loss_at(name, where, some, base, inputs, count, model.training)

            loss = loss + lambdas[name] * loss_in_chunks(loss_of, states[place])
        # each process has a share of the targets: DDP averages, but the loss is the sum
        return loss * (1 if num_items is None else self.accelerator.num_processes)

    def _loss_at(self, name, where, states, base, inputs, count, training) -> torch.Tensor:
        """One objective's loss at the positions `where` (B, L), which have these last states, (positions, d)."""
        logits, end = head_logits(self.model, states), self.model.config.infill_end_token_id
        if name == "kl":
            with torch.no_grad():
                base_logits = head_logits(self.model, base[where])
            loss, right = kl_loss(logits, base_logits, count), where.sum()
        else:
            targets = inputs[LABELS[name]][where]  # (positions,)
            if name == "msg" and end is not None:
                barred = bars_end(inputs["span_ids"], inputs["msg_labels"], end)[where]
                logits[barred, end] = torch.finfo(logits.dtype).min
            loss = (mntp_loss if name == "mntp" else msg_loss)(logits, targets, count)
            right = (logits.argmax(-1) == targets).sum()
        origins = functools.partial(self._text_origins, inputs, where.nonzero()[:, 0], logits, training)
        self._record(name, loss * count, where.sum(), right, training, origins)
        return loss

    def base_states(self, model, inputs) -> torch.Tensor:
        """Last states (B, L, d) of the base in single-span rows, where hybrid attention is causal; 0 elsewhere."""
        chosen = one_span(inputs)  # (B,)
        chosen[0] |= ~chosen.any()  # sharded models need the same number of forwards on every process
        with torch.no_grad(), adapter_gate(False):
            view = ("input_ids", "attention_mask", "position_ids", "span_ids")
            some = self.decoder_states(model, {name: inputs[name][chosen] for name in view}, "hybrid")
        return some.new_zeros(len(chosen), *some.shape[1:]).index_put((chosen,), some)

    def decoder_states(self, model, inputs, mode: str) -> torch.Tensor:
        """
        Last hidden states (B, L, d), 0 at padding, of a call of the whole model without logits. The rows are
        packed, so that almost no padding is computed. `output_hidden_states` would return those of all layers, which
        accelerate copies to float32.
        """
        rows = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
        if mode == "hybrid":
            spans = inputs["span_ids"]  # numbers of their own in each row, because a packed row holds several
            first = torch.arange(len(spans), device=spans.device)[:, None] * (spans.max() + 1)
            rows["span_ids"] = torch.where(spans > 0, first + spans, 0)
        packed, unpack = pack(rows, inputs["attention_mask"])
        none, kept = torch.zeros_like(packed["input_ids"], dtype=torch.bool), []
        hook = self.model.model.register_forward_hook(
            lambda module, args, output: kept.append(output.last_hidden_state)
        )
        try:
            model(**packed, attention_mode=mode, logits_to_keep=none, use_cache=False)
        finally:
            hook.remove()
        return unpack(kept[0])

    def _idle_projection_head(self, lambdas):
        """Zero loss on the projection head until SSCL starts: DDP waits for every parameter's gradient."""
        head = self.model.projection_head
        if head is None or self.accelerator.num_processes == 1 or lambdas.get("sscl", 1) > 0:
            return 0.0
        weight = next(head.parameters())  # bfloat16 if FSDP computes in it
        return head(weight.new_zeros(0, self.model.config.hidden_size)).sum()

    # --------------------------------------------------------------------------------------------------- pairs: SSCL

    def pair_passes(self, model, inputs, weight: float) -> list:
        """One forward pass per chunk of this micro-batch. If the step has several, vector gradients come first."""
        if weight == 0 or "pair_input_ids" not in inputs:
            return []
        self.metrics.count_tokens(inputs["pair_attention_mask"])
        chunks = pair_chunks(inputs, self.args.sscl_chunk_size)
        if self._vector_gradients is None and len(chunks) * len(self._micro_batches) > 1:
            step = [c for batch in self._micro_batches for c in pair_chunks(batch, self.args.sscl_chunk_size)]
            self._pair_share, self._vector_gradients = self._find_vector_gradients(model, step)
        return [functools.partial(self.pair_loss, model, chunk, weight) for chunk in chunks]

    def pair_loss(self, model, chunk, weight: float) -> torch.Tensor:
        """lambda_2 L_SSCL of the step, with the gradient of this chunk's vectors."""
        world = self.accelerator.num_processes  # DDP averages over processes, and each has the whole loss
        if self._vector_gradients is None:
            loss = weight * self.contrast(self.sentence_vectors(model, chunk), [chunk])
            return with_value(loss * world, loss)
        number = self._chunks_done
        self._chunks_done += 1
        vectors = self.sentence_vectors(model, chunk, number)
        carrier = weight * world * (vectors * self._vector_gradients[number]).sum()
        return with_value(carrier, weight * self._pair_share)

    def _find_vector_gradients(self, model, chunks):
        """dL/dv for each chunk of the step, and the part of L that each chunk reports."""
        with torch.no_grad():
            vectors = [self.sentence_vectors(model, chunk, number) for number, chunk in enumerate(chunks)]
        loss, gradients = vector_gradients(functools.partial(self.contrast, chunks=chunks), vectors)
        return loss / len(chunks), gradients

    def contrast(self, own: torch.Tensor, chunks: list[dict], training: bool = True) -> torch.Tensor:
        """
        L_SSCL over the pairs of all processes. Gradients flow only into this process's vectors (n, 2, d); each process
        has the whole loss and handles its own vectors.
        """
        groups = torch.cat([chunk["pair_ids"] for chunk in chunks])  # (n,)
        everyone = own
        if self.accelerator.num_processes > 1:
            first = len(own) * self.accelerator.process_index
            gathered = self.accelerator.gather(own.detach())  # (processes x n, 2, d)
            everyone = torch.cat([gathered[:first], own, gathered[first + len(own) :]])
            groups = self.accelerator.gather(groups)
        anchors, positives = everyone.unbind(1)
        with torch.autocast(own.device.type, enabled=False):  # bfloat16 has 3 digits, and 1 / tau scales errors
            loss = sscl_loss(anchors, positives, self.args.temperature, groups[:, None] == groups[None])
            nearest = (anchors @ positives.T).argmax(-1)
        right = (groups[nearest] == groups).sum()  # a repeated text counts too
        count = torch.tensor(len(groups), device=own.device)
        origins = functools.partial(self._pair_origins, own, chunks, training)
        self._record("sscl", loss * count, count, right, training, origins)
        return loss

    def sentence_vectors(self, model, chunk, number: int = 0) -> torch.Tensor:
        """e = head(h), of unit length, (pairs, 2, d). The language-modelling head gets no rows."""
        self.prepare_dropout(model, self.args.sscl_dropout or self.model.config.attention_dropout, 1, number)
        inputs = {"input_ids": chunk["pair_input_ids"], "attention_mask": chunk["pair_attention_mask"]}
        vectors = self.model.pool(self.decoder_states(model, inputs, "bidirectional"), inputs["attention_mask"])
        if (head := self.model.projection_head) is not None:
            vectors = head(vectors.to(next(head.parameters()).dtype))  # float32 over a bfloat16 base; bfloat16 in FSDP
        anchors, positives = F.normalize(vectors.float(), dim=-1).chunk(2)
        return torch.stack([anchors, positives], dim=1)

    def prepare_dropout(self, model, rate: float, *place: int) -> None:
        """Sets the attention dropout of the next forward pass and seeds it with (seed, step, place), so that a resumed
        run does not depend on a generator's state."""
        if not model.training or (rate == 0 and self.args.sscl_dropout == 0):
            return
        for layer in self.model.model.layers:
            layer.self_attn.attention_dropout = rate
        where = (self.args.seed, self.state.global_step, *place, self.accelerator.process_index)
        seed = np.random.SeedSequence(where)
        torch.manual_seed(int(seed.generate_state(1)[0]))

    # --------------------------------------------------------------------------------------------- steps and the log

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Counts the targets of each objective over the whole step: all its micro-batches, all processes."""
        self.metrics.start_clock()
        self._texts_done, self._chunks_done = 0, 0
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batches, self._vector_gradients = batches, None
        if not batches:
            return batches, None
        targets = [targets_of(batch) for batch in batches]
        counts = {name: sum(each[name].sum() for each in targets) for name in targets[0]}
        totals = self.accelerator.reduce(torch.stack([*counts.values()]).to(device), reduction="sum")
        return batches, dict(zip(counts, totals))

    def training_step(self, model, inputs, num_items_in_batch=None):
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(out_of_memory(inputs, self.state.global_step, error)) from error
        if self.accelerator.sync_gradients and not self.args.fp16:  # fp16 skips such a step and lowers its loss scale
            check_gradients(self.model, self.state.global_step)
        return loss

    def log(self, logs, start_time=None):
        """Adds loss, accuracy and weight of each objective since the last line, over all processes."""
        if "eval_loss" in logs:
            logs |= self.metrics.line("eval_")
        elif "loss" in logs:
            logs |= self.metrics.line("") | {"tokens_per_second": self.metrics.tokens_per_second()}
        super().log(logs, start_time)

    def _record(self, name, total, count, right, training, origins):
        """Records the figures for the log; `origins()` names the rows they come from if they are not finite."""
        if not torch.isfinite(total):
            raise FloatingPointError(not_finite(name, total.item(), self.state.global_step, origins()))
        self.metrics.record(name if training else f"eval_{name}", total, count, right)

    def _text_origins(self, inputs, rows, logits, training) -> list[str]:
        """Locations of the texts whose logits are not finite, or of the whole batch if only the sum is not."""
        broken = rows[~logits.isfinite().all(-1)].unique()
        dataset = self.train_dataset if training else self.eval_dataset
        numbers = inputs["text_rows"][broken] if len(broken) else inputs["text_rows"]
        return [dataset.origin(number) for number in numbers.tolist()]

    def _pair_origins(self, own, chunks, training) -> list[str]:
        numbers = torch.cat([chunk["pair_rows"] for chunk in chunks])
        broken = ~own.isfinite().flatten(1).all(-1)
        numbers = numbers[broken] if broken.any() else numbers
        dataset = self.train_dataset if training else self.eval_dataset
        return [dataset.pairs.origin(number) for number in numbers.tolist()]


def targets_of(inputs) -> dict[str, torch.Tensor]:
    """Where each token loss has a target, (B, L)."""
    mntp, msg = (inputs[name] != IGNORE for name in LABELS.values())
    return {"mntp": mntp, "msg": msg, "kl": msg & one_span(inputs)[:, None]}


def bars_end(span_ids: torch.Tensor, msg_labels: torch.Tensor, end: int) -> torch.Tensor:
    """Where MSG leaves END out of its softmax, as `infill()` bars it: no fill is empty, and a gap of known length (one
    without END as a label) does not end early; (B, L)."""
    after = F.pad(span_ids[:, 1:], (0, 1))  # (B, L): the span of the token predicted here
    ends = msg_labels == end  # (B, L): at the last token of each free span
    free = torch.zeros(len(span_ids), int(span_ids.max()) + 1, dtype=torch.bool, device=span_ids.device)
    rows, places = ends.nonzero(as_tuple=True)
    free[rows, span_ids[rows, places]] = True  # (B, spans + 1)
    opens = (after > 0) & (after != span_ids)
    return ~ends & (opens | ~free.gather(1, after))


def one_span(inputs) -> torch.Tensor:
    """Which rows are a single span, and so causal; (B,)."""
    return ((inputs["span_ids"] > 0) | (inputs["attention_mask"] == 0)).all(1)


def check_gradients(model, step: int) -> None:
    """Raises `FloatingPointError` for a gradient that is not finite, before clipping makes all others NaN."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(gradients.values())
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if not torch.isfinite(norm):
        names = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        where = (
            f"of {names[0]} (and {len(names) - 1} more)" if names else "as a whole"
        )  # squares may overflow in the sum
        raise FloatingPointError(
            f"The gradient {where} is not finite at step {step}, though the loss is: training stopped before the weights took it in. Lower learning_rate, or train with bf16=false."
        )


class EpochCallback(TrainerCallback):
    """Sets the dataset's epoch. If processes share the data, accelerate only sets the sampler's."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch))


class StepCallback(TrainerCallback):
    """Hooks around an optimizer step."""

    def __init__(self, trainer: MagnetTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if model.projection_head is not None and self.trainer.metrics.lambdas["sscl"] == 0:
            model.projection_head.zero_grad()  # sets None: with a gradient of 0, Adam would count the step

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.metrics.stop_clock()
