"""A Gradio app for a MAGNET checkpoint: it fills gaps, embeds, generates, and draws attention masks.

    pip install -r requirements.txt
    MAGNET_MODEL=path/or/hub-id python app.py

Loading runs the checkpoint's Python files: use one that you trust, and pin its commit with MAGNET_REVISION.
"""

import functools
import html
import os
from pathlib import Path

import attending
import embedding
import filling
import generating
import gradio as gr
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DEFAULT_MODEL = Path(__file__).with_name("magnet-smollm2-135m")
# in each, the text after the gap determines what is missing
INFILL_EXAMPLES = {
    "a story": "Anna opened the box. <|gap|> She named the puppy Max.",
    "a textbook": "Bees fly from flower to flower. <|gap|> They store the honey in their hive for the winter.",
    "a word": "Plants take in <|gap|> from the air and give off oxygen.",
    "two gaps": "Lily looked out of the window. <|gap:outside|> She put on her boots and built a snowman. <|gap:then|> "
    "Her mother gave her a cup of hot cocoa.",
}
SENTENCES = [
    "The boy put on his boots because it was raining.",
    "As it was raining, the boy pulled his boots on.",
    "A girl baked a cake for her friend.",
    "She made her friend a birthday cake.",
    "The heart pumps blood through the body.",
    "Blood is moved around the body by the heart.",
    "Grandfather told them a story at night.",
]
PROMPTS = ["Once upon a time, a little fox", "The heart is an organ that", "The old man opened the door and"]
ATTENTION_EXAMPLES = [
    "Tom was hungry. <|gap|> He was full. <|gap|> He went home.",
    "Anna found a <|gap:what|> in the garden.",
    "It rained all day.",
]
INTRODUCTION = """# MAGNET
One set of weights **fills gaps** in text (hybrid attention), **embeds** it (bidirectional) and **generates** it
(causal) · [paper](https://huggingface.co/papers/2501.08648) · checkpoint: `{name}`, {millions:,.1f} M parameters"""
RULE = """**One rule for all three modes:** every token attends to the whole context; a token of a gap also attends to itself
and the earlier tokens of its gap. In causal mode the whole text is one such span, in bidirectional mode there is none."""
# system fonts, so that nothing is downloaded; and darker shades than Soft's, for contrast
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", **FONTS).set(
    background_fill_primary="*neutral_50",  # Soft's own, which set() would lose
    block_title_text_color="*primary_700",
    block_label_text_color="*primary_700",
    body_text_color_subdued="*neutral_500",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    checkbox_label_background_fill_selected="*primary_600",
)
# highlighted text flows with the rest, does not break within words, and has black labels
CSS = """
.textfield { display: block !important; line-height: 1.9 }
.textfield * { word-break: normal !important; overflow-wrap: anywhere }
.textfield .token-container { display: inline !important }
.textfield .label { background: none !important; color: black !important; white-space: nowrap }
#tokens .token { display: inline-block; line-height: 1.5 }
#alternatives .wrap { flex-direction: column; align-items: stretch }
#alternatives label { white-space: normal }
"""
GAP_COLORS = {f"gap {n}": color for n, color in enumerate(["blue", "purple", "orange", "teal"] * 2, 1)}
PRIVATE = {"api_visibility": "private"}
QUICK = {"queue": False, "show_progress": "hidden", **PRIVATE}


def load() -> tuple:
    """The model and the tokenizer named by `MAGNET_MODEL`; `MAGNET_REVISION` pins the commit that you reviewed."""
    name, revision = os.environ.get("MAGNET_MODEL", str(DEFAULT_MODEL)), os.environ.get("MAGNET_REVISION", "main")
    if name == str(DEFAULT_MODEL) and not DEFAULT_MODEL.is_dir():
        raise ValueError(
            f"MAGNET_MODEL: not set, and there is no checkpoint. Set it to a Hub id or a folder, or run magnet fetch "
            f"magnet-smollm2-135m --output_dir {DEFAULT_MODEL}"
        )
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, trust_remote_code=True, dtype="auto" if on_gpu else torch.float32
    )
    if not model.config.model_type.startswith("magnet_"):
        raise ValueError(f"MAGNET_MODEL={name}: is a {model.config.model_type} model. Name a MAGNET checkpoint.")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=True)
    return model.to("cuda" if on_gpu else "cpu").eval(), tokenizer


model, tokenizer = load()


def answered(function, written=str):
    """Shows the message of a `ValueError`, formatted by `written`; other errors are only logged."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            message = str(error).removeprefix("inputs[0]: ")
            raise gr.Error(written(message), title="Not possible", print_exception=False) from error

    return call


def connect(triggers: list, function, inputs: list, outputs: list, empty: list | None = None) -> None:
    """Runs a function of the page. After an error its outputs are `empty`, so no earlier result remains."""
    # the page renders messages as HTML, which would swallow <|gap|>
    event = gr.on(triggers, answered(function, html.escape), inputs, outputs, **PRIVATE)
    event.failure(lambda: empty or [None] * len(outputs), None, outputs, **QUICK)


def settings_of(page: gr.Blocks) -> gr.Accordion:
    """An accordion for a tab's settings, folded on phones."""
    accordion = gr.Accordion("Settings", open=False, elem_classes="settings")
    page.load(None, None, accordion, js="() => ({__type__: 'update', open: window.innerWidth > 768})", **PRIVATE)
    return accordion


