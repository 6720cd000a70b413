"""The five forms of Llama, loaded where this project is not installed, compute what the checkpoint does; those of the other
families too, also beyond their sliding windows; and what an export refuses."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import NAMES, WINDOW, build_base, build_magnet
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from magnet_cli.export import main as export_command
from magnet_hub import FORMS
from magnet_hub.export import export_checkpoint
from magnet_hub.save import save_checkpoint
from modeling_magnet import ATTENTION_MODES, MagnetLlamaForCausalLM, MagnetLlamaForTokenClassification
from modeling_magnet.modeling_magnet import base_sha256

TEXTS = [
    "",
    "Tom.",
    "A cat sleeps on the mat, and it rains.",
    "She said </s> and <pad><s> a_b <unk>.",
    "🎉 naïve \r\n e\u0301",
    "Tom" + " was" * 600,  # beyond max_position_embeddings
]
LOCAL = {"trust_remote_code": False}


def inputs() -> dict:
    ids = torch.randint(4, 4096, (2, 9), generator=torch.Generator().manual_seed(0))
    mask, spans = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, :3], spans[0, 2:5], spans[1, 5:7] = 0, 1, 1
    return {"ids": ids, "mask": mask, "spans": spans}


@torch.no_grad()
def logits(model, mode: str) -> torch.Tensor:
    given = inputs()
    spans = {"span_ids": given["spans"]} if mode == "hybrid" else {}
    return model(given["ids"], attention_mask=given["mask"], attention_mode=mode, **spans)[0]


def tensors(folder: Path) -> dict:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet(projection_head="mlp")


@pytest.fixture(scope="module")
def paper(text_magnet):
    return text_magnet(projection_head="mlp", causal_adapter=True)


@pytest.fixture(scope="module")
def mean(text_magnet):
    return text_magnet(pooling="mean")


@pytest.fixture(scope="module")
def checkpoints(model, paper, mean, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(model, tokenizer, folder / "gated")
    save_checkpoint(paper, tokenizer, folder / "paper")
    save_checkpoint(mean, tokenizer, folder / "mean")
    return folder


@pytest.fixture(scope="module")
def forms(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    for form in FORMS:
        export_checkpoint(checkpoints / "gated", folder / form, form)
    export_checkpoint(checkpoints / "paper", folder / "paper_adapter", "adapter")
    export_checkpoint(checkpoints / "paper", folder / "paper_generator", "generator")
    export_checkpoint(checkpoints / "mean", folder / "mean_encoder", "encoder")
    return folder


@pytest.fixture(scope="module")
def elsewhere(forms, tmp_path_factory):
    """What a process without this project made of the forms."""
    save_file(inputs(), forms / "inputs.safetensors")
    (forms / "texts.json").write_text(json.dumps(TEXTS))
    results = tmp_path_factory.mktemp("results")
    script = Path(__file__).parent / "forms_process.py"
    environment = os.environ | {"HF_MODULES_CACHE": str(results / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-I", str(script), str(forms), str(results)]
    run = subprocess.run(command, cwd=results, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "MISSING" not in run.stderr  # as transformers says of an adapter's tensors where it fills them later
    return load_file(results / "outputs.safetensors"), json.loads((results / "facts.json").read_text())


# ----------------------------------------------------------------------------------------- in a process without us


@pytest.mark.slow
def test_the_process_knew_nothing_of_this_project(elsewhere):
    _, facts = elsewhere
    assert facts["ours"] == []
    stock = {"generator": "LlamaForCausalLM", "paper_generator": "LlamaForCausalLM"}
    stock |= {"encoder": "LlamaModel", "mean_encoder": "LlamaModel"}
    ours = dict.fromkeys(("magnet", "merged", "adapter", "paper_adapter"), "MagnetLlamaForCausalLM")
    assert facts["classes"] == stock | ours


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "mode", "of", "atol"),
    [
        *((form, mode, "gated", 0) for form in ("magnet", "adapter", "again") for mode in ATTENTION_MODES),
        *(("paper_adapter", mode, "paper", 0) for mode in ATTENTION_MODES),
        # same seeds, so `paper` is `gated` with its adapter acting in causal mode too
        *(("merged", mode, "paper", 1e-4) for mode in ATTENTION_MODES),
        ("paper_generator", "causal", "paper", 1e-4),
        *(("peft", mode, "paper", 1e-5) for mode in ATTENTION_MODES),  # PEFT has no gate
    ],
)
def test_logits(elsewhere, model, paper, form, mode, of, atol):
    expected = logits({"gated": model, "paper": paper}[of], mode)
    torch.testing.assert_close(elsewhere[0][f"{form}.{mode}"], expected, rtol=0, atol=atol)


@pytest.mark.slow
def test_causal_logits_are_the_bases(elsewhere, model, tiny_llama, tokenizer):
    outputs, _ = elsewhere
    base = tiny_llama("sdpa", vocab_size=4096, max_position_embeddings=512, pad_token_id=0)
    given = inputs()
    with torch.no_grad():
        expected = base(given["ids"], attention_mask=given["mask"]).logits
    for name in ("magnet", "generator", "adapter", "base", "peft_off"):
        assert (outputs[f"{name}.causal"] - expected).abs().max() == 0.0, name
    assert torch.equal(outputs["adapter_of_decoder.causal"], logits(model.model, "causal"))
    assert torch.equal(outputs["generator.ids"], tokenizer("Tom was hungry.", return_tensors="pt")["input_ids"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(f"{form}.encoded" for form in ("magnet", "merged", "adapter")),
        *(f"{form}.sentences" for form in ("magnet", "merged", "encoder", "mean_encoder")),
    ],
)
def test_vectors(elsewhere, model, mean, tokenizer, name):
    expected = (mean if name.startswith("mean") else model).encode(TEXTS, tokenizer)
    assert abs(elsewhere[0][name].numpy() - expected).max() <= 1e-5


@pytest.mark.slow
def test_encoder_states(elsewhere, model):
    outputs, _ = elsewhere
    real = inputs()["mask"].bool()
    expected = logits(model.model, "bidirectional")
    torch.testing.assert_close(outputs["encoder.bidirectional"][real], expected[real], rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------- what is in them


def test_stock_forms_are_stock(forms):
    for form, kind in (("encoder", "LlamaModel"), ("generator", "LlamaForCausalLM")):
        config = json.loads((forms / form / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == ("llama", [kind])
        assert not {"auto_map", "adapter", "attention_mode", "causal_adapter", "mask_token_id"} & set(config)
        assert not list((forms / form).glob("*.py"))
        assert not any("lora" in name or "projection" in name for name in tensors(forms / form))


def test_keys_that_other_engines_read(forms):
    encoder = forms / "encoder"
    config = json.loads((encoder / "config.json").read_text())
    assert config["is_causal"] is False and config["use_bidirectional_attention"] is True
    assert config["rope_theta"] == 10000.0 and "rope_scaling" not in config
    assert "lm_head.weight" not in tensors(encoder) and "embed_tokens.weight" in tensors(encoder)
    types = [module["type"] for module in json.loads((encoder / "modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")]
    pooling = json.loads((encoder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_lasttoken"] is True and pooling["pooling_mode_mean_tokens"] is False
    assert pooling["pooling_mode_cls_token"] is False and pooling["pooling_mode"] == "lasttoken"
    sentences = json.loads((encoder / "sentence_bert_config.json").read_text())
    assert (sentences["max_seq_length"], sentences["do_lower_case"]) == (512, False)
    tokenizer = json.loads((encoder / "tokenizer_config.json").read_text())
    assert tokenizer["add_bos_token"] is True and tokenizer["add_eos_token"] is True
    mean = json.loads((forms / "mean_encoder" / "1_Pooling" / "config.json").read_text())
    assert mean["pooling_mode_mean_tokens"] is True and mean["pooling_mode_lasttoken"] is False


def test_encoder_tokenizer_adds_bos_and_eos_by_itself(forms, tokenizer):
    encoder = AutoTokenizer.from_pretrained(forms / "encoder")
    assert encoder("Tom.")["input_ids"] == [1, *tokenizer("Tom.", add_special_tokens=False)["input_ids"], 2]
    assert AutoTokenizer.from_pretrained(forms / "generator")("Tom.")["input_ids"] == tokenizer("Tom.")["input_ids"]


def test_rope_scaling_reaches_the_engines(text_magnet, tokenizer, tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = text_magnet()
    model.config.rope_parameters = rope | {"original_max_position_embeddings": 128}
    save_checkpoint(model, tokenizer, tmp_path / "scaled")
    export_checkpoint(tmp_path / "scaled", tmp_path / "encoder", "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert config["rope_theta"] == 5e5 and config["rope_scaling"]["rope_type"] == "llama3"
    assert AutoConfig.from_pretrained(tmp_path / "encoder").rope_parameters == model.config.rope_parameters


@pytest.mark.parametrize("form", ["merged", "generator", "encoder"])
def test_tied_bf16_shards_and_dtype(tiny_llama, text_magnet, tokenizer, tmp_path, form):
    """Embeddings stay tied, and what is merged and then rounded is rounded once, from float32."""
    llama = tiny_llama("sdpa", vocab_size=4096, max_position_embeddings=512, tie_word_embeddings=True)
    magnet = MagnetLlamaForCausalLM.from_llama(llama, adapter={"r": 4, "alpha": 8, "target_modules": ["q_proj"]})
    with torch.no_grad():
        for name, parameter in magnet.named_parameters():
            parameter.copy_(parameter.to(torch.bfloat16) + (0.125 if "_lora.B" in name else 0))
    for parameter in magnet.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    magnet.config.dtype = torch.bfloat16
    save_checkpoint(magnet, tokenizer, tmp_path / "bf16")
    magnet.save_pretrained(tmp_path / "bf16", max_shard_size="300KB")
    (tmp_path / "bf16" / "model.safetensors").unlink(missing_ok=True)
    assert len(list((tmp_path / "bf16").glob("model-*.safetensors"))) > 1

    export_checkpoint(tmp_path / "bf16", tmp_path / "same", form, dtype="bfloat16")
    export_checkpoint(tmp_path / "bf16", tmp_path / "wide", form, dtype="float32")
    export_checkpoint(tmp_path / "bf16", tmp_path / "default", form)
    stored = {tensor.dtype for tensor in tensors(tmp_path / "default").values()}
    assert stored == {torch.bfloat16 if form == "generator" else torch.float32}  # the base's, or merged
    same, wide = tensors(tmp_path / "same"), tensors(tmp_path / "wide")
    assert "lm_head.weight" not in same and same.keys() == wide.keys()
    for name, tensor in wide.items():
        assert tensor.dtype == torch.float32 and same[name].dtype == torch.bfloat16
        assert torch.equal(tensor.to(torch.bfloat16), same[name]), name
    export_checkpoint(tmp_path / "bf16", tmp_path / "half", form, dtype="float16")
    assert {tensor.dtype for tensor in tensors(tmp_path / "half").values()} == {torch.float16}
    if form == "generator":
        with torch.no_grad():
            stock = LlamaForCausalLM.from_pretrained(tmp_path / "same")
            assert torch.equal(stock(inputs()["ids"]).logits, magnet.eval()(inputs()["ids"]).logits)


@pytest.mark.parametrize("form", ["encoder", "merged"])
def test_vectors_of_a_bfloat16_checkpoint(text_magnet, tokenizer, tmp_path, form):
    """Merged weights that are rounded to bfloat16 give other vectors, so they are not, and if they are the card says so."""
    model = text_magnet()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    save_checkpoint(model, tokenizer, tmp_path / "bf16")
    exact = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.float32)
    expected = exact.encode(TEXTS, tokenizer)
    differences = {}
    for dtype in ("auto", "bfloat16"):
        export_checkpoint(tmp_path / "bf16", tmp_path / dtype, form, dtype)
        in_float32 = {"dtype": torch.float32}
        sentences = SentenceTransformer(str(tmp_path / dtype), device="cpu", model_kwargs=in_float32)
        differences[dtype] = abs(sentences.encode(TEXTS) - expected).max()
        assert ("rounded to bfloat16" in (tmp_path / dtype / "README.md").read_text()) is (dtype == "bfloat16")
    assert differences["auto"] <= 1e-5 and differences["bfloat16"] > 1e-4


def test_adapter_says_what_it_is(forms, checkpoints):
    config = json.loads((forms / "adapter" / "adapter_config.json").read_text())
    assert config["auto_mapping"]["magnet_gated"] and config["task_type"] == "CAUSAL_LM"
    bare = AutoModelForCausalLM.from_pretrained(forms / "adapter-base")
    assert config["auto_mapping"]["base_sha256"] == base_sha256(bare)
    assert config["base_model_name_or_path"] == str(forms / "adapter-base")
    assert json.loads((forms / "paper_adapter" / "adapter_config.json").read_text())["auto_mapping"] is None
    base = json.loads((forms / "adapter-base" / "config.json").read_text())
    assert base["adapter"] is None and base["projection_head"] == "none"
    sizes = [
        (forms / name).stat().st_size for name in ("adapter/adapter_model.safetensors", "magnet/model.safetensors")
    ]
    assert sizes[0] < sizes[1] / 5


def test_another_adapter_is_not_gated(forms, tmp_path):
    """One that a user trained on top acts in causal mode too: only ours carries the mark."""
    shutil.copytree(forms / "adapter", tmp_path / "users")
    path = tmp_path / "users" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": None}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "users")
    base = AutoModelForCausalLM.from_pretrained(forms / "adapter-base")
    assert not torch.equal(logits(model, "causal"), logits(base, "causal"))


def test_an_existing_base_is_compared(forms, checkpoints, tmp_path):
    export_checkpoint(
        checkpoints / "gated", tmp_path / "adapter", "adapter", base_model_name_or_path=str(forms / "adapter-base")
    )
    assert not (tmp_path / "adapter-base").exists()
    assert tensors(tmp_path / "adapter").keys() == tensors(forms / "adapter").keys()


def test_cards_are_of_their_form(forms):
    for form in FORMS:
        assert f"<!-- magnet card: form={form} " in (forms / form / "README.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ other families


@torch.no_grad()
def kept(model, mode: str | None = None) -> torch.Tensor:
    """First outputs for two rows, one padded on the left, longer than the window."""
    ids = torch.randint(4, 4096, (2, 5 * WINDOW), generator=torch.Generator().manual_seed(0))
    mask, spans = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, :3], spans[0, 2:9], spans[1, 5:7] = 0, 1, 1
    modes = {"attention_mode": mode} if mode else {}
    return model(ids, attention_mask=mask, **modes | ({"span_ids": spans} if mode == "hybrid" else {}))[0][mask.bool()]


FAST = ("qwen3", "gemma3_text")
FAMILIES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "llama"]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tokenizer, tmp_path_factory):
    """(a family's stock base, MAGNET over it, the tokenizer that transformers gives it, the folder with its forms)."""
    folder = tmp_path_factory.mktemp(request.param)
    base = build_base(request.param, "sdpa", vocab_size=4096, max_position_embeddings=64, pad_token_id=0)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    own = AutoTokenizer.from_pretrained(folder / "base", **LOCAL)
    model = build_magnet(base=base, infill_end_token_id=2)
    save_checkpoint(model, own, folder / "checkpoint")
    for form in FORMS:
        export_checkpoint(folder / "checkpoint", folder / form, form)
    return base, model, own, folder


def test_classes_and_the_cards_that_name_them(made):
    base, model, _, folder = made
    assert type(AutoModel.from_pretrained(folder / "encoder", **LOCAL)) is type(base.model)
    assert type(AutoModelForCausalLM.from_pretrained(folder / "generator", **LOCAL)) is type(base)
    for form in ("magnet", "merged", "adapter"):
        assert type(AutoModelForCausalLM.from_pretrained(folder / form, **LOCAL)) is type(model)
    for form, stock in (("encoder", base.model), ("generator", base)):
        assert f"a stock `{type(stock).__name__}`" in (folder / form / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["magnet", "adapter", "merged"])
def test_modes_of_each_family(made, form):
    _, model, _, folder = made
    paper = copy.deepcopy(model)
    paper.config.causal_adapter = True
    assert not torch.equal(kept(paper, "causal"), kept(model, "causal"))
    loaded = AutoModelForCausalLM.from_pretrained(folder / form, **LOCAL)
    for mode in ATTENTION_MODES:
        if form == "merged":
            torch.testing.assert_close(kept(loaded, mode), kept(paper, mode), rtol=0, atol=1e-4)
        else:
            assert torch.equal(kept(loaded, mode), kept(model, mode)), mode


def test_generator_of_each_family(made):
    base, _, _, folder = made
    assert torch.equal(kept(AutoModelForCausalLM.from_pretrained(folder / "generator", **LOCAL)), kept(base))


def test_encoder_states_of_each_family(made):
    """Its window is written so that transformers' own rule for it, or Gemma's, is ours: one more or less would show."""
    _, model, _, folder = made
    encoder = AutoModel.from_pretrained(folder / "encoder", **LOCAL)
    expected = kept(model.model, "bidirectional")
    torch.testing.assert_close(kept(encoder), expected, rtol=0, atol=2e-5)
    if getattr(model.config, "sliding_window", None):
        for window in (WINDOW - 1, WINDOW + 1):
            model.config.sliding_window = window
            assert (kept(model.model, "bidirectional") - expected).abs().max() > 1e-2
        model.config.sliding_window = WINDOW


def test_rotary_frequencies_at_the_top_level(made):
    """Where TEI looks for them; Gemma 3 has others in its sliding layers."""
    rope = made[1].config.rope_parameters
    assert AutoConfig.from_pretrained(made[3] / "encoder", **LOCAL).rope_parameters == rope
    found = json.loads((made[3] / "encoder" / "config.json").read_text(encoding="utf-8"))
    assert found["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    assert found.get("rope_local_base_freq") == rope.get("sliding_attention", {}).get("rope_theta")


@pytest.mark.parametrize("form", ["magnet", "merged", "encoder"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sentence_vectors_of_each_family(made, form, side):
    _, model, tokenizer, folder = made
    sentences = SentenceTransformer(str(folder / form), device="cpu", **LOCAL)
    sentences.tokenizer.padding_side = side
    # merged weights are rounded once more, and padding on the left turns the rotary angles of all tokens further
    atol = 1e-6 if form == "magnet" and side == "right" else 1e-5
    assert abs(sentences.encode(TEXTS) - model.encode(TEXTS, tokenizer)).max() <= atol
    assert abs(sentences.encode(TEXTS[1]) - model.encode(TEXTS[1], tokenizer)).max() <= atol


# ------------------------------------------------------------------------------------------------------- what fails


def refusal(*args, **kwargs) -> str:
    with pytest.raises(ValueError) as error:
        export_checkpoint(*args, **kwargs)
    return str(error.value)


def test_refusals(checkpoints, forms, base_model_path, tmp_path):
    gated, out = checkpoints / "gated", tmp_path / "out"
    assert refusal(gated, out, "gguf").startswith(
        "form='gguf': must be one of magnet, merged, encoder, generator, adapter"
    )
    assert refusal(gated, out, dtype="int8").startswith("dtype='int8': must be one of auto")
    assert "only form='adapter' has a base" in refusal(gated, out, "merged", base_model_name_or_path="x")
    assert "is not a folder, nor a Hub id" in refusal(tmp_path / "none" / "such", out)
    assert "model_type='llama' is not a MAGNET checkpoint" in refusal(base_model_path, out)
    assert "this checkpoint has no adapter" in refusal(forms / "merged", out, "adapter")
    assert "model_type='llama' is not a MAGNET base" in refusal(
        gated, out, "adapter", base_model_name_or_path=str(base_model_path)
    )
    assert "has causal_adapter=True, the checkpoint False" in refusal(
        gated, out, "adapter", base_model_name_or_path=str(forms / "merged")
    )
    shutil.copytree(forms / "adapter-base", tmp_path / "other")
    weights = tensors(tmp_path / "other")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors differ from the checkpoint's base, such as model.norm.weight" in refusal(
        gated, out, "adapter", base_model_name_or_path=str(tmp_path / "other")
    )
    assert "has pooling='mean', the checkpoint 'last_token'" in refusal(
        gated, out, "adapter", base_model_name_or_path=str(checkpoints / "mean")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_quantised_and_incomplete_checkpoints_are_refused(checkpoints, text_magnet, tokenizer, tmp_path):
    shutil.copytree(checkpoints / "gated", tmp_path / "quantised")
    path = tmp_path / "quantised" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    assert "its weights are quantised" in refusal(tmp_path / "quantised", tmp_path / "out", "encoder")
    MagnetLlamaForTokenClassification(text_magnet().config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    assert "the file has no tensors for lm_head.weight" in refusal(
        tmp_path / "classifier", tmp_path / "out", "generator"
    )


def test_nothing_is_written_over(checkpoints, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is not empty. Choose another folder" in refusal(checkpoints / "gated", tmp_path / "full", "generator")
    (tmp_path / "x-base").mkdir()
    (tmp_path / "x-base" / "mine.txt").write_text("mine")
    assert "its base would be written to" in refusal(checkpoints / "gated", tmp_path / "x", "adapter")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "mine.txt", "mine.txt", "x-base"]


def test_all_or_nothing(checkpoints, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()  # empty: may be used
    (tmp_path / ".out.unfinished").mkdir()  # of a process that was killed
    (tmp_path / ".out.unfinished" / "stale.py").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr("magnet_hub.export.write_model_card", full_disk)
        with pytest.raises(OSError):
            export_checkpoint(checkpoints / "gated", tmp_path / "out", "generator")
    assert list((tmp_path / "out").iterdir()) == [] and not (tmp_path / ".out.unfinished").exists()
    export_checkpoint(checkpoints / "gated", tmp_path / "out", "generator")
    assert (tmp_path / "out" / "config.json").is_file() and not (tmp_path / "out" / "stale.py").exists()


def test_command(checkpoints, tmp_path, capsys):
    out = tmp_path / "encoder"
    flags = ["--model_name_or_path", str(checkpoints / "gated"), "--output_dir", str(out), "--form", "encoder"]
    export_command([*flags, "--dtype", "float16"])
    assert "form encoder" in capsys.readouterr().err
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.get_tensor("norm.weight").dtype == torch.float16
