"""Checkpoints come from a Hub: offline, at a revision, with a connection that breaks, into two processes at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub

from magnet_hub.push import push_checkpoint
from magnet_hub.save import save_checkpoint

# what one process without our packages can load, and what it is told where it cannot
PULLER = """
import json, sys
sys.path.insert(0, sys.argv[1]); asked = json.loads(sys.argv[2]); sys.argv = sys.argv[:2]
import not_installed
from transformers import AutoModelForCausalLM
found = []
for name, settings in asked:
    try:
        model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, **settings)
        found.append(float(sum(p.detach().double().abs().sum() for p in model.parameters())))
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub(text_magnet, tokenizer, tmp_path_factory):
    """A Hub with `me/model`, whose first commit has other weights than its second; (hub, first revision, sums)."""
    folder, sums, revisions = tmp_path_factory.mktemp("pulled"), [], []
    with FakeHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)
        for _ in range(2):
            model = text_magnet()
            model.model.norm.weight.data += len(sums)
            save_checkpoint(model, tokenizer, folder)
            sums.append(float(sum(p.detach().double().abs().sum() for p in model.parameters())))
            revisions.append(push_checkpoint(folder, "me/model").rsplit("/", 1)[-1])
        yield hub, revisions[0], sums


@pytest.fixture
def pull(hub, tmp_path):
    """Starts a process that loads what it is asked for: (name, arguments of from_pretrained) each."""
    source = (Path(__file__).parent / "fresh_process.py").read_text(encoding="utf-8")
    (tmp_path / "not_installed.py").write_text(source.split("import torch")[0])
    environment = os.environ | {
        "HF_ENDPOINT": hub[0].url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "0"}
    environment.pop("PYTHONPATH", None)

    def start(*asked, **changes):
        command = [sys.executable, "-I", "-c", PULLER, str(tmp_path), json.dumps(asked)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment | changes, **pipes)

    return start


def loaded(process) -> list:
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(printed.splitlines()[-1])


@pytest.mark.slow
def test_revisions_names_and_a_cut_connection(hub, pull):
    server, first, sums = hub
    server.fail("GET", "/resolve/main/model.safetensors", None, times=1)
    missing = ["me/model", {"revision": "0" * 40}]
    old, new, wrong, unknown = loaded(
        pull(["me/model", {"revision": first}], ["me/model", {}], missing, ["me/none", {}])
    )
    assert old == pytest.approx(sums[0]) and new == pytest.approx(sums[1]) and sums[1] > sums[0]
    assert wrong.startswith("OSError") and "0" * 40 in wrong
    assert unknown.startswith("OSError") and "me/none" in unknown


@pytest.mark.slow
def test_offline_takes_what_is_cached_and_names_what_is_not(hub, pull, tmp_path):
    (online,) = loaded(pull(["me/model", {}]))
    empty = str(tmp_path / "empty")
    cached, absent = loaded(pull(["me/model", {}], ["me/model", {"cache_dir": empty}], HF_HUB_OFFLINE="1"))
    assert cached == online == pytest.approx(hub[2][1])
    assert absent.startswith("OSError") and "find them in the cached file" in absent


@pytest.mark.slow
def test_two_processes_fetch_the_same_code_at_once(hub, pull):
    both = [pull(["me/model", {}]) for _ in range(2)]
    assert [loaded(process) for process in both] == [[pytest.approx(hub[2][1])]] * 2
