"""magnet check: healthy checkpoints of every form pass, and each kind of damage fails the check that is for it."""

import copy
import json
import os
import shutil
import signal
import struct
from pathlib import Path

import pytest
import torch
from families import NAMES, OWN, build_base, build_magnet
from safetensors.torch import load_file, save_file

from magnet_cli.main import main
from magnet_hub.check import CHECKS, Checkpoint, check_gate, check_modes, run_checks
from magnet_hub.export import export_checkpoint
from magnet_hub.save import save_checkpoint
from modeling_magnet import modeling_magnet

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer_config.json"
SENTENCES, POOLING, INDEX = "sentence_bert_config.json", "1_Pooling/config.json", "model.safetensors.index.json"
CODE = "scoring_magnet.py"
NOT_ON_A_CPU = {"modes, flex_attention", "modes, flash_attention_2"}


def names(folder, status: str, **settings) -> set[str]:
    return {outcome.name for outcome in run_checks(Checkpoint(folder, **settings)) if outcome.status == status}


def found(folder, name: str) -> str:
    """What the check says of a damaged folder; those before it may fail too."""
    outcome = next(outcome for outcome in run_checks(Checkpoint(folder)) if outcome.name == name)
    assert outcome.status == "FAIL", outcome
    return outcome.detail


def change_json(path: Path, **values) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_tensors(folder: Path, change) -> None:
    """`change` gets the tensors by name, and changes them in place."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# --------------------------------------------------------------------------------------------------- healthy checkpoints


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_healthy_checkpoint_passes(healthy, dtype):
    outcomes = list(run_checks(Checkpoint(healthy, dtype=dtype)))
    assert [outcome.name for outcome in outcomes] == list(CHECKS)
    assert {outcome.name for outcome in outcomes if outcome.status == "skipped"} == NOT_ON_A_CPU
    assert [outcome for outcome in outcomes if outcome.status == "FAIL" or not outcome.detail] == []


@pytest.mark.parametrize(
    ("form", "skipped"),
    [
        ("encoder", {"adapter's gate"}),
        ("generator", {"adapter's gate", "sentences"}),
        ("merged", {"adapter's gate"}),
        ("adapter", set(CHECKS) - {"paths", "code", "config", "weights"}),
    ],
)
def test_the_other_forms_pass_what_applies_to_them(form, skipped, healthy, tmp_path):
    export_checkpoint(healthy, tmp_path / form, form)
    assert names(tmp_path / form, "FAIL") == set()
    assert names(tmp_path / form, "skipped") == skipped | NOT_ON_A_CPU


@pytest.mark.parametrize(
    "name",
    ["gemma3_text", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n not in ("llama", "gemma3_text"))],
)
def test_a_healthy_checkpoint_of_any_family_passes(name, tmp_path, tokenizer):
    """A window, where the family has one, is longer than the text that the check of modes reads."""
    shape = {"vocab_size": 4096, "pad_token_id": 0} | ({"sliding_window": 32} if "sliding_window" in OWN[name] else {})
    base = build_base(name, "sdpa", **shape)
    ends = {"mask_token_id": 66, "infill_end_token_id": 2, "infill_free_offsets": [64]}
    save_checkpoint(build_magnet(base=base, **ends), tokenizer, tmp_path)
    assert names(tmp_path, "ok", backends=["sdpa"]) == set(CHECKS) - NOT_ON_A_CPU - {"modes, eager"}


@pytest.mark.parametrize("start", [None, 300])
def test_a_tokenizer_that_puts_nothing_before_a_text(tmp_path, text_magnet, tokenizer, start):
    """Nor has a padding token; `text_start_token_id` may open texts all the same."""
    bare = copy.deepcopy(tokenizer)
    bare.add_bos_token, bare.pad_token = False, None
    assert bare("")["input_ids"] == []
    save_checkpoint(text_magnet(text_start_token_id=start), bare, tmp_path)
    assert names(tmp_path, "FAIL", backends=[]) == set()


def test_shards_and_an_adapter_in_another_precision_pass(folder, text_magnet):
    model = text_magnet()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.bfloat16() if "_lora." in name else parameter.data
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert names(folder, "FAIL", backends=[]) == set()


def test_what_a_run_leaves_beside_its_checkpoint_is_not_looked_at(folder):
    """Nor what git and the Hub's downloads keep there."""
    for name in ("checkpoint-2/optimizer.pt", ".run.lock", ".cache/huggingface/config.json.lock", ".git/x.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    assert names(folder, "FAIL", backends=[]) == set()
    (folder / "checkpoint-mine").mkdir()
    (folder / "checkpoint-mine" / "optimizer.pt").write_text("x")
    assert found(folder, "code").startswith("checkpoint-mine/optimizer.pt: may run code")


# ----------------------------------------------------------------------------------------------------- files and code


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (CONFIG, "config"),
        (CODE, "code"),
        (WEIGHTS, "weights"),
        ("tokenizer.json", "tokens"),
        ("modules.json", "sentences"),
        (SENTENCES, "sentences"),
        (POOLING, "sentences"),
        ("config_sentence_transformers.json", "sentences"),
    ],
)
def test_a_missing_file(folder, name, check):
    (folder / name).unlink()
    assert ("tokenizer" if check == "tokens" else name) in found(folder, check)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "weights"])
