"""magnet check: a healthy checkpoint passes, and each kind of damage is found by the check that is for it."""

import json
import pickle
import re
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file

from magnet_check.behaviour import check_encode, check_gate, check_infill, check_threads
from magnet_check.checkpoint import Checkpoint
from magnet_check.modes import check_modes, check_padding
from magnet_check.outcome import Failed, Skipped
from magnet_check.run import CHECKS, run_checks
from magnet_cli.main import main
from modeling_magnet import modeling_magnet
from modeling_magnet.export import save_checkpoint
from modeling_magnet.forms import export_checkpoint
from modeling_magnet.model_card import write_model_card

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer_config.json"
SENTENCES, INDEX, CODE = "sentence_bert_config.json", "model.safetensors.index.json", "seams_magnet.py"
NOT_ON_A_CPU = {f"{kind}, {name}" for kind in ("modes", "padding") for name in ("flex_attention", "flash_attention_2")}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, text_magnet, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("healthy") / "tiny"
    save_checkpoint(text_magnet(), tokenizer, folder)
    return folder


@pytest.fixture
def folder(healthy, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(healthy, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def loaded(healthy) -> Checkpoint:
    """For damage of the code: patched, and mended after the test."""
    return Checkpoint(healthy)


def found(folder: Path, name: str) -> str:
    """What the check says of a damaged folder."""
    with pytest.raises(Failed) as failure:
        CHECKS[name](Checkpoint(folder))
    return str(failure.value)


def change_json(path: Path, **values) -> None:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# -------------------------------------------------------------------------------------------------------- a healthy one


def test_a_healthy_checkpoint_passes_everything(healthy):
    outcomes = list(run_checks(Checkpoint(healthy)))
    assert [outcome.name for outcome in outcomes] == list(CHECKS)
    assert [outcome.line for outcome in outcomes if outcome.status == "FAIL"] == []
    assert {outcome.name for outcome in outcomes if outcome.status == "skipped"} == NOT_ON_A_CPU
    assert all(outcome.detail for outcome in outcomes)


@pytest.mark.parametrize(
    ("form", "skipped"),
    [
        ("encoder", {"code, card", "code, installed", "END's twins", "adapter's gate", "infill", "encode"}),
        (
            "generator",
            {"code, card", "code, installed", "END's twins", "adapter's gate", "infill", "encode", "sentences"},
        ),
        ("merged", {"adapter's gate"}),
        ("adapter", set(CHECKS) - {"files", "paths", "no pickles", "settings", "headers", "values", "dtypes"}),
    ],
)
def test_the_other_forms_pass_what_applies_to_them(form, skipped, healthy, tmp_path):
    export_checkpoint(healthy, tmp_path / form, form)
    outcomes = list(run_checks(Checkpoint(tmp_path / form)))
    assert [outcome.line for outcome in outcomes if outcome.status == "FAIL"] == []
    assert {outcome.name for outcome in outcomes if outcome.status == "skipped"} == skipped | NOT_ON_A_CPU


def test_shards_pass(healthy, tmp_path, text_magnet):
    shutil.copytree(healthy, tmp_path, dirs_exist_ok=True)
    (tmp_path / WEIGHTS).unlink()
    text_magnet().save_pretrained(tmp_path, max_shard_size="500KB")
    for name in ("files", "paths", "headers", "tensors", "values", "dtypes"):
        CHECKS[name](Checkpoint(tmp_path))
    assert len(Checkpoint(tmp_path).weights) > 1


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", CODE, "modules.json", "1_Pooling/config.json", CONFIG])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert name in found(folder, "files")


def test_an_empty_file(folder):
    (folder / "generation_config.json").write_text("")
    assert found(folder, "files") == "empty: generation_config.json"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "weights"])
def test_a_link_that_leads_out(folder, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(folder / WEIGHTS, outside / WEIGHTS)
    target = {
        "file": outside / WEIGHTS,
        "folder": outside,
        "dangling": tmp_path / "nothing",
        "weights": outside / WEIGHTS,
    }
    name = WEIGHTS if kind == "weights" else "more"
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target[kind])
    assert found(folder, "paths") == f"{name} is a link that leads out of the folder"


