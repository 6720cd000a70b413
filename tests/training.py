"""A trainer on a tiny random model and a few rows, what it leaves to look at, and the losses by hand."""

import numpy as np
import torch
from families import build_magnet
from transformers import TrainerCallback

from magnet_train.data.blocks import Text
from magnet_train.data.dataset import MagnetCollator, MagnetDataset
from magnet_train.data.pairs import PairDeck
from magnet_train.model import is_trained
from magnet_train.settings.arguments import MagnetTrainingArguments, ViewArguments
from magnet_train.trainer import MagnetTrainer
from magnet_train.views import IGNORE, SpecialTokens

TOKENS = SpecialTokens(bos=1, mask=4, end=2, ordinary=np.arange(10, 97))
PAD = 3
VIEW = {"gap_layout": "mixed", "free_offset": 16, "span_max": 8}
PAIRS = [([1, 10 + i, 30 + i, 2], [1, 30 + i, 50, 10 + i, 2]) for i in range(16)]
PAIRS[1] = (PAIRS[0][0], [1, 60, 61, 2])  # the first sentence once more, with another paraphrase
HELD_OUT = [([1, 70 + i, 2], [1, 80 + i, 90, 2]) for i in range(7)]


def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [Text(rng.integers(10, 97, length), np.zeros(length, bool)) for length in rng.integers(12, 40, n)]


class Gradients(TrainerCallback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class RecordingCollator(MagnetCollator):
    """Keeps the batches."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batches = []

    def __call__(self, items):
        self.batches.append(super().__call__(items))
        return self.batches[-1]


def magnet(projection_head="linear", family="llama", **settings):
    """A tiny model as `build_model` hands it over: only adapter and projection head train."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_magnet(family, "sdpa", mask_token_id=4, projection_head=projection_head, **settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
    return model


def make_trainer(
    output_dir,
    model=None,
    rows=None,
    eval_rows=None,
    pairs=PAIRS,
    eval_pairs=HELD_OUT,
    view=VIEW,
    callbacks=(),
    **training,
) -> MagnetTrainer:
    """One step over 8 rows of 2 pairs each with all three objectives, unless told otherwise."""
    rows = texts(8) if rows is None else rows
    size = training.setdefault("per_device_train_batch_size", len(rows))
    settings = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "disable_tqdm": True,
        "max_steps": 1,
        "per_device_pair_batch_size": 2 * size,
        "sscl_start_step": 0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    args = MagnetTrainingArguments(**settings | training)

    def dataset(rows, pairs):
        deck = PairDeck(pairs, args.seed)
        return MagnetDataset(rows, deck, ViewArguments(**view), TOKENS, args.pairs_per_row, args.seed)

    return MagnetTrainer(
        model=magnet() if model is None else model,
        args=args,
        train_dataset=dataset(rows, pairs),
        eval_dataset=None if eval_rows is None else dataset(eval_rows, eval_pairs),
        data_collator=RecordingCollator(PAD),
        callbacks=list(callbacks),
    )


def log_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def token_losses_by_hand(model, batches):
    """L_MNTP and L_MSG from full logits: the mean of -log p over every target of the whole step."""
    sums, counts = {"mntp": 0.0, "msg": 0.0}, {"mntp": 0, "msg": 0}
    for batch in batches:
        fields = ("input_ids", "attention_mask", "position_ids", "span_ids")
        logits = model(**{name: batch[name] for name in fields}, attention_mode="hybrid").logits
        log_p = logits.log_softmax(-1)
        for name in sums:
            labels = batch[f"{name}_labels"]
            for row in range(len(labels)):
                for place in range(labels.shape[1]):
                    if labels[row, place] != IGNORE:
                        sums[name] = sums[name] - log_p[row, place, labels[row, place]]
                        counts[name] += 1
    return {name: sums[name] / counts[name] for name in sums}


def sscl_by_hand(model, batches, tau=0.1):
    """L_SSCL over all pairs of a step: each sentence alone, no padding; a repeated sentence is no negative."""
    anchors, positives, ids = [], [], []
    for batch in batches:
        vectors = []
        for row, mask in zip(batch["pair_input_ids"], batch["pair_attention_mask"]):
            hidden = model.model(row[mask.bool()][None], attention_mode="bidirectional").last_hidden_state
            vector = model.projection_head(hidden[0, -1]) if model.projection_head else hidden[0, -1]
            vectors.append(vector / vector.norm())
        anchors += vectors[: len(vectors) // 2]
        positives += vectors[len(vectors) // 2 :]
        ids += batch["pair_ids"].tolist()
    total, n = 0.0, len(anchors)
    for i in range(n):
        scores = {j: (anchors[i] @ positives[j] / tau).exp() for j in range(n) if j == i or ids[j] != ids[i]}
        total = total - (scores[i] / sum(scores.values())).log()
    return total / n


def relative_difference(found, expected) -> float:
    one, other = (torch.cat([part[name].flatten() for name in expected]) for part in (found, expected))
    return ((one - other).norm() / other.norm()).item()
