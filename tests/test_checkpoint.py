"""Checkpoints: weights taken over from Llama, saved, and loaded where this project is not installed."""

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils.versions import require_version

from magnet_hub.save import save_checkpoint
from modeling_magnet import ATTENTION_MODES, MagnetLlamaForCausalLM, configuration_magnet

DATA_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
OTHER_FILES = {"README.md", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
OTHER_FILES |= {"1_Pooling/config.json", "2_Normalize/config.json"}
SOURCES = Path(configuration_magnet.__file__).parent
CODE_FILES = {f"{name}_magnet.py" for name in ("configuration", "encoding", "infilling", "modeling", "scoring")}
INSTALLED_WITH_TRANSFORMERS = {
    "huggingface_hub",
    "numpy",
    "safetensors",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
}


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def in_three_modes(model, inputs: dict) -> dict:
    outputs = {}
    for mode in ATTENTION_MODES:
        spans = {"span_ids": inputs["spans"]} if mode == "hybrid" else {}
        with torch.no_grad():
            outputs[mode] = model(inputs["ids"], attention_mask=inputs["mask"], attention_mode=mode, **spans)[0]
    return outputs


def cast_parameters(model, dtype):
    """As loading does it; `model.to(dtype)` would round the rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def inputs_for(vocab_size: int) -> dict:
    ids = torch.randint(4, vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    mask, spans = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, :3], spans[0, 2:5], spans[1, 5:7] = 0, 1, 1
    return {"ids": ids, "mask": mask, "spans": spans}


# ----------------------------------------------------------------------------------------------------- from_llama()


def assert_shares_weights(magnet, llama) -> None:
    theirs = dict(llama.named_parameters(remove_duplicate=False))
    ours = dict(magnet.named_parameters(remove_duplicate=False))
    ours = {name: p for name, p in ours.items() if "_lora." not in name}
    assert ours.keys() == theirs.keys()
    assert all(ours[name].data_ptr() == p.data_ptr() for name, p in theirs.items())


@pytest.mark.parametrize("tied", [True, False])
def test_from_llama_shares_the_weights_of_a_model(tied, tiny_llama, tiny_magnet):
    llama = tiny_llama(tie_word_embeddings=tied)
    magnet = tiny_magnet(llama=llama)
    assert_shares_weights(magnet, llama)
    assert (magnet.lm_head.weight is magnet.model.embed_tokens.weight) is tied
    assert magnet.config.tie_word_embeddings is tied


@pytest.mark.parametrize("as_type", [str, Path])
def test_from_llama_of_a_folder(as_type, tmp_path, tiny_llama):
    tiny_llama().save_pretrained(tmp_path)
    magnet = MagnetLlamaForCausalLM.from_llama(as_type(tmp_path))
    assert not any(p.is_meta for p in (*magnet.parameters(), *magnet.buffers()))
    inputs = inputs_for(97)
    assert torch.equal(in_three_modes(magnet, inputs)["causal"], in_three_modes(tiny_llama("sdpa"), inputs)["causal"])


def test_from_llama_keeps_settings_and_leaves_the_llama_alone(tiny_llama):
    llama = tiny_llama(rms_norm_eps=1e-4)
    before = llama.config.to_dict()
    magnet = MagnetLlamaForCausalLM.from_llama(llama, mask_token_id=5, attention_mode="bidirectional")
    assert llama.config.to_dict() == before
    assert (magnet.config.rms_norm_eps, magnet.config.mask_token_id) == (1e-4, 5)
    assert magnet.config.attention_mode == "bidirectional"
    assert magnet.config.model_type == "magnet_llama"


# ---------------------------------------------------------------------------------------- round trip in this process


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tied, dtype, tmp_path, tiny_llama, tiny_magnet):
    llama = cast_parameters(tiny_llama(tie_word_embeddings=tied), dtype)
    magnet = cast_parameters(tiny_magnet(llama=llama, projection_head="mlp", pooling="mean"), dtype)
    magnet.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert isinstance(loaded, MagnetLlamaForCausalLM) and loaded.dtype == dtype
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    weights, again = magnet.state_dict(), loaded.state_dict()
    assert any("_lora.B" in name for name in weights) and any("projection_head" in name for name in weights)
    assert weights.keys() == again.keys()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())

    inputs = inputs_for(97)
    before, after = in_three_modes(magnet, inputs), in_three_modes(loaded, inputs)
    assert all(torch.equal(after[mode], before[mode]) for mode in ATTENTION_MODES)
    assert torch.equal(after["causal"], in_three_modes(llama, inputs)["causal"])


def test_adapter_trained_in_fp32_over_a_bf16_base(tmp_path, tiny_llama, tiny_magnet):
    """Training keeps the adapter in fp32; loading gives the whole model the base's precision."""
    llama = cast_parameters(tiny_llama(), torch.bfloat16)
    magnet = tiny_magnet(llama=llama)
    for name, parameter in magnet.named_parameters():
        if "_lora." in name:
            parameter.data = parameter.data.float()
    magnet.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    inputs = inputs_for(97)
    assert torch.equal(in_three_modes(loaded, inputs)["causal"], in_three_modes(llama, inputs)["causal"])


# -------------------------------------------------------------------------------------------------- a fresh process


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_magnet, base_model_path, tokenizer):
    """The trained base with an adapter that acts, saved in two precisions: (folder, {name: model})."""
    folder = tmp_path_factory.mktemp("checkpoints")
    models = {}
    for name in ("fp32", "bf16"):
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        llama = LlamaForCausalLM.from_pretrained(base_model_path, dtype=dtype)
        models[name] = tiny_magnet(llama=llama, infill_end_token_id=tokenizer.eos_token_id)
        save_checkpoint(models[name], tokenizer, folder / name)
    qwen = families.build_base("qwen3", "sdpa", vocab_size=len(tokenizer), max_position_embeddings=512)
    models["qwen3"] = families.build_magnet(base=qwen)
    save_checkpoint(models["qwen3"], tokenizer, folder / "qwen3")
    save_file(inputs_for(len(tokenizer)), folder / "inputs.safetensors")
    return folder, models