# what programs and agents may call, over HTTP or MCP


def infill(text: str, length: int = 0, num_alternatives: int = 1, seed: int = 0) -> list[dict]:
    """
    Fill the gaps of a text from both sides.

    Args:
        text: The text, with <|gap|> or <|gap:name|> where something is missing.
        length: Exact number of tokens of each gap, up to 128; 0 lets the model end it.
        num_alternatives: How many fills to return, 1 to 8, best first; above 1 they are sampled.
        seed: Seed for sampling.

    Returns:
        The alternatives: whole text, score, and each gap's text, span, tokens and finish reason.
    """
    fewest, most = (length, length) if length else (1, min(64, filling.longest_gap(model.config)))
    decoding = "sampling" if num_alternatives > 1 else "beam search"
    return filling.alternatives(model, tokenizer, text, fewest, most, decoding, num_alternatives, seed=seed)


def nearest_sentences(query: str, sentences: list[str]) -> list[list]:
    """
    Rank sentences by cosine similarity to a query.

    Args:
        query: Text to compare with.
        sentences: 2 to 24 sentences.

    Returns:
        Rows of rank, cosine and sentence.
    """
    return embedding.compare(model, tokenizer, query, sentences)[1]


def generate(prompt: str, max_new_tokens: int = 40) -> dict:
    """
    Continue a text greedily with the base model, in causal mode, and with the adapter on, and compare the three.

    Args:
        prompt: Text to continue.
        max_new_tokens: Number of tokens to generate, up to 128.

    Returns:
        For each: the continuation, whether its logits equal the base's bit for bit, and the perplexity.
    """
    return generating.compare(model, tokenizer, prompt, max_new_tokens)


def fill(*settings):
    """The list of alternatives, their data, and the first one shown."""
    found = filling.alternatives(model, tokenizer, *settings)
    choices = [(filling.label(alternative), number) for number, alternative in enumerate(found)]
    return [gr.update(choices=choices, value=0), found, *show(found, 0)]


def show(found: list[dict], number: int) -> list:
    return [filling.highlighted_fills(found[number]), filling.highlighted_tokens(found[number])]


def click(pieces, event: gr.SelectData):
    pieces = filling.click(pieces, event.index)
    return pieces, pieces, filling.write_text(pieces)


def follow(text: str, pieces):
    """The pieces of a typed text; a text edited by clicks keeps its pieces, which store the words under gaps."""
    pieces = pieces if filling.write_text(pieces) == text else filling.read_pieces(text)
    return pieces, pieces


def infill_tab(page: gr.Blocks) -> None:
    longest = filling.longest_gap(model.config)
    example = INFILL_EXAMPLES["a story"]
    with gr.Row():
        with gr.Column(scale=3):
            text = gr.Textbox(
                example,
                label="Text",
                info=f"Mark gaps with {filling.GAP}, or click words below",
                lines=2,
                max_length=filling.MAX_CHARACTERS,
                elem_id="text",
            )
            words = gr.HighlightedText(
                filling.read_pieces(example),
                label="Click words to turn them into gaps, and gaps to undo",
                color_map={"gap": "blue"},
                show_inline_category=False,
                interactive=False,
                elem_id="words",
            )
            with gr.Row():
                button = gr.Button("Fill the gaps", variant="primary", elem_id="fill")
                add = gr.Button("Add a gap at the end")
            gr.Examples(list(INFILL_EXAMPLES.values()), text, example_labels=list(INFILL_EXAMPLES))
            filled = gr.HighlightedText(label="Filled text", color_map=GAP_COLORS, elem_id="filled")
            chosen = gr.Radio(
                [],
                label="Alternatives, best first",
                info="The score: mean log-probability (nats) of the text after the fill, under the base model",
                elem_id="alternatives",
            )
        with gr.Column(scale=2):
            tokens = gr.HighlightedText(
                label="Probability of each token", color_map=filling.color_map(), elem_id="tokens"
            )
            with settings_of(page):
                settings = [
                    gr.Slider(
                        1, longest, 1, step=1, label="Minimum tokens", info="equal to the maximum: exactly that many"
                    ),
                    gr.Slider(1, longest, min(longest, 32), step=1, label="Maximum tokens"),
                    gr.Radio(["sampling", "beam search"], value="sampling", label="Decoding"),
                    gr.Slider(1, filling.MAX_ALTERNATIVES, 5, step=1, label="Alternatives"),
                    gr.Slider(0.1, 2, 0.7, step=0.05, label="Temperature (sampling)"),
                    gr.Slider(0.05, 1, 0.95, step=0.05, label="top_p (sampling)"),
                    gr.Radio(["sequential", "parallel"], value="sequential", label="Order of gaps"),
                    gr.Number(0, label="Seed", precision=0, minimum=0),
                ]
    pieces, found = gr.State(filling.read_pieces(example)), gr.State()
    empty = [gr.update(choices=[], value=None), None, None, None]
    connect([page.load, button.click, text.submit], fill, [text, *settings], [chosen, found, filled, tokens], empty)
    chosen.input(show, [found, chosen], [filled, tokens], **QUICK)
    words.select(click, pieces, [pieces, words, text], **QUICK)
    text.change(follow, [text, pieces], [pieces, words], trigger_mode="always_last", **QUICK)
    add.click(lambda text: f"{text.rstrip()} {filling.GAP}".lstrip(), text, text, **QUICK)


