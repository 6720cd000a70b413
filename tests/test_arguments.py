"""Recipes and flags of `magnet train`: what they say, which wins, and how a wrong value is named."""

import re
import shlex

import pytest
import torch
from transformers import Trainer

from magnet_train.run import main
from magnet_train.settings.arguments import MagnetTrainingArguments, ModelArguments, ViewArguments
from magnet_train.settings.checks import check_arguments
from magnet_train.settings.recipes import AUTO, RECIPES, parse, read_recipe, recipe_names

BASE = ["--model_name_or_path", "base", "--train_file", "texts.txt"]
WITH_MODEL = ("demo", "magnet_tiny")  # recipes of runs in this repository, which name model and data


def parse_recipe(name, tmp_path, *flags):
    """`parse` where no GPU is needed and nothing is written into the repository."""
    given = [] if name in WITH_MODEL else BASE
    return parse(["--config", name, *given, "--use_cpu", "--output_dir", str(tmp_path), *flags])


def parse_flags(tmp_path, *flags):
    return parse([*BASE, "--use_cpu", "--output_dir", str(tmp_path), *flags])


@pytest.fixture
def recipe(tmp_path):
    """`recipe(text)`: the path of a YAML file with that text."""

    def write(text):
        path = tmp_path / "own.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# ------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_parses_and_every_key_arrives(name, tmp_path):
    parsed = parse_recipe(name, tmp_path)
    values = {key: value for part in parsed for key, value in vars(part).items()}
    for key, value in read_recipe(name).items():
        if value == "auto":
            assert values[key] in AUTO[key]
        elif key != "output_dir":
            assert values[key] == value, key


def test_the_recipes_that_there_are():
    ablations = {f"ablation_{name}" for name in ("mntp", "sscl", "mntp_msg", "sscl_msg")}
    rivals = {"llm2vec_mntp", "llm2vec", "mtp", "clm_control", "fim_control"}
    assert set(recipe_names()) == {"paper", "default", "merged", "long_spans", *WITH_MODEL, *rivals, *ablations}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_says_what_it_is_and_how_to_run_it(name, tmp_path):
    head = re.match(r"(# .*\n|#\n)+", (RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))[0]
    command = re.search(r"magnet train((?:.*\\\n#)*[^(\n]*)", head)[1].replace("\\\n#", " ")
    *_, training = parse([*shlex.split(command), "--use_cpu"])
    assert f"--config {name} " in f"{command} " and training.max_steps > 0


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - set(WITH_MODEL)))
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
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
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
PAPER |= {
    # what the paper leaves open
    "mask_objective": "mntp",
    "positives": "column",
    "sscl_alone": False,
    "sscl_dropout": 0.0,
    "lambda_kl": 0.0,
    "fim_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "projection_head": "none",
}
DEFAULT = PAPER | {
    "causal_adapter": False,
    "gap_layout": "mixed",
    "free_offset": 128,
    "clean_context_ratio": 0.5,
    "vary_length": True,
}


