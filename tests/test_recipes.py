"""Every recipe of the paper and of its baselines trains three steps, and is what its name says."""

import pytest

from magnet_train.run import build_trainer
from magnet_train.settings.recipes import parse, read_recipe, recipe_names

LOSSES = {  # recipe -> objectives of its first step, and of its last
    "paper": ("mntp msg", "mntp msg sscl"),
    "default": ("mntp msg", "mntp msg sscl"),
    "merged": ("mntp msg kl", "mntp msg sscl kl"),
    "long_spans": ("mntp msg sscl", "mntp msg sscl"),
    "smollm2": ("mntp msg", "mntp msg"),
    "smollm2_sscl": ("mntp msg sscl", "mntp msg sscl"),
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


def test_the_recipes_that_there_are():
    assert set(recipe_names()) == set(LOSSES)


def flags(name, tmp_path, base):
    recipe = read_recipe(name)
    given = f"--config {name} --model_name_or_path {base} --train_file {STORIES} --text_column sentences"
    given += f" --output_dir {tmp_path / name} --dtype float32 --bf16 false --use_cpu --disable_tqdm true"
    given += " --save_strategy no --logging_steps 1 --max_steps 3 --learning_rate 1e-3"
    given += " --max_length 64 --span_max 16 --free_offset 32 --pair_max_length 40"
    given += " --per_device_train_batch_size 8 --per_device_pair_batch_size 8"
    if "long_free_offset" in recipe:
        given += " --free_offset 8 --long_free_offset 32 --span_max 32"
    if "text_start_token" in recipe:
        given += " --text_start_token <s>"  # what this tokenizer adds anyway
    if recipe.get("sscl_start_step", 0) > 0:
        given += " --sscl_start_step 1"
    if name == "llm2vec":
        given += " --min_words 12"  # the stories' sentences are short
    if name not in NO_PAIRS:
        given += f" --pairs_file {STORIES} --pair_columns sentences paraphrases"
    return given.split()


def active(line, what):
    return {name for name in ("mntp", "msg", "sscl", "kl") if line.get(f"{what}_{name}", 0) > 0}


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_recipe_trains(name, tmp_path, shared):
    recipe = read_recipe(name)
    trainer, _ = build_trainer(*parse(flags(name, tmp_path, shared / "models" / "stories3M")))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items() if "_lora." in key}
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    first, last = (set(names.split()) for names in LOSSES[name])
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert (active(lines[0], "lambda"), active(lines[-1], "lambda")) == (first, last)
    losses = [active(line, "loss") for line in lines]
    assert losses[0] <= first and losses[-1] <= last
    assert set.union(*losses) == first | last  # four rows may hold no masked token, or no causal one
    changed = {
        key for key, value in trainer.model.state_dict().items() if key in before and (value != before[key]).any()
    }
    assert any("_lora.B" in key for key in changed)
    config = trainer.model.config
    assert config.causal_adapter == recipe.get("causal_adapter", False)
    assert config.pooling == recipe.get("pooling", "last_token")
    assert config.infill_end_token_id == (2 if recipe["gap_layout"] == "mixed" else None)


NO_SPANS, CAUSAL = {"max_spans": 0}, {"causal_adapter": True, "mask_ratio": 0.0}
LLM2VEC = NO_SPANS | {"pooling": "mean", "causal_adapter": True, "representation_prompt": "", "lora_r": 16}
LLM2VEC |= {"lora_alpha": 32, "lora_target_modules": [f"{name}_proj" for name in "q k v o gate up down".split()]}
SIMCSE = {
    "positives": "dropout",
    "sscl_dropout": 0.3,
    "temperature": 0.05,
    "sscl_start_step": 1000,
    "sscl_alone": True,
}
PARTICULAR = {  # what makes a recipe what it is; test_views.py shows what views these settings give
    "merged": {"causal_adapter": True, "all_span_ratio": 0.25, "gap_layout": "mixed"},
    "long_spans": {"max_length": 1024, "span_max": 512, "span_lengths": "log_uniform", "long_free_offset": 512},
    "smollm2": {"gap_layout": "mixed", "free_offset": 64, "long_free_offset": 160, "lambda_mntp": 0.1, "lora_r": 32},
    "smollm2_sscl": {"lambda_sscl": 0.5, "all_span_ratio": 0.0, "vary_length": False, "max_steps": 90, "lora_r": 32},
    "llm2vec_mntp": LLM2VEC,
    "llm2vec": LLM2VEC | SIMCSE,
    "ablation_mntp": NO_SPANS,
    "ablation_mntp_msg": {"max_spans": 2, "mask_ratio": 0.2},
    "ablation_sscl": NO_SPANS | {"mask_ratio": 0.0, "max_steps": 800},
    "ablation_sscl_msg": {"max_spans": 2, "mask_ratio": 0.0},
    "mtp": NO_SPANS | {"mask_objective": "mtp"},
    "clm_control": CAUSAL | {"all_span_ratio": 1.0},
    "fim_control": CAUSAL | {"fim_ratio": 1.0, "max_spans": 1},
}


@pytest.mark.parametrize("name", PARTICULAR)
def test_recipe_is_what_its_name_says(name):
    assert PARTICULAR[name].items() <= read_recipe(name).items()
