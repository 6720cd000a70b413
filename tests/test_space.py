"""The Space: what its tabs compute, without gradio; and, marked slow, the page in a real browser."""

import doctest
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

import families
import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "examples" / "space"
TINY = ROOT / "tests" / "assets" / "magnet-tiny"
STORY = "Anna opened the box. <|gap|> She named the puppy Max."
# MAGNET_SCREENSHOTS=docs writes docs/space.png and docs/space_mask.png anew, the first with the checkpoint MAGNET_MODEL
PICTURES = os.environ.get("MAGNET_SCREENSHOTS")
SHOWN = os.environ.get("MAGNET_MODEL") if PICTURES else None
try:
    from playwright.sync_api import expect, sync_playwright
except ModuleNotFoundError:
    sync_playwright = None  # the tests in a browser skip
sys.path.append(str(SPACE))  # a Space's files import each other as a script's do

import attending  # noqa: E402
import embedding  # noqa: E402
import filling  # noqa: E402
import generating  # noqa: E402

from modeling_magnet import MagnetLlamaForCausalLM  # noqa: E402
from modeling_magnet.infilling_magnet import split_at_gaps  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return MagnetLlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


# ------------------------------------------------------------------------------------------------------------ infill


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a <|gap|> b",
        "a<|gap:name|>b \n\n c ",
        "a<|gap|>b<|gap|>",
        "\\<|gap|> is text",
        "\\\\<|gap|> a gap behind a backslash",
        "word\\\\<|gap:x|> and \\\\\\<|gap|>",
        "I love 🍕, 👩‍👩‍👧 <|gap|> and {{x}} ${y} <b>",
        "<|gap|> <|gap",
    ],
)
def test_pieces_are_the_text_and_its_gaps(text):
    pieces = filling.read_pieces(text)
    assert "".join(piece for piece, _ in pieces) == filling.write_text(pieces) == text
    gaps = [part for part in split_at_gaps(text, "<|gap|>") if not isinstance(part, str)]
    assert sum(label is not None for _, label in pieces) == len(gaps)
    assert doctest.testmod(filling) == (0, 1)  # the example in read_pieces


def test_clicked_neighbours_are_one_gap_and_come_back():
    pieces = filling.read_pieces("Tom ate a big pizza. <|gap:end|> Good night.")
    for index in (2, 3):
        pieces = filling.click(pieces, index)
    assert filling.write_text(pieces) == "Tom ate <|gap|> pizza. <|gap:end|> Good night."
    beside_a_marker = filling.click(pieces, 4)
    assert filling.write_text(beside_a_marker) == "Tom ate <|gap:end|> Good night."
    back = filling.click(filling.click(pieces, 2), 3)
    assert filling.write_text(back) == "Tom ate a big pizza. <|gap:end|> Good night."
    assert filling.write_text(filling.click(back, 5)) == "Tom ate a big pizza. Good night."  # a marker goes
    assert filling.click(pieces, 99) == pieces  # the text changed before a slow click arrived


def test_alternatives_are_distinct_scored_and_repeatable(model, tokenizer):
    before = torch.get_rng_state()
    found = filling.alternatives(model, tokenizer, STORY, 1, 12, "sampling", 4, 0.8, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert filling.alternatives(model, tokenizer, STORY, 1, 12, "sampling", 4, 0.8, seed=3) == found
    assert 2 <= len({one["text"] for one in found}) == len(found) <= 4
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)
    best = found[0]
    assert "".join(text for text, _ in filling.highlighted_fills(best)) == best["text"]
    assert filling.highlighted_fills(best)[1] == (best["gaps"][0]["text"], "gap 1")
    assert filling.label(best) == f"{best['score']:.2f}  ·  {best['gaps'][0]['text'].strip()}"


