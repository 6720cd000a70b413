"""The tables: each measure by hand or against a plain computation, on tiny random models."""

import copy
import json

import numpy as np
import pytest
import torch

from magnet_eval import (
    ablation,
    appropriate,
    fim,
    generations,
    infill,
    modes,
    mtp,
    norms,
    prompting,
    repetition,
    words,
    writing,
)
from magnet_eval.data import Settings, read_code, read_stories
from magnet_eval.figures import Figure
from magnet_eval.report import people
from magnet_eval.run import Result
from magnet_eval.scoring import GapExample, right_bits, sentence_gaps, span_costs
from magnet_eval.systems import System
from magnet_train.fim import fim_markers, fim_row
from modeling_magnet.modeling_magnet import low_rank_parts

STORIES = [
    ["Tom was hungry.", "He went home.", "He made a sandwich.", "He ate it.", "He was full."],
    ["Ann had a dog.", "It ran off.", "She looked for it.", "It came back.", "She was glad."],
]
WIKITEXT = " = Bridge = \n " + "The bridge was built in 1932 and closed . " * 60 + "\n"


@pytest.fixture(scope="module")
def magnet(text_magnet, tokenizer):
    return System("magnet", text_magnet(), tokenizer)


@pytest.fixture(scope="module")
def causal(text_magnet, tokenizer):
    return System("causal", text_magnet(causal_adapter=True), tokenizer)


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "tales").mkdir()
    rows = "".join(json.dumps({"sentences": story, "paraphrases": story[::-1]}) + "\n" for story in STORIES)
    (tmp_path / "tales" / "validation.jsonl").write_text(rows)
    (tmp_path / "wiki.valid.raw").write_text(WIKITEXT * 2)
    return Settings(tmp_path, fast=True)


@pytest.fixture
def cases(magnet, settings):
    return writing.cases_of(magnet, settings, 10)


def named(figures, measure, data="tales") -> dict[str, Figure]:
    return {each.way: each for each in figures if each.measure == measure and each.data == data}


# --------------------------------------------------------------------------------------------------------------- words

CONLL = [
    "Tom NNP B-NP B-PER\nran VBD B-VP O\n. . O O\n\n",
    "Ann NNP B-NP B-PER\nMay NNP I-NP I-PER\nsat VBD B-VP O\n\n",
]


def test_the_probe_learns_what_is_linear(monkeypatch):
    monkeypatch.setattr(words, "RATE", 1e-2)  # the paper's takes thousands of steps
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(5, 6)).astype(np.float32) for _ in range(60)]
    labels = [[["no", "yes", "maybe"][int(np.argmax(vector[:3]))] for vector in row] for row in rows]
    found, again = (words.probe(rows[:40], labels[:40], rows[40:], 200) for _ in range(2))
    right = np.mean([a == b for one, two in zip(found, labels[40:]) for a, b in zip(one, two)])
    assert right > 0.9 and again == found


def test_words_are_scored_as_accuracy_and_whole_names():
    truth = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    guesses = [["B-PER", "O", "O"], ["O", "B-LOC"]]
    accuracy, f1 = words.scored("NER", truth, guesses)
    assert accuracy.value == pytest.approx(80) and f1.value == pytest.approx(100 * 2 * 1 / (2 + 2))
    from seqeval.metrics import f1_score

    assert f1.value == pytest.approx(100 * f1_score(truth, guesses))
    accuracy, f1 = words.scored("POS", [["NN", "VB"], ["NN"]], [["NN", "NN"], ["UH"]])
    assert accuracy.value == pytest.approx(100 / 3)
    assert f1.value == pytest.approx((100 * 2 * 1 / (2 + 2) + 0) / 2)  # of NN and VB


def test_the_table_of_words(magnet, tmp_path, caplog):
    (tmp_path / "conll2003").mkdir()
    (tmp_path / "conll2003" / "train.txt").write_text("".join(CONLL * 6))
    odd = "Tom NNP B-NP B-PER\nwow UH B-INTJ O\n\n"
    (tmp_path / "conll2003" / "valid.txt").write_text("".join([*CONLL, odd]))
    figures, unseen = words.measure(words.RIVALS[0], Settings(tmp_path))
    assert named(figures, "accuracy %", "chunking")[""].value == pytest.approx(100 * 7 / 8)
    assert unseen == {
        "chunking: words whose label is not in the training set": {"B-INTJ": 1},
        "POS: words whose label is not in the training set": {"UH": 1},
    }
    figures, _ = words.measure(magnet, Settings(tmp_path, fast=True))
    assert [each.data for each in figures] == [task for task in words.TASKS for _ in range(2)]
    assert all(0 <= each.value <= 100 and len(each.columns[0]) == 3 for each in figures)


