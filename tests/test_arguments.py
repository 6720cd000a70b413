"""Recipes and flags of `magnet train`: what they say, which wins, and how a wrong value is named."""

import pytest

from magnet_train.arguments import ModelArguments, ViewArguments
from magnet_train.recipes import RECIPES, parse, read_recipe, recipe_names
from magnet_train.run import main

GIVEN = {
    "paper": ["--model_name_or_path", "base", "--train_file", "texts.txt"],
    "default": ["--model_name_or_path", "base", "--train_file", "texts.txt"],
    "magnet_tiny": [],
}


def parse_recipe(name, tmp_path, *flags):
    """`parse` where no GPU is needed and nothing is written into the repository."""
    return parse(["--config", name, *GIVEN.get(name, []), "--use_cpu", "--output_dir", str(tmp_path), *flags])


def parse_flags(tmp_path, *flags):
    return parse([*GIVEN["paper"], "--use_cpu", "--output_dir", str(tmp_path), *flags])


@pytest.fixture
def recipe(tmp_path):
    """`recipe(text)`: the path of a YAML file with that text."""

    def write(text):
        path = tmp_path / "own.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# ------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_recipe_parses_and_every_key_arrives(name, tmp_path):
    parsed = parse_recipe(name, tmp_path)
    values = {key: value for part in parsed for key, value in vars(part).items()}
    for key, value in read_recipe(name).items():
        if key != "output_dir":
            assert values[key] == value, key


def test_recipe_names_are_the_files():
    assert set(GIVEN) <= set(recipe_names())
    assert all((RECIPES / f"{name}.yaml").is_file() for name in recipe_names())


@pytest.mark.parametrize("name", ["paper", "default"])
def test_recipe_names_neither_model_nor_data(name):
    assert not {"model_name_or_path", "train_file", "pairs_file", "output_dir"} & set(read_recipe(name))
    with pytest.raises(ValueError, match="arguments are required: --model_name_or_path.*, --train_file"):
        parse(["--config", name, "--use_cpu"])


PAPER = {
    # LoRA and optimizer
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "causal_adapter": True,
    "optim": "adamw_torch",
    "learning_rate": 3e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "bf16": True,
    "dtype": "bfloat16",
    # batches
    "per_device_train_batch_size": 32,
    "max_length": 512,
    "per_device_pair_batch_size": 64,
    "pair_max_length": 128,
    "gradient_accumulation_steps": 1,
    # loss
    "max_steps": 4200,
    "sscl_start_step": 3400,
    "lambda_mntp": 1.0,
    "lambda_sscl": 9.0,
    "lambda_msg": 1.0,
    "temperature": 0.1,
    # MNTP
    "mask_ratio": 0.2,
    "mask_share": 0.8,
    "random_share": 0.1,
    "mask_token": "_",
    # MSG
    "max_spans": 2,
    "span_min": 4,
    "span_max": 128,
    "gap_layout": "exact",
    "vary_length": False,
    "clean_context_ratio": 0.0,
    "sentence_span_ratio": 0.0,
    "all_span_ratio": 0.0,
    # sentence vectors
    "pooling": "last_token",
    "representation_prompt": "Given the sentence, find its representation:",
}
DEFAULT = PAPER | {
    "causal_adapter": False,
    "gap_layout": "mixed",
    "free_offset": 128,
    "clean_context_ratio": 0.5,
    "vary_length": True,
}


@pytest.mark.parametrize(("name", "expected"), [("paper", PAPER), ("default", DEFAULT)])
def test_recipe_has_these_numbers(name, expected, tmp_path):
    values = {key: value for part in parse_recipe(name, tmp_path) for key, value in vars(part).items()}
    for key, value in expected.items():
        assert values[key] == value, key


def test_800_steps_of_sscl(tmp_path):
    training = parse_recipe("paper", tmp_path)[3]
    assert training.max_steps - training.sscl_start_step == 800
    assert training.pairs_per_row == 2


# --------------------------------------------------------------------------------------------------------------- flags