def test_tokens_have_their_probabilities(model, tokenizer):
    (found,) = filling.alternatives(model, tokenizer, STORY, 6, 6, "beam search")
    (gap,) = found["gaps"]
    *shown, end = filling.highlighted_tokens(found)
    assert len(gap["tokens"]) == len(shown) == 6 and end == (" (exact_length) ", None)
    assert "".join(text for text, _ in shown).strip() == gap["text"].strip()
    assert [label for _, label in shown] == [f"{int(100 * math.exp(logprob))} %" for _, logprob in gap["tokens"]]
    percentages = [filling.percent(math.log(p)) for p in (1, 0.5, 0.29, 0.1, 0.01, 1e-9)]
    assert percentages == ["100 %", "50 %", "29 %", "10 %", "1 %", "0 %"]
    colors = [filling.color_map()[p] for p in percentages]
    assert colors == ["green", "green", "lime", "lime", "yellow", "red"]


def test_two_gaps_with_names_by_beams(model, tokenizer):
    story = "Anna found a <|gap:what|> in the garden. <|gap|> Her mother laughed."
    found = filling.alternatives(model, tokenizer, story, 1, 8, "beam search", 2)
    assert [name for _, name in filling.highlighted_fills(found[0]) if name] == ["what", "gap 2"]
    ends = [text.strip() for text, _ in filling.highlighted_tokens(found[0])]
    assert ends.count("END") + ends.count("(max_tokens)") == 2 and "⋯" in filling.label(found[0])


def test_a_part_of_a_character_is_shown_as_the_vocabulary_has_it(tokenizer):
    ids = tokenizer("🍕", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1 and not any("\ufffd" in text or not text for text in filling.token_texts(ids, tokenizer))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no gap"),
        ("Nothing is missing.", "no gap"),
        ("Tom <|gap|><|gap|> ate.", "touch"),
        ("<|gap:a b|> x", "name"),
        ("<|gap|>", "no text around"),
        ("a <|gap|> " * 9, "9 gaps"),
        ("x" * 5000, "5,000 characters"),
        ("word " * 500 + "<|gap|> end", "max_position_embeddings"),
    ],
)
def test_what_cannot_be_filled_is_said(text, message, model, tokenizer):
    with pytest.raises(ValueError, match=message):
        filling.alternatives(model, tokenizer, text, 1, 8)


def test_gaps_are_as_long_as_the_model_can_end(model, tokenizer):
    longest = filling.longest_gap(model.config)
    assert longest == max(model.config.infill_free_offsets) == 64
    assert len(filling.alternatives(model, tokenizer, STORY, 1, longest)) == 1
    with pytest.raises(ValueError, match="at most 64"):
        filling.alternatives(model, tokenizer, STORY, 1, longest + 1)
    for wrong, message in (
        ((9, 3), "fewest=9"),
        ((129, 129), "length=129"),
        ((1, 3, "sampling", 9), "alternatives=9"),
    ):
        with pytest.raises(ValueError, match=message):
            filling.alternatives(model, tokenizer, STORY, *wrong)


# ------------------------------------------------------------------------------------------- embed, generate, attend


def test_similarities_and_the_nearest(model, tokenizer):
    sentences = ["The boy put on his boots.", "He pulled his boots on.", "It rained $5 all day."]
    cosines, rows = embedding.compare(model, tokenizer, sentences[1], sentences)
    assert np.allclose(np.diag(cosines), 1, atol=1e-5) and cosines[0, 1] > cosines[0, 2]
    assert [row[0] for row in rows] == [1, 2, 3]
    assert rows[0][1:] == [1.0, sentences[1]] and rows[1][1:] == [round(float(cosines[1, 0]), 3), sentences[0]]
    html = embedding.heat_map(cosines, sentences).to_html()
    assert "3. It rained $5 all day." in html and f">{cosines[0, 1]:.2f}<" in html and "background-color" in html


