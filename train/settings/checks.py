"""Settings that are valid alone but conflict: rejected if the run would be wrong, a warning if it would be odd."""

import importlib.util
import logging

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments, ViewArguments

logger = logging.getLogger(__name__)


def check_arguments(
    model_args: ModelArguments,
    data_args: DataArguments,
    view_args: ViewArguments,
    training_args: MagnetTrainingArguments,
) -> None:
    """
    Checks the four against each other; called by [`parse`]. Checks that depend on the model run when it is loaded.

    Raises:
        `ValueError` naming the parameters, the reason and the fix.
    """
    check_training(model_args.causal_adapter, view_args, training_args)
    _check_contrastive(data_args, training_args)
    _check_data(data_args, training_args)
    _check_reports(training_args)
    if training_args.lambda_sscl > 0:
        warn_of_late_pairs(training_args)
    if data_args.eval_file and training_args.eval_strategy == "no":
        logger.warning("eval_file=%s: not measured while training. Set eval_strategy=steps.", data_args.eval_file)


def check_training(causal_adapter: bool, view_args: ViewArguments, training_args: MagnetTrainingArguments) -> None:
    """Checks that also apply to a [`MagnetTrainer`] made in Python; raises `ValueError` like [`check_arguments`]."""
    _check_objectives(view_args, training_args)
    _check_kl(causal_adapter, view_args, training_args)
    _check_spans(view_args)
    _check_processes(training_args)


def _check_objectives(view_args, training_args):
    """Rejects an objective that has a weight but nothing to learn."""
    causal = view_args.all_span_ratio + view_args.fim_ratio
    if training_args.lambda_msg > 0 and view_args.max_spans == 0 and causal == 0:
        raise ValueError(
            f"max_spans=0: MSG (lambda_msg={training_args.lambda_msg}) would have no span to learn. "
            "Set lambda_msg=0, or max_spans to 1 or more."
        )
    if view_args.fim_ratio > 0 and view_args.max_spans == 0:
        raise ValueError(f"max_spans=0: fill-in-the-middle (fim_ratio={view_args.fim_ratio}) needs 1 or more.")
    if training_args.lambda_mntp > 0 and view_args.mask_ratio == 0:
        raise ValueError(
            f"mask_ratio=0: MNTP (lambda_mntp={training_args.lambda_mntp}) would have no masked token to learn. "
            "Set lambda_mntp=0, or a mask_ratio such as 0.2."
        )
    if training_args.lambda_mntp > 0 and causal >= 1:
        raise ValueError(
            f"all_span_ratio + fim_ratio = {causal}: no row is left for MNTP (lambda_mntp={training_args.lambda_mntp}). "
            "Set lambda_mntp=0, or lower the ratios."
        )


def _check_contrastive(data_args, training_args):
    if training_args.sscl_alone and training_args.lambda_sscl == 0:
        raise ValueError("sscl_alone=True: lambda_sscl=0 leaves nothing to train. Set lambda_sscl=1.")
    if training_args.lambda_sscl > 0 and data_args.positives == "dropout" and training_args.sscl_dropout == 0:
        raise ValueError(
            "positives='dropout': with sscl_dropout=0 both views of a sentence would be equal. "
            "Set sscl_dropout, such as 0.3."
        )


def _check_kl(causal_adapter, view_args, training_args):
    if training_args.lambda_kl == 0:
        return
    if not causal_adapter:
        raise ValueError(
            f"lambda_kl={training_args.lambda_kl}: with causal_adapter=False causal mode is the base already. "
            "Set lambda_kl=0, or causal_adapter=True."
        )
    if view_args.all_span_ratio + view_args.fim_ratio == 0:
        raise ValueError(
            f"lambda_kl={training_args.lambda_kl}: it is measured on causal rows, and there are none. "
            "Set lambda_kl=0, or all_span_ratio above 0."
        )


def _check_spans(view_args):
    if view_args.max_spans > 0 and view_args.span_max >= view_args.max_length:
        raise ValueError(
            f"span_max={view_args.span_max}: must be below max_length={view_args.max_length}, a row needs context. "
            "Lower span_max or raise max_length."
        )


def _check_data(data_args, training_args):
    if data_args.streaming and training_args.max_steps <= 0:
        raise ValueError(f"max_steps={training_args.max_steps}: streaming=True has no epochs to count. Set max_steps.")
    if training_args.eval_strategy != "no" and not data_args.eval_file:
        raise ValueError(
            f"eval_strategy='{training_args.eval_strategy.value}': there is nothing to evaluate. Set eval_file."
        )
    if data_args.eval_pairs_file and not data_args.eval_file:
        raise ValueError(
            f"eval_pairs_file={data_args.eval_pairs_file!r}: held-out pairs come with the rows of held-out texts. Set "
            "eval_file."
        )


def check_pairs(data_args: DataArguments, training_args: MagnetTrainingArguments) -> None:
    """
    Rejects SSCL without pairs, before a model is loaded. Not part of [`check_arguments`]: inspecting a run's settings
    needs no data.

    Raises:
        `ValueError` naming the parameters and the fix.
    """
    sscl, dropout = training_args.lambda_sscl > 0, data_args.positives == "dropout"
    if sscl and not dropout and not data_args.pairs_file:
        raise ValueError(f"lambda_sscl={training_args.lambda_sscl} needs pairs_file, or set lambda_sscl=0.")
    if data_args.streaming and sscl and dropout and not data_args.pairs_file:
        raise ValueError(
            "positives='dropout' with streaming=True: the sentences of a stream are not known in advance. Give pairs_file."
        )


def _check_processes(training_args):
    if training_args.world_size > 1 and training_args.lambda_sscl > 0 and not training_args.dataloader_drop_last:
        raise ValueError(
            f"dataloader_drop_last=False: {training_args.world_size} processes would repeat rows to fill the last "
            "batch, and their sentences would be false negatives. Leave it out."
        )


def refuse_data_parallel(training_args: MagnetTrainingArguments) -> None:
    """
    Rejects several GPUs in one process, where the Trainer would use `nn.DataParallel`. Its threads do not inherit the
    adapter gate, which is thread-local: the causal pass of the KL term, for example, would not be the base's.

    Raises:
        `ValueError` with the command to use instead.
    """
    if training_args.n_gpu > 1:
        raise ValueError(
            f"{training_args.n_gpu} GPUs in one process would be trained by nn.DataParallel, which MAGNET does not support. "
            f"Start one process a GPU: torchrun --nproc_per_node {training_args.n_gpu}, or accelerate launch."
        )


def _check_reports(training_args):
    for name in ("trackio", "tensorboard", "wandb"):
        if name in training_args.report_to and importlib.util.find_spec(name) is None:
            raise ValueError(f"report_to={training_args.report_to}: {name} is not installed. pip install {name}")


def warn_of_late_pairs(training_args: MagnetTrainingArguments) -> None:
    """Warns if a run would never train on its pairs."""
    if 0 < training_args.max_steps <= training_args.sscl_start_step:
        logger.warning(
            "sscl_start_step=%g: not reached in max_steps=%d steps, so SSCL is never trained.",
            training_args.sscl_start_step,
            training_args.max_steps,
        )
