"""magnet evaluate: tables of a model and its baselines, in one report that resumes; results in a checkpoint's card."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from commands import TINY, Magnet
from safetensors.torch import load_file, save_file

from magnet_cli.evaluate import loader, parse, revision_of, start_token
from magnet_eval import run as running
from magnet_eval.claims import CLAIMS, Claim, verdicts
from magnet_eval.data import FAST
from magnet_eval.figures import Figure
from magnet_eval.plots import by_step, overview, pictures
from magnet_eval.report import as_html, differences, markdown_table, papers_rows, pivot, section
from magnet_eval.run import TABLES, Result
from magnet_eval.systems import KINDS, System
from magnet_hub.eval_results import read_eval_results

STORIES = Path(__file__).parents[1] / "examples" / "assets" / "everyday-stories"
CONLL = "Tom NNP B-NP B-PER\nran VBD B-VP O\n. . O O\n\nAnn NNP B-NP B-PER\nMay NNP I-NP I-PER\nsat VBD B-VP O\n\n"


@pytest.fixture
def magnet(monkeypatch, capsys):
    return Magnet(monkeypatch, capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a little of everything."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(STORIES, folder / "everyday-stories")
    (folder / "conll2003").mkdir()
    for split in ("train", "valid"):
        (folder / "conll2003" / f"{split}.txt").write_text(CONLL * 6)
    (folder / "clustering").mkdir()
    rows = [f"{'ab'[n % 2]}\ttext {n % 2} of {n}" for n in range(20)]
    (folder / "clustering" / "topics.tsv").write_text("\n".join(["label\ttext", *rows]))
    (folder / "wiki.valid.raw").write_text((" = Bridge = \n " + "The bridge was built in 1932 . " * 60 + "\n") * 2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tables", [["infill", "sts", "norms", "modes"], ["all"]])
def test_one_report_that_resumes(tables, magnet, data, base_model_path, tmp_path, monkeypatch):
    flags = ["--fast", "--data", data, "--out", tmp_path, "--judge", base_model_path, "--dtype", "float32"]
    flags += ["--baseline", f"base={base_model_path}"]
    flags += ["--train_file", data / "everyday-stories" / "train.jsonl"]
    printed = magnet(["evaluate", *tables, *flags])
    content = json.loads((tmp_path / "results.json").read_text())
    figures = content["figures"]
    # no ARC here, one MAGNET run only, and texts are no figures
    expected = set(TABLES) - {"knowledge", "ablation", "generations"} if tables == ["all"] else set(tables)
    assert {row["table"] for row in figures} == expected
    for row in figures:
        assert row["interval"] is None or row["interval"][0] <= row["interval"][1]
        assert row["seed"] == 0 and row["commit"] and row["versions"]["torch"] and row["hardware"]
        assert str(data) not in row["command"] and " --model magnet=magnet-tiny" in row["command"]
    assert {row["system"] for row in figures if row["table"] == "sts"} == {
        "magnet",
        "base",
        "lexical binary words",
        "lexical TF-IDF words",
        "lexical TF-IDF characters",
    }
    given, left = (
        next(r for r in figures if (r["table"], r["data"], r["way"]) == ("infill", "everyday-stories", way))
        for way in ("given length", "left to right")
    )
    assert given["value"] != left["value"] and given["tokens"] == left["tokens"] > 0 and given["units"] == FAST
    assert content["found in training text"]["everyday-stories (validation.jsonl)"][0] == 0
    verdicts = {row["claim"]: row["verdict"] for row in content["claims"]}
    assert verdicts["Causal mode: the base's logits, bit for bit (ours)"] == "confirmed at this scale"
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert "<script" not in page and " src=" not in page and "<link" not in page  # all of it is in the file
    plots = [path.read_text() for path in (tmp_path / "figures").iterdir()]
    assert page.count("<svg") == len(plots) >= 6 and all(plot in page for plot in plots)
    assert "How it was measured" in text
    assert "| magnet, given length |" in printed
    if tables == ["all"]:
        assert "| knowledge | data=" in text and (tmp_path / "overview.svg").read_text().startswith("<svg")
        assert "magnet" not in (tmp_path / "rating_sheet.csv").read_text()
        rated = {row["system"] for row in json.loads((tmp_path / "rating_key.json").read_text())}
        assert rated >= {"people", "magnet", "base, left to right"} and len(rated) == 5

    def load(name, path):
        if path != str(base_model_path):  # the judge
            raise AssertionError("measured again")
        return System(name)

    monkeypatch.setattr("magnet_cli.evaluate.loader", lambda *_: load)
    magnet(["evaluate", *tables, *flags])
    assert json.loads((tmp_path / "results.json").read_text())["figures"] == figures
    with pytest.raises(SystemExit, match="measured again"):  # other settings, another result
        magnet(["evaluate", "infill", "--limit", "3", "--data", data, "--out", tmp_path])


def test_what_was_done_before_an_error_is_kept(magnet, tmp_path, monkeypatch):
    flags = ["--data", STORIES, "--fast", "--out", tmp_path]
    monkeypatch.setattr("magnet_eval.norms.measure", lambda *_: 1 / 0)
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        magnet(["evaluate", "mtp", "norms", *flags])
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["mtp.magnet.json"]


def test_a_set_that_is_added_is_measured_alone(magnet, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(STORIES, data / "everyday-stories")
    flags = ["evaluate", "infill", "--data", data, "--fast", "--limit", "2", "--out", tmp_path / "out"]
    magnet(flags)
    (data / "documents.txt").write_text("The bridge was built in 1932. It is long. " * 12 + "\n")
    monkeypatch.setattr("magnet_eval.infill.read_stories", lambda *_: 1 / 0)
    magnet(flags)
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    assert {row["data"] for row in figures} == {"everyday-stories", "documents"}
    monkeypatch.setattr("magnet_eval.infill.measure", lambda *_: 1 / 0)
    (data / "documents.txt").unlink()
    magnet(flags)  # and one that is taken away is out of the report
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    assert {row["data"] for row in figures} == {"everyday-stories"}


def test_a_result_belongs_to_the_weights_wherever_they_lie(magnet, tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "moved", copy_function=shutil.copy)  # later than the original
    flags = ["--data", STORIES, "--fast", "--limit", "2", "--out", tmp_path / "out"]
    magnet(["evaluate", "norms", *flags])
    monkeypatch.setattr("magnet_eval.norms.measure", lambda *_: 1 / 0)
    magnet(["evaluate", "norms", "--model", tmp_path / "moved", *flags])
    weights = tmp_path / "moved" / "model.safetensors"
    tensors = load_file(weights)
    next(tensor for name, tensor in tensors.items() if name.endswith("q_proj_lora.B"))[0, 0] += 1.0
    save_file(tensors, weights, {"format": "pt"})  # as large as before
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        magnet(["evaluate", "norms", "--model", tmp_path / "moved", *flags])


def test_a_base_is_read_from_left_to_right(magnet, base_model_path, tmp_path):
    printed = magnet(
        ["evaluate", "infill", "--model", base_model_path, "--data", STORIES, "--fast", "--out", tmp_path]
    )
    assert "| base, left to right |" in printed and "given length" not in printed


def test_figures_go_into_the_card(magnet, tmp_path):
    shutil.copytree(TINY, tmp_path / "own")
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "sts.tsv").write_text("\n".join((STORIES / "sts.tsv").read_text().splitlines()[:6]))
    command = ["evaluate", "sts", "--model", tmp_path / "own", "--data", tmp_path / "few", "--out", tmp_path / "r"]
    magnet([*command, "--update_card"])
    found = [each for each in read_eval_results(tmp_path / "own") if each.dataset_name == "few"]
    assert [each.metric_name for each in found] == ["Spearman x 100, instruction of STS", "Spearman x 100"]
    assert found[0].metric == "spearman" and found[0].command.startswith(
        "magnet evaluate sts --model magnet=own --data few"
    )
    assert "few" in (tmp_path / "own" / "README.md").read_text()
    (tmp_path / "own" / "README.md").write_text("by hand")
    with pytest.raises(SystemExit, match="update_card: the README.md of .* is not a generated card"):
        magnet([*command, "--update_card"])
    with pytest.raises(SystemExit, match="limit=3, fast=False: a model card needs full data sets"):
        magnet([*command, "--update_card", "--limit", "3"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["tables"], "table='tables': unknown. Choose from words, sts"),
        (["infill", "--model", "gone/for/good"], "model_name_or_path='gone/for/good': no such folder"),
        (["infill", "--baseline", "base"], "baseline='base': must be NAME=PATH"),
        (["infill", "--baseline", "gpt=runs"], "baseline='gpt': must start with a kind of system"),
        (["infill", "--baseline", "base=gone/for/good"], "no such folder"),
        (["infill", "--baseline", f"magnet={TINY}"], r"the names \['magnet', 'magnet'\] must differ"),
        (["infill", "--data", "gone"], "data='gone': no such folder"),
        (["infill", "--limit", "0"], "limit=0: must be at least 1"),
        (["words", "--out", "{tmp}"], r"data='.*everyday-stories': has none of conll\*/valid.txt"),
        (["sts", "infill", "--tasks", "STS12"], "--tasks needs a single table: sts, clustering or knowledge"),
    ],
)
def test_bad_input_is_refused(flags, message, magnet, tmp_path):
    with pytest.raises(SystemExit, match=f"magnet evaluate: error: .*{message}"):
        magnet(["evaluate", *(flag.replace("{tmp}", str(tmp_path)) for flag in flags)])


def test_kinds_and_steps_of_names():
    assert System("causal-r64").kind == "causal" and System("llm2vec-mntp").step is None
    assert {System(f"{kind}-100").step for kind in KINDS} == {100}


# ------------------------------------------------------------------------------------------------------------ the report


def result(system, values, way="", table="repetition", measure="Rep-4"):
    return Result(table, system, [Figure("Wikitext", measure, "ratio_of_sums", [values, [1.0] * len(values)], way)])


def test_differences_are_paired_with_every_other_row():
    results = [result("magnet", [0.1, 0.2, 0.3], "greedy"), result("llm2vec", [0.5, 0.6, 0.7], "greedy")]
    results.append(result("base", [0.1, 0.2], "greedy"))  # other prefixes
    found = pivot("repetition", results)
    assert found.columns == ["Wikitext: Rep-4"]
    (((row, rival), cells),) = differences(found, "magnet", ("greedy",)).items()
    assert (row, rival) == ("magnet, greedy", "llm2vec, greedy")
    assert cells["Wikitext: Rep-4"].interval == pytest.approx([-0.4, -0.4])
    rows = section("repetition", found, results, "magnet")
    assert rows["differences"] == [["magnet, greedy : llm2vec, greedy", "-0.400 (-0.400 to -0.400)"]]
    assert rows["paper"][0] == ["the paper: Llama-2-7B", "0.0601"]


def test_the_average_of_similarity_is_of_sets_that_a_system_has():
    results = [
        Result(
            "sts", "magnet", [Figure(name, "Spearman x 100", "spearman", [[1, 2, 3], [1, 2, n]]) for name, n in rows]
        )
        for rows in ([("STS12", 3), ("STS13", 3), ("tales", 0)],)
    ]
    found = pivot("sts", results)
    assert found.columns[-1] == "average of 2: Spearman x 100"
    assert found.cells["magnet"][found.columns[-1]].value == pytest.approx(100)
    paper = papers_rows({"MAGNET": {"STS12: Spearman x 100": 67.98, "STS13: Spearman x 100": 84.66}}, found.columns)
    assert paper == [["the paper: MAGNET", "67.98", "84.66", "", "76.32"]]  # the average of the same two


@pytest.mark.parametrize(("values", "verdict"), [([0.1, 0.1, 0.2], True), ([0.1, 0.9, 0.7], False)])
def test_a_claim_holds_if_its_whole_interval_does(values, verdict):
    results = [result("magnet", values, "greedy"), result("llm2vec", [0.5, 0.6, 0.7], "greedy")]
    found = {claim: what for claim, what, _ in verdicts({"repetition": pivot("repetition", results)}, "magnet")}
    assert found["Repetition: below LLM2Vec"] == ("confirmed at this scale" if verdict else "not confirmed")
    assert found["Words: above the base"] == "not measured"
    assert found["Repetition with the adapter on in causal mode, as in the paper: below LLM2Vec"] == "not measured"
    results += [result("llm2vec-100", [0.0, 0.0, 0.0], "greedy")]  # a point of a curve is no rival
    (again,) = [what for claim, what, _ in verdicts({"repetition": pivot("repetition", results)}, "magnet")
                if claim == "Repetition: below LLM2Vec"]  # fmt: skip
    assert again == found["Repetition: below LLM2Vec"]


def test_a_claim_of_a_system_alone_is_about_its_value():
    finished = result("magnet", [99.0, 100.0, 99.5], "", "appropriate", "finished %").figures[0].estimate
    assert finished.interval[0] == 99 and Claim("", "", "", least=99.2).keeps(finished)
    assert not Claim("", "", "", rival="base", least=99.2).keeps(finished)


def test_claims_name_tables_and_kinds_that_exist():
    for claim in CLAIMS:
        assert claim.table in TABLES and (not claim.rival or re.split(r"\W", claim.rival)[0] in KINDS), claim.text
        assert claim.least is not None or claim.most is not None


def test_figure_5_is_drawn_over_steps():
    results = [result(f"magnet-{step}", [step / 1000] * 3, "greedy") for step in (400, 200)]
    results += [result("base", [0.1] * 3, "greedy")]
    curves = by_step(results, "Wikitext: Rep-4")
    assert {name: [point[:2] for point in points] for name, points in curves.items()} == {
        "magnet, greedy": [(200, pytest.approx(0.2)), (400, pytest.approx(0.4))]}  # fmt: skip
    assert "Wikitext: Rep-4 over training" in pictures("repetition", pivot("repetition", results), results, "magnet")


def test_text_of_others_is_escaped():
    texts = {"<b>left</b> ____ right": {"magnet": "<script>alert(1)</script>"}}
    part = {"title": "T", "about": "", "header": [""], "rows": [], "paper": [], "differences": [], "pictures": {}}
    part |= {"notes": {"a": "<i>"}, "texts": texts}
    page = as_html([part], [], {"x": "<u>"}, None, [], "magnet")
    assert "<script>" not in page and "<b>left" not in page and "<i>" not in page and "<u>" not in page
    assert markdown_table(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"


def test_a_result_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    result("magnet", [0.1, 0.2]).save(path)
    before = path.read_text()
    monkeypatch.setattr(running.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result("magnet", [0.3, 0.4]).save(path)
    assert path.read_text() == before and Result.read(path).figures[0].columns[0].tolist() == [0.1, 0.2]


def test_the_report_holds_what_earlier_commands_measured(magnet, tmp_path):
    flags = ["--data", STORIES, "--out", tmp_path, "--fast"]
    magnet(["evaluate", "norms", *flags])
    assert "adapter: q_proj, mean norm" in magnet(["evaluate", "mtp", *flags])
    tables = {row["table"] for row in json.loads((tmp_path / "results.json").read_text())["figures"]}
    assert tables == {"norms", "mtp"}
    assert "q_proj" not in magnet(["evaluate", "mtp", *flags, "--seed", "1"])  # measured otherwise


def test_a_stock_model_opens_texts_as_ours_does(magnet, base_model_path, tokenizer, tmp_path):
    bare = copy.deepcopy(tokenizer)
    bare.add_bos_token = False
    for source, name in ((TINY, "ours"), (base_model_path, "base")):
        shutil.copytree(source, tmp_path / name)
        bare.save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config | {"text_start_token_id": 1}))
    systems = [("encoder", "no/such"), ("base", str(tmp_path / "base")), ("magnet", str(tmp_path / "ours"))]
    options = parse(["infill"])
    start = start_token(systems, options)
    assert start == "<s>" and start_token(systems[:2], options) is None
    for token, found in ((start, 1), (None, None), ("<|endoftext|>", None)):
        system = loader(options, token)(*systems[1])
        assert system.model.config.text_start_token_id == found
    assert loader(options, start)("base", str(base_model_path)).model.config.text_start_token_id is None  # has its own


def test_the_revision_is_the_models_and_not_the_baselines():
    options = parse(["infill", "--model", "magnet=you/magnet", "--revision", "v1", "--baseline", "base=you/base"])
    assert revision_of("you/magnet", options) == "v1" and revision_of("you/base", options) is None


def test_one_picture_of_the_three_abilities():
    def row(system, table, data, measure, value, way=""):
        return {"table": table, "system": system, "way": way, "data": data, "measure": measure, "value": value,
                "interval": None}  # fmt: skip

    figures = [row("magnet", "infill", "ROC", "perplexity", 9.0, "given length")]
    figures += [row("fim-r64", "infill", "ROC", "perplexity", v, way) for v, way in ((12, "PSM"), (11, "SPM"))]
    figures += [row("base", "infill", "ROC", "perplexity", 14, "left to right")]
    figures += [row("causal", "infill", "ROC", "perplexity", 1, "left to right")]  # not shown
    figures += [row("magnet", "repetition", "Wikitext", "Rep-4", 0.2, "greedy")]
    content = {"ours": "magnet", "figures": figures, "averages": []}
    assert overview(content) is None  # no similarity
    content["averages"] = [row("magnet", "sts", "average of 2", "Spearman x 100", 70.0)]
    infilling, embedding, generation = overview(content).axes
    assert [each.get_text() for each in infilling.get_yticklabels()] == [
        "MAGNET\ngiven length", "FIM-LoRA\nSPM", "base\nleft to right"]  # fmt: skip
    assert [bar.get_width() for bar in infilling.patches] == [9, 11, 14]
    assert "average of 2" in embedding.get_title() and "Wikitext" in generation.get_title()
