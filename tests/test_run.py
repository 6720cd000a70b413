"""`magnet train` from the command line to a checkpoint that infills."""

import copy
import json
import shutil

import datasets
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


def log_of(folder, key="loss"):
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def test_main_writes_a_checkpoint_that_infills(flags, tmp_path, base_model_path):
    main(flags())
    out = tmp_path / "out"
    model = MagnetLlamaForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (model.config.infill_end_token_id, model.config.infill_free_offsets) == (tokenizer.eos_token_id, [16])
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

    assert [(line["step"], line["lambda_sscl"]) for line in log_of(out)] == [(1, 0), (2, 9), (3, 9)]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_held_out_texts_are_measured_before_the_first_step(flags, tmp_path):
    (tmp_path / "held_out.jsonl").write_text('{"text": "Ben slept.", "positive": "Ben was asleep."}\n' * 4)
    common = flags(eval_file=tmp_path / "held_out.txt", eval_strategy="steps", eval_steps=2, max_steps=2)
    for folder, pairs in (("with", ["--eval_pairs_file", str(tmp_path / "held_out.jsonl")]), ("without", [])):
        main([*common, "--output_dir", str(tmp_path / folder), *pairs])
        evaluations = log_of(tmp_path / folder, "eval_loss")
        assert [line["step"] for line in evaluations] == [0, 2]
        assert all(line[f"eval_loss_{name}"] > 0 for line in evaluations for name in ("mntp", "msg"))
        nothing = pytest.approx(0, abs=1e-6) if pairs else None  # one pair, repeated: no negative
        assert [line.get("eval_loss_sscl") for line in evaluations] == [nothing] * 2


def test_sscl_without_pairs_is_refused_before_a_model_is_loaded(flags, monkeypatch):
    monkeypatch.setattr("magnet_train.run.build_model", None)
    monkeypatch.setattr("magnet_train.run.AutoTokenizer", None)
    with pytest.raises(SystemExit, match="magnet train: lambda_sscl=9.0 needs pairs_file, or set lambda_sscl=0"):
        main(flags(pairs_file=None))


@pytest.mark.parametrize("path", ["texts.txt", "texts.txt/below", "/proc/new"])
def test_an_output_dir_that_cannot_be_made_is_refused_first(flags, tmp_path, monkeypatch, path):
    """Nobody may write into /proc, root neither, whom permission bits do not bind."""
    monkeypatch.setattr("magnet_train.run.build_trainer", None)
    with pytest.raises(SystemExit, match=f"magnet train: .*{path.removesuffix('/below')}"):
        main(flags(output_dir=tmp_path / path))


# ----------------------------------------------------------------------------------------------------------- build_model


def build(path, tokenizer, views=ViewArguments(), **settings):
    return build_model(ModelArguments(model_name_or_path=str(path), **settings), views, tokenizer)


def test_build_model_adds_what_was_asked_for(base_model_path, tokenizer):
    settings = {"lora_r": 3, "lora_alpha": 5, "lora_target_modules": ["q_proj", "up_proj"], "dtype": "bfloat16"}
    settings |= {"causal_adapter": True, "pooling": "mean", "projection_head": "mlp", "representation_prompt": "Say:"}
    model = build(base_model_path, tokenizer, **settings)
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


@pytest.mark.parametrize("asked, loaded", [(None, "sdpa"), ("eager", "eager")])
def test_attn_implementation_reaches_the_base(base_model_path, tokenizer, asked, loaded):
    model = build(base_model_path, tokenizer, attn_implementation=asked)
    assert model.config._attn_implementation == model.model.config._attn_implementation == loaded


def test_eager_attention_trains_as_sdpa_does(flags, tmp_path):
    steps = {}
    for attention in ("sdpa", "eager"):
        main(
            [*flags(output_dir=tmp_path / attention, max_steps=2, logging_steps=1), "--attn_implementation", attention]
        )
        steps[attention] = log_of(tmp_path / attention, "loss")
    for ours, theirs in zip(steps["eager"], steps["sdpa"], strict=True):
        names = {name for name in ours if name.startswith("loss") or name == "grad_norm"}
        assert len(names) > 3 and all(ours[name] == pytest.approx(theirs[name], rel=1e-4) for name in names)


def test_build_model_goes_on_with_a_magnet_checkpoint(base_model_path, tokenizer, tmp_path):
    torch.manual_seed(0)
    first = build(base_model_path, tokenizer, lora_r=3, projection_head="linear")
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "_lora.B" in name:
                parameter.normal_()
    first.save_pretrained(tmp_path)
    again = build(tmp_path, tokenizer, lora_r=16)
    assert again.config.adapter == first.config.adapter  # the checkpoint's own, whatever the flags say
    weights = again.state_dict()
    assert weights.keys() == first.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in weights if "_lora." in name or "projection_head" in name}