def test_a_link_inside_and_the_hubs_cache_are_fine(folder, tmp_path):
    (folder / "again.json").symlink_to(folder / CONFIG)
    CHECKS["paths"](Checkpoint(folder))
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    (snapshot / CONFIG).symlink_to(Path("..", "..", "blobs", "1"))
    CHECKS["paths"](Checkpoint(snapshot))


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("/etc/model.safetensors", "absolute path"),
        ("C:\\model.safetensors", "absolute path"),
        ("../tiny/model.safetensors", "outside the folder"),
        ("..\\model.safetensors", "outside the folder"),
        ("1_Pooling/model.safetensors", "no safetensors file beside it"),
        ("pytorch_model.bin", "no safetensors file beside it"),
        ("model-00001-of-00001.safetensors", "is missing"),
    ],
)
def test_a_shard_that_leads_elsewhere(folder, shard, message):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    assert message in found(folder, "paths")


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": {}}', "{"])
def test_an_index_that_is_none(folder, content):
    (folder / INDEX).write_text(content)
    assert INDEX in found(folder, "paths")


def test_pickles_by_name_and_by_content(folder):
    (folder / "training_args.bin").write_text("harmless")
    (folder / "notes.txt").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(folder / "1_Pooling" / "weights.dat", "w") as archive:
        archive.writestr("data.pkl", "")
    assert found(folder, "no pickles").startswith("1_Pooling/weights.dat, notes.txt, training_args.bin: may run code")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (CONFIG, {"trust_remote_code": True}, "config.json sets trust_remote_code"),
        (SENTENCES, {"config_kwargs": {"trust_remote_code": True}}, "sets trust_remote_code"),
        (CONFIG, {"_attn_implementation_internal": "evil/kernel"}, "_attn_implementation_internal='evil/kernel'"),
        (
            CONFIG,
            {"auto_map": {"AutoModel": "evil/repo--modeling_magnet.MagnetLlamaModel"}},
            "is no file of this folder",
        ),
        (CONFIG, {"auto_map": {"AutoModel": "elsewhere.Model"}}, "is no file of this folder"),
        (
            TOKENIZER,
            {"auto_map": {"AutoTokenizer": ["modeling_magnet.T", None]}},
            "tokenizer_config.json has an auto_map",
        ),
        (CONFIG, {"attention_mode": "bidirectionl"}, "attention_mode"),
        (CONFIG, {"mask_token_id": 10**6}, "mask_token_id=1000000"),
        (CONFIG, {"model_type": "gpt2"}, "model_type='gpt2'"),
        (CONFIG, {"architectures": ["Evil"]}, "names the class 'Evil'"),
    ],
)
def test_settings_that_widen_trust_or_cannot_be(folder, name, values, message):
    change_json(folder / name, **values)
    assert message in found(folder, "settings")