@pytest.mark.parametrize(
    ("query", "sentences", "message"),
    [
        ("q", [], "Sentences: 0"),
        ("q", ["one"], "Sentences: 1"),
        ("q", ["a"] * 25, "Sentences: 25"),
        (" ", ["a", "b"], "The query has 0 characters"),
        ("q", ["a", "b" * 700], "Sentence 2 has 700 characters"),
    ],
)
def test_what_cannot_be_embedded_is_said(query, sentences, message, model, tokenizer):
    with pytest.raises(ValueError, match=message):
        embedding.compare(model, tokenizer, query, sentences)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_causal_mode_is_the_base_and_the_adapter_is_not(temperature, model, tokenizer):
    results = generating.compare(model, tokenizer, "One day, a little girl", 8, temperature, seed=1)
    base, causal, adapted = results.values()
    assert causal == base and base["equal"] and base["difference"] == 0.0
    assert not adapted["equal"] and adapted["difference"] > 1 and adapted["perplexity"] > base["perplexity"]
    shown = generating.highlighted("One day, a little girl", adapted["continuation"], base["continuation"])
    assert "".join(text for text, _ in shown) == "One day, a little girl" + adapted["continuation"]
    assert shown[-1][1] == "differs"
    assert [row[1] for row in generating.measures(results)][:2] == ["bit for bit"] * 2


def test_the_base_is_a_stock_class_and_all_share_the_weights(model, tokenizer):
    models = generating.models(model)
    assert type(models[generating.BASE]).__module__.startswith("transformers.models.llama")
    assert {each.lm_head.weight.data_ptr() for each in models.values()} == {model.lm_head.weight.data_ptr()}
    assert model.config.causal_adapter is False
    for prompt, message in (("word " * 600, "room for"), (" ", "0 characters"), ("x" * 5000, "5,000 characters")):
        with pytest.raises(ValueError, match=message):
            generating.compare(model, tokenizer, prompt, 8)
    with pytest.raises(ValueError, match="max_new_tokens=129"):
        generating.compare(model, tokenizer, "One day", 129)


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_causal_mode_of_another_family_is_its_stock_class(family, tokenizer):
    model = families.build_magnet(family, base=families.build_base(family, vocab_size=4096))
    base, causal, adapted = generating.compare(model, tokenizer, "One day, a little girl", 4).values()
    assert generating.models(model)[generating.BASE].config.model_type == family
    assert causal == base and not adapted["equal"]


def test_masks_follow_the_rule(model, tokenizer):
    labels, spans = attending.read_spans(model, tokenizer, "Tom ate. <|gap|> He <|gap:x|> slept.", 2)
    assert [label for label, span in zip(labels, spans) if span] == ["gap 1·1", "gap 1·2", "x·1", "x·2"]
    pictures = attending.masks(model, spans)
    length = len(spans)
    assert torch.equal(pictures["causal"], 2 - torch.ones(length, length).tril().int())
    assert (pictures["bidirectional"] == 0).all()
    for query in range(length):
        for key in range(length):
            own_past = spans[key] == spans[query] and key <= query
            assert pictures["hybrid"][query, key] == (0 if spans[key] == 0 else 1 if own_past else 2)
    assert set(attending.read_spans(model, tokenizer, "No gap.", 2)[1]) == {0}
    for text, message in (("word " * 60, "at most 48"), (" ", "empty"), ("a <|gap|><|gap|>", "touch")):
        with pytest.raises(ValueError, match=message):
            attending.read_spans(model, tokenizer, text, 2)


def test_the_picture_of_the_masks_explains_itself(model, tokenizer, tmp_path):
    text = "Tom was hungry. <|gap|> He was full. <|gap|> He went home."
    labels, spans = attending.read_spans(model, tokenizer, text, 3)
    pictures = attending.masks(model, spans)
    figure = attending.draw(labels, spans, pictures)
    figure.savefig(Path(PICTURES or tmp_path) / "space_mask.png")
    for axis, mode in zip(figure.axes, ("causal", "bidirectional", "hybrid"), strict=True):
        assert axis.get_title().startswith(f"{mode} attention")
        assert "row" in axis.get_ylabel() and "query" in axis.get_ylabel()
        assert "column" in axis.get_xlabel() and "key" in axis.get_xlabel()
        assert [tick.get_text() for tick in axis.get_yticklabels()] == labels
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == list(attending.COLORS)
    for whole in (figure, attending.draw(labels, spans, {"hybrid": pictures["hybrid"]})):
        whole.draw_without_rendering()
        tight = whole.get_tightbbox()  # nothing is cut off at the edge
        assert 0 <= tight.x0 and tight.x1 <= whole.get_figwidth()
        assert 0 <= tight.y0 and tight.y1 <= whole.get_figheight()


