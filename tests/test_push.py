"""Checkpoints go to a Hub, here a fake one in a thread, and come back; whatever fails is one line without the token."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from fake_hub import TOKEN, FakeHub
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import filter_repo_objects, get_session
from safetensors.torch import load, load_file, save_file

from magnet_cli.push import main as push_command
from magnet_hub.card import is_generated, refresh_model_card
from magnet_hub.export import export_checkpoint
from magnet_hub.push import FILES, push_checkpoint
from magnet_hub.save import save_checkpoint


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def saved(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{''.join(template[1:])}")
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it remembers an earlier test's address
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's own tries
        yield hub


def files_on(hub, branch="main") -> dict[str, bytes]:
    return hub.repositories["me/model"].files(branch)


def told_by(folder, caplog, repo_id="me/model", **kwargs) -> str:
    """The one line a failing push ends with; neither it, nor the traceback, nor the log holds the token."""
    with pytest.raises((OSError, ValueError)) as failure:
        push_checkpoint(folder, repo_id, **kwargs)
    error = failure.value
    shown = "".join(traceback.format_exception(error)) + caplog.text
    assert TOKEN not in shown and "Bearer" not in shown
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    assert "\n" not in str(error)
    return f"{type(error).__name__}: {error}"


# ------------------------------------------------------------------------------------------------------- what is sent


def test_push_creates_uploads_and_names(hub, folder):
    (folder / ".env").write_text("SECRET=1")
    (folder / "optimizer.pt").write_bytes(b"0")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-5").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-5")
    shutil.copy(folder / "modeling_magnet.py", folder / "checkpoint-5")

    url = push_checkpoint(folder, "me/model", commit_message="First")

    sent = files_on(hub)
    assert url == f"{hub.url}/me/model/commit/{hub.repositories['me/model'].branches['main']}"
    assert hub.messages == ["First"] and not hub.repositories["me/model"].private
    own = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    stays = {".env", "optimizer.pt", "pytorch_model.bin"}
    stays |= {"checkpoint-5/model.safetensors", "checkpoint-5/modeling_magnet.py"}
    assert set(sent) - {".gitattributes"} == own - stays
    assert sent["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert b'"me/model"' in sent["README.md"] and is_generated(folder)
    assert b"library_name: transformers" in sent["README.md"] and b"text-infilling" in sent["README.md"]


def test_every_file_of_a_checkpoint_has_a_pattern(saved):
    files = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
    assert list(filter_repo_objects(files, allow_patterns=FILES)) == files


def test_a_card_written_by_hand_stays(hub, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    push_checkpoint(folder, "me/model")
    assert files_on(hub)["README.md"] == b"---\nlicense: mit\n---\nMine.\n"


def test_branch_and_second_push(hub, folder):
    first = push_checkpoint(folder, "model")  # as in push_to_hub: a name alone is one of your own
    again = push_checkpoint(folder, "me/model")  # nothing is new
    assert again.rsplit("/")[-1] == first.rsplit("/")[-1] and hub.count("PUT", "/large/") == 1

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    push_checkpoint(folder, "me/model", revision="dropout")
    push_checkpoint(folder, "me/model", revision="dropout")
    assert b"0.5" in files_on(hub, "dropout")["config.json"] and b"0.5" not in files_on(hub)["config.json"]


def test_a_pull_request(hub, folder, caplog):
    push_checkpoint(folder, "me/model")
    before = files_on(hub)
    (folder / "model.safetensors").unlink()
    save_file({"model.norm.weight": torch.ones(64)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert push_checkpoint(folder, "me/model", create_pr=True) == f"{hub.url}/me/model/discussions/1"
    assert files_on(hub) == before
    changed = files_on(hub, "refs/pr/1")
    assert changed["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert "create_pr=True" in told_by(folder, caplog, create_pr=True, revision="other")
    assert "other" not in hub.repositories["me/model"].branches


def test_private(hub, folder, caplog):
    push_checkpoint(folder, "me/model", private=True)
    assert hub.repositories["me/model"].private
    hub.repositories["me/model"].private = False
    before = files_on(hub)
    told = told_by(folder, caplog, private=True)
    assert told.startswith("ValueError: repo_id='me/model': private=True: the repository exists and is public.")
    assert files_on(hub) == before


def test_command_pushes_another_form(hub, saved, capsys):
    push_command(["--model_name_or_path", str(saved), "--repo_id", "me/model", "--form", "encoder", "--private"])
    sent = files_on(hub)
    assert json.loads(sent["config.json"])["is_causal"] is False
    assert not any(name.endswith(".py") for name in sent) and b"sentence-similarity" in sent["README.md"]
    assert capsys.readouterr().out.startswith(f"{hub.url}/me/model/commit/")
    push_command(["--model_name_or_path", str(saved), "--repo_id", "me/model", "--create_pr"])
    assert capsys.readouterr().out == f"{hub.url}/me/model/discussions/1\n"


@pytest.mark.parametrize("flags", [["--dtype", "float16"], ["--form", "adapter"]])
def test_command_refuses(flags, capsys):
    with pytest.raises(SystemExit):
        push_command(["--model_name_or_path", "x", "--repo_id", "me/model", *flags])
    assert "need" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- what fails there


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "advice"),
    [
        ("POST", "/repos/create", 401, "PermissionError", "Run `hf auth login`, or set HF_TOKEN."),
        ("POST", "/repos/create", 403, "PermissionError", "Use a token with write access"),
        ("POST", "/repos/create", 404, "FileNotFoundError", "Check the name and the revision."),
        ("POST", "/repos/create", 500, "OSError", "Push again"),
        ("POST", "/repos/create", None, "ConnectionError", "Push again"),
        ("POST", "/preupload/", 502, "OSError", "Push again"),
        ("PUT", "/large/", 500, "OSError", "Push again"),
        ("PUT", "/large/", None, "ConnectionError", "Push again"),
        ("POST", "/commit/", 409, "OSError", "Push again"),
        ("POST", "/commit/", 429, "OSError", "Push again"),
        ("POST", "/commit/", 503, "OSError", "Push again"),
        ("POST", "/commit/", None, "ConnectionError", "Push again"),
    ],
)
def test_a_refusal_is_one_line(hub, folder, caplog, method, path, status, kind, advice):
    hub.fail(method, path, status, body=f"it was {TOKEN}")
    told = told_by(folder, caplog)
    assert told.startswith(f"{kind}: repo_id='me/model': ") and advice in told
    assert status is None or str(status) in told


@pytest.mark.parametrize("status", [503, None])
@pytest.mark.parametrize(("method", "path"), [("POST", "/preupload/"), ("PUT", "/large/")])
def test_the_library_tries_uploads_again(hub, folder, method, path, status):
    hub.fail(method, path, status, times=2)
    push_checkpoint(folder, "me/model")
    assert files_on(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, folder, caplog, monkeypatch):
    create = HfApi.create_commit

    def lose_the_answer(self, *args, **kwargs):
        create(self, *args, **kwargs)
        hub.fail("POST", "/cut", None)
        get_session().post(f"{hub.url}/cut")

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", lose_the_answer)
        assert told_by(folder, caplog).endswith("Push again: only missing files are sent.")
    made = hub.repositories["me/model"].branches["main"]
    assert push_checkpoint(folder, "me/model").endswith(made) and len(hub.repositories["me/model"].commits) == 2


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "PermissionError: token: none was found. Run `hf auth login`"),
        (TOKEN.lower(), "PermissionError: repo_id='me/model': "),
        (f"{TOKEN}\nX: y", "PermissionError: token: has invalid characters."),
        (f"{TOKEN} x", "PermissionError: token: has invalid characters."),
        (f"{TOKEN}é", "PermissionError: token: has invalid characters."),
    ],
)
def test_tokens(hub, folder, caplog, monkeypatch, token, said):
    monkeypatch.delenv("HF_TOKEN")
    assert told_by(folder, caplog, token=token).startswith(said)
    assert (hub.requests == []) is ("token: " in said)


def test_no_connection(hub, folder, caplog, monkeypatch):
    hub.server.shutdown()
    hub.server.server_close()
    assert told_by(folder, caplog).startswith("ConnectionError: repo_id='me/model': ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = told_by(folder, caplog)
    assert told.startswith("ConnectionError: repo_id='me/model': ") and "HF_HUB_OFFLINE" in told


# -------------------------------------------------------------------------------------- what must not leave the machine


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("config.json", "has no config.json. Pass a checkpoint folder."),
        ("modeling_magnet.py", "is incomplete, it has no modeling_magnet.py. Export it with form='magnet'"),
        ("modules.json", "is incomplete, it has no modules.json."),
        ("model.safetensors", "is incomplete, it has no weights."),
        ("tokenizer_config.json", "is incomplete, it has no tokenizer_config.json."),
    ],
)
def test_incomplete_folders_are_refused(hub, folder, caplog, lacks, said):
    (folder / lacks).unlink()
    assert said in told_by(folder, caplog) and hub.requests == []


def test_a_missing_shard_is_refused(hub, model, folder, caplog):
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    max(folder.glob("model-*.safetensors")).unlink()
    assert "is incomplete, it has no model-000" in told_by(folder, caplog) and hub.requests == []


def test_an_adapter_whose_base_nobody_has_is_refused(hub, folder, caplog):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert "which is only local. Push that folder first" in told_by(folder, caplog)


@pytest.mark.parametrize("name", ["merges.txt", "README.md", "config.json", "model.safetensors", "1_Pooling"])
def test_links_are_not_followed(hub, folder, tmp_path, caplog, name):
    """An upload would read what they point to, wherever that lies."""
    canary = tmp_path / "canary"
    if (folder / name).exists():
        (folder / name).rename(canary)  # the very content: it is the link that is refused
    else:
        canary.write_text("CANARY: a private key")
    (folder / name).symlink_to(canary)
    assert "is a link, or in a linked folder" in told_by(folder, caplog) and hub.requests == []


def test_a_folder_that_is_named_by_a_link_is_pushed(hub, folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    push_checkpoint(tmp_path / "latest", "me/model")
    assert files_on(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_what_is_no_file_is_not_read(hub, folder, caplog):
    os.mkfifo(folder / "merges.txt")  # reading it would wait for ever
    assert told_by(folder, caplog).startswith("ValueError: merges.txt: is not a regular file.") and hub.requests == []


@pytest.mark.parametrize(
    ("content", "said"), [("", "merges.txt: is empty."), (f"a b\n{TOKEN}\n", "merges.txt: contains the Hub token.")]
)
def test_contents_that_are_refused(hub, folder, caplog, content, said):
    (folder / "merges.txt").write_text(content)
    assert said in told_by(folder, caplog) and hub.requests == []


@pytest.mark.parametrize(
    ("value", "dtype"),
    [("nan", torch.float32), ("inf", torch.float32), ("-inf", torch.bfloat16), ("nan", torch.float8_e4m3fn)],
)
def test_weights_that_are_not_finite_are_refused(hub, folder, caplog, value, dtype):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full((64,), float(value)).to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert (
        "model.safetensors: model.norm.weight contains NaN or infinity" in told_by(folder, caplog)
        and hub.requests == []
    )


def test_weights_that_cannot_be_read_are_refused(hub, folder, caplog):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert "model.safetensors: is damaged" in told_by(folder, caplog) and hub.requests == []


@pytest.mark.parametrize("name", ["modeling_magnet.py", "unlisted_magnet.py"])
def test_code_that_the_card_does_not_state_is_refused(hub, folder, caplog, name):
    with (folder / name).open("a") as file:
        file.write("CANARY = 1\n")
    assert f"{name}: does not match its SHA-256 in README.md" in told_by(folder, caplog)
    assert hub.requests == []
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        refresh_model_card(folder)  # as `magnet evaluate --update_card` does: it must not vouch for it either
    (folder / "README.md").unlink()
    push_checkpoint(folder, "me/model")
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest().encode() in files_on(hub)["README.md"]


def test_code_beside_a_card_that_states_none_is_refused(hub, saved, tmp_path, caplog):
    export_checkpoint(saved, tmp_path / "encoder", "encoder")
    shutil.copy(saved / "modeling_magnet.py", tmp_path / "encoder")
    assert (
        "modeling_magnet.py: does not match its SHA-256" in told_by(tmp_path / "encoder", caplog)
        and hub.requests == []
    )


def test_a_bad_name_is_refused(hub, folder, caplog):
    assert told_by(folder, caplog, "me/mo del").startswith("ValueError: repo_id='me/mo del': Repo id")
    assert hub.requests == []


# ------------------------------------------------------------------------------------------------- and comes back


def test_push_to_hub_of_transformers(hub, model):
    """It takes the model alone: code and weights arrive, tokenizer and SentenceTransformer files do not."""
    model.push_to_hub("me/model", token=TOKEN)
    sent = files_on(hub)
    assert {"config.json", "model.safetensors", "modeling_magnet.py"} <= set(sent)
    assert "modules.json" not in sent and "tokenizer.json" not in sent
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in load(sent["model.safetensors"]).items())


# what a process without our packages is asked for: (what, name, arguments of from_pretrained), and what it found
LOADER = """
import json, sys
sys.path.insert(0, sys.argv[1]); asked = json.loads(sys.argv[2]); sys.argv = sys.argv[:2]
from not_installed import OUR_PACKAGES
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer
TRUST, TEXTS = {"trust_remote_code": True}, ["A cat sleeps."]

