"""The Space: what its tabs compute, without gradio; and, marked slow, the page in a real browser."""

import doctest
import html
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "examples" / "space"
STORY = "Mina slid a tray of rolls into her oven. <|gap|> She wrapped the rolls in foil."
sys.path.append(str(SPACE))  # a Space's files import each other as a script's do

import attending  # noqa: E402
import embedding  # noqa: E402
import filling  # noqa: E402
import generating  # noqa: E402
import words  # noqa: E402
from checkpoint import Checkpoint, check_text, load, model_name_or_path  # noqa: E402

from modeling_magnet import FAMILIES, MagnetLlamaForCausalLM  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tokenizer):
    folder = ROOT / "examples" / "assets" / "magnet-tiny"
    model = MagnetLlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Checkpoint(model, tokenizer, "magnet-tiny")


# ------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a <|gap|> b",
        "a<|gap:name|>b \n\n c ",
        "\\<|gap|> is text",
        "\\\\<|gap|> a gap behind a backslash",
        "I love 🍕, 👩‍👩‍👧 <|gap|> and {{x}} ${y} <b>",
        "<|gap|><|gap",
    ],
)
def test_pieces_are_the_text(text):
    pieces = words.read_pieces(text)
    assert "".join(piece["text"] for piece in pieces) == text
    assert words.write_text(pieces) == text
    assert all(html.unescape(piece["shown"]) in text.replace(":", " ") for piece in pieces)
    assert all(re.fullmatch(r"[\w&#;]*", piece["shown"]) for piece in pieces)  # nothing that a template would run


@pytest.mark.parametrize(
    "text", ["a <|gap|> b", "\\<|gap|> a", "\\\\<|gap:x|> b", "\\\\\\<|gap|> b", "a<|gap|>b<|gap|>"]
)
def test_pieces_find_the_gaps_that_infill_finds(text, checkpoint):
    parts = checkpoint.module("infilling_magnet").split_at_gaps(text, "<|gap|>")
    gaps = sum(not isinstance(part, str) for part in parts)
    assert sum(piece["marker"] for piece in words.read_pieces(text)) == gaps


def test_docstring_examples_of_words():
    result = doctest.testmod(words)
    assert result.attempted == 2 and result.failed == 0


def test_clicked_neighbours_are_one_gap_and_come_back():
    pieces = words.read_pieces("Tom ate a big pizza. <|gap:end|> Good night.")
    for index in (2, 3):
        pieces = words.click(pieces, index)
    assert words.write_text(pieces) == "Tom ate <|gap|> pizza. <|gap:end|> Good night."
    beside_a_marker = words.click(pieces, 4)
    assert words.write_text(beside_a_marker) == "Tom ate <|gap:end|> Good night."
    back = words.click(words.click(pieces, 2), 3)
    assert words.write_text(back) == "Tom ate a big pizza. <|gap:end|> Good night."
    assert words.write_text(words.click(back, 5)) == "Tom ate a big pizza. Good night."  # a marker goes
    assert words.click(pieces, 99) == pieces


# ------------------------------------------------------------------------------------------------------------ infill


def test_alternatives_are_distinct_scored_and_repeatable(checkpoint):
    length = filling.gap_length("range", 0, 3, 12)
    decoding = filling.decoding_arguments("sampling", 4, 0.8, 0.95)
    before = torch.get_rng_state()
    found = filling.alternatives(checkpoint, STORY, length, decoding, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert filling.alternatives(checkpoint, STORY, length, decoding, seed=3) == found
    assert 2 <= len({one["text"] for one in found}) == len(found) <= 4
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)
    best = found[0]
    assert "".join(text for text, _ in filling.highlighted_fills(best)) == best["text"]
    assert filling.highlighted_fills(best)[1] == (best["gaps"][0]["text"], "gap 1")
    assert filling.label(best).startswith(f"{best['score']:.2f}") and best["gaps"][0]["text"] in filling.label(best)