# -------------------------------------------------------------------------------------------------------------- infill


def test_the_table_of_infilling(magnet, causal, settings):
    settings.fast = False  # every sentence in turn
    figures, left_out = infill.measure(magnet, settings)
    model, tokenizer = magnet.model, magnet.tokenizer
    examples = sentence_gaps(STORIES, model.config, tokenizer)
    found = named(figures, "perplexity")
    assert list(found) == ["given length", "free length + END", "left to right"] and left_out == {}
    for way, layout in zip(found, ("exact", "free", "causal")):
        nats = span_costs(model, examples, layout).sum()
        assert found[way].value == pytest.approx(np.exp(nats / found[way].tokens), rel=1e-5)
        assert found[way].tokens == sum(example.length for example in examples)
    rights = named(figures, "perplexity, right side")
    two_sided = [each for each in examples if infill.is_two_sided(each)]
    nats = span_costs(model, infill.with_the_right_of_another(two_sided), "exact").sum()
    assert rights["another's"].value == pytest.approx(np.exp(nats / rights["another's"].tokens), rel=1e-5)
    assert list(rights) == ["own", "another's", "none"]
    wiki = [each.measure for each in figures if each.data == "Wikitext"]
    assert {"perplexity", "perplexity of gaps of 17 to 32 tokens"} <= set(wiki)
    assert "free length + END" not in named(figures, "perplexity of gaps of 65 to 128 tokens", "Wikitext")
    plain, _ = infill.measure(causal, settings)
    assert list(named(plain, "perplexity")) == ["left to right"]
    bits, whole = named(figures, "bits per character")["given length"], sum(map(len, sum(STORIES, [])))
    assert bits.columns[1].sum() == whole and bits.value == pytest.approx(bits.columns[0].sum() / whole)
    assert np.exp(bits.columns[0].sum() * np.log(2) / bits.tokens) == pytest.approx(found["given length"].value)
    assert not named(figures, "bits per character", "Wikitext")  # spans of tokens differ between tokenizers
    ratio = found["given length"].against(named(plain, "perplexity")["left to right"])
    assert ratio.interval[0] <= ratio.value <= ratio.interval[1]


def test_what_a_system_can_fill(text_magnet, tokenizer):
    kinds = {
        "magnet": (text_magnet(), True, True),
        "magnet-paper": (text_magnet(causal_adapter=True, infill_end_token_id=None), True, False),
        "magnet-merged": (text_magnet(causal_adapter=True, adapter=None), True, True),
        "base": (text_magnet(adapter=None), False, False),
        "causal": (text_magnet(causal_adapter=True), False, False),
    }
    for name, (model, fills, ends) in kinds.items():
        system = System(name, model, tokenizer)
        assert (system.fills_gaps, system.ends_gaps) == (fills, ends), name


def test_gaps_that_do_not_fit_are_told(magnet, settings):
    long = [["Tom was hungry.", "He ate " + "and ate " * 80 + "it.", "He was full."], *STORIES]
    rows = "".join(json.dumps({"sentences": story}) + "\n" for story in long)
    (settings.data / "tales" / "validation.jsonl").write_text(rows)
    settings.fast = False
    figures, left_out = infill.measure(magnet, settings)
    assert left_out == {"tales: gaps too long for magnet": 1}
    (settings.data / "tales" / "validation.jsonl").write_text(json.dumps({"sentences": ["a " * 600, "b " * 600]}))
    with pytest.raises(ValueError, match="validation.jsonl: none of 2 gaps fits into the positions of magnet"):
        infill.measure(magnet, settings)