def found(what, name, settings):
    if what == "sentences":
        return SentenceTransformer(name, device="cpu", **TRUST).encode(TEXTS).tolist()
    try:
        model = AutoModelForCausalLM.from_pretrained(name, **TRUST, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if what == "vectors":
        return model.encode(TEXTS, AutoTokenizer.from_pretrained(name, **TRUST)).tolist()
    return float(sum(p.detach().double().abs().sum() for p in model.parameters()))

print(json.dumps([found(*each) for each in asked]))
assert not OUR_PACKAGES & set(sys.modules)
"""


def weight_sum(model) -> float:
    return float(sum(p.detach().double().abs().sum() for p in model.parameters()))


@pytest.fixture(scope="module")
def pushed(text_magnet, tokenizer, tmp_path_factory):
    """A Hub with `me/model`, whose first commit has other weights than its second, and `me/bare` by transformers' own
    push: (hub, first revision, the models of both commits)."""
    folder, models, revisions = tmp_path_factory.mktemp("pulled"), [], []
    with FakeHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setattr("transformers.utils.hub._hf_api", None)
        patch.setenv("HF_TOKEN", TOKEN)
        for number in range(2):
            models.append(text_magnet())
            models[-1].model.norm.weight.data += number
            save_checkpoint(models[-1], tokenizer, folder)
            revisions.append(push_checkpoint(folder, "me/model").rsplit("/", 1)[-1])
        models[-1].push_to_hub("me/bare", token=TOKEN)
        yield hub, revisions[0], models


@pytest.fixture
def pull(pushed, tmp_path):
    """Starts a process that loads what it is asked for."""
    source = (Path(__file__).parent / "fresh_process.py").read_text(encoding="utf-8")
    (tmp_path / "not_installed.py").write_text(source.split("import torch")[0])
    settings = {"HF_ENDPOINT": pushed[0].url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "60"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings

    def start(*asked, **changes):
        command = [sys.executable, "-I", "-c", LOADER, str(tmp_path), json.dumps(asked)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment | changes, **pipes)

    return start


def loaded(process) -> list:
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(printed.splitlines()[-1])


MODEL = ["weights", "me/model", {}]


@pytest.mark.slow
def test_a_fresh_process_loads_revisions_after_a_cut_connection(pushed, pull, tokenizer):
    hub, first, (older, newer) = pushed
    hub.fail("GET", "/resolve/main/model.safetensors", None, times=1)
    vectors, sentences, bare, old, new, wrong, unknown = loaded(
        pull(
            ["vectors", "me/model", {}],
            ["sentences", "me/model", {}],
            ["weights", "me/bare", {}],
            ["weights", "me/model", {"revision": first}],
            MODEL,
            ["weights", "me/model", {"revision": "0" * 40}],
            ["weights", "me/none", {}],
        )
    )
    expected = newer.encode(["A cat sleeps."], tokenizer)
    assert abs(vectors - expected).max() <= 1e-6 and abs(sentences - expected).max() <= 1e-5
    assert old == pytest.approx(weight_sum(older)) and old < new
    assert new == bare == pytest.approx(weight_sum(newer))
    assert wrong.startswith("OSError") and "0" * 40 in wrong
    assert unknown.startswith("OSError") and "me/none" in unknown


@pytest.mark.slow
def test_offline_takes_what_is_cached_and_names_what_is_not(pushed, pull, tmp_path):
    (online,) = loaded(pull(MODEL))
    elsewhere = ["weights", "me/model", {"cache_dir": str(tmp_path / "empty")}]
    cached, absent = loaded(pull(MODEL, elsewhere, HF_HUB_OFFLINE="1"))
    assert cached == online == pytest.approx(weight_sum(pushed[2][1]))
    assert absent.startswith("OSError") and "find them in the cached file" in absent


@pytest.mark.slow
def test_two_processes_fetch_the_same_code_at_once(pushed, pull):
    both = [pull(MODEL) for _ in range(2)]
    assert [loaded(process) for process in both] == [[pytest.approx(weight_sum(pushed[2][1]))]] * 2
