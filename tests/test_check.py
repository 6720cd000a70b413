"""magnet check: a healthy checkpoint passes, and damaged files, settings and code are found by the check that is for them."""

import copy
import json
import os
import pickle
import re
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import transformers.dynamic_module_utils
from damage import CODE, CONFIG, INDEX, SENTENCES, TOKENIZER, WEIGHTS, change_json, found
from families import NAMES, OWN, build_base, build_magnet

from magnet_check.checkpoint import Checkpoint
from magnet_check.outcome import Skipped
from magnet_check.run import CHECKS, run_checks
from magnet_cli.main import main
from magnet_hub.card import write_model_card
from magnet_hub.forms import export_checkpoint
from magnet_hub.save import save_checkpoint

NOT_ON_A_CPU = {f"{kind}, {name}" for kind in ("modes", "padding") for name in ("flex_attention", "flash_attention_2")}


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
        ("encoder", {"code, card", "code, installed", "adapter's gate", "infill", "encode"}),
        ("generator", {"code, card", "code, installed", "adapter's gate", "infill", "encode", "sentences"}),
        ("merged", {"adapter's gate"}),
        ("adapter", set(CHECKS) - {"files", "paths", "no pickles", "settings", "headers", "values", "dtypes"}),
    ],
)
def test_the_other_forms_pass_what_applies_to_them(form, skipped, healthy, tmp_path):
    export_checkpoint(healthy, tmp_path / form, form)
    outcomes = list(run_checks(Checkpoint(tmp_path / form)))
    assert [outcome.line for outcome in outcomes if outcome.status == "FAIL"] == []
    assert {outcome.name for outcome in outcomes if outcome.status == "skipped"} == skipped | NOT_ON_A_CPU


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
    outcomes = list(run_checks(Checkpoint(tmp_path, backends=["sdpa"])))
    assert [outcome.line for outcome in outcomes if outcome.status == "FAIL"] == []
    skipped = {outcome.name for outcome in outcomes if outcome.status == "skipped"}
    assert skipped == NOT_ON_A_CPU | {"modes, eager", "padding, eager"}


def test_a_tokenizer_that_puts_nothing_before_a_text(tmp_path, text_magnet, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.add_bos_token = False
    assert bare("")["input_ids"] == []
    save_checkpoint(text_magnet(), bare, tmp_path)
    outcomes = {outcome.name: outcome for outcome in run_checks(Checkpoint(tmp_path, backends=[]))}
    assert [outcome.line for outcome in outcomes.values() if outcome.status == "FAIL"] == []
    assert outcomes["sentences"].detail == "[EOS] behind every text, also when cut at 512 tokens"


def test_shards_pass(healthy, tmp_path, text_magnet):
    shutil.copytree(healthy, tmp_path, dirs_exist_ok=True)
    (tmp_path / WEIGHTS).unlink()
    text_magnet().save_pretrained(tmp_path, max_shard_size="500KB")
    for name in ("files", "paths", "headers", "tensors", "values", "dtypes"):
        CHECKS[name](Checkpoint(tmp_path))
    assert len(Checkpoint(tmp_path).weights) > 1


def test_what_a_run_leaves_beside_its_checkpoint_is_not_looked_at(folder):
    """Nor what git and the Hub's downloads keep there."""
    for name in (
        "checkpoint-2/optimizer.pt",
        ".run.lock",
        ".cache/huggingface/download/config.json.lock",
        ".git/x.bin",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    outcomes = {outcome.name: outcome for outcome in run_checks(Checkpoint(folder, backends=[]))}
    assert [outcome.line for outcome in outcomes.values() if outcome.status == "FAIL"] == []
    assert outcomes["infill"].status == "ok"
    (folder / "checkpoint-mine").mkdir()
    (folder / "checkpoint-mine" / "optimizer.pt").write_text("x")
    assert found(folder, "no pickles").startswith("checkpoint-mine/optimizer.pt")


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
    outcomes = {outcome.name: outcome for outcome in run_checks(Checkpoint(folder))}
    assert list(outcomes) == list(CHECKS) and outcomes["infill"].status == "skipped"
    told = "no regular file, as a pipe or a device" if kind == "pipe" else "a link that leads out of the folder"
    assert outcomes["paths"].status == "FAIL" and outcomes["paths"].detail == f"{name} is {told}"


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


# --------------------------------------------------------------------------------------------------------- the command


def test_nothing_is_loaded_after_damage(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    outcomes = {outcome.name: outcome for outcome in run_checks(Checkpoint(folder))}
    assert outcomes["headers"].status == outcomes["tensors"].status == "FAIL"
    assert (
        outcomes["infill"].detail.startswith("nothing is loaded: headers, ") and outcomes["code, card"].status == "ok"
    )


def test_the_last_line_says_whether_the_model_ran(folder, capsys):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    for flags, ends in (([], " checks failed. The model was not run.\n"), (["--json"], "}\n")):
        with pytest.raises(SystemExit):
            main(["check", str(folder), *flags])
        printed = capsys.readouterr().out
        assert printed.endswith(ends)
    assert json.loads(printed)["code"] == "none"


def test_the_command_prints_a_line_a_check_and_leaves_with_one(folder, capsys):
    (folder / "notes.pkl").write_text("x")
    with pytest.raises(SystemExit) as left:
        main(["check", str(folder), "--attn_implementation", "sdpa"])
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
