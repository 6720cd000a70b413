"""Runs of `magnet_train.run.train` on a tiny model that saves at every step, here or in a process that can be killed."""

import contextlib
import os
import threading
from types import SimpleNamespace
from unittest.mock import patch

import torch
from conftest import BASE_MODEL
from tqdm import tqdm
from training import VIEW, magnet, make_trainer, texts
from transformers import AutoTokenizer, TrainerCallback, logging

from magnet_train import run
from magnet_train.data.training_data import hash_ids
from magnet_train.settings.arguments import DataArguments, ModelArguments, ViewArguments

TOKENIZER = AutoTokenizer.from_pretrained(BASE_MODEL)  # loaded once, in the process from which the others are forked
tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
STEPS = 6  # of 4 rows of 12: two epochs; SSCL starts at step 3
RUN = {"max_steps": STEPS, "learning_rate": 1e-2, "sscl_start_step": 3, "per_device_train_batch_size": 4}
RUN |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "lr_scheduler_type": "linear"}


def train(output_dir, callbacks=(), rows=12, model=None, view=VIEW, **settings):
    """`magnet_train.run.train` on a tiny model and `rows` random texts; returns the trained model."""
    model = magnet() if model is None else model
    trainer = make_trainer(output_dir, model, texts(rows), view=view, callbacks=callbacks, **RUN | settings)
    trainer.processing_class = TOKENIZER  # its own vocabulary; only saved
    data = SimpleNamespace(fingerprint={"train": hash_ids(text.ids for text in trainer.train_dataset.texts)})
    model_args, data_args = ModelArguments("tiny"), DataArguments("texts")
    with patch.object(run, "build_trainer", lambda *arguments: (trainer, data)):
        return run.train(model_args, data_args, ViewArguments(**view), trainer.args)


class Announce(TrainerCallback):
    """Sends the number of each step that begins."""

    def __init__(self, begun):
        self.begun = begun

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun.send(state.global_step + 1)


def in_process(output_dir, begun, settings):
    """The same in a process of its own, which sends each step that begins on `begun`."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(output_dir, [Announce(begun)], **settings)