# --------------------------------------------------------------------------------------------------------- the files


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


def test_the_checkpoint_is_named_by_a_variable(monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("MAGNET_MODEL", str(TINY))
    import app

    assert Path(app.model.config.name_or_path) == TINY
    monkeypatch.setenv("MAGNET_MODEL", str(TINY.with_name("magnet-tiny-base")))
    with pytest.raises(ValueError, match="Name a MAGNET checkpoint"):
        app.load()
    monkeypatch.delenv("MAGNET_MODEL")
    monkeypatch.setattr(app, "DEFAULT_MODEL", SPACE / "absent")
    with pytest.raises(ValueError, match="MAGNET_MODEL: not set.*run magnet fetch magnet-smollm2-135m"):
        app.load()


# ------------------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def url():
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MAGNET_MODEL": SHOWN or str(TINY)}
    server = subprocess.Popen([sys.executable, str(ROOT / "tests" / "space_server.py"), str(port)], env=environment)
    address = f"http://127.0.0.1:{port}/magnet/"
    try:
        for _ in range(600):
            assert server.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(address, timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.kill()  # it would wait for connections that browsers keep open
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if sync_playwright is None or chromium is None:
        pytest.skip("playwright or chromium is absent")
    with sync_playwright() as browsers:
        yield browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def open_page(browser, url):
    """The builder `open_page(width=1280, theme="light")`; in the end, no page may have had a JavaScript error."""
    context, faults = browser.new_context(), []

    def build(width: int = 1280, theme: str = "light"):
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{url}?__theme={theme}")
        page.wait_for_selector("#tokens .token", timeout=120_000)
        page.wait_for_timeout(1000)  # colours fade in
        return page

    yield build
    context.close()
    assert faults == []


@pytest.mark.slow
def test_infill_in_a_browser(open_page, tmp_path):
    page = open_page()
    page.screenshot(path=str(Path(PICTURES or tmp_path) / "space.png"), full_page=True)
    box = page.locator("#text textarea")
    word = page.locator("#words .token", has_text="opened")
    word.click()
    expect(box).to_have_value("Anna <|gap|> the box. <|gap|> She named the puppy Max.")
    word.press("Enter")
    expect(box).to_have_value(STORY)
    page.get_by_role("button", name="a word").click()
    expect(page.locator("#words")).to_contain_text("Plants take in")
    before = page.locator("#filled").inner_text()
    box.fill("Tom was <|gap:how|>. He went to the <|gap|> and ate.")
    expect(page.locator("#words .token.highlighted")).to_have_count(2)
    page.locator("#fill").click()
    expect(page.locator("#filled")).to_contain_text("Tom was", timeout=60_000)
    first = page.locator("#filled").inner_text()
    assert first != before and re.search(r"how", first, flags=re.IGNORECASE)
    page.locator("#alternatives label").nth(1).click()
    expect(page.locator("#filled")).not_to_have_text(first)
    expect(page.locator("#tokens")).to_contain_text("END")


@pytest.mark.slow
def test_an_error_is_our_message_and_replaces_the_result(open_page):
    page = open_page()
    box, filled = page.locator("#text textarea"), page.locator("#filled .token")
    box.fill(r"Pay ${5} {{now}} <b>! \<|gap|>")  # nothing in it is run or taken for HTML
    expect(page.locator("#words .token")).to_have_text(["Pay", "${5}", "{{now}}", "<b>!", r"\<|gap|>"])
    expect(filled).not_to_have_count(0)
    page.locator("#fill").click()
    toast = page.locator(".toast-body")
    expect(toast).to_contain_text("type <|gap|> where something is missing", timeout=60_000)
    expect(filled).to_have_count(0)
    expect(page.locator("#tokens .token")).to_have_count(0)
    expect(page.locator("#alternatives label")).to_have_count(0)
    assert "Traceback" not in page.content()
    box.fill(STORY)
    page.locator("#fill").click()
    expect(filled).not_to_have_count(0, timeout=60_000)


CONTRAST = """element => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => channels(color).slice(0, 3)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  const background = () => getComputedStyle(behind).backgroundColor;
  while (behind.parentElement && (channels(background())[3] ?? 1) === 0) behind = behind.parentElement;
  if ((channels(background())[3] ?? 1) < 1) return 0;  // what shows through depends on the theme
  const [low, high] = [luminance(getComputedStyle(element).color), luminance(background())].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_are_readable(open_page, theme):
    tabs = {
        "Infill": ["#words .text", "#filled .text", "#filled .label", "#alternatives label span", "#tokens .text"],
        "Embed": ["#nearest [role=gridcell] span", "#heat_map [role=gridcell] span", "textarea"],
        "Generate": [".continuation .text", "#measures [role=gridcell] span", ".settings label"],
    }
    tabs["Infill"] += ["#tokens .label", "textarea", ".settings label", "[data-testid=block-info]", "button.primary"]
    page = open_page(theme=theme)
    page.get_by_role("tab", name="Generate").click()
    page.locator("#generate").click()
    page.wait_for_selector(".continuation .highlighted", timeout=60_000)
    for tab, places in tabs.items():
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(1000)  # colours fade in
        for place in places:
            found = page.locator(f"{place} >> visible=true").all()
            contrasts = [(element.evaluate(CONTRAST), element.inner_text()) for element in found]
            assert contrasts and min(contrasts)[0] >= 4.5, (place, min(contrasts))  # WCAG's level AA


@pytest.mark.slow
def test_a_phone_shows_text_button_result_and_folded_settings(open_page):
    page = open_page(width=390)
    order = [page.locator(name).first.bounding_box()["y"] for name in ("#text", "#fill", "#filled", ".settings")]
    assert order == sorted(order)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.get_by_label("Seed").first).not_to_be_visible()
    expect(open_page().get_by_label("Seed").first).to_be_visible()


@pytest.mark.slow
def test_the_other_tabs_in_a_browser(open_page):
    page = open_page()
    page.get_by_role("tab", name="Embed").click()
    page.locator("textarea:visible").first.fill("It rained.\nIt snowed.")
    page.locator("#embed").click()
    expect(page.locator("#heat_map")).to_contain_text("2. It snowed.", timeout=60_000)
    page.get_by_role("tab", name="Generate").click()
    page.locator("#generate").click()
    expect(page.locator("#measures")).to_contain_text("bit for bit", timeout=60_000)
    page.get_by_role("tab", name="Attention").click()
    image = page.locator("#hybrid img")
    before = image.get_attribute("src", timeout=60_000)
    page.locator("textarea:visible").first.fill("Anna <|gap|> slept.")
    page.locator("#draw").click()
    expect(image).not_to_have_attribute("src", before, timeout=60_000)


@pytest.mark.slow
def test_programs_may_call(url):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False)
    found = client.predict(STORY, length=5, api_name="/infill")
    assert found[0]["gaps"][0]["finish_reason"] == "exact_length" and len(found[0]["gaps"][0]["tokens"]) == 5
    assert client.predict("rain", ["It rained.", "A cake."], api_name="/nearest_sentences")[0][0] == 1
    assert len(client.predict("One day", max_new_tokens=2, api_name="/generate")) == 3
    with pytest.raises(AppError, match=re.escape("type <|gap|> where")):
        client.predict("Nothing is missing.", api_name="/infill")
    with pytest.raises(AppError, match="num_alternatives=9"):
        client.predict(STORY, num_alternatives=9, api_name="/infill")
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/infill", "/nearest_sentences", "/generate"}
