"""Checkpoints go to a Hub, here a fake one in a thread, and come back; whatever fails is one line without the token."""

import hashlib
import json
import logging
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
from safetensors.torch import load, load_file, save_file

from magnet_cli.push import main as push_command
from magnet_hub.card import is_generated, refresh_model_card
from magnet_hub.forms import export_checkpoint
from magnet_hub.push import FILES, TRIES, push_checkpoint
from magnet_hub.save import save_checkpoint

LOADER = """
import json, sys, types
sys.path.insert(0, sys.argv[1]); sys.argv = ["", sys.argv[1], sys.argv[2]]
from not_installed import OUR_PACKAGES
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer
TRUST = {"trust_remote_code": True}
model = AutoModelForCausalLM.from_pretrained("me/model", **TRUST)
tokenizer = AutoTokenizer.from_pretrained("me/model", **TRUST)
vectors = model.encode(["A cat sleeps."], tokenizer)
bare = AutoModelForCausalLM.from_pretrained("me/bare", **TRUST)
pinned = AutoModelForCausalLM.from_pretrained("me/model", revision=sys.argv[2], **TRUST)
sentences = SentenceTransformer("me/model", device="cpu", **TRUST).encode(["A cat sleeps."])
print(json.dumps({
    "vectors": vectors.tolist(),
    "sentences": sentences.tolist(),
    "pinned": all(torch.equal(a, b) for a, b in zip(model.parameters(), pinned.parameters())),
    "bare": all(torch.equal(a, b) for a, b in zip(model.parameters(), bare.parameters())),
    "ours": sorted(OUR_PACKAGES & set(sys.modules)),
}))
"""


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
        yield hub


@pytest.fixture
def waits(monkeypatch):
    """Nobody waits in a test; what would have been waited is here."""
    found = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def files_on(hub, branch="main") -> dict[str, bytes]:
    return hub.repositories["me/model"].files(branch)


def told_by(folder, caplog, **kwargs) -> str:
    """The one line a failing push ends with; neither it, nor the traceback, nor the log holds the token."""
    with pytest.raises((OSError, ValueError)) as failure:
        push_checkpoint(folder, "me/model", **kwargs)
    error = failure.value
    shown = "".join(traceback.format_exception(error)) + caplog.text
    assert TOKEN not in shown and "Bearer" not in shown
    assert error.__cause__ is None and error.__context__ is None
    assert "\n" not in str(error)
    return f"{type(error).__name__}: {error}"


# ------------------------------------------------------------------------------------------------------- what is sent


