"""The Infill tab: click words to make gaps, and choose among the model's fills."""

from functools import partial

import gradio as gr
import words
from checkpoint import MAX_CHARACTERS, Checkpoint
from filling import (
    CLASSES,
    DECODINGS,
    MAX_DRAFTS,
    MAX_NEW_TOKENS,
    alternatives,
    decoding_arguments,
    gap_length,
    highlighted_fills,
    highlighted_tokens,
    label,
    longest_gap,
    summary,
    token_table,
)
from messages import told

EXAMPLES = [
    "Mina slid a tray of rolls into her oven. <|gap|> She wrapped the rolls in foil.",
    "Anna found a <|gap:what|> in the garden. <|gap:then|> Her mother laughed.",
    "Tom was hungry. His mother cooked a big <|gap|>. He ate it all.",
]
GAP_COLORS = {
    f"gap {number + 1}": color for number, color in enumerate(["#6366f1", "#1d9a6c", "#d97706", "#0891b2"] * 2)
}
SHADES = dict(zip(CLASSES, ["#1d7a57", "#8fd0b3", "#f6c177", "#e5737c"]))
WORDS_HTML = """<p class="hint">Click words to make them a gap, and gaps to undo them</p>
<div class="words" role="group" aria-label="Words of the text; press one to make it a gap">
{{#each value}}{{#if breaks}}<br>{{/if}}{{#if shown}}<button type="button" data-index="{{@index}}"
aria-pressed="{{gap}}" class="{{#if marker}}marker{{else}}{{#if gap}}gap{{/if}}{{/if}}"
title="{{#if marker}}remove this gap{{else}}{{#if gap}}give the word back{{else}}make this word a gap{{/if}}{{/if}}"
>{{{shown}}}</button> {{/if}}{{/each}}</div>"""
WORDS_CSS = """
.hint { margin: 0 0 6px; color: var(--body-text-color-subdued); font-size: var(--text-sm) }
.words { line-height: 2.1; max-height: 15em; overflow-y: auto; padding: 2px }
.words button { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 1px 7px; margin: 0;
  background: var(--background-fill-primary); color: var(--body-text-color); font: inherit; line-height: 1.6;
  cursor: pointer; max-width: 100%; overflow-wrap: anywhere }
.words button:hover { border-color: var(--color-accent) }
.words button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px }
.words button.gap { border-style: dashed; border-color: var(--color-accent); text-decoration: line-through; opacity: .65 }
.words button.marker { border-color: var(--color-accent); background: var(--color-accent); color: white }
"""
WORDS_JS = """
let pressed = null;
element.addEventListener('click', event => {
  const button = event.target.closest('[data-index]');
  if (!button) return;
  pressed = button.dataset.index;
  trigger('select', {index: Number(pressed)});
});
// the words are drawn anew after a click: give the keyboard its place back
watch('value', () => {
  if (pressed !== null) element.querySelector(`[data-index="${pressed}"]`)?.focus();
  pressed = null;
});
"""


def fill(checkpoint: Checkpoint, text, kind, exact, fewest, most, decoding, drafts, temperature, top_p, order, seed):
    """The button's updates: the list of alternatives, their data, and the first one shown."""
    length = gap_length(kind, exact, fewest, most)
    decoded = decoding_arguments(decoding, drafts, temperature, top_p)
    found = alternatives(checkpoint, text, length, decoded, order, seed)
    choices = [(label(alternative), number) for number, alternative in enumerate(found)]
    return [gr.update(choices=choices, value=0), found, *show(found, 0)]


def show(found: list[dict], number: int | None) -> list:
    """Text, tokens, remarks and table of one alternative."""
    if not found or number is None:
        return [None, None, "", []]
    chosen = found[number]
    return [highlighted_fills(chosen), highlighted_tokens(chosen), summary(chosen), token_table(chosen)]


def click(pieces: list[dict], event: gr.EventData):
    pieces = words.click(pieces, event.index)
    return pieces, words.write_text(pieces)


def follow(text: str, pieces: list[dict]):
    """The pieces of a typed text; a text made by clicks keeps its pieces, which store the words behind gaps."""
    if len(text) > MAX_CHARACTERS:
        return []
    return gr.skip() if words.write_text(pieces or []) == text else words.read_pieces(text)


def add_gap(text: str) -> tuple[list[dict], str]:
    text = f"{text.rstrip()} {words.GAP}" if text.strip() else words.GAP
    return words.read_pieces(text), text


