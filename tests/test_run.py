"""`magnet train` from the command line to a checkpoint that infills."""

import copy
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from tokenizers.processors import ByteLevel
from transformers import AutoTokenizer, LlamaForCausalLM

from magnet_train.model import build_model, check_lengths, mask_token_id
from magnet_train.run import main
from magnet_train.settings.arguments import ModelArguments, ViewArguments
from magnet_train.views import special_tokens
from modeling_magnet import MagnetLlamaForCausalLM

STORY = "Tom was hungry. He went to the kitchen. There was no bread. So he baked a loaf. Then he was full."


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """`datasets` writes its cache into a folder of the test's own, and says nothing."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.fixture
def flags(tmp_path, base_model_path):
    """The flags of a run of three steps on a few lines; `flags(**changes)` adds to them or replaces them."""
    names = ["Tom", "Mina", "Jorge", "Elif", "Sam", "Ada", "Kim", "Lee"]
    (tmp_path / "texts.txt").write_text("".join(f"{STORY.replace('Tom', name)}\n" for name in names))
    (tmp_path / "held_out.txt").write_text("".join(f"{STORY.replace('Tom', name)}\n" for name in ("Ben", "Zoe")))
    pairs = [{"text": f"{name} was hungry.", "positive": f"{name} wanted food."} for name in names]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    given = {
        "model_name_or_path": base_model_path,
        "train_file": tmp_path / "texts.txt",
        "pairs_file": tmp_path / "pairs.jsonl",
        "output_dir": tmp_path / "out",
        "max_steps": 3,
        "sscl_start_step": 1,
        "logging_steps": 1,
        "max_length": 48,
        "span_max": 8,
        "free_offset": 16,
        "gap_layout": "mixed",
        "per_device_train_batch_size": 4,
        "per_device_pair_batch_size": 8,
        "use_cpu": True,
        "disable_tqdm": True,
    }

    def flags(**changes):
        chosen = {key: value for key, value in (given | changes).items() if value is not None}
        return [part for key, value in chosen.items() for part in (f"--{key}", str(value))]

    return flags


def test_main_writes_a_checkpoint_that_infills(flags, tmp_path, base_model_path):
    main(flags())
    out = tmp_path / "out"
    model = MagnetLlamaForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.infill_end_token_id == tokenizer.eos_token_id
    assert model.config.infill_free_offsets == [16]
    assert tokenizer.decode(model.config.mask_token_id) == "_"

    parts = ["Tom was hungry. ", model.Gap(length=5), " Then he was full."]
    filled = model.infill(parts, tokenizer, return_dict=True)
    assert filled.text.startswith(parts[0]) and filled.text.endswith(parts[2])
    assert len(filled.gaps[0].token_ids) == 5
    free = model.infill("Tom was hungry. <|gap|> Then he was full.", tokenizer, max_new_tokens=16, return_dict=True)
    assert free.gaps[0].finish_reason in ("end_token", "max_tokens")

    lora_b = [parameter for name, parameter in model.named_parameters() if "_lora.B" in name]
    assert lora_b and all(parameter.abs().max() > 0 for parameter in lora_b)  # it was trained, and saved
    base = LlamaForCausalLM.from_pretrained(base_model_path, dtype=torch.float32)
    ids = tokenizer(STORY, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, base(ids).logits)  # causal mode is still the base
        assert not torch.equal(model(ids, attention_mode="bidirectional").logits, base(ids, is_causal=False).logits)

    steps = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3]
    assert [line["lambda_sscl"] for line in steps if "loss" in line] == [0, 9, 9]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_main_reads_a_recipe(flags, tmp_path):
    given = dict(zip(flags()[::2], flags()[1::2]))
    lines = "".join(f"{key[2:]}: {json.dumps(value)}\n" for key, value in given.items())
    (tmp_path / "own.yaml").write_text(lines)
    main(["--config", str(tmp_path / "own.yaml"), "--max_steps", "1", "--lambda_sscl", "0"])
    steps = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_held_out_texts_are_measured_before_the_first_step(flags, tmp_path):
    held_out = tmp_path / "held_out.txt"
    (tmp_path / "held_out.jsonl").write_text('{"text": "Ben slept.", "positive": "Ben was asleep."}\n' * 4)
    common = flags(eval_file=held_out, eval_strategy="steps", eval_steps=2, max_steps=2, dataloader_drop_last=True)
    for folder, pairs in (("with", ["--eval_pairs_file", str(tmp_path / "held_out.jsonl")]), ("without", [])):
        main([*common, "--output_dir", str(tmp_path / folder), *pairs])
        lines = [json.loads(line) for line in (tmp_path / folder / "train_log.jsonl").read_text().splitlines()]
        evaluations = [line for line in lines if "eval_loss" in line]
        assert [line["step"] for line in evaluations] == [0, 2]
        assert all(line[f"eval_loss_{name}"] > 0 for line in evaluations for name in ("mntp", "msg"))
        measured = [line.get("eval_loss_sscl") for line in evaluations]
        assert measured == (
            [pytest.approx(0, abs=1e-6)] * 2 if pairs else [None, None]
        )  # one pair, repeated: no negative


@pytest.mark.slow
def test_same_command_twice_writes_the_same_weights(flags, tmp_path):
    for number in (1, 2):
        main(flags(output_dir=tmp_path / str(number), max_steps=2, learning_rate=1e-3))
    one, other = ((tmp_path / str(number) / "model.safetensors").read_bytes() for number in (1, 2))
    assert one == other


def test_sscl_without_pairs_is_refused_before_a_model_is_loaded(flags, monkeypatch):
    monkeypatch.setattr("magnet_train.run.build_model", None)
    monkeypatch.setattr("magnet_train.run.AutoTokenizer", None)
    with pytest.raises(SystemExit, match="magnet train: lambda_sscl=9.0 needs pairs_file, or set lambda_sscl=0"):
        main(flags(pairs_file=None))


# ----------------------------------------------------------------------------------------------------------- build_model


def model_args(path, **settings):
    return ModelArguments(model_name_or_path=str(path), **settings)


def test_build_model_adds_what_was_asked_for(base_model_path, tokenizer):
    settings = {"lora_r": 3, "lora_alpha": 5, "lora_target_modules": ["q_proj", "up_proj"], "dtype": "bfloat16"}
    settings |= {"causal_adapter": True, "pooling": "mean", "projection_head": "mlp", "representation_prompt": "Say:"}
    model = build_model(model_args(base_model_path, **settings), ViewArguments(), tokenizer)
    config = model.config
    assert config.adapter == {"r": 3, "alpha": 5, "target_modules": ["q_proj", "up_proj"]}
    assert (config.causal_adapter, config.pooling, config.projection_head) == (True, "mean", "mlp")
    assert (config.representation_prompt, config.infill_end_token_id) == ("Say:", None)
    for name, parameter in model.named_parameters():
        added = "_lora." in name or "projection_head" in name
        assert parameter.requires_grad == added
        assert parameter.dtype == (torch.float32 if added else torch.bfloat16)
    adapted = {name.split("_lora.")[0].split(".")[-1] for name, _ in model.named_parameters() if "_lora." in name}
    assert adapted == {"q_proj", "up_proj"}


def test_build_model_goes_on_with_a_magnet_checkpoint(base_model_path, tokenizer, tmp_path):
    torch.manual_seed(0)
    first = build_model(model_args(base_model_path, lora_r=3, projection_head="linear"), ViewArguments(), tokenizer)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "_lora.B" in name:
                parameter.normal_()
    first.save_pretrained(tmp_path)
    again = build_model(model_args(tmp_path, lora_r=16), ViewArguments(), tokenizer)
    assert again.config.adapter == first.config.adapter  # the checkpoint's own, whatever the flags say
    weights = again.state_dict()
    assert weights.keys() == first.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in weights if "_lora." in name or "projection_head" in name}


@pytest.mark.parametrize("before", [{"gap_layout": "exact"}, {"gap_layout": "mixed", "free_offset": 32}])
def test_a_checkpoint_trained_further_on_free_gaps_says_so(base_model_path, tokenizer, tmp_path, before):
    build_model(model_args(base_model_path), ViewArguments(**before), tokenizer).save_pretrained(tmp_path)
    again = build_model(model_args(tmp_path), ViewArguments(gap_layout="mixed", free_offset=64), tokenizer)
    assert again.config.infill_end_token_id == tokenizer.eos_token_id
    assert again.config.infill_free_offsets == [64]
    kept = build_model(model_args(tmp_path), ViewArguments(gap_layout="exact"), tokenizer)
    expected = (None, [128]) if before["gap_layout"] == "exact" else (tokenizer.eos_token_id, [32])
    assert (kept.config.infill_end_token_id, kept.config.infill_free_offsets) == expected


def test_ordinary_tokens_are_all_but_special_and_mask(base_model_path, tokenizer):
    config = build_model(model_args(base_model_path), ViewArguments(), tokenizer).config
    tokens = special_tokens(config, tokenizer)
    left_out = set(range(config.vocab_size)) - set(tokens.ordinary.tolist())
    assert left_out == {*tokenizer.all_special_ids, config.mask_token_id}
    assert (tokens.bos, tokens.mask, tokens.end) == (
        tokenizer.bos_token_id,
        config.mask_token_id,
        tokenizer.eos_token_id,
    )
    assert np.issubdtype(tokens.ordinary.dtype, np.integer)


def without_bos(tokenizer):
    """The tokenizer as Qwen's and SmolLM2's are: nothing stands before a text."""
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    assert bare("")["input_ids"] == []
    return bare


def test_rows_open_with_what_the_tokenizer_or_the_model_says(base_model_path, tokenizer, tmp_path):
    args, bare = model_args(base_model_path), without_bos(tokenizer)
    config = build_model(args, ViewArguments(), bare).config
    assert config.text_start_token_id is None and special_tokens(config, bare).bos is None
    assert special_tokens(config, tokenizer).bos == 1
    model = build_model(model_args(base_model_path, text_start_token="</s>"), ViewArguments(), bare)
    assert model.config.text_start_token_id == special_tokens(model.config, bare).bos == 2
    model.save_pretrained(tmp_path)
    assert build_model(model_args(tmp_path), ViewArguments(), bare).config.text_start_token_id == 2
    with pytest.raises(ValueError, match="text_start_token='two tokens': must be one token of the tokenizer, and is "):
        build_model(model_args(base_model_path, text_start_token="two tokens"), ViewArguments(), tokenizer)


@pytest.mark.parametrize("start", [pytest.param(None, marks=pytest.mark.slow), "</s>"])
def test_a_tokenizer_without_bos_trains(flags, base_model_path, tokenizer, tmp_path, start):
    base = shutil.copytree(base_model_path, tmp_path / "base")
    without_bos(tokenizer).save_pretrained(base)
    main(flags(model_name_or_path=base, text_start_token=start))
    out = tmp_path / "out"
    model, bare = MagnetLlamaForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert bare("")["input_ids"] == [] and model.config.text_start_token_id == (start and 2)
    steps = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line.get("loss", 0) > 0] == [1, 2, 3]
    filled = model.infill("Tom was hungry. <|gap|> Then he was full.", bare, length=5)
    assert filled.startswith("Tom was hungry. ") and filled.endswith(" Then he was full.")


def test_another_kind_of_model_is_refused(base_model_path, tokenizer, tmp_path):
    config = json.loads((base_model_path / "config.json").read_text()) | {"model_type": "gpt_neox"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    families = "llama, mistral, qwen2, qwen3, gemma3_text, granite"
    with pytest.raises(ValueError, match=f"its model_type is 'gpt_neox'. MAGNET knows these families: {families}"):
        build_model(model_args(tmp_path), ViewArguments(), tokenizer)


def test_mask_token_is_the_last_token_of_its_text(tokenizer):
    assert tokenizer.decode(mask_token_id("_", tokenizer)) == "_"
    with pytest.raises(ValueError, match="mask_token=''"):
        mask_token_id("", tokenizer)


@pytest.mark.parametrize(
    ("layout", "length", "fits"),
    [("exact", 64, True), ("exact", 65, False), ("mixed", 44, True), ("mixed", 45, False)],
)
def test_check_lengths(tiny_magnet, layout, length, fits):
    config = tiny_magnet(max_position_embeddings=64).config
    arguments = (
        config,
        ViewArguments(max_length=length, gap_layout=layout, free_offset=10),
    )
    if fits:
        check_lengths(*arguments)
        return
    with pytest.raises(ValueError) as error:
        check_lengths(*arguments)
    for name in (f"max_length={length}", "position 65", "max_position_embeddings=64"):
        assert name in str(error.value)
