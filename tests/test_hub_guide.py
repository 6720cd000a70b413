"""docs/hub.md is run: code blocks, command lines, the measured table."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture
def work_folder(tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run(work_folder, capsys):
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "hub.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "Tom was hungry. " in printed and "One day" in printed
    assert {path.name for path in (work_folder / "runs").iterdir()} == {
        "encoder",
        "generator",
        "adapter",
        "adapter-base",
    }


def test_the_magnet_commands_are_taken(work_folder, monkeypatch):
    from magnet_cli.main import main

    called = []
    monkeypatch.setattr("magnet_hub.forms.export_checkpoint", lambda *args, **kwargs: called.append("export"))
    monkeypatch.setattr("magnet_hub.push.push_checkpoint", lambda *args, **kwargs: called.append("push") or "url")
    for line in "\n".join(blocks("bash")).splitlines():
        if line.startswith("magnet "):
            main(shlex.split(line)[1:])
    assert called == ["export", "push", "export", "push", "push"]


def test_the_table_is_what_was_measured():
    measured = json.loads((ROOT / "docs" / "measured" / "llama_cpp.json").read_text(encoding="utf-8"))
    rows = {"f32": "f32", "f16": "f16", "f32_with_the_default_f16_cache": "f32, cache in f16 (llama.cpp's default)"}
    rows |= {"f32_if_attention_were_causal": "f32, attention forced to causal"}
    rows |= {"f32_without_instruction": "f32, without the instruction"}
    for key, label in rows.items():
        row = measured[key]
        greedy = f"{row['same_greedy_texts']} of {measured['prompts']} " if "same_greedy_texts" in row else ""
        line = f"| {label} | {greedy}| {row['largest_difference']:.1e} | {row['smallest_cosine']:.6f} |"
        assert line in GUIDE
    assert f"{measured['sentences']} sentences, {measured['prompts']} prompts, {measured['new_tokens']} new" in GUIDE


def test_links_exist():
    for target in re.findall(r"\]\(([\w./]+)\)", GUIDE):
        assert (ROOT / "docs" / target).is_file(), target