def test_tokens_have_their_probabilities(checkpoint):
    found = filling.alternatives(checkpoint, STORY, filling.gap_length("exact", 6, 0, 0), {})
    tokens = found[0]["gaps"][0]["tokens"]
    assert len(found) == 1 and len(tokens) == 6
    rows = filling.token_table(found[0])
    assert [row[2] for row in rows] == [round(100 * math.exp(logprob), 1) for _, logprob in tokens]
    shown = filling.highlighted_tokens(found[0])
    assert "".join(text for text, _ in shown).strip() == found[0]["gaps"][0]["text"].strip()
    assert {name for _, name in shown} <= set(filling.CLASSES)
    assert [filling.probability_class(math.log(p)) for p in (0.9, 0.5, 0.2, 0.02, 1e-9)] == [
        "p ≥ 0.5",
        "p ≥ 0.5",
        "0.1 – 0.5",
        "0.01 – 0.1",
        "p < 0.01",
    ]


def test_two_gaps_with_names_by_beams(checkpoint):
    story = "Anna found a <|gap:what|> in the garden. <|gap|> Her mother laughed."
    decoding = filling.decoding_arguments("beam search", 2, 0, 0)
    found = filling.alternatives(checkpoint, story, filling.gap_length("auto", 0, 0, 8), decoding)
    labels = [name for _, name in filling.highlighted_fills(found[0]) if name]
    assert labels == ["what", "gap 2"] and "⋯" in filling.label(found[0])
    assert "**what** ends by" in filling.summary(found[0])