@pytest.mark.parametrize(("name", "expected"), [("paper", PAPER), ("default", DEFAULT)])
def test_recipe_has_these_numbers(name, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("magnet_train.settings.recipes.bf16_is_faster", lambda use_cpu: (True, "as on a GPU"))
    values = {key: value for part in parse_recipe(name, tmp_path) for key, value in vars(part).items()}
    for key, value in expected.items():
        assert values[key] == value, key


APPENDIX_A = {  # what it says, and what that is here
    "LoRA (Hu et al., 2021) with r = 16 and $\\alpha = 32$": {"lora_r": 16, "lora_alpha": 32},
    "AdamW optimizer with $\\beta_1 = 0.9$, $\\beta_2 = 0.999$": {"adam_beta1": 0.9, "adam_beta2": 0.999},
    "$\\epsilon = 1e - 8$, apply bfloat16 quantization": {"adam_epsilon": 1e-8, "dtype": "auto", "bf16": "auto"},
    "MNTP. We train for 4200 iterations using a batch size of 32, a learning rate of 3e-5, and a max sequence length of "
    "512.": {"max_steps": 4200, "per_device_train_batch_size": 32, "learning_rate": 3e-5, "max_length": 512},
    "selecting 20% of the input tokens": {"mask_ratio": 0.2},  # section 3.2.1, as below
    "80% of the selected tokens are replaced with a [MASK] token": {"mask_share": 0.8},
    "10% tokens are replaced with a random token": {"random_share": 0.1},
    'we use "_" as the mask token': {"mask_token": "_"},
    "SSCL. We train for 800 iterations using a batch size of 64, a learning rate of 3e-5, and a max sequence length of "
    "128.": {"per_device_pair_batch_size": 64, "lr_scheduler_type": "constant", "pair_max_length": 128},
    '"*Given the sentence, find its representation:*"': {
        "representation_prompt": "Given the sentence, find its representation:"
    },
    "representations corresponding to the last token": {"pooling": "last_token"},
    "We set $\\tau = 0.1$": {"temperature": 0.1},
    "up to 2 missing spans, with span length ranging from 4 to 128 tokens": {
        "max_spans": 2,
        "span_min": 4,
        "span_max": 128,
    },
    "For the first 3400 iterations": {"sscl_start_step": 3400},
    "for the next 800 iterations $\\lambda_1 = 1$, $\\lambda_2 = 9$, and $\\lambda_3 = 1$": {
        "lambda_mntp": 1.0,
        "lambda_sscl": 9.0,
        "lambda_msg": 1.0,
    },
}


@pytest.mark.shared
def test_recipe_paper_is_appendix_a(shared):
    """Passage by passage; no number of the appendix's paragraphs on training is left over."""
    paper, recipe = (shared / "docs" / "paper.txt").read_text(encoding="utf-8"), read_recipe("paper")
    for passage, settings in APPENDIX_A.items():
        assert passage in paper, passage
        assert {key: recipe[key] for key in settings} == settings, passage
    appendix = paper[paper.index("MNTP. We train") : paper.index("Word-Level Tasks. Using")]
    number = r"\d+(?:\.\d+)*(?:e-\d+)?"
    other = {"7", "3.2.2", "3.3", "0"}  # Llama-2-7B, two equations, and lambda_2 before SSCL starts
    assert set(re.findall(number, appendix)) - other <= set(re.findall(number, " ".join(APPENDIX_A)))


def test_the_learning_rate_stays_to_the_end(tmp_path):
    """Appendix A trains SSCL, in the last 800 steps, with 3e-5 too; a linear decay would leave it 2.9e-6 on average."""
    arguments = parse_recipe("paper", tmp_path)[3]
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=[0])
    trainer.create_optimizer_and_scheduler(arguments.max_steps)
    rates = []
    for _ in range(arguments.max_steps):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert set(rates) == {3e-5}


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


def test_recipes_that_extend_each_other_are_refused(recipe, tmp_path):
    (tmp_path / "lower.yaml").write_text("extends: own.yaml\nlora_r: 4\n")
    with pytest.raises(ValueError, match=r"in a circle \(own.yaml -> lower.yaml -> own.yaml\)"):
        parse(["--config", recipe("extends: lower.yaml\n"), *BASE])
    with pytest.raises(ValueError, match="extends='papre': no such recipe. Known: .*paper"):
        parse(["--config", recipe("extends: papre\n"), *BASE])


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


