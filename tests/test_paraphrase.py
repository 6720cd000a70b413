"""`magnet paraphrase` with a tiny random T5: what is written, left out and counted."""

import json
import logging
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from magnet_cli.main import main
from magnet_train.data import paraphrase as module
from magnet_train.data.paraphrase import ParaphraseArguments, Paraphraser, in_batches, paraphrase
from magnet_train.data.sentences import load_pairs

SENTENCES = [f"Story {i}: " + "the boy went home again, " * (1 + i % 4) + "and slept." for i in range(11)]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A random T5 over the repository's small tokenizer."""
    config = T5Config(
        vocab_size=4096,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
        initializer_factor=5.0,
    )
    folder = tmp_path_factory.mktemp("t5")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(model, tmp_path):
    """`run(output="pairs.jsonl", **settings)`: the bytes that are written; counts are in `run.counts`."""
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in SENTENCES))

    def run(output="pairs.jsonl", **settings):
        given = {"model_name_or_path": model, "input": str(tmp_path / "texts.txt"), "output": str(tmp_path / output)}
        given |= {"min_words": 3, "batch_size": 2, "num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 6}
        run.counts = paraphrase(ParaphraseArguments(**given | {"device": "cpu"} | settings))
        return (tmp_path / output).read_bytes()

    return run


def test_pairs_are_written_that_training_reads(run, tmp_path):
    lines = [json.loads(line) for line in run().decode().splitlines()]
    assert sorted(line["text"] for line in lines) == sorted(SENTENCES)
    assert all(line.keys() == {"text", "positive"} and line["positive"].strip() for line in lines)
    assert len(load_pairs(str(tmp_path / "pairs.jsonl"), ["text", "positive"])) == len(SENTENCES)
    counts = {"sentences": 11, "pairs": 11, "repeated left out": 0, "same as the sentence": 0, "inputs cut": 0}
    assert run.counts == counts | {"paraphrases cut": 11}  # a random model ends nothing


def test_batches_hold_sentences_of_like_length():
    batches = in_batches([str(i) * (i % 7 + 1) for i in range(9)], 3)
    assert [len(batch) for batch in batches] == [3, 3, 3]
    lengths = [len(sentence) for batch in batches for sentence in batch]
    assert lengths == sorted(lengths)
    assert len(in_batches(["a"] * 1000, 3)) == -(-1000 // 3) + (1000 % (3 * module.SORTED_BATCHES) == 0)


def test_sampling_draws_from_the_seed(run):
    sampling = {"do_sample": True, "num_beams": 1}
    first = run("1.jsonl", **sampling)
    assert first == run("2.jsonl", **sampling) != run("3.jsonl", **sampling, seed=1)


def test_each_batch_draws_from_a_seed_of_its_own(model):
    paraphraser = Paraphraser(ParaphraseArguments(model, "a", "b", do_sample=True, num_beams=1, device="cpu"))
    first, again, other = (paraphraser(SENTENCES[:2], number)[0] for number in (0, 0, 1))
    assert first == again != other


def test_a_file_of_someone_else_is_left_alone(run, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match="pairs.jsonl': exists. Name another file"):
        run()
    assert (tmp_path / "pairs.jsonl").read_text() == "mine\n"


def test_a_file_appears_when_it_is_complete(run, monkeypatch, tmp_path):
    whole, calls = run("whole.jsonl"), Paraphraser.__call__

    def interrupted(self, sentences, number):
        if number == 3:
            raise KeyboardInterrupt
        return calls(self, sentences, number)

    with monkeypatch.context() as patch:
        patch.setattr(Paraphraser, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (tmp_path / "pairs.jsonl").exists()
    assert run() == whole


# ------------------------------------------------------------------------------------------------ what is taken, and not


def test_only_long_lines_or_sentences_are_taken_and_each_once(run, tmp_path):
    (tmp_path / "texts.txt").write_text("Too short. This one has five words. So has this one, too.\n" * 2 + "Short.\n")
    lines = [json.loads(line)["text"] for line in run("lines.jsonl", min_words=4).splitlines()]
    assert lines == ["Too short. This one has five words. So has this one, too."]
    assert run.counts["repeated left out"] == 1
    sentences = [json.loads(line)["text"] for line in run("s.jsonl", min_words=4, unit="sentence").splitlines()]
    assert sorted(sentences) == ["So has this one, too.", "This one has five words."]
    assert run.counts["repeated left out"] == 2
    with pytest.raises(ValueError, match="min_words=40: no line of .*texts.txt has more words. .* unit=sentence"):
        run("none.jsonl", min_words=40)


def decoded(monkeypatch, candidates):
    """The model's candidates for each sentence become these."""
    from transformers import PreTrainedTokenizerBase

    def batch_decode(self, sequences, **kwargs):
        return [candidates[i % len(candidates)] for i in range(len(sequences))]

    monkeypatch.setattr(PreTrainedTokenizerBase, "batch_decode", batch_decode)


def test_the_first_candidate_that_differs_is_taken(run, monkeypatch, tmp_path):
    (tmp_path / "texts.txt").write_text("The boy went home.\nThe dog ran away.\n")
    decoded(monkeypatch, ["the boy  WENT home.", "A paraphrase."])
    assert {json.loads(line)["positive"] for line in run().splitlines()} == {"A paraphrase.", "the boy  WENT home."}
    decoded(monkeypatch, ["the boy  WENT home.", " "])
    lines = [json.loads(line) for line in run("again.jsonl").splitlines()]
    assert [line["text"] for line in lines] == ["The dog ran away."]
    assert run.counts["same as the sentence"] == 1 and run.counts["sentences"] == 2


def test_inputs_that_are_cut_are_counted(run):
    run(max_input_tokens=12)
    assert 0 < run.counts["inputs cut"] <= len(SENTENCES)


def test_the_prefix_is_put_before_each_and_control_tokens_stay_text(model, tokenizer):
    paraphraser = Paraphraser(ParaphraseArguments(model, "a", "b", prefix="paraphrase: ", device="cpu"))
    encoded, too_long = paraphraser.encode(["Tom wrote </s> here.", "Hi."])
    texts = [tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"])]
    assert [text.removeprefix("<s>").strip() for text in texts] == [
        "paraphrase: Tom wrote </s> here.",
        "paraphrase: Hi.",
    ]
    assert tokenizer.eos_token_id not in encoded["input_ids"] and too_long == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "page"}, "unit='page': must be one of line, sentence"),
        ({"on_bad": "ask"}, "on_bad='ask'"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"limit": -1}, "limit=-1: must not be negative"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"num_beams": 2, "num_return_sequences": 4}, "num_return_sequences=4: 2 beams give no more candidates"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ParaphraseArguments("model", "input", "output", **settings)


def test_the_command_of_the_docs_is_understood(monkeypatch):
    page = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```bash\n(magnet paraphrase .*?)```", page, flags=re.DOTALL)
    asked = []
    monkeypatch.setattr(module, "paraphrase", asked.append)
    main(shlex.split(command.replace("\\\n", " "))[1:])
    assert (asked[0].prefix, asked[0].unit, asked[0].output) == ("paraphrase: ", "sentence", "pairs.jsonl")


def test_the_command(model, tmp_path, base_model_path, caplog):
    (tmp_path / "texts.txt").write_text(f"{SENTENCES[0]}\n")
    flags = ["--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "new/pairs.jsonl"), "--min_words", "3"]
    flags += ["--max_new_tokens", "4", "--device", "cpu"]
    with caplog.at_level(logging.INFO):
        main(["paraphrase", "--model_name_or_path", model, *flags])
    assert "1 sentences, 1 pairs, 0 repeated left out" in caplog.text
    assert (tmp_path / "new/pairs.jsonl").read_text().count("\n") == 1
    with pytest.raises(SystemExit, match="magnet paraphrase: .*gone.txt: no such file"):
        main(
            [
                "paraphrase",
                "--model_name_or_path",
                model,
                *flags,
                "--output",
                "o",
                "--input",
                str(tmp_path / "gone.txt"),
            ]
        )
    with pytest.raises(SystemExit, match="model_name_or_path=.*: no sequence-to-sequence model"):
        main(
            ["paraphrase", "--model_name_or_path", str(base_model_path), *flags, "--output", str(tmp_path / "o.jsonl")]
        )