def test_a_link_that_leads_out(folder, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    name = WEIGHTS if kind == "weights" else "more"
    shutil.copy(folder / WEIGHTS, outside / name)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to({"folder": outside, "dangling": tmp_path / "nothing"}.get(kind, outside / name))
    assert found(folder, "paths").startswith(f"{name} is a link out of the folder")


def test_a_link_inside_and_the_hubs_cache_are_fine(folder, tmp_path):
    (folder / "again.json").symlink_to(folder / CONFIG)
    assert "paths" in names(folder, "ok", backends=[])
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / CONFIG).rename(blobs / "1")
    (snapshot / CONFIG).symlink_to(Path("..", "..", "blobs", "1"))
    assert {"paths", "config"} <= names(snapshot, "ok")


@pytest.fixture
def a_minute():
    """What waits for ever, or reads without an end, fails."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "more.safetensors", INDEX, CODE, "more.py", "README.md", "notes"])
def test_only_regular_files_are_opened(folder, kind, name, a_minute):
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    paths, *others = run_checks(Checkpoint(folder))
    assert {(other.status, other.detail) for other in others} == {("skipped", "paths failed")}
    what = "not a regular file (a pipe or a device)" if kind == "pipe" else "a link out of the folder"
    assert paths.status == "FAIL" and paths.detail.startswith(f"{name} is {what}")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"lm_head.weight": "/etc/model.safetensors"}}, "absolute path"),
        ({"weight_map": {"lm_head.weight": "C:\\model.safetensors"}}, "absolute path"),
        ({"weight_map": {"lm_head.weight": "../tiny/model.safetensors"}}, "outside the folder"),
        ({"weight_map": {"lm_head.weight": "..\\model.safetensors"}}, "outside the folder"),
        ({"weight_map": {"lm_head.weight": "1_Pooling/model.safetensors"}}, "not a safetensors file beside it"),
        ({"weight_map": {"lm_head.weight": "pytorch_model.bin"}}, "not a safetensors file beside it"),
        ({"weight_map": {}}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_an_index_that_leads_elsewhere_or_nowhere(folder, index, message):
    (folder / INDEX).write_text(json.dumps(index))
    assert message in found(folder, "paths")


@pytest.mark.parametrize(
    ("check", "name", "values", "message"),
    [
        ("paths", CONFIG, {"attn_implementation": "evil/kernel"}, "evil/kernel"),
        ("config", CONFIG, {"auto_map": {"AutoModel": "evil/repo--modeling_magnet.MagnetLlamaModel"}}, "evil/repo--"),
        ("config", CONFIG, {"auto_map": {"AutoModel": "elsewhere.Model"}}, "elsewhere.Model"),
        ("config", TOKENIZER, {"auto_map": {"AutoTokenizer": ["modeling_magnet.T", None]}}, "modeling_magnet.T"),
        ("config", CONFIG, {"attention_mode": "bidirectionl"}, "attention_mode"),
        ("config", CONFIG, {"mask_token_id": 10**6}, "mask_token_id=1000000"),
        ("config", CONFIG, {"model_type": "gpt2"}, "MagnetLlamaModel, which is not code of this form"),
        ("weights", CONFIG, {"architectures": ["Evil"]}, "'Evil'"),
        ("tokens", CONFIG, {"eos_token_id": 5000}, "eos_token_id=5000, but the tokenizer's is 2"),
        ("tokens", CONFIG, {"pad_token_id": -1}, "pad_token_id=-1, but the tokenizer's is 0"),
        ("tokens", CONFIG, {"bos_token_id": 7}, "bos_token_id=7, but the tokenizer's is 1"),
        ("tokens", CONFIG, {"mask_token_id": 2}, "mask_token_id=2 is the special token '</s>'"),
        ("tokens", CONFIG, {"infill_end_token_id": 9}, "infill_end_token_id=9, but [EOS] is 2"),
        ("sentences", SENTENCES, {"config_kwargs": {"attention_mode": "causal"}}, "attention_mode='causal'"),
        ("sentences", POOLING, {"pooling_mode": "mean"}, "pooling_mode='mean'"),
    ],
)
def test_settings_that_cannot_be_or_name_other_code(folder, check, name, values, message):
    change_json(folder / name, **values)
    assert message in found(folder, check)


def test_a_module_that_is_not_of_sentence_transformers(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "modeling_magnet.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "modeling_magnet.Pooling is not a sentence-transformers module" in found(folder, "config")


@pytest.mark.parametrize(("name", "check"), [(CONFIG, "paths"), ("generation_config.json", "config")])
@pytest.mark.parametrize("content", ["", "{"])
def test_json_that_cannot_be_read(folder, name, check, content):
    (folder / name).write_text(content)
    assert name in found(folder, check)


@pytest.mark.parametrize("card", [True, False])
def test_code_that_was_edited_is_named_and_never_run(folder, tmp_path, card):
    canary = tmp_path / "canary"
    with (folder / CODE).open("a") as file:
        file.write(f"\nopen({str(canary)!r}, 'w').close()\n")
    if not card:
        (folder / "README.md").unlink()
    assert names(folder, "FAIL", backends=["sdpa"]) == {"code"} and not canary.exists()
    assert (f"{CODE}: does not match its SHA-256" if card else f"{CODE} differ from the installed package") in found(
        folder, "code"
    )


@pytest.mark.parametrize("form", ["magnet", "generator"])
def test_code_that_the_package_does_not_have(healthy, tmp_path, form):
    export_checkpoint(healthy, tmp_path / form, form)
    (tmp_path / form / "evil.py").write_text("")
    assert "evil.py differ from the installed package" in found(tmp_path / form, "code")


def test_a_checkpoint_that_lost_all_code(folder):
    for path in folder.glob("*.py"):
        path.unlink()
    assert "modeling_magnet.py" in found(folder, "code")


# ---------------------------------------------------------------------------------------------------------- the weights


def damage_header(folder: Path, kind: str) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[first] |= {
        "overlapping": {"data_offsets": header[second]["data_offsets"]},
        "wrong dtype": {"dtype": "F64"},
        "wrong shape": {"shape": [1, 1]},
        "unknown dtype": {"dtype": "Q7"},
    }.get(kind, {})
    data = {"truncated": data[:-8], "longer": data + b"hidden"}.get(kind, data)
    text = json.dumps(header).encode()
    whole = {"no header": b"\xff" * 100, "zeros": bytes(100)}
    (folder / WEIGHTS).write_bytes(whole.get(kind, struct.pack("<Q", len(text)) + text + data))


@pytest.mark.parametrize(
    "kind", ["overlapping", "wrong dtype", "wrong shape", "unknown dtype", "truncated", "longer", "no header", "zeros"]
)
def test_a_damaged_header(folder, kind):
    damage_header(folder, kind)
    assert found(folder, "weights").startswith(f"{WEIGHTS}: is damaged (")
    assert names(folder, "FAIL") == {"weights"}  # nothing is loaded


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


def lack(tensors):
    del tensors[NORM], tensors["model.layers.0.self_attn.q_proj_lora.A"]


def lose_a_layer(tensors):
    for name in [name for name in tensors if ".layers.2." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors[UP][3, 3].fill_(float("nan")), f"{UP} contains NaN or infinity"),
        (lambda tensors: tensors[UP][3, 3].fill_(float("-inf")), f"{UP} contains NaN or infinity"),
        (
            lambda tensors: tensors["model.layers.0.self_attn.q_proj_lora.A"].fill_(float("inf")),
            "q_proj_lora.A contains",
        ),
        (lack, f"model.layers.0.self_attn.q_proj_lora.A, {NORM}"),
        (lose_a_layer, "model.layers.2."),
        (lambda tensors: tensors.update({"model.layers.0.self_attn.bias": torch.zeros(3)}), "layers.0.self_attn.bias"),
        (lambda tensors: tensors.update({"score.weight": torch.zeros(3)}), "unexpected_keys: score.weight"),
        (lambda tensors: tensors.update({NORM: torch.ones(63)}), f"mismatched_keys: ('{NORM}'"),
        (lambda tensors: tensors.update({NORM: tensors[NORM].double()}), f"{NORM} is torch.float64"),
        (lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.int8)}), f"{NORM} is torch.int8"),
    ],
)
def test_tensors_that_are_not_the_configurations(folder, change, message):
    change_tensors(folder, change)
    assert message in found(folder, "weights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(NORM), "missing_keys: model.norm.weight"),
        (lambda tensors: tensors.update({NORM: torch.ones(63)}), "mismatched_keys"),
    ],
)
def test_transformers_own_classes_would_only_warn_of_them(healthy, tmp_path, change, message):
    export_checkpoint(healthy, tmp_path / "generator", "generator")
    change_tensors(tmp_path / "generator", change)
    assert message in found(tmp_path / "generator", "weights")


def test_tensors_in_two_files_or_not_in_the_index(folder):
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    assert "is in model.safetensors too" in found(folder, "weights")
    (folder / "other.safetensors").unlink()
    tensors = dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)
    for index in (tensors | {NORM: "model-00001-of-00002.safetensors"}, {NORM: WEIGHTS}):
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))
        assert f"{INDEX}: does not list the tensors" in found(folder, "weights")


@pytest.mark.parametrize(
    ("stored", "declared"),
    [(torch.float32, "bfloat16"), (torch.float16, "bfloat16"), (torch.bfloat16, "float16")],
)
def test_a_precision_that_loading_would_round(folder, stored, declared):
    change_tensors(folder, lambda tensors: tensors.update({name: t.to(stored) for name, t in tensors.items()}))
    assert "weights" in names(folder, "ok", backends=[])  # config.json has float32, which holds either
    change_json(folder / CONFIG, dtype=declared)
    assert f"is {stored}, but config.json has dtype=torch.{declared}" in found(folder, "weights")


# ----------------------------------------------------------------------------------------------------------- the tokens


def test_a_tokenizer_that_has_more_tokens_than_the_embedding_rows(folder):
    change_json(folder / CONFIG, vocab_size=4000)
    rows = ("model.embed_tokens.weight", "lm_head.weight")
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:4000].clone() for name in rows}))
    assert "has 4096 tokens, the model vocab_size=4000" in found(folder, "tokens")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"add_eos_token": False}, "'Rain fell all day and all nigh' starts and ends with"),
        ({"add_bos_token": False}, "'Rain fell all day and all nigh' starts and ends with"),
        ({"split_special_tokens": False}, "'A <s></s>"),
        ({"model_max_length": 4096}, "texts may have 4096 tokens, but max_position_embeddings=512"),
        ({"tokenizer_file": "/etc/passwd"}, "processor_kwargs has tokenizer_file"),
    ],
)
def test_sentences_that_are_tokenized_otherwise(folder, setting, message):
    settings = json.loads((folder / SENTENCES).read_text())
    change_json(folder / SENTENCES, processor_kwargs=settings["processor_kwargs"] | setting)
    assert message in found(folder, "sentences")


def test_an_encoder_that_lost_its_end_token(healthy, tmp_path):
    export_checkpoint(healthy, tmp_path / "encoder", "encoder")
    shutil.copy(healthy / "tokenizer.json", tmp_path / "encoder")
    change_json(tmp_path / "encoder" / SENTENCES, processor_kwargs={"add_bos_token": True, "add_eos_token": False})
    assert "starts and ends with" in found(tmp_path / "encoder", "sentences")


# ---------------------------------------------------------------------------------------------------- modes and the gate


@pytest.fixture
def loaded(healthy) -> Checkpoint:
    """For damage of the code."""
    return Checkpoint(healthy)


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
        (looks_everywhere, "hybrid, alone: token 0 attends to token 2"),
        (causal_in_context, "hybrid, alone: token 0 does not attend to token 1"),
        (through_spans, "hybrid, alone: token 4 attends to token 2"),
    ],
)
def test_a_hybrid_rule_that_is_another(loaded, monkeypatch, backend, rule, message):
    monkeypatch.setattr(modeling_magnet, "span_attention_rule", rule)
    with pytest.raises(ValueError, match=message):
        check_modes(loaded, backend)


def always(mode):
    return lambda states: (
        lambda asked, ids, mask=None, spans=None: states(asked if asked == "hybrid" else mode, ids, mask, spans)
    )


def causal_when_padded(states):
    return lambda mode, ids, mask=None, spans=None: states(
        "causal" if mode == "bidirectional" and mask is not None else mode, ids, mask, spans
    )


def without_mask(states):
    return lambda mode, ids, mask=None, spans=None: states(mode, ids, None, spans)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (always("causal"), "bidirectional, alone: token 0 does not attend to token 1"),
        (always("bidirectional"), "causal, alone: token 0 attends to token 1"),
        (causal_when_padded, "bidirectional, padded on the left: token 0 does not attend to token 1"),
        (without_mask, "causal, padded on the left: token 0 attends to padding"),
    ],
)
def test_a_mode_that_is_silently_another(loaded, monkeypatch, backend, changed, message):
    monkeypatch.setattr(loaded, "states", changed(loaded.states))
    with pytest.raises(ValueError, match=message):
        check_modes(loaded, backend)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("encoder", "bidirectional, alone: token 0 does not attend to"),
        ("generator", "causal, alone: token 0 attends to"),
    ],
)
def test_a_stock_form_with_the_other_attention(healthy, tmp_path, form, message):
    """is_causal is one word in config.json, and nobody would notice."""
    export_checkpoint(healthy, tmp_path / form, form)
    change_json(tmp_path / form / CONFIG, is_causal=form == "encoder")
    assert message in found(tmp_path / form, "modes, sdpa")


def test_a_gate_that_stays_open(loaded, monkeypatch):
    """For calls that should close it; `adapter_disabled()` works."""
    gate = modeling_magnet.adapter_gate
    monkeypatch.setattr(type(loaded.model), "adapter_disabled", lambda model: gate(False))
    monkeypatch.setattr(modeling_magnet, "adapter_gate", lambda is_open: gate(True))
    with pytest.raises(ValueError, match="causal_adapter=False, but causal mode is not the base"):
        check_gate(loaded)


def test_an_adapter_that_does_nothing(folder):
    change_tensors(folder, lambda tensors: [t.zero_() for name, t in tensors.items() if name.endswith("_lora.B")])
    assert "the adapter has no effect" in found(folder, "adapter's gate")


def test_an_adapter_that_acts_in_causal_mode(folder, monkeypatch):
    change_json(folder / CONFIG, causal_adapter=True)
    assert "causal mode is adapted too" in check_gate(Checkpoint(folder))
    checkpoint = Checkpoint(folder)
    checkpoint.model.config.causal_adapter = False  # the code ignores the setting
    with pytest.raises(ValueError, match="causal_adapter=True, but causal mode is the base"):
        check_gate(checkpoint)


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_a_line_a_check_and_leaves_with_one(folder, capsys):
    (folder / "notes.pkl").write_text("x")
    with pytest.raises(SystemExit) as left:
        main(["check", str(folder), "--attn_implementation", "sdpa"])
    *lines, blank, last = capsys.readouterr().out.splitlines()
    assert left.value.code == 1 and blank == "" and last == f"1 of {len(CHECKS)} checks failed."
    assert [line[8:33].rstrip() for line in lines] == list(CHECKS)
    assert "FAIL    code                     notes.pkl: may run code when loaded" in "\n".join(lines)


def test_the_command_reports_in_json(healthy, capsys):
    main(["check", str(healthy), "--json", "--attn_implementation", "eager"])
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["checkpoint"] == "tiny"
    status = {each["name"]: (each["status"], each["detail"]) for each in report["checks"]}
    assert status["modes, eager"][0] == "ok" and status["modes, sdpa"] == ("skipped", "not requested")
    assert list(status) == list(CHECKS)


def test_the_printed_example_is_of_this_version():
    """magnet check tests/assets/magnet-tiny > docs/measured/check.txt, then python docs/make_tables.py."""
    path = Path(__file__).resolve().parents[1] / "docs" / "measured" / "check.txt"
    lines = path.read_text(encoding="utf-8").splitlines()[:-2]
    assert [line[8:33].rstrip() for line in lines] == list(CHECKS)


def test_a_folder_that_is_none(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no such folder"):
        main(["check", str(tmp_path / "none")])


def test_an_empty_folder_fails_and_does_not_crash(tmp_path):
    assert names(tmp_path, "FAIL") == {"config"}