def test_a_module_that_is_not_of_sentence_transformers(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "modeling_magnet.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "is no module of sentence-transformers" in found(folder, "settings")


def test_json_that_cannot_be_read(folder):
    (folder / CONFIG).write_text("{")
    assert "config.json cannot be read" in found(folder, "files")


# ---------------------------------------------------------------------------------------------------------------- code


def test_code_that_was_edited(folder):
    (folder / CODE).write_text("# edited\n" + (folder / CODE).read_text())
    (folder / "evil.py").write_text("")
    said = found(folder, "code, card")
    assert f"{CODE}: other content; evil.py: not there" in said and "against README.md" in said
    assert f"{CODE}: other content; evil.py: not there" in found(folder, "code, installed")
    (folder / "evil.py").unlink()
    (folder / CODE).unlink()
    assert f"{CODE}: missing here" in found(folder, "code, card")


def test_a_card_without_hashes_is_told(folder):
    (folder / "README.md").write_text("my model")
    with pytest.raises(Skipped, match="lists no hashes"):
        CHECKS["code, card"](Checkpoint(folder))


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_the_checkpoint_runs_when_it_is_trusted_and_as_its_card_says(folder, tmp_path, monkeypatch, trusted):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    canary = tmp_path / "canary"
    with (folder / "modeling_magnet.py").open("a") as file:
        file.write(f"\nopen({str(canary)!r}, 'w').close()\n")

    def checked():
        return {each.name: each for each in run_checks(Checkpoint(folder, trust_remote_code=trusted))}

    outcomes = checked()
    assert outcomes["code, card"].status == outcomes["code, installed"].status == "FAIL" and not canary.exists()
    assert outcomes["infill"].status == ("skipped" if trusted else "ok")
    if trusted:
        assert outcomes["modes, sdpa"].detail == "nothing is loaded: code, card failed"
        write_model_card(Checkpoint(folder).config, folder)
        outcomes = checked()
        assert outcomes["code, card"].status == outcomes["modes, sdpa"].status == outcomes["infill"].status == "ok"
        assert outcomes["adapter's gate"].status == "ok" and canary.exists()


# ------------------------------------------------------------------------------------------------------------- weights


def header_of(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def damage_header(folder: Path, kind: str) -> None:
    header, data = header_of(folder / WEIGHTS)
    first, second = (name for name in list(header) if name != "__metadata__") if len(header) < 3 else list(header)[1:3]
    if kind == "overlapping":
        header[second]["data_offsets"] = header[first]["data_offsets"]
    elif kind == "wrong dtype":
        header[first]["dtype"] = "F64"
    elif kind == "wrong shape":
        header[first]["shape"] = [1, 1]
    elif kind == "unknown dtype":
        header[first]["dtype"] = "Q7"
    elif kind == "truncated":
        data = data[:-8]
    elif kind == "longer":
        data += b"hidden"
    write_header(folder / WEIGHTS, header, data)


@pytest.mark.parametrize(
    "kind", ["overlapping", "wrong dtype", "wrong shape", "unknown dtype", "truncated", "longer", "no header", "zeros"]
)
def test_a_damaged_header(folder, kind):
    if kind in ("no header", "zeros"):
        (folder / WEIGHTS).write_bytes(b"\xff" * 100 if kind == "no header" else bytes(100))
    else:
        damage_header(folder, kind)
    assert found(folder, "headers").startswith(f"{WEIGHTS} is damaged: ")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_that_is_not_finite(folder, value):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors[name][3, 3].fill_(float(value)))
    assert found(folder, "values") == f"{name} in {WEIGHTS} holds {'NaN' if value == 'nan' else 'infinity'}"


def missing(tensors):
    del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.q_proj.lora_A.magnet.weight"]


def extra(tensors):
    tensors["model.layers.0.self_attn.bias"] = torch.zeros(3)


def shape(tensors):
    tensors["model.norm.weight"] = torch.ones(63)


def layer(tensors):
    for name in [name for name in tensors if ".layers.2." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, "missing: model.layers.0.self_attn.q_proj.lora_A.magnet.weight, model.norm.weight"),
        (extra, "not asked for: model.layers.0.self_attn.bias"),
        (shape, "model.norm.weight has shape [63], not [64]"),
        (layer, "2 layers are stored, config.json has num_hidden_layers=3"),
    ],
)
def test_tensors_that_are_not_the_configurations(folder, change, message):
    change_tensors(folder, change)
    assert found(folder, "tensors") == message


def test_a_configuration_of_a_billion_layers_is_refused_at_once(folder):
    change_json(folder / CONFIG, num_hidden_layers=10**9)
    started = time.monotonic()
    assert "num_hidden_layers=1000000000" in found(folder, "tensors")
    assert time.monotonic() - started < 5


def test_tensors_in_two_files_or_not_in_the_index(folder):
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    assert "stands in two files" in found(folder, "tensors")
    (folder / "other.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": WEIGHTS}}))
    assert f"{INDEX} lists other tensors" in found(folder, "tensors")


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float64, "stored as F64: use"),
        (torch.int8, "stored as I8: use"),
        (torch.bfloat16, "config.json has dtype="),
    ],
)
def test_a_precision_that_is_not_the_configurations(folder, dtype, message):
    change_tensors(
        folder, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(dtype)})
    )
    said = found(folder, "dtypes")
    assert said.startswith("model.norm.weight") and message in said


def test_an_adapter_may_be_in_another_precision(folder):
    change_tensors(
        folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if "lora_" in n})
    )
    assert CHECKS["dtypes"](Checkpoint(folder)) == "F32; adapter BF16"


# -------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": 5000}, "eos_token_id=5000, outside the 4096 rows"),
        ({"pad_token_id": -1}, "pad_token_id=-1, outside"),
        ({"bos_token_id": 7}, "bos_token_id is 1 in the tokenizer, 7 in config.json"),
        ({"mask_token_id": 2}, "mask_token_id=2 is the control token '</s>'"),
        ({"infill_end_token_id": 9}, "infill_end_token_id=9 is not the tokenizer's eos_token_id=2"),
    ],
)
def test_special_tokens_that_cannot_be(folder, values, message):
    change_json(folder / CONFIG, **values)
    assert message in found(folder, "tokens")


