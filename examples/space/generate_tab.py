"""The Generate tab: base, causal mode and adapter on, side by side, from one set of weights."""

import gradio as gr
from checkpoint import Checkpoint
from generating import ADAPTED, BASE, CAUSAL, MAX_NEW_TOKENS, compare, highlighted, measures, verdict
from messages import told

PROMPTS = ["One day, a little girl", "Tom and his dog went to the", "The old man opened the door and"]
TITLES = {
    BASE: "The base: transformers' own class",
    CAUSAL: "Causal mode: adapter off",
    ADAPTED: "The paper's: adapter on",
}
COLORS = {"as the base": "#a7d8c4", "differs": "#f3b0b5"}


def build(checkpoint: Checkpoint) -> None:
    """Builds the tab."""

    def generated(prompt: str, max_new_tokens: int, temperature: float, seed: int):
        results = compare(checkpoint, prompt, max_new_tokens, temperature, seed)
        texts = [highlighted(checkpoint, prompt, results[name], results[BASE]) for name in TITLES]
        return [*texts, verdict(checkpoint, results), measures(results)]

    *texts, said, rows = generated(PROMPTS[0], 40, 0.0, 0)
    with gr.Row():
        with gr.Column(scale=3):
            prompt = gr.Textbox(PROMPTS[0], label="Beginning", lines=2, max_lines=8)
            button = gr.Button("Generate", variant="primary", elem_id="generate")
            gr.Examples(PROMPTS, prompt)
        with gr.Column(scale=2), gr.Group():
            count = gr.Slider(1, MAX_NEW_TOKENS, 40, step=1, label="Tokens to write")
            temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: the likeliest token each time")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    with gr.Row():
        shown = [
            gr.HighlightedText(
                text, label=title, color_map=COLORS, show_inline_category=False, elem_id=f"text_{number}"
            )
            for number, (title, text) in enumerate(zip(TITLES.values(), texts))
        ]
    said = gr.Markdown(said, elem_id="verdict")
    table = gr.Dataframe(
        rows,
        headers=["model", "same text", "same logits", "largest difference", "perplexity of the base's text"],
        interactive=False,
        elem_id="measures",
    )
    gr.on(
        [button.click, prompt.submit],
        told(generated),
        [prompt, count, temperature, seed],
        [*shown, said, table],
        api_visibility="private",
    )
