"""Complete checkpoints: what is damaged is seen, what is deleted comes last, and only the same run goes on."""

import json
import os
import shutil
import signal

import pytest
import safetensors.torch
import torch
from conftest import build_magnet
from surviving import STEPS, train
from training import magnet, make_trainer
from transformers import TrainerCallback, TrainerState, modeling_utils
from transformers.trainer_utils import get_last_checkpoint

from magnet_train.settings.arguments import MagnetTrainingArguments
from magnet_train.survival import checkpointing, guard, interrupts
from magnet_train.survival.checkpointing import COMPLETE, checkpoints, mark_complete, newest_complete, problem, rotate
from magnet_train.survival.resuming import check_weights, checkpoint_to_resume

WEIGHTS = "model.safetensors"
FILES = [WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run with all its checkpoints, and the weights it ended at."""
    folder = tmp_path_factory.mktemp("whole")
    model = train(folder, save_total_limit=None)
    assert [path.name for path in checkpoints(folder)] == [f"checkpoint-{step}" for step in range(1, STEPS + 1)]
    return folder, model.state_dict()


@pytest.fixture
def broken_off(whole, tmp_path):
    """The folder of a run that was killed after step 3."""
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        shutil.copytree(whole[0] / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return folder


def same(model, weights) -> bool:
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(value, weights[name]) for name, value in state.items())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


def arguments(folder, resume_from_checkpoint=None, **settings):
    asked_for = resume_from_checkpoint and str(folder / resume_from_checkpoint)
    return MagnetTrainingArguments(str(folder), resume_from_checkpoint=asked_for, use_cpu=True, **settings)


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_seen(broken_off, name, damage, caplog):
    newest = broken_off / "checkpoint-3"
    assert problem(newest) is None
    DAMAGES[damage](newest / name)
    assert newest_complete(broken_off) == broken_off / "checkpoint-2"
    assert f"{newest} is skipped: {name} " in caplog.text
    with pytest.raises(ValueError, match=rf"checkpoint-3': {name} .*--resume true would take checkpoint-2"):
        train(broken_off, resume_from_checkpoint=str(newest))


@pytest.mark.parametrize(
    "content", [None, "", '{"files": {', "[]", '{"resumable": true, "run": {}, "files": {"a": "1"}}']
)
def test_a_checkpoint_without_a_proper_complete_json_is_none(broken_off, content):
    path = broken_off / "checkpoint-3" / COMPLETE
    path.unlink() if content is None else path.write_text(content)
    assert problem(broken_off / "checkpoint-3").startswith(f"{COMPLETE} ")
    assert newest_complete(broken_off) == broken_off / "checkpoint-2"


def test_the_resumed_run_takes_the_newest_complete_one_and_ends_at_the_same_weights(whole, broken_off, caplog):
    truncate(broken_off / "checkpoint-3" / WEIGHTS)
    (broken_off / "checkpoint-4").mkdir()  # killed in its save
    (broken_off / "checkpoint-4" / "left_behind").write_text("from before")
    assert get_last_checkpoint(broken_off) == str(broken_off / "checkpoint-4")  # what transformers would take
    model = train(broken_off, resume=True, save_total_limit=None)
    assert f"going on from {broken_off / 'checkpoint-2'}" in caplog.text
    assert f"checkpoint-4 is skipped: {COMPLETE} is missing" in caplog.text
    assert same(model, whole[1])
    assert all(problem(path) is None for path in checkpoints(broken_off))
    assert not (broken_off / "checkpoint-4" / "left_behind").exists()


def test_with_nothing_complete_a_resumed_run_begins_at_step_0(whole, tmp_path, caplog):
    (tmp_path / "checkpoint-1").mkdir()
    assert same(train(tmp_path, resume=True), whole[1])
    assert "holds no complete checkpoint; training begins at step 0" in caplog.text


def test_weights_alone_are_not_resumed_from(tmp_path):
    train(tmp_path, save_only_model=True, max_steps=1)
    assert problem(tmp_path / "checkpoint-1") == "it holds weights only (save_only_model=True)"


def test_a_finished_run_is_not_trained_further(whole, broken_off):
    """The Trainer itself takes another step before it looks."""
    last = whole[0] / f"checkpoint-{STEPS}"
    shutil.copytree(last, broken_off / last.name)
    steps = Steps()
    assert same(train(broken_off, [steps], resume=True), whole[1])
    assert steps.seen == []
    assert (broken_off / "config.json").is_file()  # what the first run did not come to write


# ----------------------------------------------------------------------------------------------------- the same run?


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 2e-2, "seed": 7}, ["learning_rate: 0.01 in the", " seed: 42", "data_seed: 42"]),
        (
            {"per_device_train_batch_size": 2},
            ["per_device_train_batch_size: 4 in", "per_device_pair_batch_size: 8 in"],
        ),
        ({"gradient_accumulation_steps": 3}, ["gradient_accumulation_steps: 1 in the checkpoint, now 3"]),
        ({"lambda_sscl": 2.0}, ["lambda_sscl: 9.0 in the checkpoint, now 2.0"]),
        ({"max_steps": 9}, ["max_steps: 6 in the checkpoint, now 9"]),
        ({"rows": 13}, ["data: train: "]),
        (
            {"view": {"gap_layout": "exact", "span_max": 7}},
            ["gap_layout: mixed in", "span_max: 8 in", "free_offset: 16"],
        ),
    ],
)
def test_a_changed_run_is_refused_with_every_difference(broken_off, changes, told):
    with pytest.raises(ValueError, match="this is not the run that wrote it") as error:
        train(broken_off, resume=True, **changes)
    assert all(part in str(error.value) for part in [*told, "--resume_changed true"])
    assert str(error.value).count(" in the checkpoint, now ") == len(told)


def test_resume_changed_goes_on_and_warns_of_the_same(broken_off, whole, caplog):
    model = train(broken_off, resume=True, resume_changed=True, lambda_sscl=2.0, save_total_limit=None)
    assert "going on although this is not the run" in caplog.text
    assert "lambda_sscl: 9.0 in the checkpoint, now 2.0" in caplog.text
    assert not same(model, whole[1])


def test_what_the_optimizer_holds_cannot_be_changed_and_says_so(broken_off, whole, caplog):
    assert same(train(broken_off, resume=True, resume_changed=True, learning_rate=2e-2), whole[1])
    assert "learning_rate: 0.01 in the checkpoint, now 0.02 (the checkpoint's stays in force" in caplog.text


def test_a_moved_run_with_another_log_interval_is_the_same_run(broken_off, whole, tmp_path):
    moved = tmp_path / "a b" / ".." / "Ümläute 文"
    (tmp_path / "a b").mkdir()
    shutil.copytree(broken_off, moved)
    assert same(train(moved, resume=True, logging_steps=2, save_total_limit=3), whole[1])
    assert len(checkpoints(tmp_path / "Ümläute 文")) == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "holds checkpoint-1, checkpoint-2, checkpoint-3 of an earlier run. Go on from there with --resume true"),
        ({"resume_from_checkpoint": "checkpoint-1"}, "run holds checkpoint-2, checkpoint-3 too"),
        ({"resume_from_checkpoint": "checkpoint-3", "resume": True}, "both set: choose one"),
        ({"resume_from_checkpoint": "checkpoint-9"}, "there is no such folder. --resume true would take checkpoint-3"),
        ({"resume_from_checkpoint": "a/checkpoint-9"}, "no such folder. No complete checkpoint lies beside it"),
    ],
)
def test_a_run_does_not_mix_with_another(broken_off, settings, reason):
    with pytest.raises(ValueError, match=reason):
        checkpoint_to_resume(arguments(broken_off, **settings))


def test_a_run_goes_on_in_another_folder(broken_off, whole, tmp_path):
    assert same(train(tmp_path / "new", resume_from_checkpoint=str(broken_off / "checkpoint-2")), whole[1])
    assert len(checkpoints(broken_off)) == 3


@pytest.mark.parametrize("name", ["enable_jit_checkpoint", "save_on_each_node", "auto_find_batch_size"])
def test_what_cannot_be_trusted_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}=True: "):
        checkpoint_to_resume(arguments(tmp_path, **{name: True}))


# -------------------------------------------------------------------------------------------------------- the weights


@pytest.fixture
def weights(whole, tmp_path):
    """Rewrites the weights of a checkpoint."""
    shutil.copytree(whole[0] / "checkpoint-1", tmp_path / "checkpoint-1")
    file = tmp_path / "checkpoint-1" / WEIGHTS

    def rewrite(change):
        tensors = safetensors.torch.load_file(file)
        change(tensors)
        safetensors.torch.save_file(tensors, file, {"format": "pt"})
        return tmp_path / "checkpoint-1"

    return rewrite


LORA = "model.layers.0.self_attn.q_proj_lora.A"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t[LORA].view(-1)[3].fill_(float("nan")), f"tensor '{LORA}' holds NaN or infinity"),
        (lambda t: t[LORA].view(-1)[0].fill_(float("-inf")), f"tensor '{LORA}' holds NaN or infinity"),
        (lambda t: t.pop(LORA), f"tensor '{LORA}' is missing"),
        (lambda t: t.update({LORA: t[LORA][:-1].clone()}), f"tensor '{LORA}' has the shape"),
        (
            lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.ones(2)}),
            "layers.9.mlp.up_proj.weight' is not",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights, change, told):
    with pytest.raises(ValueError) as error:
        check_weights(weights(change), magnet())
    assert told in str(error.value) and "checkpoint-1" in str(error.value)


def test_the_weights_of_another_base_are_a_difference(weights):
    checkpoint = weights(lambda tensors: None)
    assert check_weights(checkpoint, magnet()) == []
    (entry,) = check_weights(checkpoint, magnet(seed=5))
    assert entry.startswith("model_name_or_path: ")


def test_tied_weights_are_stored_once_and_not_missed(tmp_path, tiny_llama):
    model = build_magnet(llama=tiny_llama(tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert check_weights(tmp_path, model) == []


# ------------------------------------------------------------------------------------------------ rotation, full disk


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, None, [1, 2, 3, 5, 9]), (0, None, [1, 2, 3, 5, 9]), (3, None, [2, 3, 5, 9]), (1, None, [5, 9])]
    + [(1, "checkpoint-1", [1, 5, 9]), (2, "checkpoint-1", [1, 5, 9]), (3, "checkpoint-2", [2, 3, 5, 9])],
)
def test_rotation(tmp_path, limit, best, left):
    for step in (1, 2, 3, 4, 5, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step not in (4, 9):  # 4 was killed in its save; 9 is of a future that does not count
            mark_complete(tmp_path / f"checkpoint-{step}", {})
    (tmp_path / "checkpoint-3-of-mine").mkdir()
    rotate(tmp_path / "checkpoint-5", limit, best and tmp_path / best)
    assert [checkpointing.step_of(path) for path in checkpoints(tmp_path)] == left
    assert (tmp_path / "checkpoint-3-of-mine").is_dir()


def test_the_old_checkpoint_goes_only_when_the_new_one_is_complete(tmp_path, monkeypatch):
    removed = []

    def remove(path):
        if path.is_dir():
            assert newest_complete(tmp_path).name > path.name
            removed.append(path.name)
        shutil.rmtree(path, ignore_errors=True)

    monkeypatch.setattr(checkpointing, "remove", remove)
    train(tmp_path)
    assert removed == [f"checkpoint-{step}" for step in range(1, STEPS)]
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{STEPS}"]


def test_the_trainer_is_left_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path, save_total_limit=3)
    before = (
        list(trainer.callback_handler.callbacks),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
    )
    with guard.guarded(trainer, {}):
        assert trainer.args.save_total_limit is None and len(trainer.callback_handler.callbacks) > len(before[0])
    after = list(trainer.callback_handler.callbacks), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert before == after and trainer.args.save_total_limit == 3


def test_a_full_disk_is_seen_before_the_save(broken_off, whole, monkeypatch):
    usage = shutil.disk_usage(broken_off)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        with pytest.raises(OSError) as error:
            train(broken_off, resume=True, save_total_limit=None)
    told = str(error.value)
    assert "checkpoint-4 could not be saved: the disk is full" in told and "1.0 MB are free" in told
    assert "checkpoint-3 is intact" in told and "--resume true" in told
    assert [path.name for path in checkpoints(broken_off)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert same(train(broken_off, resume=True), whole[1])


@pytest.mark.parametrize("where", ["weights", "optimizer", "state", COMPLETE])
def test_a_save_that_fails_says_what_is_left(broken_off, monkeypatch, where):
    def fail(*args, **kwargs):
        raise {"weights": safetensors.SafetensorError, "optimizer": RuntimeError}.get(where, OSError)("no more room")

    places = {"weights": (modeling_utils, "safe_save_file"), "optimizer": (torch, "save")}
    places |= {"state": (TrainerState, "save_to_json"), COMPLETE: (guard, "mark_complete")}
    with monkeypatch.context() as patch:
        patch.setattr(*places[where], fail)
        with pytest.raises(OSError) as error:
            train(broken_off, resume=True, save_total_limit=None)
    assert "checkpoint-4 could not be saved: no more room. It needs about 1" in str(error.value)
    assert "checkpoint-3 is intact" in str(error.value)
    assert not (broken_off / "checkpoint-4").exists()
    assert problem(broken_off / "checkpoint-3") is None


def test_an_error_outside_a_save_is_not_touched(broken_off):
    with pytest.raises(ZeroDivisionError):
        train(broken_off, [Steps(at=5, do=lambda: 1 / 0)], resume=True, save_total_limit=None)
    assert problem(broken_off / "checkpoint-4") is None


# ------------------------------------------------------------------------------------------------------------ signals


class Steps(TrainerCallback):
    """Notes each step that begins, and does something at one of them."""

    def __init__(self, at=None, do=None):
        self.seen, self.at, self.do = [], at, do

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append(state.global_step + 1)
        if self.at == self.seen[-1]:
            self.do()


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code", "strategy"),
    [
        (signal.SIGTERM, 0, "no"),
        pytest.param(signal.SIGINT, 130, "epoch", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0, "steps", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_leaves(tmp_path, whole, number, code, strategy, caplog, capfd):
    steps = Steps(at=4, do=lambda: send(number, number))  # torchrun sends what the terminal has sent already
    handlers = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with pytest.raises(SystemExit) as left:
        train(tmp_path, [steps], save_strategy=strategy)
    assert left.value.code == code and steps.seen == [1, 2, 3, 4]
    assert handlers == [signal.getsignal(number) for number in interrupts.SIGNALS]
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "config.json").exists() and not (tmp_path / WEIGHTS).exists()
    assert f"saved {tmp_path / 'checkpoint-4'}. Go on with the same command and --resume true" in caplog.text
    assert "this step is finished and saved" in capfd.readouterr().err
    assert same(train(tmp_path, resume=True, save_strategy=strategy), whole[1])


def test_ctrl_c_twice_leaves_at_once(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(interrupts, "ECHO", -1)
    steps = Steps(at=4, do=lambda: send(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [steps])
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-3"
    assert same(train(tmp_path, resume=True), whole[1])


def test_complete_json_names_every_file_and_setting(whole):
    content = json.loads((whole[0] / "checkpoint-2" / COMPLETE).read_text())
    assert {*FILES, "config.json", "tokenizer.json", "training_args.bin"} <= content["files"].keys()
    named = {
        "learning_rate": 1e-2,
        "lambda_sscl": 9.0,
        "world_size": 1,
        "span_max": 8,
        "lora_r": 16,
        "sharding": "none",
    }
    assert named.items() <= content["run"].items()
    assert not {"output_dir", "resume", "eval_file", "hub_token"} & content["run"].keys()
