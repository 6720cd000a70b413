"""A Gradio app for a MAGNET checkpoint: it fills gaps, embeds, generates, and draws attention masks.

    pip install -r requirements.txt
    MAGNET_MODEL=path/or/hub-id python app.py

Loading runs the checkpoint's Python files: use one that you trust, and pin its commit with MAGNET_REVISION.
"""

import importlib.util

import api
import attention_tab
import embed_tab
import generate_tab
import gradio as gr
import infill_tab
from checkpoint import load
from messages import answered

INTRODUCTION = """# MAGNET
One set of weights **fills gaps** in text (hybrid attention), **embeds** it (bidirectional) and **generates** it
(causal) · [paper](https://huggingface.co/papers/2501.08648) · checkpoint: `{name}`, {millions:,.1f} M parameters"""
TABS = {"Infill": infill_tab, "Embed": embed_tab, "Generate": generate_tab, "Attention": attention_tab}
# system fonts: nothing is downloaded
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", **FONTS)
CSS = """
.gradio-container { max-width: 1280px !important; margin: auto !important }
#alternatives .wrap { flex-direction: column; align-items: stretch }
.textfield { display: block !important; line-height: 1.9; overflow-wrap: anywhere }
.textfield, .textfield * { word-break: normal !important }
.textfield .token-container { display: inline !important }
.textfield .label { white-space: nowrap }
#tokens .token.highlighted { display: inline-block; line-height: 1.4; margin: 2px 1px; padding: 2px 3px; border-radius: 4px }
[data-testid="block-info"], [data-testid="block-label"] { background: none !important; padding: 0 !important }
[data-testid="block-label"] { position: static !important; box-shadow: none !important; border: none !important }
#alternatives label { width: 100%; white-space: normal }
"""


def build() -> gr.Blocks:
    """Builds the page; threads share the model and may mix modes."""
    checkpoint = load()
    millions = sum(weight.numel() for weight in checkpoint.model.parameters()) / 1e6
    with gr.Blocks(title="MAGNET", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION.format(name=checkpoint.name, millions=millions))
        for name, tab in TABS.items():
            with gr.Tab(name):
                tab.build(checkpoint)
        for function in (api.infill, api.nearest_sentences, api.generate):
            gr.api(answered(function))
    return page.queue(default_concurrency_limit=2, max_size=40)


if __name__ == "__main__":
    has_mcp = importlib.util.find_spec("mcp") is not None  # gradio[mcp]
    build().launch(theme=THEME, css=CSS, mcp_server=has_mcp)
