"""
Serves the Space below a path prefix, as a proxy does, with this project not installed; test_space.py runs it.

    python space_server.py <port>
"""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "space")]

from load_anywhere import Barrier  # noqa: E402

sys.meta_path.insert(0, Barrier())

import app  # noqa: E402
import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402

server = gr.mount_gradio_app(FastAPI(), app.page, "/magnet", theme=app.THEME, css=app.CSS, show_error=False)
uvicorn.run(server, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