@pytest.mark.parametrize("spm", [False, True])
def test_a_gap_in_fill_in_the_middle_order(causal, cases, spm):
    system, (case, *_) = System("fim", causal.model, causal.tokenizer), cases
    example, tokenizer = case.example, causal.tokenizer
    row, start = fim_row(
        example.left[1:], example.middle, example.right, fim_markers(tokenizer), 1, tokenizer.eos_token_id, spm
    )
    order = "SPM" if spm else "PSM"
    (found,) = fim.fim_examples(example, system, order, end=True)
    assert found.ids == row.tolist() and found.spans == [(start, example.length + 1)]
    (prompt,) = fim.fim_examples(example, system, order, end=False, middle=False)
    assert prompt.left == row.tolist()[:start]


def test_of_several_gaps_the_earlier_are_filled_and_the_later_left_out(causal):
    system = System("fim", causal.model, causal.tokenizer)
    rows = fim.fim_examples(GapExample([1, *range(20, 40)], [(3, 2), (8, 3), (15, 1)], 0), system, "PSM", end=False)
    markers = fim_markers(causal.tokenizer)
    cut = [(row.ids[1 + len(markers.prefix) :], row.spans[0]) for row in rows]
    lefts, gaps = [[20, 21], [*range(20, 27)], [*range(20, 34)]], [[22, 23], [27, 28, 29], [34]]
    rights = [[24, 25, 26, *range(30, 34), *range(35, 40)], [*range(30, 34), *range(35, 40)], [*range(35, 40)]]
    for (ids, _), row, left, gap, right in zip(cut, rows, lefts, gaps, rights, strict=True):
        assert ids == [*left, *markers.suffix, *right, *markers.middle, *gap, causal.tokenizer.eos_token_id]
        ((first, length),) = row.spans
        assert row.ids[first : first + length] == gap