def test_a_tokenizer_that_has_more_tokens_than_the_embedding_rows(folder):
    change_json(folder / CONFIG, vocab_size=4000)
    change_tensors(
        folder, lambda t: t.update({n: v[:4000].clone() for n, v in t.items() if "embed" in n or "lm_head" in n})
    )
    assert found(folder, "tokens") == "the tokenizer has 4096 tokens, the embedding 4000 rows"


def test_an_end_that_all_tokens_share(folder):
    change_tensors(folder, lambda tensors: tensors["lm_head.weight"].copy_(tensors["lm_head.weight"][2].clone()))
    assert "4095 of 4096 tokens have END's output row" in found(folder, "END's twins")


def processor(**values) -> dict:
    settings = {"add_bos_token": True, "add_eos_token": True, "split_special_tokens": True, "model_max_length": 512}
    return {"processor_kwargs": {name: value for name, value in (settings | values).items() if value is not None}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (processor(add_eos_token=False), "does not end with [EOS]"),
        (processor(add_bos_token=False), "does not begin with [BOS]"),
        (processor(split_special_tokens=None), "become control tokens"),
        (processor(model_max_length=4096), "sentences may have 4096 tokens, the model 512"),
        (processor(tokenizer_class="Evil"), "passes tokenizer_class to the tokenizer"),
        ({"config_kwargs": {"attention_mode": "causal"}}, "attention_mode='causal'"),
    ],
)
def test_sentences_that_are_tokenized_wrongly(folder, values, message):
    change_json(folder / SENTENCES, **values)
    assert message in found(folder, "sentences")


# ------------------------------------------------------------------------------------------------- modes and the gate


def looks_everywhere(span_ids):
    return lambda batch, head, query, key: span_ids[batch, key] >= 0


def causal_in_context(span_ids):
    return lambda batch, head, query, key: key <= query


def through_spans(span_ids):
    """Adjacent spans taken for one: what a bool mask would do."""

    def rule(batch, head, query, key):
        both = (span_ids[batch, key] > 0) & (span_ids[batch, query] > 0)
        return (span_ids[batch, key] == 0) | (both & (key <= query))

    return rule


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (looks_everywhere, "hybrid, batch 1: token 0 notices token 2 to its right"),
        (causal_in_context, "hybrid, batch 1: token 0 does not notice token 1 to its right"),
        (through_spans, "hybrid, batch 1: token 4 notices token 2 to its left"),
    ],
)
def test_a_hybrid_rule_that_is_another(loaded, monkeypatch, backend, rule, message):
    monkeypatch.setattr(modeling_magnet, "span_attention_rule", rule)
    with pytest.raises(Failed, match=message):
        check_modes(loaded, backend)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("causal", "bidirectional, batch 1: token 0 does not notice token 1 to its right"),
        ("bidirectional", "causal, batch 1: token 0 notices token 1 to its right"),
    ],
)
def test_a_mode_that_is_silently_another(loaded, monkeypatch, backend, mode, message):
    states = loaded.states

    def same_mode(asked, ids, mask=None, spans=None):
        return states(asked if asked == "hybrid" else mode, ids, mask, spans)

    monkeypatch.setattr(loaded, "states", same_mode)
    with pytest.raises(Failed, match=message):
        check_modes(loaded, backend)


def test_a_mode_that_is_another_only_when_padded(loaded, monkeypatch):
    states = loaded.states
    monkeypatch.setattr(
        loaded,
        "states",
        lambda mode, ids, mask=None, spans=None: (
            states("causal" if mask is not None else mode, ids, mask)
            if mode == "bidirectional"
            else states(mode, ids, mask, spans)
        ),
    )
    with pytest.raises(Failed, match="bidirectional, padded on the left: token 0 does not notice token 1"):
        check_modes(loaded, "sdpa")


@pytest.mark.parametrize("form", ["encoder", "generator"])
def test_a_stock_form_with_the_other_attention(healthy, tmp_path, form):
    """is_causal is one word in config.json, and nobody would notice."""
    export_checkpoint(healthy, tmp_path / form, form)
    change_json(tmp_path / form / CONFIG, is_causal=form == "encoder")
    words = {"encoder": "bidirectional, batch 1: token 0 does not", "generator": "causal, batch 1: token 0 notices"}
    assert words[form] in found(tmp_path / form, "modes, sdpa")
    if form == "encoder":
        assert "config.json has is_causal=True" in found(tmp_path / form, "settings")


def test_padding_that_is_attended_to(loaded, monkeypatch):
    states = loaded.states
    monkeypatch.setattr(loaded, "states", lambda mode, ids, mask=None, spans=None: states(mode, ids, None, spans))
    with pytest.raises(Failed, match="padded on the left: vectors change by"):
        check_padding(loaded, "sdpa")