def embed(lines: str, query: str):
    sentences = [line.strip() for line in lines.splitlines() if line.strip()]
    cosines, rows = embedding.compare(model, tokenizer, query, sentences)
    return embedding.heat_map(cosines, sentences), rows


def embed_tab(page: gr.Blocks) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            lines = gr.Textbox("\n".join(SENTENCES), label="Sentences", info="One per line", lines=8, max_lines=24)
            query = gr.Textbox("What does the heart do?", label="Query", info="Ranks the sentences by similarity")
            button = gr.Button("Embed", variant="primary", elem_id="embed")
        with gr.Column(scale=3):
            nearest = gr.Dataframe(
                headers=["rank", "cosine", "sentence"],
                column_widths=["20%", "25%", "55%"],
                label="Nearest to the query",
                wrap=True,
                interactive=False,
                elem_id="nearest",
            )
            cosines = gr.Dataframe(
                label="Cosine similarities",
                column_widths=[200, *[64] * embedding.MAX_SENTENCES],
                wrap=True,
                max_height=1000,
                interactive=False,
                elem_id="heat_map",
            )
    connect([page.load, button.click, query.submit], embed, [lines, query], [cosines, nearest])


def continue_text(prompt: str, max_new_tokens: int, temperature: float, seed: int):
    results = generating.compare(model, tokenizer, prompt, max_new_tokens, temperature, seed)
    texts = [result["continuation"] for result in results.values()]
    return [*(generating.highlighted(prompt, text, texts[0]) for text in texts), generating.measures(results)]


def generate_tab(page: gr.Blocks) -> None:
    prompt = gr.Textbox(PROMPTS[0], label="Prompt", lines=2, max_lines=8)
    button = gr.Button("Generate", variant="primary", elem_id="generate")
    gr.Examples(PROMPTS, prompt)
    with gr.Row():
        look = {"color_map": {"same as the base": "green", "differs": "red"}, "show_inline_category": False}
        names = generating.models(model)
        texts = [gr.HighlightedText(label=name, elem_classes="continuation", **look) for name in names]
    with gr.Row():
        with gr.Column(scale=3):
            table = gr.Dataframe(
                headers=["model", "same logits", "perplexity"],
                column_widths=["34%", "34%", "32%"],
                label="Each model on the base's text",
                wrap=True,
                interactive=False,
                elem_id="measures",
            )
        with gr.Column(scale=2), settings_of(page):
            settings = [
                gr.Slider(1, generating.MAX_NEW_TOKENS, 40, step=1, label="Tokens to generate"),
                gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: greedy decoding"),
                gr.Number(0, label="Seed", precision=0, minimum=0),
            ]
    connect([button.click, prompt.submit], continue_text, [prompt, *settings], [*texts, table])


def draw(text: str, tokens_per_gap: int):
    labels, spans = attending.read_spans(model, tokenizer, text, tokens_per_gap)
    pictures = attending.masks(model, spans)
    return [attending.draw(labels, spans, {mode: picture}) for mode, picture in pictures.items()]


def attention_tab(page: gr.Blocks) -> None:
    text = gr.Textbox(ATTENTION_EXAMPLES[0], label="Text", info=f"Mark gaps with {filling.GAP}")
    button = gr.Button("Draw", variant="primary", elem_id="draw")
    gr.Examples(ATTENTION_EXAMPLES, text)
    with gr.Row():
        plots = [gr.Plot(show_label=False, format="png", min_width=300, elem_id=mode) for mode in attending.MODES]
    gr.Markdown(RULE)
    with settings_of(page):
        count = gr.Slider(1, 8, 3, step=1, label="Tokens in each gap")
    connect([page.load, button.click, text.submit, count.release], draw, [text, count], plots)


with gr.Blocks(title="MAGNET", analytics_enabled=False) as page:
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    gr.Markdown(INTRODUCTION.format(name=Path(model.config.name_or_path).name, millions=millions))
    tabs = {"Infill": infill_tab, "Embed": embed_tab, "Generate": generate_tab, "Attention": attention_tab}
    for name, build in tabs.items():
        with gr.Tab(name):
            build(page)
    for function in (infill, nearest_sentences, generate):
        gr.api(answered(function))
page.queue(default_concurrency_limit=2, max_size=40)

if __name__ == "__main__":
    page.launch(theme=THEME, css=CSS, mcp_server=True)