def test_flags_win_over_the_recipe(tmp_path):
    flags = ["--lora_r", "8", "--gap_layout", "mixed", "--max_steps", "7", "--lora_target_modules", "q_proj", "v_proj"]
    model, data, view, training = parse_recipe("paper", tmp_path, *flags, "--pairs_file", "p.jsonl")
    assert (model.lora_r, view.gap_layout, training.max_steps) == (8, "mixed", 7)
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert (data.train_file, data.pairs_file) == ("texts.txt", "p.jsonl")
    assert model.lora_alpha == 32 and training.learning_rate == 3e-5  # the rest is the recipe's


def test_flag_wins_over_a_required_value_of_the_recipe(tmp_path):
    model, data, *_ = parse_recipe("magnet_tiny", tmp_path, "--train_file", "mine.txt")
    assert data.train_file == "mine.txt"
    assert model.model_name_or_path == read_recipe("magnet_tiny")["model_name_or_path"]


def test_own_yaml_file(recipe, tmp_path):
    path = recipe("model_name_or_path: base\ntrain_file: t.txt\nlearning_rate: 2e-4\nmax_steps: 11\nuse_cpu: true\n")
    model, data, _, training = parse(["--config", path, "--output_dir", str(tmp_path)])
    assert (model.model_name_or_path, data.train_file) == ("base", "t.txt")
    assert training.learning_rate == 2e-4  # YAML 1.1 reads 2e-4 as a string
    assert training.max_steps == 11


def test_settings_without_a_recipe_are_the_papers(tmp_path):
    values = {key: value for part in parse_flags(tmp_path) for key, value in vars(part).items()}
    for key in set(PAPER) - {"bf16", "dtype", "causal_adapter", "optim"}:
        assert values[key] == PAPER[key], key


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("key", "meant"), [("gap_layouts", "gap_layout"), ("lambda_ssl", "lambda_sscl"), ("max_step", "max_steps")]
)
def test_unknown_key_names_the_nearest(recipe, key, meant):
    with pytest.raises(ValueError, match=f"own.yaml: unknown key '{key}'. Did you mean '{meant}'?"):
        parse(["--config", recipe(f"{key}: 1\n")])


def test_unknown_key_unlike_any(recipe):
    with pytest.raises(ValueError) as error:
        parse(["--config", recipe("zzzz: 1\n")])
    assert str(error.value) == "own.yaml: unknown key 'zzzz'."


@pytest.mark.parametrize("text", ["", "# nothing\n", "- max_steps\n", "max_steps\n"])
def test_yaml_without_settings(recipe, text):
    with pytest.raises(ValueError, match="own.yaml: must hold lines of the form 'key: value'"):
        parse(["--config", recipe(text)])


@pytest.mark.parametrize("name", ["papre", "gone.yaml", "."])
def test_unknown_recipe_names_the_known(name):
    with pytest.raises(ValueError) as error:
        parse(["--config", name])
    assert repr(name) in str(error.value)
    assert all(known in str(error.value) for known in recipe_names())


def test_unknown_flag_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown flag '--gap_layouts'. Did you mean '--gap_layout'?"):
        parse_flags(tmp_path, "--gap_layouts", "mixed")
    with pytest.raises(ValueError, match="paper: belongs to no flag.*--config in front of a recipe"):
        parse_flags(tmp_path, "paper")


def test_abbreviated_flag_is_unknown(tmp_path):
    with pytest.raises(ValueError, match="unknown flag '--max_step'. Did you mean '--max_steps'"):
        parse_flags(tmp_path, "--max_step", "7")