@pytest.mark.parametrize("before", [{"gap_layout": "exact"}, {"gap_layout": "mixed", "free_offset": 32}])
def test_a_checkpoint_trained_further_on_free_gaps_says_so(base_model_path, tokenizer, tmp_path, before):
    build(base_model_path, tokenizer, ViewArguments(**before)).save_pretrained(tmp_path)
    again = build(tmp_path, tokenizer, ViewArguments(gap_layout="mixed", free_offset=64)).config
    assert (again.infill_end_token_id, again.infill_free_offsets) == (tokenizer.eos_token_id, [64])
    kept = build(tmp_path, tokenizer, ViewArguments(gap_layout="exact")).config
    expected = (None, [128]) if before["gap_layout"] == "exact" else (tokenizer.eos_token_id, [32])
    assert (kept.infill_end_token_id, kept.infill_free_offsets) == expected


def test_ordinary_tokens_are_all_but_special_and_mask(base_model_path, tokenizer):
    config = build(base_model_path, tokenizer).config
    tokens = special_tokens(config, tokenizer)
    left_out = set(range(config.vocab_size)) - set(tokens.ordinary.tolist())
    assert left_out == {*tokenizer.all_special_ids, config.mask_token_id}
    ids = (tokenizer.bos_token_id, config.mask_token_id, tokenizer.eos_token_id)
    assert (tokens.bos, tokens.mask, tokens.end) == ids


def without_bos(tokenizer):
    """The tokenizer as Qwen's and SmolLM2's are: nothing stands before a text."""
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    assert bare("")["input_ids"] == []
    return bare


def test_rows_open_with_what_the_tokenizer_or_the_model_says(base_model_path, tokenizer, tmp_path):
    bare = without_bos(tokenizer)
    config = build(base_model_path, bare).config
    assert config.text_start_token_id is None and special_tokens(config, bare).bos is None
    assert special_tokens(config, tokenizer).bos == 1
    model = build(base_model_path, bare, text_start_token="</s>")
    assert model.config.text_start_token_id == special_tokens(model.config, bare).bos == 2
    model.save_pretrained(tmp_path)
    assert build(tmp_path, bare).config.text_start_token_id == 2
    with pytest.raises(ValueError, match="text_start_token='two tokens': must be one token of the tokenizer, and is "):
        build(base_model_path, tokenizer, text_start_token="two tokens")


@pytest.mark.parametrize("start", [pytest.param(None, marks=pytest.mark.slow), "</s>"])
def test_a_tokenizer_without_bos_trains(flags, base_model_path, tokenizer, tmp_path, start):
    base = shutil.copytree(base_model_path, tmp_path / "base")
    without_bos(tokenizer).save_pretrained(base)
    main(flags(model_name_or_path=base, text_start_token=start))
    out = tmp_path / "out"
    model, bare = MagnetLlamaForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert bare("")["input_ids"] == [] and model.config.text_start_token_id == (start and 2)
    assert [line["step"] for line in log_of(out) if line["loss"] > 0] == [1, 2, 3]
    filled = model.infill("Tom was hungry. <|gap|> Then he was full.", bare, length=5)
    assert filled.startswith("Tom was hungry. ") and filled.endswith(" Then he was full.")


def test_another_kind_of_model_is_refused(base_model_path, tokenizer, tmp_path):
    config = json.loads((base_model_path / "config.json").read_text()) | {"model_type": "gpt_neox"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    families = "llama, mistral, qwen2, qwen3, gemma3_text, granite"
    with pytest.raises(ValueError, match=f"its model_type is 'gpt_neox'. MAGNET knows these families: {families}"):
        build(tmp_path, tokenizer)


def test_mask_token_is_the_last_token_of_its_text(tokenizer):
    assert tokenizer.decode(mask_token_id("_", tokenizer)) == "_"
    with pytest.raises(ValueError, match="mask_token=''"):
        mask_token_id("", tokenizer)


@pytest.mark.parametrize(("layout", "longest"), [("exact", 64), ("mixed", 44)])
def test_check_lengths(tiny_magnet, layout, longest):
    config = tiny_magnet(max_position_embeddings=64).config
    check_lengths(config, ViewArguments(max_length=longest, gap_layout=layout, free_offset=10))
    with pytest.raises(
        ValueError, match=f"max_length={longest + 1} .* position 65, beyond max_position_embeddings=64"
    ):
        check_lengths(config, ViewArguments(max_length=longest + 1, gap_layout=layout, free_offset=10))
