"""The Embed tab: similarities of sentences, and which is nearest to a query."""

import gradio as gr
from checkpoint import Checkpoint
from embedding import heat_map, nearest, read_sentences, similarities
from messages import told

SENTENCES = [
    "The boy put on his boots because it was raining.",
    "As it was raining, the boy pulled his boots on.",
    "A girl baked a cake for her friend.",
    "She made her friend a birthday cake.",
    "The dog ran after the ball in the park.",
    "In the park, a puppy chased a ball.",
    "Grandfather told them a story at night.",
]
QUERY = "The dog played with a ball."


def build(checkpoint: Checkpoint) -> None:
    """Builds the tab."""

    def embed(lines: str, query: str, instructed: bool):
        sentences = read_sentences(lines)
        instruction = None if instructed else ""
        rows = nearest(checkpoint, sentences, query, instruction) if query.strip() else []
        return heat_map(similarities(checkpoint, sentences, instruction), sentences), rows

    figure, rows = embed("\n".join(SENTENCES), QUERY, True)
    prompt = checkpoint.model.config.representation_prompt
    with gr.Row():
        with gr.Column(scale=2):
            lines = gr.Textbox("\n".join(SENTENCES), label="Sentences", info="One a line", lines=8, max_lines=24)
            query = gr.Textbox(QUERY, label="Query", info="Sentences are ranked by their similarity to it")
            instructed = gr.Checkbox(True, label="With the instruction", info=f"“{prompt}”", visible=bool(prompt))
            button = gr.Button("Embed", variant="primary", elem_id="embed")
        with gr.Column(scale=3):
            plot = gr.Plot(figure, show_label=False, format="png", elem_id="heat_map")
            table = gr.Dataframe(
                rows,
                headers=["rank", "cosine", "sentence, nearest to the query first"],
                datatype=["number", "number", "str"],
                column_widths=["12%", "15%", "73%"],
                wrap=True,
                interactive=False,
                elem_id="nearest",
            )
    gr.on(
        [button.click, query.submit],
        told(embed),
        [lines, query, instructed],
        [plot, table],
        api_visibility="private",
    )
