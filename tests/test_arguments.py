"""Recipes and flags of `magnet train`: what they say, which wins, how a wrong value is named, and what a run keeps."""

import json
import pickle
import re
import shlex

import pytest
import torch
import yaml
from transformers import Trainer

from magnet_train.run import main
from magnet_train.settings.arguments import ModelArguments, ViewArguments
from magnet_train.settings.recipes import AUTO, NAMES, RECIPES, configuration, parse, read_recipe, recipe_names

BASE = ["--model_name_or_path", "base", "--train_file", "texts.txt"]
WITH_MODEL = ("smollm2", "smollm2_sscl")  # recipes of the shipped model, which name base and data


def parse_recipe(name, tmp_path, *flags):
    """`parse` where no GPU is needed and nothing is written into the repository."""
    given = [] if name in WITH_MODEL else BASE
    return parse(["--config", name, *given, "--use_cpu", "--output_dir", str(tmp_path), *flags])


def parse_flags(tmp_path, *flags):
    return parse([*BASE, "--use_cpu", "--output_dir", str(tmp_path), *flags])


def values_of(arguments) -> dict:
    return {key: value for part in arguments for key, value in vars(part).items()}


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
def test_recipe_says_what_it_is_and_every_key_arrives(name, tmp_path):
    values, given = values_of(parse_recipe(name, tmp_path)), read_recipe(name)
    for key, value in given.items():
        assert values[key] in AUTO[key] if value == "auto" else key == "output_dir" or values[key] == value, key
    head = re.match(r"(# .*\n|#\n)+", (RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))[0]
    command = re.search(r"magnet train((?:.*\\\n#)*[^(\n]*)", head)[1].replace("\\\n#", " ")
    assert f"--config {name} " in f"{command} " and parse([*shlex.split(command), "--use_cpu"])[3].max_steps > 0
    if name not in WITH_MODEL:
        assert not {"model_name_or_path", "train_file", "pairs_file", "output_dir"} & set(given)
        with pytest.raises(ValueError, match="arguments are required: --model_name_or_path.*, --train_file"):
            parse(["--config", name, "--use_cpu"])


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
LEFT_OPEN = {"optim": "adamw_torch", "warmup_steps": 0, "gradient_accumulation_steps": 1, "weight_decay": 0.0}
LEFT_OPEN |= {"max_grad_norm": 1.0, "mask_objective": "mntp", "positives": "column", "projection_head": "none"}
LEFT_OPEN |= {"lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "causal_adapter": True}
OURS = {"gap_layout": "exact", "vary_length": False, "sscl_alone": False}  # off in the paper
OURS |= dict.fromkeys(("clean_context_ratio", "sentence_span_ratio", "all_span_ratio", "fim_ratio"), 0.0)
OURS |= {"sscl_dropout": 0.0, "lambda_kl": 0.0}
PAPER = {key: value for settings in (*APPENDIX_A.values(), LEFT_OPEN, OURS) for key, value in settings.items()}
FREE = {"gap_layout": "mixed", "free_offset": 128, "vary_length": True, "clean_context_ratio": 0.5}


@pytest.mark.parametrize(("name", "changes"), [("paper", {}), ("default", {"causal_adapter": False} | FREE)])
def test_recipe_has_these_numbers(name, changes, tmp_path, monkeypatch):
    monkeypatch.setattr("magnet_train.settings.recipes.bf16_is_faster", lambda use_cpu: (True, "as on a GPU"))
    arguments = parse_recipe(name, tmp_path)
    values, expected = values_of(arguments), PAPER | {"bf16": True, "dtype": "bfloat16"} | changes
    assert {key: values[key] for key in expected} == expected
    assert arguments[3].pairs_per_row == 2 and arguments[3].max_steps - arguments[3].sscl_start_step == 800


def test_settings_without_a_recipe_are_the_papers(tmp_path):
    values = values_of(parse_flags(tmp_path))
    names = set(PAPER) - {"bf16", "dtype", "causal_adapter", "optim"}
    assert {key: values[key] for key in names} == {key: PAPER[key] for key in names}


@pytest.mark.shared
def test_recipe_paper_is_appendix_a(shared):
    """Passage by passage; no number of the appendix's paragraphs on training is left over."""
    paper = (shared / "docs" / "paper.txt").read_text(encoding="utf-8")
    assert [passage for passage in APPENDIX_A if passage not in paper] == []
    appendix = paper[paper.index("MNTP. We train") : paper.index("Word-Level Tasks. Using")]
    number = r"\d+(?:\.\d+)*(?:e-\d+)?"
    other = {"7", "3.2.2", "3.3", "0"}  # Llama-2-7B, two equations, and lambda_2 before SSCL starts
    assert set(re.findall(number, appendix)) - other <= set(re.findall(number, " ".join(APPENDIX_A)))


def test_the_learning_rate_stays_to_the_end(tmp_path):
    """Appendix A trains SSCL, in the last 800 steps, with 3e-5 too; a linear decay would leave it 2.9e-6 on average."""
    arguments = parse_recipe("paper", tmp_path)[3]
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=[0])
    trainer.create_optimizer_and_scheduler(arguments.max_steps)
    rates = set()
    for _ in range(arguments.max_steps):
        rates.add(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == {3e-5}


# ---------------------------------------------------------------------------------------------------- which value wins


def test_flags_win_over_the_recipe_and_a_recipe_over_the_one_it_extends(recipe, tmp_path):
    """Down to the last one; a name is one of ours, a file lies beside the one that names it."""
    (tmp_path / "lower.yaml").write_text("extends: paper\nlora_r: 4\nmax_spans: 1\n")
    path = recipe(
        "extends: lower.yaml\nmax_spans: 3\nsave_total_limit: null\nlearning_rate: 2e-4\ntrain_file: its.txt"
    )
    flags = ["--gap-layout", "mixed", "--max_steps=7", "--lora_target_modules", "q_proj", "v_proj"]
    values = values_of(parse_recipe(path, tmp_path, *flags))
    expected = {"lora_r": 4, "max_spans": 3, "save_total_limit": None, "lora_alpha": 32}
    expected |= {"learning_rate": 2e-4}  # which YAML 1.1 reads as a string
    expected |= {"gap_layout": "mixed", "max_steps": 7, "lora_target_modules": ["q_proj", "v_proj"]}
    expected |= {"train_file": "texts.txt"}
    assert {key: values[key] for key in expected} == expected
    assert parse(["--config", path, *BASE[:2], "--use_cpu"])[1].train_file == "its.txt"


def test_lists_are_not_shared_between_instances():
    ModelArguments("a").lora_target_modules.append("gate_proj")
    assert "gate_proj" not in ModelArguments("b").lora_target_modules


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and printed.startswith("usage: magnet train [--config RECIPE]")
    assert all(f"  --{name}" in printed for name in NAMES) and "ablation_sscl_msg" in printed


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gap_layouts: 1", "own.yaml: unknown key 'gap_layouts'. Did you mean 'gap_layout'?"),
        ("zzzz: 1", "own.yaml: unknown key 'zzzz'."),
        ("lora_r: 4\nmax_steps: [1", "own.yaml: is no YAML: "),
        ("", "own.yaml: must hold lines of the form 'key: value'"),
        ("- max_steps", "own.yaml: must hold lines of the form 'key: value'"),
        ("extends: own.yaml", "extends='own.yaml': extends itself. Known: ablation_mntp, "),
        ("extends: papre", "extends='papre': no such recipe. Known: ablation_mntp, "),
        ("lora_r: 2.5", "argument --lora_r/--lora-r: invalid int value: '2.5'."),
        ("lora_r: [1, 2]", "2: belongs to no flag"),
        ("bf16: perhaps", "argument --bf16: Truthy value expected: got perhaps"),
        ("lambda_msg: {a: 1}", "argument --lambda_msg/--lambda-msg: invalid float value"),
    ],
)
def test_wrong_recipe_is_named(recipe, text, told):
    with pytest.raises(ValueError) as error:
        parse(["--config", recipe(text), *BASE])
    assert told in str(error.value)