@pytest.fixture
def pretrained(text_magnet, tokenizer):
    """A stock model whose tokenizer has Qwen2.5-Coder's tokens for the format."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens([*fim.OWN, *fim.ENDS[:1], "<|file_sep|>"], special_tokens=True)
    model = text_magnet(adapter=None)
    model.resize_token_embeddings(len(own))
    return System("fim-qwen", model, own)


def test_a_model_pretrained_on_the_format_uses_its_own_tokens(pretrained, cases, settings, text_magnet, tokenizer):
    known, example = pretrained.tokenizer.get_vocab(), cases[0].example
    (row,) = fim.fim_examples(example, pretrained, "PSM", end=True)
    prefix, suffix, middle = (known[each] for each in fim.OWN)
    expected = [prefix, *example.left[1:], suffix, *example.right, middle, *example.middle, known["<|endoftext|>"]]
    assert row.ids == expected and row.spans == [(len(expected) - example.length - 1, example.length + 1)]
    assert list(writing.fills_of(pretrained, cases, settings)) == ["PSM", "PSM, own end"]
    with pytest.raises(
        ValueError, match="baseline=fim: the model has no adapter and its tokenizer lacks <|fim_prefix|>"
    ):
        fim.fim_format(System("fim", text_magnet(adapter=None), tokenizer))


def test_any_of_its_end_tokens_ends_a_fill(pretrained, monkeypatch):
    known, eos = pretrained.tokenizer.get_vocab(), pretrained.tokenizer.eos_token_id
    rows = [[20, 30, known["<|file_sep|>"], 40], [20, 30, 40, 50]]
    monkeypatch.setattr(
        pretrained.model, "generate", lambda ids, **_: torch.cat([ids, torch.tensor(rows[: len(ids)])], 1)
    )
    found = writing.continuations(
        pretrained.model, pretrained.tokenizer, [[1], [1]], 4, end_ids=fim.fim_format(pretrained).ends
    )
    assert found == [[20, 30, eos], [20, 30, 40, 50]]


def test_code_is_read_in_blocks_and_misses_lines(magnet, tokenizer, settings):
    (settings.data / "code").mkdir()
    text = "import os\n\ndef f(x):\n    y = x + 1\n    z = y * 2\n    return z\n\n\n" * 2
    (settings.data / "code" / "code.py").write_text(text)
    blocks = read_code(settings.data / "code" / "code.py")
    assert blocks == [["def f(x):", "    y = x + 1", "    z = y * 2", "    return z"]] * 2
    examples = sentence_gaps(blocks, magnet.model.config, tokenizer, every=False, joint="\n")
    assert [tokenizer.decode(each.middle).strip() for each in examples] == ["def f(x):", "y = x + 1"]
    assert tokenizer.decode(examples[0].ids[1:]) == "\n".join(blocks[0])
    figures, _ = infill.measure(magnet, settings)
    assert named(figures, "bits per character", "code")["left to right"].value > 0


def test_the_end_of_a_fill_in_the_middle_is_paid_for(causal, settings):
    figures, _ = infill.measure(System("fim", causal.model, causal.tokenizer), settings)
    found = named(figures, "perplexity")
    ways = [f"{order}, free length{end}" for order in ("PSM", "SPM") for end in ("", " + END")]
    assert list(found) == list(named(figures, "perplexity", "Wikitext")) == [*ways, "left to right"]
    for order in ("PSM", "SPM"):
        assert found[f"{order}, free length + END"].value > found[f"{order}, free length"].value


# --------------------------------------------------------------------------------------------------------------- fills


def test_each_story_misses_one_of_its_middle_sentences(cases, tokenizer):
    assert [case.gold for case in cases] == ["He went home.", "She looked for it."]
    assert (cases[0].left, cases[0].right) == ("Tom was hungry.", "He made a sandwich. He ate it. He was full.")
    whole = [1, *tokenizer(" ".join(STORIES[0]), add_special_tokens=False)["input_ids"]]
    example = cases[0].example
    assert (
        example.left + example.middle + example.right == whole and tokenizer.decode(example.middle) == " He went home."
    )
    assert [case.example.story for case in cases] == [0, 1]


def test_left_padded_rows_are_written_as_alone(magnet):
    prompts = [[1, 20, 30, 40, 50, 60], [1, 70]]
    together = writing.continuations(magnet.model, magnet.tokenizer, prompts, 12, ends=False)
    alone = [writing.continuations(magnet.model, magnet.tokenizer, [each], 12, ends=False)[0] for each in prompts]
    assert together == alone and [len(row) for row in together] == [12, 12]
    with torch.no_grad():
        logits = magnet.model(torch.tensor([prompts[0]])).logits[0, -1]
    logits[magnet.tokenizer.all_special_ids] = -torch.inf
    assert together[0][0] == logits.argmax()


def test_a_left_to_right_fill_ends_and_repeats_nothing(cases, tokenizer):
    def fill(text, end=0, sentence=False):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * end
        return writing.fill_of(ids, cases[0], tokenizer, sentence)

    assert fill(" He sat down. Then he", sentence=True) == writing.Fill("He sat down.", True)
    assert fill(" He sat down. Then he") == writing.Fill("He sat down. Then he", False)
    assert fill(" He sat down. Then he", end=3) == writing.Fill("He sat down. Then he", True)
    assert fill(" He sat. He made a sandwich.", end=1).text == "He sat."


def test_magnets_fills_are_those_of_infill(magnet, cases, tmp_path):
    cut, free, told = writing.fills_of(magnet, cases, Settings(tmp_path)).values()
    text = f"{cases[0].left} <|gap|> {cases[0].right}"
    ways = (cut, {"stop": "sentence"}), (free, {}), (told, {"length": cases[0].example.length})
    for fills, options in ways:
        whole = magnet.model.infill(text, magnet.tokenizer, return_dict=True, **options).gaps[0]
        assert fills[0] == writing.Fill(whole.text.strip(), whole.finish_reason != "max_tokens")


def test_a_fill_is_cut_after_its_first_sentence():
    assert writing.one_sentence(writing.Fill("He sat. He ate", False)) == writing.Fill("He sat.", True)
    assert writing.one_sentence(writing.Fill("He sat", False)) == writing.Fill("He sat", False)
    assert writing.one_sentence(writing.Fill("", True)) == writing.Fill("", True)


def test_the_stand_ins_of_judgement(magnet, cases):
    fills = [writing.Fill("He went home.", True), writing.Fill("It ran off.", False)]
    joins = appropriate.join_bits(cases, magnet)
    figures = appropriate.stand_ins(cases, fills, "", magnet.tokenizer, joins)
    values = {each.measure: each.columns[0].tolist() for each in figures}
    assert values["finished %"] == [100, 0] and values["copied %"] == [0, 100] and values["length error"][0] == 0
    assert values["ROUGE-L"][0] == 100 and values["tokens"][0] == cases[0].example.length
    assert set(values) == {"finished %", "tokens", "length error", "ROUGE-L", "copied %", "join bits"}
    with_it, alone = right_bits(magnet.model, magnet.tokenizer, [
        (f"{cases[0].left} He went home.", cases[0].right), (cases[0].left, cases[0].right)])  # fmt: skip
    assert values["join bits"][0] == pytest.approx(with_it - alone)
    assert appropriate.join_bits(cases, None) is None
    (finished, *_) = appropriate.stand_ins(cases[:1], [writing.Fill("", True)], "", magnet.tokenizer)
    assert (finished.measure, finished.value) == ("finished %", 0)  # it ended, and said nothing
    assert "join bits" not in {each.measure for each in appropriate.stand_ins(cases, fills, "", magnet.tokenizer)}
    assert appropriate.rouge_l("the cat sat down", "the cat lay down") == pytest.approx(75)  # 3 of 4, both ways


def test_raters_get_ours_the_base_and_the_best_prompts(tmp_path):
    def result(system, table, fills, first=0):
        ways = {way: 10.0 * n for n, way in enumerate(fills)}
        figures = [Figure("fills", "ROUGE-L", "ratio_of_sums", [[v], [1]], way) for way, v in ways.items()]
        stories = [{"left": f"l{n}", "right": "r", "gold": f"gold {n}"} for n in range(first, 3)]
        texts = {way: [f"{system} {way} {n}" for n in range(first, 3)] for way in fills}
        return Result(table, system, figures, {"stories": stories, "fills": texts})

    results = [
        result("magnet", "appropriate", ["given length", ""]),
        result("fim", "appropriate", ["PSM"]),
        result("base", "appropriate", ["left to right"]),
        result("base", "prompting", ["zero-shot blank", "zero-shot line-by-line", "five-shot blank"]),
    ]
    results[-1].extra["stories"].pop()  # prompting has fewer, as its examples are not rated
    assert people(results, tmp_path, "magnet") == {}
    key = json.loads((tmp_path / "rating_key.json").read_text())
    assert {row["system"] for row in key} == {
        "people", "magnet", "base, left to right", "base, zero-shot line-by-line", "base, five-shot blank"}  # fmt: skip
    assert len(key) == 5 * 2


@pytest.mark.parametrize("name", ["magnet", "causal", "fim"])
def test_the_table_of_fills(name, text_magnet, tokenizer, settings):
    system = System(name, text_magnet(causal_adapter=name != "magnet"), tokenizer)
    figures, extra = appropriate.measure(system, settings)
    ways = {
        "magnet": ["", "own end", "given length"],
        "causal": ["left to right"],
        "fim": ["PSM", "PSM, own end", "SPM", "SPM, own end"],
    }[name]
    assert list(extra["fills"]) == ways and all(len(fills) == 2 for fills in extra["fills"].values())
    assert max(each.columns[0].max() for each in figures if each.measure == "tokens") <= 24
    assert extra["stories"][1]["gold"] == "She looked for it."


def test_raters_see_no_names_and_are_counted(tmp_path):
    stories = [{"left": f"l{n}", "right": "<r>", "gold": f"gold {n}"} for n in range(6)]
    appropriate.write_sheet(stories, {"magnet": [f"ours {n}" for n in range(6)]}, tmp_path)
    sheet = (tmp_path / "rating_sheet.csv").read_text()
    page = (tmp_path / "rating_sheet.html").read_text()
    assert "magnet" not in sheet + page and "people" not in sheet + page and page.count("&lt;r&gt;") == 12
    header, *rows = sheet.splitlines()
    assert appropriate.score_sheets(tmp_path) == {}
    for rater in ("a", "b"):  # both like every gold sentence, one of them ours too
        rated = [row + str(int("gold" in row or rater == "a")) for row in rows]
        (tmp_path / f"rated_{rater}.csv").write_text("\n".join([header, *rated]))
    found = appropriate.score_sheets(tmp_path)
    assert {system: figure.value for system, figure in found.items()} == {"people": 100, "magnet": 50}
    (tmp_path / "rated_c.csv").write_text(f"{header}\n1,a,b,c,maybe")
    with pytest.raises(ValueError, match="rated_c.csv:2: item '1' is rated 'maybe'; must be 1 or 0"):
        appropriate.score_sheets(tmp_path)


def test_prompts_are_the_papers(cases):
    text = prompting.line_by_line(cases[1])
    assert "Line 2: It ran off. Line 3: [Missing Line] Line 4: It came back." in text
    assert text.endswith("and nothing else. The missing line is: Line 3:")
    assert prompting.blank(cases[0]).startswith(
        "Generate the missing line represented by _ in the given text: Tom was"
    )
    assert '"Tom was hungry." and "He made a' in prompting.contextual(cases[0])
    assert "Prefix: Tom was hungry.. Suffix: He made" in prompting.prefix_suffix(cases[0])


def test_the_table_of_prompts(causal, cases, settings):
    ids = prompting.prompt_ids(causal, cases[0], prompting.blank, [cases[1]])
    text = causal.tokenizer.decode(ids, skip_special_tokens=True)
    assert text == f"{prompting.blank(cases[1])} She looked for it.\n\n{prompting.blank(cases[0])}" and ids[0] == 1
    with pytest.raises(ValueError, match="2 stories are only enough for the examples. Give more than 5"):
        prompting.measure(causal, settings)
    stories = [[f"Day {n}.", *STORIES[n % 2][1:]] for n in range(8)]
    rows = "".join(json.dumps({"sentences": story}) + "\n" for story in stories)
    (settings.data / "tales" / "validation.jsonl").write_text(rows)
    figures, extra = prompting.measure(causal, settings)
    assert len(extra["fills"]) == 7 and len({each.way for each in figures}) == 7
    lefts = [story["left"].split(".")[0] for story in extra["stories"]]
    assert lefts == ["Day 0", "Day 1", "Day 2"]  # not the examples, which come after those of Table 5


def test_a_chat_model_is_asked_in_its_template(causal, cases, tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ '[assistant]' if add_generation_prompt }}"
    )
    ids = prompting.prompt_ids(System("base", causal.model, chat), cases[0], prompting.blank, [cases[1]])
    text = chat.decode(ids, skip_special_tokens=True)
    assert text.startswith("[user]Generate") and "[assistant]She looked for it.[user]" in text
    assert text.endswith("The missing line is:[assistant]")


def test_texts_to_read(magnet, settings):
    figures, extra = generations.measure(magnet, settings)
    assert figures == [] and list(extra["continuations"])[0] == "The film was well received"
    (first, second) = extra["fills"].values()
    assert list(first) == ["people", "", "own end", "given length"] and first["people"] == "He went home."


# ------------------------------------------------------------------------------------------------- repetition and others


def test_repetition_is_that_of_new_tokens(magnet, settings, monkeypatch):
    rows = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8]]
    monkeypatch.setattr(repetition, "continuations", lambda *args, **kwargs: rows * len(args[2]))
    figures, _ = repetition.measure(magnet, settings)
    rep4 = [each for each in figures if each.measure == "Rep-4"]
    assert [(each.data, each.way) for each in rep4] == [
        (data, way) for data in ("Wikitext", "tales") for way in ("greedy", "nucleus 0.9")
    ]
    assert all(each.value == pytest.approx(1 - 4 / 9) for each in rep4)
    assert (
        repetition.prefixes(settings.data / "wiki.valid.raw", 3) == ["The bridge was built in"] * 3
    )  # of two articles
    assert repetition.prefixes(settings.data / "tales" / "validation.jsonl", 2) == [
        "Tom was hungry.",
        "Ann had a dog.",
    ]


def test_the_table_of_repetition(magnet, settings):
    figures, _ = repetition.measure(magnet, settings)
    assert len(figures) == 8 and all(0 <= each.value <= 1 for each in figures)
    again, _ = repetition.measure(magnet, settings)  # sampling too
    assert [each.value for each in again] == [each.value for each in figures]


def test_norms_are_of_the_update(magnet):
    figures, extra = norms.measure(magnet, Settings(None))
    for figure in figures:
        projection = figure.measure.split(",")[0]
        dense = [
            (part.scale * part.B @ part.A).norm().item()
            for name, _, part in low_rank_parts(magnet.model)
            if name.endswith(projection)
        ]
        np.testing.assert_allclose(figure.columns[0], dense, rtol=1e-4)
        assert extra["standard deviation"][figure.measure] == pytest.approx(np.std(dense, ddof=1), abs=1e-4)
    assert {figure.measure.split("_")[0] for figure in figures} >= {"q", "k", "v", "o"}


def test_a_system_without_adapter_has_no_norms(text_magnet, tokenizer):
    assert norms.measure(System("causal", text_magnet(adapter=None), tokenizer), Settings(None)) == (
        [],
        {"no adapter": "causal"},
    )


@pytest.mark.parametrize("kind", ["magnet", "mtp"])
def test_masked_tokens_are_guessed_from_the_left_or_at_their_place(kind, magnet, tokenizer):
    system, rows = System(kind, magnet.model, tokenizer), [[1, 20, 30, 40, 50], [1, 60, 70]]
    masked = [np.array([2, 4]), np.array([1])]
    found = mtp.guessed(system, rows, masked)
    expected = []
    for row, places in zip(rows, masked):
        hidden = torch.tensor([row])
        hidden[0, places] = magnet.model.config.mask_token_id
        with torch.no_grad():
            guesses = magnet.model(hidden, attention_mode="bidirectional").logits[0].argmax(-1)
        expected.append(sum(guesses[place - (kind == "magnet")].item() == row[place] for place in places))
    assert found == expected
    right = [list(row) for row in rows]  # texts that the model does guess
    hidden = torch.tensor([right[0]])
    hidden[0, 2] = magnet.model.config.mask_token_id
    with torch.no_grad():
        right[0][2] = (
            magnet.model(hidden, attention_mode="bidirectional").logits[0, 1 + (kind == "mtp")].argmax().item()
        )
    assert mtp.guessed(system, [right[0]], [np.array([2])]) == [1]


def test_the_figure_of_masked_tokens(magnet, settings):
    figures, _ = mtp.measure(magnet, settings)
    assert [each.data for each in figures] == ["Wikitext", "tales"] and all(0 <= each.value <= 100 for each in figures)


def test_the_modes_see_what_the_rule_says(magnet, causal, text_magnet, settings):
    figures, extra = modes.measure(magnet, settings)
    length = len(extra["sees"]["causal"])
    spans = torch.tensor([int(4 <= n < 8) for n in range(length)])
    query, key = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
    hybrid = (spans[key] == 0) | (spans[key] == spans[query]) & (key <= query)
    # a context token never reads a span, and through the layers a span token reads only what it may read itself
    expected = {"causal": key <= query, "bidirectional": key >= 0, "hybrid": hybrid}
    assert {mode: seen for mode, seen in extra["sees"].items()} == {m: e.int().tolist() for m, e in expected.items()}
    assert named(figures, "causal logits equal to the base's %")[""].value == 100
    texts = named(figures, "perplexity of whole texts")
    assert texts["causal mode"].value == texts["base"].value
    assert len(extra["similarity"]["cosines"]) == len(extra["similarity"]["sentences"]) == 10
    merged = System("magnet-paper", text_magnet(adapter=None, causal_adapter=True), magnet.tokenizer)
    figures, extra = modes.measure(merged, settings)
    assert [each.way for each in figures] == ["causal mode"] and "the base cannot be compared" in extra
    figures, extra = modes.measure(causal, settings)
    assert named(figures, "causal logits equal to the base's %")[""].value < 50 and "similarity" not in extra


def test_ablations_are_words_and_sts_side_by_side():
    def result(table, system, measure, way=""):
        return Result(table, system, [Figure("data", measure, "ratio_of_sums", [[1.0], [1]], way)])

    results = [
        result("words", "magnet-mntp", "accuracy %"),
        result("sts", "magnet-mntp", "Spearman x 100"),
        result("sts", "magnet", "Spearman x 100", "own prompt"),
        result("sts", "base", "Spearman x 100"),
        result("sts", "magnet-paper", "Spearman x 100"),
        result("infill", "magnet", "perplexity"),
    ]
    assert [(name, each.measure) for name, each in ablation.rows(results)] == [
        ("magnet-mntp", "accuracy %"), ("magnet-mntp", "Spearman x 100")]  # fmt: skip


@pytest.mark.shared
def test_real_stories_and_models(shared):
    from magnet_eval.systems import load_system

    base = load_system("base", str(shared / "models" / "stories3M"))
    stories = read_stories(shared / "data" / "eval-only" / "roc" / "cloze2016_val.tsv", 3)
    cases = writing.story_cases([story["sentences"] for story in stories], base.model.config, base.tokenizer)
    (fill, *_) = writing.fills_of(base, cases, Settings(shared))["left to right"]
    assert fill.finished and fill.text[-1] in '.!?"'
