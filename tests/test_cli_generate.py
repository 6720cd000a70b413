"""magnet generate: the prompt verbatim and what generate() writes behind it; alone, in batches, as a stream."""

import json
import shutil

import pytest
from commands import Magnet, load
from transformers import AutoTokenizer

from magnet_cli.main import main
from magnet_cli.model import SHIPPED

PROMPTS = ["One day, a little girl", "Tom", "The dog  ran </s> [EOS]"]


@pytest.fixture
def magnet(monkeypatch, capsys):
    return Magnet(monkeypatch, capsys)


def expected(prompt, **settings):
    model, tokenizer = load(str(SHIPPED))
    inputs = tokenizer(prompt, return_tensors="pt", split_special_tokens=True, return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=6, **settings)[0]
    return tokenizer.decode(ids, skip_special_tokens=True)


def test_prompts_come_back_with_what_follows(magnet):
    lines = magnet(["generate", *PROMPTS, "--max_new_tokens", "6"]).splitlines()
    assert lines == [expected(prompt) for prompt in PROMPTS]
    assert all(line.startswith(prompt) for line, prompt in zip(lines, PROMPTS))


def test_stream_is_the_same_text(magnet):
    printed = magnet(["generate", PROMPTS[0], "--max_new_tokens", "6", "--stream"])
    assert printed == expected(PROMPTS[0]) + "\n"


def test_json_and_alternatives(magnet, tmp_path):
    flags = ["--max_new_tokens", "6", "--num_beams", "2", "--num_return_sequences", "2", "--json"]
    magnet(["generate", *flags, "--output", tmp_path / "out.jsonl"], stdin="\n".join(PROMPTS[:2]))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert rows[0]["prompt"] + rows[0]["continuation"] == expected(PROMPTS[0], num_beams=2)
    assert {row["finish_reason"] for row in rows} <= {"max_tokens", "end_token"}


def test_sampling_depends_on_the_seed_alone(magnet):
    flags = ["--do_sample", "--max_new_tokens", "8"]
    first = magnet(["generate", PROMPTS[0], *flags])
    assert magnet(["generate", PROMPTS[0], *flags]) == first != magnet(["generate", PROMPTS[0], *flags, "--seed", "1"])


def test_any_llama_will_do(magnet, base_model_path):
    """The shipped checkpoint's causal mode is its base."""
    flags = ["generate", PROMPTS[0], "--max_new_tokens", "6"]
    assert magnet([*flags, "--model_name_or_path", base_model_path]) == magnet(flags)


def test_a_tokenizer_of_another_checkpoint_is_refused(base_model_path, tmp_path):
    shutil.copytree(base_model_path, tmp_path / "own")
    tokenizer = AutoTokenizer.from_pretrained(base_model_path)
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(tmp_path / "own")
    with pytest.raises(SystemExit, match="the tokenizer has 4098 tokens, the model 4096"):
        main(["generate", "a <new> b", "--model_name_or_path", str(tmp_path / "own")])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_new_tokens", "0"], "max_new_tokens=0: must be at least 1"),
        (["--min_new_tokens", "99"], "min_new_tokens=99: must lie between 0 and max_new_tokens"),
        (["--max_new_tokens", "510"], "exceed max_position_embeddings=512"),
        (["--max_new_tokens", "1000000000"], "exceed max_position_embeddings=512"),
        (["--num_beams", "1000000"], "num_beams=1000000: the model has only 4096 tokens to begin with"),
        (["--num_return_sequences", "2"], "num_return_sequences=2: greedy text has no alternative"),
        (["--stream", "--json"], "stream: shows one text"),
        (["--top_p", "0.9"], "top_p=0.9: without effect on greedy text"),
    ],
)
def test_errors(flags, message, magnet):
    with pytest.raises(SystemExit, match=f"magnet generate: error: .*{message}"):
        magnet(["generate", PROMPTS[0], *flags])