@pytest.mark.parametrize("name", ["papre", "gone.yaml", "."])
def test_unknown_recipe_names_the_known(name):
    with pytest.raises(SystemExit) as stop:
        main(["--config", name])
    assert str(stop.value).startswith(f"magnet train: config={name!r}: no such recipe. Known: ablation_mntp, ")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--gap_layouts mixed", "unknown flag '--gap_layouts'. Did you mean '--gap_layout'?"),
        ("--max_step 7", "unknown flag '--max_step'. Did you mean '--max_steps'?"),  # no abbreviations
        ("paper", "paper: belongs to no flag. Write --name value, and --config in front of a recipe"),
        ("--lora_r many", "argument --lora_r/--lora-r: invalid int value: 'many'"),
        ("--gap_layout free", "argument --gap_layout/--gap-layout: invalid choice: 'free' (choose from"),
        ("--mask_ratio 20", "mask_ratio=20.0: must lie between 0 and 1"),
        ("--all_span_ratio nan", "all_span_ratio=nan: must lie between 0 and 1"),
        ("--mask_share 0.9 --random_share 0.5", "mask_share + random_share = 1.4: must be at most 1"),
        ("--fim_ratio 0.6 --all_span_ratio 0.6", "all_span_ratio + fim_ratio = 1.2: must be at most 1"),
        ("--span_min 9 --span_max 8", "span_min=9, span_max=8: need 1 <= span_min <= span_max"),
        ("--free_offset 64 --long_free_offset 32", "long_free_offset=32: must be above free_offset=64, or 0"),
        ("--pair_columns text", "pair_columns=['text']: must name two"),
        ("--lambda_mntp -1", "lambda_mntp=-1.0: must be 0 or more"),
        ("--lambda_sscl nan", "lambda_sscl=nan: must be 0 or more"),
        ("--temperature 0", "temperature=0.0: must be positive. The paper's is 0.1"),
        ("--per_device_pair_batch_size 48", "must be a multiple of per_device_train_batch_size=32"),
        ("--label_smoothing_factor 0.1", "label_smoothing_factor=0.1: the losses have none"),
        ('--activation_checkpointing_kwargs {"use_reentrant":true}', "use_reentrant=True gives wrong gradients"),
        # what does not go together
        (
            "--max_spans 0",
            "max_spans=0: MSG (lambda_msg=1.0) or fill-in-the-middle (fim_ratio=0.0) would have no span",
        ),
        ("--max_spans 0 --fim_ratio 0.5", "max_spans=0: MSG (lambda_msg=1.0) or fill-in-the-middle (fim_ratio=0.5)"),
        ("--max_length 128", "span_max=128: must be below max_length=128"),
        ("--mask_ratio 0", "lambda_mntp=1.0: no token would be masked with mask_ratio=0.0"),
        ("--all_span_ratio 1", "no token would be masked with mask_ratio=0.2 and all_span_ratio + fim_ratio = 1.0"),
        ("--lambda_kl 1 --all_span_ratio 0.5", "lambda_kl=1.0: with causal_adapter=False"),
        ("--lambda_kl 1 --causal_adapter", "lambda_kl=1.0: there are no causal rows"),
        ("--sscl_alone --lambda_sscl 0", "sscl_alone=True: lambda_sscl=0 leaves nothing to train"),
        ("--positives dropout", "positives='dropout': with sscl_dropout=0"),
        ("--eval_pairs_file pairs.jsonl", "eval_pairs_file='pairs.jsonl': they come with the rows of held-out texts"),
        ("--save_total_limit 1", "save_total_limit=1: the Trainer deletes the old checkpoint before"),
    ],
)
def test_wrong_value_is_named(flags, told, tmp_path):
    with pytest.raises(ValueError) as error:
        parse_flags(tmp_path, *flags.split())
    assert told in str(error.value)


