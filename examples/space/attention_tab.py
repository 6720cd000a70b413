"""The Attention tab: attention masks of the user's text."""

import gradio as gr
from attending import draw, masks, read_spans
from checkpoint import Checkpoint
from messages import told

EXAMPLES = [
    "Tom was hungry. <|gap|> He was full. <|gap|> He slept.",
    "Anna found a <|gap:what|> in the garden.",
    "It rained all day.",
]
RULE = (
    "**One rule gives all three pictures:** every token attends to the whole context; a token of a gap besides to itself "
    "and to the earlier tokens of its own gap. Causal mode is one gap over everything, bidirectional mode none."
)


def build(checkpoint: Checkpoint) -> None:
    """Builds the tab."""

    def picture(text: str, tokens_per_gap: int):
        labels, spans = read_spans(checkpoint, text, int(tokens_per_gap))
        if not any(spans):
            gr.Info("There is no gap in the text, so hybrid attention is bidirectional.")
        return draw(labels, spans, masks(checkpoint, spans))

    labels, spans = read_spans(checkpoint, EXAMPLES[0], 3)
    with gr.Row():
        with gr.Column(scale=3):
            text = gr.Textbox(EXAMPLES[0], label="Text", info="Mark gaps with <|gap|>", elem_id="masked_text")
            gr.Examples(EXAMPLES, text)
        with gr.Column(scale=1):
            count = gr.Slider(1, 8, 3, step=1, label="Tokens in each gap")
            button = gr.Button("Draw", variant="primary", elem_id="draw")
    plot = gr.Plot(draw(labels, spans, masks(checkpoint, spans)), show_label=False, format="png", elem_id="mask")
    gr.Markdown(RULE)
    gr.on([button.click, text.submit, count.release], told(picture), [text, count], plot, api_visibility="private")