def test_push_creates_uploads_and_names(hub, folder):
    (folder / ".env").write_text("SECRET=1")
    (folder / "optimizer.pt").write_bytes(b"0")
    (folder / "checkpoint-5").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-5")
    shutil.copy(folder / "modeling_magnet.py", folder / "checkpoint-5")

    url = push_checkpoint(folder, "me/model", commit_message="First")

    sent = files_on(hub)
    assert url == f"{hub.url}/me/model/commit/{hub.repositories['me/model'].branches['main']}"
    assert hub.messages == ["First"] and not hub.repositories["me/model"].private
    own = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(sent) - {".gitattributes"} == own - {
        ".env",
        "optimizer.pt",
        "checkpoint-5/model.safetensors",
        "checkpoint-5/modeling_magnet.py",
    }
    assert sent["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert b'"me/model"' in sent["README.md"] and is_generated(folder)
    assert b"library_name: transformers" in sent["README.md"] and b"text-infilling" in sent["README.md"]


def test_every_file_of_a_checkpoint_has_a_pattern(saved):
    from huggingface_hub.utils import filter_repo_objects

    files = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
    assert list(filter_repo_objects(files, allow_patterns=FILES)) == files


def test_a_card_written_by_hand_stays(hub, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    push_checkpoint(folder, "me/model")
    assert files_on(hub)["README.md"] == b"---\nlicense: mit\n---\nMine.\n"


def test_branch_and_second_push(hub, folder):
    first = push_checkpoint(folder, "me/model")
    again = push_checkpoint(folder, "me/model")  # nothing is new
    assert again.rsplit("/")[-1] == first.rsplit("/")[-1] and hub.count("PUT", "/large/") == 1

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    push_checkpoint(folder, "me/model", revision="dropout")
    push_checkpoint(folder, "me/model", revision="dropout")
    assert b"0.5" in files_on(hub, "dropout")["config.json"] and b"0.5" not in files_on(hub)["config.json"]


def test_private(hub, folder, waits, caplog):
    push_checkpoint(folder, "me/model", private=True)
    assert hub.repositories["me/model"].private
    hub.repositories["me/model"].private = False
    before = files_on(hub)
    told = told_by(folder, caplog, private=True)
    assert told.startswith("ValueError: private=True: me/model exists and is public.")
    assert files_on(hub) == before


def test_command_pushes_another_form(hub, saved, capsys):
    push_command(["--model_name_or_path", str(saved), "--repo_id", "me/model", "--form", "encoder", "--private"])
    sent = files_on(hub)
    assert json.loads(sent["config.json"])["is_causal"] is False
    assert not any(name.endswith(".py") for name in sent) and b"sentence-similarity" in sent["README.md"]
    assert capsys.readouterr().out.startswith(f"{hub.url}/me/model/commit/")


@pytest.mark.parametrize("flags", [["--dtype", "float16"], ["--form", "adapter"]])
def test_command_refuses(flags, capsys):
    with pytest.raises(SystemExit):
        push_command(["--model_name_or_path", "x", "--repo_id", "me/model", *flags])
    assert "need" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- what fails


FAULTS = [
    # method, path, status, what is said, how many requests reach that path
    ("POST", "/repos/create", 401, "PermissionError: repo_id='me/model': the token is refused (401).", 1),
    ("POST", "/repos/create", 403, "PermissionError: repo_id='me/model': the token may not write there (403).", 1),
    ("POST", "/repos/create", 404, "FileNotFoundError: repo_id='me/model': not found on the Hub (404).", 1),
    ("POST", "/commit/", 409, "OSError: repo_id='me/model': someone else changed it at the same time (409).", 1),
    ("POST", "/commit/", 412, "OSError: repo_id='me/model': ", 1),
    ("POST", "/repos/create", 429, "OSError: repo_id='me/model': too many requests (429).", TRIES),
    ("POST", "/commit/", 429, "OSError: repo_id='me/model': too many requests (429).", TRIES),
    ("POST", "/repos/create", 500, "OSError: repo_id='me/model': the Hub fails (500).", TRIES),
    ("POST", "/commit/", 503, "OSError: repo_id='me/model': the Hub fails (503).", TRIES),
    ("POST", "/preupload/", 502, "OSError: repo_id='me/model': the Hub fails (502).", 6),
    ("PUT", "/large/", 500, "OSError: repo_id='me/model': the Hub fails (500).", 6),
    ("POST", "/repos/create", None, "ConnectionError: repo_id='me/model': the connection to the Hub failed", TRIES),
    ("POST", "/commit/", None, "ConnectionError: repo_id='me/model': the connection to the Hub failed", TRIES),
    ("PUT", "/large/", None, "ConnectionError: repo_id='me/model': the connection to the Hub failed", 6),
]


@pytest.mark.parametrize(("method", "path", "status", "said", "asked"), FAULTS)
def test_what_stays_wrong_is_one_line(hub, folder, waits, caplog, method, path, status, said, asked):
    hub.fail(method, path, status, body=f"it was {TOKEN}")
    assert told_by(folder, caplog).startswith(said)
    assert hub.count(method, path) == asked


@pytest.mark.parametrize("status", [429, 500, 503, None])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/repos/create"), ("POST", "/commit/"), ("POST", "/preupload/"), ("PUT", "/large/")]
)
def test_what_passes_is_tried_again(hub, folder, waits, method, path, status):
    hub.fail(method, path, status, times=2)
    push_checkpoint(folder, "me/model")
    assert files_on(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert waits == [1.0, 2.0]


def test_retry_after_is_honoured(hub, folder, waits, caplog):
    hub.fail("POST", "/repos/create", 429, times=1, headers={"Retry-After": "17"})
    hub.fail("POST", "/commit/", 503, times=1, headers={"Retry-After": "100000"})
    assert "the Hub fails (503)" in told_by(folder, caplog)  # no one wants to wait a day
    assert waits == [17.0]


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, folder, waits, monkeypatch):
    create, lost = HfApi.create_commit, []

    def lose_the_answer(self, *args, **kwargs):
        done = create(self, *args, **kwargs)
        if not lost:
            lost.append(done)
            hub.fail("GET", "/never", None)
            raise_cut(hub)
        return done

    monkeypatch.setattr(HfApi, "create_commit", lose_the_answer)
    url = push_checkpoint(folder, "me/model")
    assert url.endswith(lost[0].oid) and len(hub.repositories["me/model"].commits) == 2  # with the initial one


def raise_cut(hub):
    """The error of a connection that is cut, from a real one."""
    from huggingface_hub.utils import get_session

    hub.fail("POST", "/cut", None)
    get_session().post(f"{hub.url}/cut")


def test_wrong_token(hub, folder, waits, caplog, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN.lower())
    assert "the token is refused (401). Run `hf auth login`" in told_by(folder, caplog)


def test_no_token(hub, folder, caplog, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert told_by(folder, caplog).startswith("PermissionError: token: none was found. Run `hf auth login`")
    assert hub.requests == []


@pytest.mark.parametrize("token", [f"{TOKEN}\nX: y", f"{TOKEN} x", f"{TOKEN}é"])
def test_a_token_that_is_none_is_not_shown(hub, folder, caplog, token):
    assert "has characters that no token has" in told_by(folder, caplog, token=token)
    assert hub.requests == []


def test_nothing_listens(hub, folder, waits, caplog):
    hub.server.shutdown()
    hub.server.server_close()
    assert "the connection to the Hub failed" in told_by(folder, caplog)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_offline_mode(hub, folder, caplog, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is on. Unset HF_HUB_OFFLINE." in told_by(folder, caplog)


def test_retries_are_told(hub, folder, waits, caplog):
    hub.fail("POST", "/repos/create", 500, times=1)
    with caplog.at_level(logging.WARNING, logger="magnet_hub.push"):
        push_checkpoint(folder, "me/model")
    assert "the Hub fails (500). Trying again in 1 s." in caplog.text


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("config.json", "has no config.json. Pass the folder of a checkpoint."),
        ("modeling_magnet.py", "is not complete, it has no modeling_magnet.py. Export it with form='magnet'"),
        ("modules.json", "is not complete, it has no modules.json."),
        ("model.safetensors", "is not complete, it has no weights."),
        ("tokenizer_config.json", "is not complete, it has no tokenizer_config.json."),
    ],
)
def test_incomplete_folders_are_refused(hub, folder, caplog, lacks, said):
    (folder / lacks).unlink()
    assert said in told_by(folder, caplog)
    assert hub.requests == []


def test_an_adapter_whose_base_nobody_has_is_refused(hub, folder, caplog):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert "which nobody else has. Push that folder first" in told_by(folder, caplog)


# --------------------------------------------------------------------------------------- what must not leave the machine


@pytest.mark.parametrize("name", ["merges.txt", "README.md", "config.json", "model.safetensors", "1_Pooling"])
def test_links_are_not_followed(hub, folder, tmp_path, caplog, name):
    """An upload would read what they point to, wherever that lies."""
    canary = tmp_path / "canary"
    if (folder / name).exists():
        (folder / name).rename(canary)  # the very content: it is the link that is refused
    else:
        canary.write_text("CANARY: a private key")
    (folder / name).symlink_to(canary)
    assert "is, or lies behind, a link" in told_by(folder, caplog) and hub.requests == []


def test_a_folder_that_is_named_by_a_link_is_pushed(hub, folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    push_checkpoint(tmp_path / "latest", "me/model")
    assert files_on(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_what_is_no_file_is_not_read(hub, folder, caplog):
    os.mkfifo(folder / "merges.txt")  # reading it would wait for ever
    assert told_by(folder, caplog).startswith("ValueError: merges.txt: is no regular file.") and hub.requests == []


@pytest.mark.parametrize(
    ("value", "dtype"),
    [("nan", torch.float32), ("inf", torch.float32), ("-inf", torch.bfloat16), ("nan", torch.float8_e4m3fn)],
)
def test_weights_that_are_not_finite_are_refused(hub, folder, caplog, value, dtype):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full((64,), float(value)).to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.safetensors: model.norm.weight is not finite" in told_by(folder, caplog) and hub.requests == []


def test_weights_that_cannot_be_read_are_refused(hub, folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="model.safetensors: cannot be read"):
        push_checkpoint(folder, "me/model")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["modeling_magnet.py", "unlisted_magnet.py"])
def test_code_that_the_card_does_not_state_is_refused(hub, folder, caplog, name):
    with (folder / name).open("a") as file:
        file.write("CANARY = 1\n")
    assert f"{name}: is not the file whose SHA-256 stands in README.md" in told_by(folder, caplog)
    assert hub.requests == []
    with pytest.raises(ValueError, match="is not the file whose SHA-256"):
        refresh_model_card(folder)  # as `magnet evaluate --update_card` does: it must not vouch for it either
    (folder / "README.md").unlink()
    push_checkpoint(folder, "me/model")
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest().encode() in files_on(hub)["README.md"]


def test_code_beside_a_card_that_states_none_is_refused(hub, saved, tmp_path, caplog):
    export_checkpoint(saved, tmp_path / "encoder", "encoder")
    shutil.copy(saved / "modeling_magnet.py", tmp_path / "encoder")
    assert "modeling_magnet.py: is not the file" in told_by(tmp_path / "encoder", caplog) and hub.requests == []


@pytest.mark.parametrize(("repo_id", "said"), [("model", "needs your name"), ("me/mo del", "Repo id")])
def test_bad_names(hub, folder, repo_id, said):
    with pytest.raises(ValueError, match=said):
        push_checkpoint(folder, repo_id)
    assert hub.requests == []


# ------------------------------------------------------------------------------------------------- and comes back


def test_push_to_hub_of_transformers(hub, model):
    """It takes the model alone: code and weights arrive, tokenizer and SentenceTransformer files do not."""
    model.push_to_hub("me/model", token=TOKEN)
    sent = files_on(hub)
    assert {"config.json", "model.safetensors", "modeling_magnet.py"} <= set(sent)
    assert "modules.json" not in sent and "tokenizer.json" not in sent
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in load(sent["model.safetensors"]).items())


@pytest.mark.slow
def test_a_fresh_process_loads_what_was_pushed(hub, folder, model, tokenizer, tmp_path):
    revision = push_checkpoint(folder, "me/model").rsplit("/", 1)[-1]
    model.push_to_hub("me/bare", token=TOKEN)
    source = (Path(__file__).parent / "fresh_process.py").read_text(encoding="utf-8")
    (tmp_path / "not_installed.py").write_text(source.split("import torch")[0])
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "60"}
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "-I", "-c", LOADER, str(tmp_path), revision],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    facts = json.loads(run.stdout.splitlines()[-1])
    expected = model.encode(["A cat sleeps."], tokenizer)
    assert abs(facts["vectors"] - expected).max() <= 1e-6 and abs(facts["sentences"] - expected).max() <= 1e-5
    assert facts["pinned"] and facts["bare"] and facts["ours"] == []