def test_a_choice_is_checked_in_python_too():
    with pytest.raises(ValueError, match="gap_layout='free': must be 'exact' or 'mixed'"):
        ViewArguments(gap_layout="free")


def test_values_at_the_limits_are_taken(tmp_path):
    flags = ["--mask_ratio", "0", "--mask_share", "0.5", "--random_share", "0.5", "--span_min", "8", "--span_max", "8"]
    flags += ["--all_span_ratio", "1", "--lambda_mntp", "0", "--lambda_sscl", "0", "--sscl_start_step", "0"]
    view, training = parse_flags(tmp_path, *flags)[2:]
    limits = {"mask_ratio": 0, "mask_share": 0.5, "random_share": 0.5, "span_min": 8, "span_max": 8}
    assert view == ViewArguments(**limits, all_span_ratio=1)
    assert (training.lambda_mntp, training.lambda_sscl, training.lambda_msg) == (0, 0, 1)


def test_pairs_that_are_never_trained_are_warned_of(tmp_path, caplog):
    parse_flags(tmp_path)
    assert not caplog.records
    parse_flags(tmp_path, "--max_steps", "3400")
    assert "sscl_start_step=3400: not reached in max_steps=3400" in caplog.text


# ---------------------------------------------------------------------------------------------------- what a run keeps


