"""`magnet paraphrase` with a tiny random T5: what is written, left out and counted."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from magnet_cli.main import main
from magnet_train.data import paraphrase as module
from magnet_train.data.pairs import load_pairs
from magnet_train.data.paraphrase import ParaphraseArguments, paraphrase

SENTENCES = [f"Story {i}: " + "the boy went home again, " * (1 + i % 4) + "and slept." for i in range(11)]
SAME, CUT, LONG = (
    "same as the sentence, left out",
    "paraphrases cut by max_new_tokens",
    "longer than the model reads, left out",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A random T5 over the repository's small tokenizer."""
    size = {"vocab_size": 4096, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    folder = tmp_path_factory.mktemp("t5")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(T5Config(**size, **ids, initializer_factor=5.0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(model, tmp_path):
    """`run(output="pairs.jsonl", **settings)`: the rows that are written; counts are in `run.counts`."""
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in SENTENCES))

    def run(output="pairs.jsonl", **settings):
        given = {"model_name_or_path": model, "input": str(tmp_path / "texts.txt"), "output": str(tmp_path / output)}
        given |= {"min_words": 3, "batch_size": 2, "num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 6}
        run.counts = paraphrase(ParaphraseArguments(**given | settings))
        return [json.loads(line) for line in (tmp_path / output).read_text().splitlines()]

    return run


def test_pairs_are_written_that_training_reads(run, tmp_path):
    rows = run()
    assert [row["text"] for row in rows] == sorted(SENTENCES, key=len)  # batches of like length
    assert all(row.keys() == {"text", "positive"} and row["positive"].strip() for row in rows)
    assert len(load_pairs(str(tmp_path / "pairs.jsonl"), ["text", "positive"])) == len(SENTENCES)
    assert run.counts == {"sentences": 11, "pairs": 11, SAME: 0, LONG: 0, CUT: 11}  # a random model ends nothing


def test_sampling_is_the_models_and_draws_from_the_seed(run, model):
    generation = GenerationConfig.from_pretrained(model)
    generation.do_sample = True
    generation.save_pretrained(model)
    first, again, other = (run(f"{n}.jsonl", num_beams=1, seed=seed) for n, seed in enumerate((0, 0, 1)))
    generation.do_sample = False
    generation.save_pretrained(model)
    assert first == again != other


def test_a_file_of_someone_else_is_left_alone_and_ours_appears_when_complete(run, monkeypatch, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "candidates", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (tmp_path / "pairs.jsonl").exists()
    assert len(run()) == 11
    before = (tmp_path / "pairs.jsonl").read_text()
    with pytest.raises(ValueError, match="pairs.jsonl': exists. Name another file"):
        run()
    assert (tmp_path / "pairs.jsonl").read_text() == before


def test_only_long_lines_or_sentences_are_taken_and_each_once(run, tmp_path):
    (tmp_path / "texts.txt").write_text("Too short. This one has five words. So has this one, too.\n" * 2 + "Short.\n")
    rows = run("lines.jsonl", min_words=4)
    assert [row["text"] for row in rows] == ["Too short. This one has five words. So has this one, too."]
    rows = run("sentences.jsonl", min_words=4, unit="sentence")
    assert [row["text"] for row in rows] == ["So has this one, too.", "This one has five words."]
    assert len(run("one.jsonl", min_words=4, unit="sentence", limit=1)) == 1
    with pytest.raises(ValueError, match="min_words=40: no line of .*texts.txt has more words. .* unit=sentence"):
        run("none.jsonl", min_words=40)


@pytest.mark.parametrize(
    ("candidates", "positives"),
    [
        (["the boy  WENT home.", "A paraphrase."], ["A paraphrase.", "the boy  WENT home."]),
        (["the boy  WENT home.", " "], ["the boy  WENT home."]),
    ],
)
def test_the_first_candidate_that_differs_is_taken(run, monkeypatch, tmp_path, candidates, positives):
    (tmp_path / "texts.txt").write_text("The boy went home.\nThe dog ran away.\n")
    monkeypatch.setattr(module, "candidates", lambda *args: (candidates * 2, [False] * 4))
    assert sorted(row["positive"] for row in run()) == positives
    assert run.counts[SAME] == 2 - len(positives)


def test_sentences_that_the_model_cannot_read_are_left_out(run, model, tmp_path):
    config = Path(model, "tokenizer_config.json")
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"model_max_length": 20}))
    rows = run()
    config.write_text(before)
    assert 0 < run.counts[LONG] == len(SENTENCES) - len(rows) < len(SENTENCES)


def test_the_prefix_is_put_before_each_and_control_tokens_stay_text(model, tokenizer, monkeypatch):
    seen = []
    t5, own = module.load(model)
    monkeypatch.setattr(t5, "generate", lambda **kwargs: seen.append(kwargs) or torch.zeros(2, 3, dtype=torch.long))
    args = ParaphraseArguments(model, "a", "b", prefix="paraphrase: ")
    module.candidates(t5, own, ["Tom wrote </s> here.", "Hi."], args)
    texts = [tokenizer.decode(ids[m.bool()]) for ids, m in zip(seen[0]["input_ids"], seen[0]["attention_mask"])]
    texts = [text.removeprefix("<s>").strip() for text in texts]
    assert texts == ["paraphrase: Tom wrote </s> here.", "paraphrase: Hi."]
    assert tokenizer.eos_token_id not in seen[0]["input_ids"]


def test_the_command(model, tmp_path, base_model_path, caplog):
    (tmp_path / "texts.txt").write_text(f"{SENTENCES[0]}\n")
    common = f"paraphrase --min_words 3 --max_new_tokens 4 --input {tmp_path}/texts.txt --model_name_or_path".split()
    with caplog.at_level(logging.INFO):
        main([*common, model, "--output", f"{tmp_path}/new/pairs.jsonl"])
    assert "1 sentences, 1 pairs" in caplog.text
    assert (tmp_path / "new/pairs.jsonl").read_text().count("\n") == 1
    for name, told in (
        ("--input gone.txt", "magnet paraphrase: .*gone.txt': no such file"),
        (f"--model_name_or_path {base_model_path}", "model_name_or_path=.*: no sequence-to-sequence model"),
        ("--inptu a", "--inptu"),
        ("--num_return_sequences 9", "num_return_sequences"),
    ):
        with pytest.raises(SystemExit, match=told):
            main([*common, model, "--output", f"{tmp_path}/o.jsonl", *name.split()])