def test_a_gate_that_stays_open(loaded, monkeypatch):
    gate = modeling_magnet.adapter_gate
    monkeypatch.setattr(modeling_magnet, "adapter_gate", lambda is_open: gate(True))
    with pytest.raises(Failed, match="causal mode is not the base: states differ by up to"):
        check_gate(loaded)


def test_an_adapter_that_does_nothing(folder):
    change_tensors(folder, lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name])
    assert "the adapter does nothing" in found(folder, "adapter's gate")
    change_json(folder / CONFIG, causal_adapter=True)
    assert "causal_adapter=true, but causal mode is the base" in found(folder, "adapter's gate")


def test_a_causal_adapter_passes(folder):
    change_json(folder / CONFIG, causal_adapter=True)
    assert "acts in causal mode too" in check_gate(Checkpoint(folder))


def test_a_mode_that_threads_share(loaded, monkeypatch):
    states, shared = loaded.states, {}

    def toggled(mode, ids, mask=None, spans=None):
        shared["mode"] = mode
        time.sleep(0.002)
        return states(shared["mode"], ids, mask, spans)

    monkeypatch.setattr(loaded, "states", toggled)
    with pytest.raises(Failed, match="in 6 threads: vectors differ by"):
        check_threads(loaded)


def test_an_infill_that_changes_the_text(loaded, monkeypatch):
    infill = loaded.model.infill

    def changed(*args, **kwargs):
        output = infill(*args, **kwargs)
        output.text = output.text.replace("Tom", "Tim")
        return output

    monkeypatch.setattr(loaded.model, "infill", changed)
    with pytest.raises(Failed, match="the text around the gap did not come back: 'Tim was hungry"):
        check_infill(loaded)


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite"), (2.0, "not of length 1")])
def test_vectors_that_are_none(loaded, monkeypatch, value, message):
    encode = loaded.model.encode
    monkeypatch.setattr(loaded.model, "encode", lambda *args, **kwargs: encode(*args, **kwargs) * value)
    with pytest.raises(Failed, match=message):
        check_encode(loaded)


# --------------------------------------------------------------------------------------------------------- the command


def test_nothing_is_loaded_after_damage(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    outcomes = {outcome.name: outcome for outcome in run_checks(Checkpoint(folder))}
    assert outcomes["headers"].status == outcomes["tensors"].status == "FAIL"
    assert (
        outcomes["infill"].detail.startswith("nothing is loaded: headers, ") and outcomes["code, card"].status == "ok"
    )


def test_the_command_prints_a_line_a_check_and_leaves_with_one(folder, capsys):
    (folder / "notes.pkl").write_text("x")
    with pytest.raises(SystemExit) as left:
        main(["check", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert left.value.code == 1
    assert len([line for line in lines if line.startswith(("ok ", "FAIL ", "skipped "))]) == len(CHECKS)
    assert "FAIL    no pickles                 notes.pkl: may run code when read" in "\n".join(lines)
    assert lines[-1].startswith(f"1 of {len(CHECKS)} checks failed.") and "was not run" in lines[-1]


def test_the_command_reports_in_json(healthy, capsys):
    main(["check", str(healthy), "--json", "--attn_implementation", "eager"])
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["checkpoint"] == "tiny" and report["code"] == "the installed package's"
    status = {each["name"]: (each["status"], each["detail"]) for each in report["checks"]}
    assert status["modes, eager"][0] == "ok" and status["modes, sdpa"] == ("skipped", "not asked for")
    assert list(status) == list(CHECKS)


def test_the_page_names_every_check():
    """And its example is of this version: magnet check examples/assets/magnet-tiny > docs/measured/check.txt."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "check.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert rows == list(dict.fromkeys(re.sub(", (eager|sdpa|fl.*)$", ", ...", name) for name in CHECKS))
    printed = re.findall(r"^(?:ok|FAIL|skipped) +(.{26})", page, flags=re.MULTILINE)
    assert [name.strip() for name in printed] == list(CHECKS)


def test_a_folder_that_is_none(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no such folder"):
        main(["check", str(tmp_path / "none")])


def test_an_empty_folder_fails_and_does_not_crash(tmp_path):
    outcomes = list(run_checks(Checkpoint(tmp_path)))
    assert outcomes[0].status == "FAIL" and {outcome.status for outcome in outcomes} <= {"FAIL", "skipped", "ok"}