@pytest.fixture(scope="module")
def fresh(saved, tmp_path_factory):
    """What fresh_process.py found: (folder it wrote to, tensors, facts)."""
    results = tmp_path_factory.mktemp("results")
    settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(results / "modules"), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | settings
    script = Path(__file__).with_name("fresh_process.py")
    command = [sys.executable, "-I", str(script), str(saved[0]), str(results)]
    process = subprocess.run(command, cwd=results, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    return results, load_file(results / "outputs.safetensors"), json.loads((results / "facts.json").read_text())


def test_files_of_a_checkpoint(saved):
    """No pickles, and nothing that is not meant to be there: of the code, the five files that there are."""
    assert {path.name for path in SOURCES.glob("*_magnet.py")} == CODE_FILES
    assert files_in(saved[0] / "fp32") == CODE_FILES | DATA_FILES | OTHER_FILES
    for name in CODE_FILES:
        assert (saved[0] / "fp32" / name).read_bytes() == (SOURCES / name).read_bytes()


@pytest.mark.parametrize("name", sorted(CODE_FILES))
def test_code_files_import_siblings_and_what_users_have(name):
    """Remote code finds siblings by one leading dot only; any other package would have to be installed."""
    nodes = list(ast.walk(ast.parse((SOURCES / name).read_text(encoding="utf-8"))))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {f"{node.module}.py" for node in imports if node.level} <= CODE_FILES
    assert {node.level for node in imports} <= {0, 1}
    absolute = {node.module for node in imports if not node.level}
    absolute |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    external = {module.split(".")[0] for module in absolute} - set(sys.stdlib_module_names)
    assert external <= INSTALLED_WITH_TRANSFORMERS


@pytest.mark.parametrize("version", ["5.23.1", "5.24.0"])
def test_an_older_transformers_is_refused(version, monkeypatch):
    """A checkpoint brings its code along, but not the library that it was written for."""
    (call,) = re.findall(r"^require_version\(.*\)$", (SOURCES / "modeling_magnet.py").read_text(), flags=re.MULTILINE)
    oldest = re.search(r"transformers>=[\d.]+", call)[0]
    assert f'"{oldest},<6"' in (SOURCES.parent / "setup.py").read_text()
    monkeypatch.setattr("importlib.metadata.version", lambda package: version)
    refusal = pytest.raises(ImportError, match=rf"{oldest} .* but found transformers=={version}\.\n.*pip install -U")
    with refusal if version < "5.24" else contextlib.nullcontext():
        exec(call, {"require_version": require_version})


def test_the_project_was_not_installed_there(fresh):
    _, _, facts = fresh
    assert facts["modules_of_ours"] == []
    assert facts["config_module"].startswith("transformers_modules.")
    assert facts["model_module"].startswith("transformers_modules.")
    assert (facts["attention_mode"], facts["qwen3_class"]) == ("causal", "MagnetQwen3ForCausalLM")


def test_without_trust_it_refuses_to_load(fresh):
    assert "trust_remote_code=True" in fresh[2]["refusal"]


@pytest.mark.parametrize("mode", ATTENTION_MODES)
@pytest.mark.parametrize("name", ["causal_lm", "bf16", "saved_again", "qwen3"])
def test_logits_are_the_same_there(name, mode, saved, fresh):
    model = saved[1].get(name, saved[1]["fp32"])
    expected = in_three_modes(model, inputs_for(model.config.vocab_size))[mode]
    torch.testing.assert_close(fresh[1][f"{name}.{mode}"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ATTENTION_MODES)
@pytest.mark.parametrize("name", ["model", "token_classification", "sequence_classification"])
def test_hidden_states_are_the_same_there(name, mode, saved, fresh):
    model = saved[1]["fp32"]
    expected = in_three_modes(model.model, inputs_for(model.config.vocab_size))[mode]
    torch.testing.assert_close(fresh[1][f"{name}.{mode}"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_causal_mode_is_the_base_bit_for_bit_there(name, saved, fresh, base_model_path):
    base = LlamaForCausalLM.from_pretrained(base_model_path, dtype=saved[1][name].dtype)
    inputs = inputs_for(base.config.vocab_size)
    with torch.no_grad():
        expected = base(inputs["ids"], attention_mask=inputs["mask"]).logits
    logits = fresh[1]["causal_lm.causal" if name == "fp32" else "bf16.causal"]
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, fresh[1]["causal_lm.hybrid" if name == "fp32" else "bf16.hybrid"])


def test_precision_is_kept_there(fresh):
    assert fresh[2]["bf16_dtypes"] == ["torch.bfloat16"]


def test_heads_run_there(fresh):
    assert fresh[1]["token_logits"].shape == (2, 9, 5)
    assert fresh[1]["sequence_logits"].shape == (2, 5)


def test_infill_and_encode_are_the_same_there(saved, fresh, tokenizer):
    model = saved[1]["fp32"]
    filled = model.infill("The cat <|gap|> on the mat.", tokenizer, length=4, do_sample=False)
    assert fresh[2]["infilled"] == filled
    encoded = torch.from_numpy(model.encode(["A cat sleeps.", "Rain fell all day."], tokenizer))
    torch.testing.assert_close(fresh[1]["encoded"], encoded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["saved_again", "token_classifier"])
def test_saving_there_keeps_the_code(name, fresh):
    folder = fresh[0] / name
    assert files_in(folder) >= CODE_FILES | {"config.json", "model.safetensors"}
    for file in CODE_FILES:
        assert (folder / file).read_bytes() == (SOURCES / file).read_bytes()
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == MagnetLlamaForCausalLM.config_class().auto_map


def test_a_head_trained_there_comes_back(fresh):
    assert torch.equal(fresh[1]["token_logits_again"], fresh[1]["token_logits"])


def test_tokenizer_is_saved_beside_it(saved, tokenizer):
    loaded = AutoTokenizer.from_pretrained(saved[0] / "fp32")
    text = "Tom's cat, <s> 12 times."
    assert loaded(text).input_ids == tokenizer(text).input_ids


@pytest.mark.slow
def test_nothing_asks_whether_to_run_code(saved, tmp_path):
    """Where the classes are installed, a tokenizer is read without remote code, and without a question to the terminal."""
    script = "import sys, modeling_magnet\nfrom transformers import AutoTokenizer\n"
    script += "print(AutoTokenizer.from_pretrained(sys.argv[1])('Tom.').input_ids)"
    command = [sys.executable, "-c", script, str(saved[0] / "qwen3")]
    closed = {"stdin": subprocess.DEVNULL, "cwd": tmp_path, "capture_output": True, "text": True}
    process = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, **closed)
    assert (
        process.returncode == 0 and process.stdout.startswith("[") and "[y/N]" not in process.stdout + process.stderr
    )


def test_the_first_file_names_all_others():
    """transformers makes sure of these alone when two processes fetch the code at once (tests/test_push.py)."""
    folder = Path(configuration_magnet.__file__).parent
    named = set(
        re.findall(r"^\s*from \.(\w+) import", (folder / "modeling_magnet.py").read_text(), flags=re.MULTILINE)
    )
    assert named == {path.stem for path in folder.glob("*_magnet.py")} - {"modeling_magnet"}