def test_a_file_that_is_no_yaml_is_named_with_the_line(recipe):
    with pytest.raises(ValueError, match=r"(?s)own.yaml: is no YAML: .*line 2"):
        parse(["--config", recipe("lora_r: 4\nmax_steps: [1\n")])


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
        (["--mask_ratio", "1"], ["mask_ratio=1.0"]),
        (["--mask_ratio", "0"], ["mask_ratio=0", "lambda_mntp=1.0", "lambda_mntp=0"]),
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
        (["--per_device_eval_batch_size", "0"], ["per_device_eval_batch_size=0"]),
        # optimizer and steps
        (["--learning_rate", "nan"], ["learning_rate=nan", "between 0 and 1"]),
        (["--learning_rate=-3e-5"], ["learning_rate=-3e-05"]),
        (["--learning_rate", "1e9"], ["learning_rate=1000000000.0"]),
        (["--gradient_accumulation_steps", "0"], ["gradient_accumulation_steps=0", "at least 1"]),
        (["--warmup_steps", "-1"], ["warmup_steps=-1.0"]),
        (["--max_steps", "0"], ["max_steps=0", "num_train_epochs"]),
        (["--max_steps", "-2"], ["max_steps=-2"]),
        (["--max_steps", "-1", "--num_train_epochs", "0"], ["num_train_epochs=0.0"]),
        (["--max_steps", "-1", "--num_train_epochs", "nan"], ["num_train_epochs=nan"]),
        (["--logging_steps", "0"], ["logging_steps=0"]),
        (["--save_steps", "-5"], ["save_steps=-5"]),
        (["--weight_decay", "-1"], ["weight_decay=-1.0"]),
        (["--max_grad_norm", "nan"], ["max_grad_norm=nan"]),
        (["--adam_beta2", "1.5"], ["adam_beta2=1.5"]),
        # model and data
        (["--lora_r", "0"], ["lora_r=0"]),
        (["--lora_alpha", "nan"], ["lora_alpha=nan"]),
        (["--dtype", "float8"], ["dtype='float8'", "'bfloat16'"]),
        (["--pooling", "max"], ["pooling='max'", "'mean'"]),
        (["--projection_head", "conv"], ["projection_head='conv'", "'mlp'"]),
        (["--load_in_8bit", "--load_in_4bit"], ["load_in_8bit", "load_in_4bit"]),
        (["--positives", "noise"], ["positives='noise'", "'dropout'"]),
        (["--on_bad", "ignore"], ["on_bad='ignore'", "'skip'"]),
        (["--pair_columns", "one"], ["pair_columns=['one']"]),
        (["--max_length", "8"], ["max_length=8"]),
        (["--pair_max_length", "2"], ["pair_max_length=2"]),
        (["--shuffle_window", "0"], ["shuffle_window=0"]),
        (["--mask_objective", "mlm"], ["mask_objective='mlm'", "'mtp'"]),
        (["--max_spans", "-1"], ["max_spans=-1"]),
        (["--fim_ratio", "2"], ["fim_ratio=2.0"]),
        # what does not go together
        (["--max_length", "128"], ["span_max=128", "max_length=128"]),
        (["--fim_ratio", "0.6", "--all_span_ratio", "0.6"], ["all_span_ratio + fim_ratio = 1.2"]),
        (["--all_span_ratio", "1"], ["all_span_ratio", "lambda_mntp=1.0"]),
        (["--fim_ratio", "0.5", "--max_spans", "0"], ["max_spans=0", "fim_ratio=0.5"]),
        (["--positives", "dropout"], ["positives='dropout'", "sscl_dropout=0"]),
        (["--sscl_dropout", "1"], ["sscl_dropout=1.0"]),
        (["--sscl_chunk_size", "-1"], ["sscl_chunk_size=-1"]),
        (["--sscl_alone", "--lambda_sscl", "0"], ["sscl_alone=True", "lambda_sscl=0"]),
        (["--lambda_kl", "1", "--all_span_ratio", "0.5"], ["lambda_kl=1.0", "causal_adapter=False"]),
        (["--lambda_kl", "1", "--causal_adapter"], ["lambda_kl=1.0", "all_span_ratio"]),
        (["--streaming", "--max_steps", "-1"], ["max_steps=-1", "streaming=True"]),
        (["--eval_strategy", "steps"], ["eval_strategy='steps'", "eval_file"]),
        (["--eval_pairs_file", "pairs.jsonl"], ["eval_pairs_file='pairs.jsonl'", "Set eval_file"]),
        # what cannot be changed
        (["--remove_unused_columns"], ["remove_unused_columns=True"]),
        (["--label_names", "labels"], ["label_names=['labels']"]),
        (["--label_smoothing_factor", "0.1"], ["label_smoothing_factor=0.1"]),
        (["--gradient_checkpointing_kwargs", '{"use_reentrant": true}'], ["use_reentrant", "several processes"]),
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


def test_repeated_rows_of_several_processes_are_refused(tmp_path, monkeypatch):
    arguments = parse_flags(tmp_path, "--dataloader_drop_last", "false")  # alone a process repeats none
    monkeypatch.setattr(MagnetTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="dataloader_drop_last=False: 2 processes would repeat rows"):
        check_arguments(*arguments)
    arguments[3].lambda_sscl = 0.0
    check_arguments(*arguments)


def test_a_report_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"report_to=\['trackio'\]: trackio is not installed. pip install trackio"):
        parse_flags(tmp_path, "--report_to", "trackio")


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        (["--max_steps", "3400"], "sscl_start_step=3400: not reached in max_steps=3400"),
        (["--eval_file", "held_out.txt"], "eval_file=held_out.txt: not measured while training"),
    ],
)
def test_odd_settings_are_warned_of(flags, warning, tmp_path, caplog):
    parse_flags(tmp_path)
    assert not caplog.records
    parse_flags(tmp_path, *flags)
    assert warning in caplog.text


def test_lists_are_not_shared_between_instances():
    ModelArguments("a").lora_target_modules.append("gate_proj")
    assert "gate_proj" not in ModelArguments("b").lora_target_modules


def test_command_ends_with_the_message_and_no_traceback():
    with pytest.raises(SystemExit) as stop:
        main(["--config", "papre"])
    assert str(stop.value).startswith("magnet train: config='papre': no such recipe.")
