"""Every recipe of the paper and of its rivals trains three steps; what makes it that recipe is looked up."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from magnet_train.run import build_trainer
from magnet_train.settings.recipes import NAMES, parse, read_recipe, recipe_names
from magnet_train.trainer import MagnetTrainer
from magnet_train.views import IGNORE

LOSSES = {  # recipe -> objectives of its first step, and of its last
    "paper": ("mntp msg", "mntp msg sscl"),
    "default": ("mntp msg", "mntp msg sscl"),
    "merged": ("mntp msg kl", "mntp msg sscl kl"),
    "long_spans": ("mntp msg sscl", "mntp msg sscl"),
    "llm2vec_mntp": ("mntp", "mntp"),
    "llm2vec": ("mntp", "sscl"),
    "ablation_mntp": ("mntp", "mntp"),
    "ablation_mntp_msg": ("mntp msg", "mntp msg"),
    "ablation_sscl": ("sscl", "sscl"),
    "ablation_sscl_msg": ("msg", "msg sscl"),
    "mtp": ("mntp", "mntp"),
    "clm_control": ("msg", "msg"),
    "fim_control": ("msg", "msg"),
}
FAST = ("default", "clm_control")
NO_PAIRS = {name for name, (_, last) in LOSSES.items() if "sscl" not in last} | {"llm2vec"}
STORIES = "examples/assets/everyday-stories/train.jsonl"


def flags(name, tmp_path, base):
    given = {
        "model_name_or_path": base,
        "train_file": STORIES,
        "text_column": "sentences",
        "output_dir": tmp_path / name,
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "max_length": 64,
        "span_max": 16,
        "free_offset": 32,
        "pair_max_length": 40,
        "per_device_train_batch_size": 8,
        "per_device_pair_batch_size": 8,
    }
    if "long_free_offset" in read_recipe(name):
        given |= {"free_offset": 8, "long_free_offset": 32, "span_max": 32}
    if read_recipe(name)["sscl_start_step"] > 0:
        given["sscl_start_step"] = 1
    if name == "llm2vec":
        given["min_words"] = 12  # the stories' sentences are short
    options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    if name not in NO_PAIRS:
        options += ["--pairs_file", STORIES, "--pair_columns", "sentences", "paraphrases"]
    return ["--config", name, *options]


def lambdas_of(line):
    return {name for name in ("mntp", "msg", "sscl", "kl") if line[f"lambda_{name}"] > 0}


def losses_of(line):
    return {name for name in ("mntp", "msg", "sscl", "kl") if line.get(f"loss_{name}", 0) > 0}


def masked(view):
    return int((view.mntp_labels != IGNORE).sum())


def adapted(model):
    return {name.split("_lora.")[0].split(".")[-1] for name, _ in model.named_parameters() if "_lora." in name}


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_recipe_trains(name, tmp_path, shared):
    arguments = parse(flags(name, tmp_path, shared / "models" / "stories3M"))
    trainer, _ = build_trainer(*arguments)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items() if "_lora." in key}
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    first, last = (set(names.split()) for names in LOSSES[name])
    assert (lambdas_of(lines[0]), lambdas_of(lines[-1])) == (first, last)
    assert losses_of(lines[0]) <= first and losses_of(lines[-1]) <= last
    assert set.union(*map(losses_of, lines)) == first | last  # four rows may hold no masked token, or no causal one
    changed = {
        key for key, value in trainer.model.state_dict().items() if key in before and (value != before[key]).any()
    }
    assert any("_lora.B" in key for key in changed)
    views = [trainer.train_dataset[i]["view"] for i in range(8)]
    PARTICULAR[name](trainer, views, read_recipe(name))


def has_papers_views(trainer, views, recipe):
    config = trainer.model.config
    assert (config.causal_adapter, config.pooling, config.infill_end_token_id) == (True, "last_token", None)
    assert all(view.span_ids.max() in (1, 2) and masked(view) for view in views)
    assert all((view.position_ids == range(len(view.position_ids))).all() for view in views)
    rates = {line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line}
    assert rates == {1e-3}  # to the end


def has_free_gaps(trainer, views, recipe):
    config = trainer.model.config
    assert (config.causal_adapter, config.infill_end_token_id, config.infill_free_offsets) == (False, 2, [32])
    assert any((view.position_ids != range(len(view.position_ids))).any() for view in views)
    assert any(masked(view) == 0 for view in views) and any(masked(view) for view in views)
    assert len({len(view.input_ids) for view in views}) > 4


def has_two_offsets(trainer, views, recipe):
    assert trainer.model.config.infill_free_offsets == [8, 32]
    views = [trainer.train_dataset[i]["view"] for i in range(60)]
    jumps = {int(jump) for view in views for jump in view.position_ids[1:] - view.position_ids[:-1] if jump > 1}
    assert min(jumps) <= 5 and max(jumps) > 8  # offset minus length of spans below and above 8 tokens


def has_causal_rows_too(trainer, views, recipe):
    views = [trainer.train_dataset[i]["view"] for i in range(40)]
    assert trainer.model.config.causal_adapter
    assert 2 <= sum((view.span_ids == 1).all() for view in views) <= 20


def has_masks_only(trainer, views, recipe):
    assert all(view.span_ids.max() == 0 and masked(view) for view in views)
    assert all((view.msg_labels == IGNORE).all() for view in views)


def is_llm2vec(trainer, views, recipe):
    config = trainer.model.config
    has_masks_only(trainer, views, recipe)
    assert (config.pooling, config.causal_adapter, config.representation_prompt) == ("mean", True, "")
    assert adapted(trainer.model) == {f"{name}_proj" for name in "q k v o gate up down".split()}
    assert config.adapter["alpha"] == 2 * config.adapter["r"] == 32


def is_simcse(trainer, views, recipe):
    is_llm2vec(trainer, views, recipe)
    assert (recipe["sscl_dropout"], recipe["temperature"], recipe["sscl_start_step"]) == (0.3, 0.05, 1000)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    anchors, positives = batch["pair_input_ids"].chunk(2)
    assert torch.equal(anchors, positives)  # the same sentence, told apart by dropout


def has_spans_and_masks(trainer, views, recipe):
    assert all(view.span_ids.max() > 0 and masked(view) for view in views)


def has_neither(trainer, views, recipe):
    assert all(view.span_ids.max() == 0 and not masked(view) for view in views)
    assert recipe["max_steps"] == 800


def has_spans_only(trainer, views, recipe):
    assert all(view.span_ids.max() > 0 and not masked(view) for view in views)


def predicts_at_the_place(trainer, views, recipe):
    has_masks_only(trainer, views, recipe)
    mask = trainer.model.config.mask_token_id
    hidden = [(view.input_ids == mask)[view.mntp_labels != IGNORE].mean() for view in views]
    assert sum(hidden) / len(hidden) > 0.6  # 80 % of the labels stand on a mask token


def is_causal(trainer, views, recipe):
    assert trainer.model.config.causal_adapter
    assert all((view.span_ids == 1).all() and not masked(view) for view in views)
    assert all((view.msg_labels[:-1] == view.input_ids[1:]).all() for view in views)


def is_fill_in_the_middle(trainer, views, recipe):
    is_causal(trainer, views, recipe)
    fim = trainer.train_dataset.tokens.fim
    views = [trainer.train_dataset[i]["view"] for i in range(40)]
    texts = [trainer.processing_class.decode(view.input_ids) for view in views]
    ordered = [re.findall("<PRE>|<SUF>|<MID>", text) for text in texts]
    assert ordered.count(["<PRE>", "<SUF>", "<MID>"]) > 30
    suffix_first = sum(
        view.input_ids[1 + len(fim.prefix) : 1 + len(fim.prefix) + len(fim.suffix)].tolist() == list(fim.suffix)
        for view in views
    )
    assert 10 <= suffix_first <= 30
    assert all(view.input_ids[-1] == 2 for view in views)


PARTICULAR = {
    "long_spans": has_two_offsets,
    "paper": has_papers_views,
    "default": has_free_gaps,
    "merged": has_causal_rows_too,
    "llm2vec_mntp": is_llm2vec,
    "llm2vec": is_simcse,
    "ablation_mntp": has_masks_only,
    "ablation_mntp_msg": has_spans_and_masks,
    "ablation_sscl": has_neither,
    "ablation_sscl_msg": has_spans_only,
    "mtp": predicts_at_the_place,
    "clm_control": is_causal,
    "fim_control": is_fill_in_the_middle,
}


# ---------------------------------------------------------------------------------------------------- docs/training.md

GUIDE = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")


def test_guide_has_every_recipe_and_names_no_other():
    rows = re.findall(
        r"^\| (`.*?) \|", GUIDE[GUIDE.index("## Recipes") : GUIDE.index("## What a run leaves")], re.MULTILINE
    )
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == recipe_names()


def test_commands_of_the_guide_parse(tmp_path, monkeypatch):
    """In a folder with what they name: an own recipe, and what the first run left."""
    blocks = re.findall(r"```(bash|yaml)\n(.*?)```", GUIDE, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("".join(text for kind, text in blocks if kind == "yaml"))
    stored = {"extends": "default", "model_name_or_path": "base", "train_file": "texts.txt"}
    (tmp_path / "runs" / "smol").mkdir(parents=True)
    (tmp_path / "runs" / "smol" / "training_config.yaml").write_text(yaml.safe_dump(stored))
    text = "".join(text for kind, text in blocks if kind == "bash").replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("magnet train")]
    assert len(commands) == 5
    for command in commands:
        model_args, *_ = parse([*command, "--use_cpu"])  # the recipes expect a GPU
        assert model_args.model_name_or_path


def test_settings_that_the_guide_names_exist():
    named = set(re.findall(r"`-{0,2}([a-z]+(?:_[a-z0-9]+)+)`", GUIDE))
    figures = {
        f"{what}_{name}"
        for what in ("loss", "accuracy", "eval_loss", "eval_accuracy")
        for name in ("mntp", "msg", "sscl", "kl")
    }
    unknown = named - set(NAMES) - set(recipe_names()) - figures - {"grad_norm", "tokens_per_second", "output_dir"}
    unknown -= set(inspect.signature(MagnetTrainer).parameters)  # `From Python`
    unknown -= {"activation_checkpointing"}  # gradient_checkpointing before transformers 5.23
    assert not unknown