def test_a_part_of_a_character_is_shown_as_the_vocabulary_has_it(tokenizer):
    ids = tokenizer("🍕", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1 and not any("\ufffd" in text or not text for text in filling.token_texts(ids, tokenizer))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Nothing is missing.", "no gap"),
        ("Tom <|gap|><|gap|> ate.", "touch"),
        ("<|gap:a b|> x", "name"),
        ("<|gap|>", "no text around"),
        ("a <|gap|> " * 9, "9 gaps"),
        ("x" * 5000, "5,000 characters"),
        ("word " * 500 + "<|gap|> end", "max_position_embeddings"),
    ],
)
def test_what_cannot_be_filled_is_said(text, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        filling.alternatives(checkpoint, text, {"length": "auto"}, {})
    with pytest.raises(ValueError, match="fewest=9"):
        filling.gap_length("range", 0, 9, 3)


def test_no_longer_gap_is_offered_than_the_model_can_end(checkpoint):
    longest = filling.longest_gap(checkpoint)
    assert longest == max(checkpoint.model.config.infill_free_offsets) == 64
    length = filling.gap_length("auto", 0, 0, longest)
    assert len(filling.alternatives(checkpoint, STORY, length, {})) == 1
    with pytest.raises(ValueError, match="at most 64"):
        filling.alternatives(checkpoint, STORY, filling.gap_length("auto", 0, 0, longest + 1), {})


# ------------------------------------------------------------------------------------------- embed, generate, attend


def test_similarities_and_the_nearest(checkpoint):
    sentences = embedding.read_sentences(
        "The boy put on his boots.\n\n He pulled his boots on. \nIt rained $5 all day."
    )
    assert sentences[1] == "He pulled his boots on."
    cosines = embedding.similarities(checkpoint, sentences)
    assert np.allclose(np.diag(cosines), 1, atol=1e-5) and cosines[0, 1] > cosines[0, 2]
    rows = embedding.nearest(checkpoint, sentences, "He pulled his boots on.")
    assert rows[0] == [1, 1.0, "He pulled his boots on."] and rows[1][1] >= rows[2][1]
    assert not np.allclose(embedding.similarities(checkpoint, sentences, ""), cosines)
    figure = embedding.heat_map(cosines, sentences)
    figure.canvas.draw()  # with a dollar, which is no formula
    assert [text.get_text() for text in figure.axes[0].texts][1] == f"{cosines[0, 1]:.2f}"


@pytest.mark.parametrize(("lines", "message"), [("", "empty"), ("one", "one sentence"), ("a\n" * 25, "25 sentences")])
def test_what_cannot_be_embedded_is_said(lines, message):
    with pytest.raises(ValueError, match=message):
        embedding.read_sentences(lines)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_causal_mode_is_the_base_and_the_adapter_is_not(temperature, checkpoint):
    results = generating.compare(checkpoint, "One day, a little girl", 8, temperature, seed=1)
    base, causal, adapted = (results[name] for name in (generating.BASE, generating.CAUSAL, generating.ADAPTED))
    assert causal == base and base["equal"] and base["difference"] == 0.0
    assert not adapted["equal"] and adapted["difference"] > 1 and adapted["perplexity"] > base["perplexity"]
    shown = generating.highlighted(checkpoint, "One day, a little girl", adapted, base)
    assert "".join(text for text, _ in shown) == "One day, a little girl" + adapted["continuation"]
    assert "bit for bit" in generating.verdict(checkpoint, results)
    assert [row[2] for row in generating.measures(results)] == ["bit for bit", "bit for bit", "no"]


def test_the_base_is_a_stock_class_and_all_views_share_the_weights(checkpoint):
    views = generating.models(checkpoint)
    assert type(views[generating.BASE]).__module__.startswith("transformers.models.llama")
    weight = checkpoint.model.lm_head.weight.data_ptr()
    assert all(view.lm_head.weight.data_ptr() == weight for view in views.values())
    assert checkpoint.model.config.causal_adapter is False
    with pytest.raises(ValueError, match="room for"):
        generating.compare(checkpoint, "word " * 600, 8)


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_causal_mode_of_another_family_is_its_stock_class(family, tokenizer):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 4096, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    adapter = {"r": 2, "alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    torch.manual_seed(0)
    config = FAMILIES[family].config_class(**sizes, **tokens, num_key_value_heads=2, head_dim=8, adapter=adapter)
    model = FAMILIES[family](config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("_lora.B"):
            torch.nn.init.normal_(parameter)
    checkpoint = Checkpoint(model, tokenizer, family)
    results = generating.compare(checkpoint, "One day, a little girl", 4)
    assert generating.models(checkpoint)[generating.BASE].config.model_type == family
    assert results[generating.CAUSAL] == results[generating.BASE] and not results[generating.ADAPTED]["equal"]


def test_masks_follow_the_rule(checkpoint):
    labels, spans = attending.read_spans(checkpoint, "Tom ate. <|gap|> He <|gap:x|> slept.", 2)
    assert [label for label, span in zip(labels, spans) if span] == ["gap 1·1", "gap 1·2", "x·1", "x·2"]
    pictures = attending.masks(checkpoint, spans)
    length = len(spans)
    assert torch.equal(pictures["causal"] > 0, torch.ones(length, length).tril() > 0)
    assert (pictures["bidirectional"] == 1).all()
    for query in range(length):
        for key in range(length):
            own_past = spans[key] == spans[query] and key <= query
            assert (pictures["hybrid"][query, key] > 0) == (spans[key] == 0 or own_past)
    titles = [axis.get_title() for axis in attending.draw(labels, spans, pictures).axes]
    assert titles == ["causal attention", "bidirectional attention", "hybrid attention"]
    assert set(attending.read_spans(checkpoint, "No gap.", 2)[1]) == {0}
    with pytest.raises(ValueError, match="at most 48"):
        attending.read_spans(checkpoint, "word " * 60, 2)


# --------------------------------------------------------------------------------------------------------- the files


def test_the_checkpoint_is_named_by_a_variable(monkeypatch):
    monkeypatch.delenv("MAGNET_MODEL", raising=False)
    assert Path(model_name_or_path()).name == "magnet-tiny"
    monkeypatch.setenv("MAGNET_MODEL", str(ROOT / "examples" / "assets" / "magnet-tiny-base"))
    with pytest.raises(ValueError, match="Name a MAGNET checkpoint"):
        load()
    with pytest.raises(ValueError, match="The text is empty"):
        check_text("The text", None)


def test_header_and_requirements_agree_with_the_project():
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).is_file()
    assert isinstance(header["models"], list) and header["license"] == "apache-2.0"
    assert len(header["short_description"]) <= 60  # the Hub's limit
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"gradio=={header['sdk_version']}" in pins
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for line in (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            assert f'"{line.replace("[mcp]", "")}"' in setup, line


# ------------------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is absent")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key not in ("MAGNET_MODEL", "PYTHONPATH")}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    server = subprocess.Popen([sys.executable, str(ROOT / "tests" / "space_server.py"), str(port)], env=environment)
    url = f"http://127.0.0.1:{port}/magnet/"
    try:
        _wait_for(url, server)
        with playwright.sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            opened = browser.new_page(viewport={"width": 1280, "height": 900})
            opened.faults = []
            opened.on("pageerror", lambda error: opened.faults.append(str(error)))
            opened.goto(url)
            opened.wait_for_selector("#filled", timeout=120_000)
            yield opened
            browser.close()
    finally:
        server.kill()  # it would wait for connections that browsers keep open
        server.wait(30)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Where screenshots go: MAGNET_SCREENSHOTS=docs writes docs/space.png anew."""
    return ROOT / os.environ["MAGNET_SCREENSHOTS"] if "MAGNET_SCREENSHOTS" in os.environ else tmp_path


def _wait_for(url: str, server) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


def _picture_of(page, name: str) -> str:
    image = page.locator(f"#{name} img")
    image.wait_for(timeout=60_000)
    return image.get_attribute("src")


@pytest.mark.slow
def test_infill_in_a_browser(page, pictures):
    from playwright.sync_api import expect

    page.screenshot(path=str(pictures / "space.png"), full_page=True)

    box = page.locator("#text textarea")
    page.locator("#words button", has_text="tray").click()
    expect(box).to_have_value(re.compile(r"^Mina slid a <\|gap\|> of rolls"))
    page.keyboard.press("Enter")  # the word keeps the focus
    expect(box).to_have_value(STORY)
    before = page.locator("#filled").inner_text()
    box.fill("Tom was <|gap:how|>. He went to the <|gap|> and ate.")
    expect(page.locator("#words button.marker")).to_have_count(2)
    page.locator("#fill").click()
    expect(page.locator("#filled")).to_contain_text("Tom was", timeout=60_000)
    first = page.locator("#filled").inner_text()
    assert first != before and re.search(r"how", first, flags=re.IGNORECASE)
    page.locator("#alternatives label").nth(1).click()
    expect(page.locator("#filled")).not_to_have_text(first)
    expect(page.locator("#tokens")).to_contain_text("END")
    expect(page.locator("#token_table")).to_contain_text("how")
    assert page.faults == []


@pytest.mark.slow
def test_errors_in_a_browser_are_our_messages(page):
    page.get_by_role("tab", name="Infill").click()
    from playwright.sync_api import expect

    page.locator("#text textarea").fill(r"Pay ${5} {{now}} <b>! \<|gap|>")  # nothing in it is run or taken for HTML
    expect(page.locator("#words button")).to_have_text(["Pay", "${5}", "{{now}}", "<b>!", r"\<|gap|>"])
    page.locator("#fill").click()
    toast = page.locator(".toast-body")
    toast.wait_for(timeout=60_000)
    assert "type <|gap|> where something is missing" in toast.inner_text()
    assert "Traceback" not in page.content() and page.faults == []
    page.locator(".toast-close").click()


@pytest.mark.slow
def test_pictures_in_a_browser(page, pictures):
    from playwright.sync_api import expect

    for tab, name, button in (("Embed", "heat_map", "#embed"), ("Attention", "mask", "#draw")):
        page.get_by_role("tab", name=tab).click()
        before = _picture_of(page, name)
        page.screenshot(path=str(pictures / f"space_{name}.png"), full_page=True)
        text = page.locator("textarea:visible").first
        text.fill("It rained.\nIt snowed." if tab == "Embed" else "Anna <|gap|> slept.")
        page.locator(button).click()
        expect(page.locator(f"#{name} img")).not_to_have_attribute("src", before, timeout=60_000)
    page.get_by_role("tab", name="Generate").click()
    expect(page.locator("#verdict")).to_contain_text("bit for bit")
    assert page.faults == []


@pytest.mark.slow
def test_programs_may_call(page):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(page.url, verbose=False)
    found = client.predict(STORY, length=5, api_name="/infill")
    assert found[0]["gaps"][0]["finish_reason"] == "exact_length" and len(found[0]["gaps"][0]["tokens"]) == 5
    assert client.predict("rain", ["It rained.", "A cake."], api_name="/nearest_sentences")[0][0] == 1
    with pytest.raises(AppError, match="no gap"):
        client.predict("Nothing is missing.", api_name="/infill")
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/infill", "/nearest_sentences", "/generate"}