def sliders_of(kind: str):
    return [gr.Slider(visible=kind == "exact"), gr.Slider(visible=kind == "range"), gr.Slider(visible=kind != "exact")]


def settings(longest: int) -> list:
    """The controls beside the text, in the order of `fill`'s arguments."""
    with gr.Group():
        kind = gr.Radio(
            ["auto", "exact", "range"], value="auto", label="Length of a gap", info="auto: the model ends it"
        )
        exact = gr.Slider(1, MAX_NEW_TOKENS, 10, step=1, label="Tokens", visible=False)
        fewest = gr.Slider(0, longest, 4, step=1, label="Fewest tokens", visible=False)
        most = gr.Slider(1, longest, min(longest, 32), step=1, label="Most tokens")
        drafts = gr.Slider(1, MAX_DRAFTS, 5, step=1, label="Alternatives")
    with gr.Accordion("Decoding", open=False):
        decoding = gr.Radio(list(DECODINGS), value="sampling", label="Decoding")
        temperature = gr.Slider(0.1, 2, 0.7, step=0.05, label="Temperature")
        top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="top_p")
        order = gr.Radio(["sequential", "parallel"], value="sequential", label="Order of several gaps")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    kind.change(sliders_of, kind, [exact, fewest, most], queue=False, api_visibility="private")
    decoding.change(
        lambda chosen: [gr.Slider(visible=chosen == "sampling")] * 2 + [gr.Slider(visible=chosen != "greedy")],
        decoding,
        [temperature, top_p, drafts],
        queue=False,
        api_visibility="private",
    )
    return [kind, exact, fewest, most, decoding, drafts, temperature, top_p, order, seed]


def editor() -> tuple:
    """The text, as a text box and as clickable words."""
    text = gr.Textbox(
        EXAMPLES[0],
        label="Text",
        info="Mark gaps with <|gap|>, or click words below",
        lines=2,
        max_lines=10,
        elem_id="text",
    )
    pieces = gr.HTML(
        words.read_pieces(EXAMPLES[0]),
        label="Words",
        container=True,
        html_template=WORDS_HTML,
        css_template=WORDS_CSS,
        js_on_load=WORDS_JS,
        elem_id="words",
    )
    with gr.Row():
        add = gr.Button("Add a gap at the end")
        button = gr.Button("Fill the gaps", variant="primary", elem_id="fill")
    gr.Examples(EXAMPLES, text, example_labels=["a sentence", "two gaps with names", "a word"])
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    pieces.select(click, pieces, [pieces, text], **quick)
    text.change(follow, [text, pieces], pieces, trigger_mode="always_last", **quick)
    add.click(add_gap, text, [pieces, text], **quick)
    return text, button


def results(first: list) -> list:
    """The outputs, in the order of `fill`'s results; `first` is shown when the page opens."""
    radio, found, filled, tokens, remarks, table = first
    with gr.Row():
        with gr.Column(scale=3):
            filled = gr.HighlightedText(filled, label="Filled text", color_map=GAP_COLORS, elem_id="filled")
            radio = gr.Radio(
                radio["choices"],
                value=0,
                label="Alternatives, best first",
                info="In front: how well the text goes on behind the fill, its mean log-probability (nats) under the base",
                elem_id="alternatives",
            )
        with gr.Column(scale=2):
            tokens = gr.HighlightedText(
                tokens, label="Probability of each token", color_map=SHADES, show_legend=True, elem_id="tokens"
            )
            remarks = gr.Markdown(remarks)
            table = gr.Dataframe(
                table,
                headers=["gap", "token", "p in %", "log p"],
                datatype=["str", "str", "number", "number"],
                max_height=320,
                interactive=False,
                elem_id="token_table",
            )
    return [radio, gr.State(found), filled, tokens, remarks, table]


def build(checkpoint: Checkpoint) -> None:
    """Builds the tab."""
    with gr.Row():
        with gr.Column(scale=3):
            text, button = editor()
        with gr.Column(scale=2):
            controls = settings(longest_gap(checkpoint))
    values = [control.value for control in controls]
    outputs = results(fill(checkpoint, EXAMPLES[0], *values))
    run = told(partial_named(fill, checkpoint))
    gr.on([button.click, text.submit], run, [text, *controls], outputs, api_visibility="private")
    radio, found, *shown = outputs
    radio.input(show, [found, radio], shown, queue=False, api_visibility="private")


def partial_named(function, checkpoint):
    """`functools.partial` with the name that gradio and wraps need."""
    call = partial(function, checkpoint)
    call.__name__ = function.__name__
    return call