@pytest.mark.parametrize("name", ["paper", "smollm2", "llm2vec"])
def test_stored_configuration_gives_the_same_arguments(name, tmp_path):
    flags = ["--lr_scheduler_kwargs", '{"num_cycles": 2}', "--mask_token", "# -", "--hub_token", "hf_secret"]
    arguments = parse_recipe(name, tmp_path, *flags, "--report_to", "tensorboard", "mlflow", "--adam_beta2", "0.95")
    stored = tmp_path / "training_config.yaml"
    stored.write_text(configuration(arguments), encoding="utf-8")
    assert "hf_secret" not in stored.read_text()
    again = parse(["--config", str(stored)])
    assert again[:3] == arguments[:3]
    assert yaml.safe_load(configuration(again)) == yaml.safe_load(stored.read_text())
    assert again[3].lr_scheduler_kwargs == {"num_cycles": 2} and again[0].mask_token == "# -"
    assert (again[3].report_to, again[3].adam_beta2) == (["tensorboard", "mlflow"], 0.95)


def test_a_run_keeps_its_settings_and_no_secret(tmp_path, base_model_path, capsys):
    story = "Tom was hungry. He opened the fridge and took a yoghurt. Then he was full and went to bed."
    (tmp_path / "texts.jsonl").write_text((json.dumps({"story": story}) + "\n") * 4)
    (tmp_path / "own.yaml").write_text("extends: ablation_mntp_msg\nbf16: false\ndtype: float32\ntext_column: story\n")
    flags = f"--config {tmp_path}/own.yaml --model_name_or_path {base_model_path} --train_file {tmp_path}/texts.jsonl"
    flags += f" --output_dir {tmp_path}/out --max_steps 1 --max_length 32 --span_max 8 --per_device_train_batch_size 2"
    main([*flags.split(), *"--use_cpu --disable_tqdm true --hub_token hf_secret --report_to tensorboard".split()])
    printed, stored = capsys.readouterr(), tmp_path / "out" / "training_config.yaml"
    assert (tmp_path / "out" / "checkpoint-1" / "training_config.yaml").read_text() == stored.read_text()
    settings = {"text_column": "story", "lambda_sscl": 0.0, "max_steps": 1, "learning_rate": 3e-5}
    assert settings.items() <= yaml.safe_load(stored.read_text()).items()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"training_args.bin", "trainer_state.json", "complete.json", "train_log.jsonl", "config.json"} <= names
    assert any("tfevents" in name for name in names)
    assert "hf_secret" not in printed.out + printed.err
    assert [
        path.name for path in files if b"hf_secret" in path.read_bytes()
    ] == []  # a checkpoint is for others to load


def test_the_token_stays_with_the_run(tmp_path):
    """It is left out of what is pickled, not taken from the arguments that push to the Hub."""
    args = parse_flags(tmp_path, "--hub_token", "hf_secret")[3]
    again = pickle.loads(pickle.dumps(args))
    assert again.hub_token is None and again.lambda_sscl == args.lambda_sscl
    assert args.hub_token == "hf_secret"


def test_grouping_by_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_sampling_strategy='group_by_length': the rows of a batch are packed"):
        parse_flags(tmp_path, "--train_sampling_strategy", "group_by_length")