def test_value_of_a_wrong_type_is_named_with_its_source(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"^lora_r='many': is no int \(flag\)\.$"):
        parse_flags(tmp_path, "--lora_r", "many")
    for text in ("lora_r: 2.5", "lora_r: [1, 2]", "max_steps: 3.5", "bf16: perhaps", "lambda_msg: {a: 1}"):
        with pytest.raises(ValueError, match=r"own.yaml|belongs to no flag"):
            parse_flags(tmp_path, "--config", recipe(text))


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--mask_ratio", "1.1"], ["mask_ratio=1.1"]),
        (["--mask_ratio", "-0.1"], ["mask_ratio=-0.1"]),
        (["--mask_ratio", "nan"], ["mask_ratio=nan"]),
        (["--mask_share", "2"], ["mask_share=2.0"]),
        (["--random_share", "-1"], ["random_share=-1.0"]),
        (["--mask_share", "0.9", "--random_share", "0.5"], ["mask_share + random_share = 1.4"]),
        (["--max_span_share", "1.5"], ["max_span_share=1.5"]),
        (["--sentence_span_ratio", "2"], ["sentence_span_ratio=2.0"]),
        (["--clean_context_ratio", "-1"], ["clean_context_ratio=-1.0"]),
        (["--all_span_ratio", "nan"], ["all_span_ratio=nan"]),
        (["--span_min", "9", "--span_max", "8"], ["span_min=9", "span_max=8"]),
        (["--span_min", "0"], ["span_min=0"]),
        (["--max_spans", "0"], ["max_spans=0", "lambda_msg=0"]),
        (["--gap_layout", "free"], ["gap_layout='free'", "'exact'", "'mixed'"]),
        (["--free_offset", "0"], ["free_offset=0"]),
        (["--lambda_mntp", "-1"], ["lambda_mntp=-1.0"]),
        (["--lambda_sscl", "nan"], ["lambda_sscl=nan"]),
        (["--lambda_msg", "-0.5"], ["lambda_msg=-0.5"]),
        (
            ["--lambda_mntp", "0", "--lambda_sscl", "0", "--lambda_msg", "0"],
            ["lambda_mntp", "lambda_sscl", "lambda_msg", "all 0"],
        ),
        (["--sscl_start_step", "-1"], ["sscl_start_step=-1.0"]),
        (["--sscl_start_step", "nan"], ["sscl_start_step=nan"]),
        (["--temperature", "0"], ["temperature=0.0"]),
        (["--temperature", "-0.1"], ["temperature=-0.1"]),
        (["--temperature", "nan"], ["temperature=nan"]),
        (
            ["--per_device_pair_batch_size", "48"],
            ["per_device_pair_batch_size=48", "per_device_train_batch_size=32"],
        ),
        (["--per_device_pair_batch_size", "0"], ["per_device_pair_batch_size=0"]),
        (["--per_device_train_batch_size", "0"], ["per_device_train_batch_size=0"]),
    ],
    ids=lambda value: " ".join(value) if str(value[0]).startswith("--") else "",
)
def test_wrong_value_is_named(flags, names, tmp_path):
    with pytest.raises(ValueError) as error:
        parse_flags(tmp_path, *flags)
    for name in names:
        assert name in str(error.value)


def test_values_at_the_limits_are_taken(tmp_path):
    flags = ["--mask_ratio", "0", "--mask_share", "0.5", "--random_share", "0.5", "--span_min", "8", "--span_max", "8"]
    flags += ["--all_span_ratio", "1", "--lambda_mntp", "0", "--lambda_sscl", "0", "--sscl_start_step", "0"]
    _, _, view, training = parse_flags(tmp_path, *flags)
    assert view == ViewArguments(
        mask_ratio=0, mask_share=0.5, random_share=0.5, span_min=8, span_max=8, all_span_ratio=1
    )
    assert (training.lambda_mntp, training.lambda_sscl, training.lambda_msg) == (0, 0, 1)


def test_lists_are_not_shared_between_instances():
    ModelArguments("a").lora_target_modules.append("gate_proj")
    assert "gate_proj" not in ModelArguments("b").lora_target_modules


def test_command_ends_with_the_message_and_no_traceback():
    with pytest.raises(SystemExit) as stop:
        main(["--config", "papre"])
    assert str(stop.value).startswith("magnet train: config='papre': no such recipe.")
