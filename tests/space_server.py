"""
Serves the Space below a path prefix, as a proxy does, with this project not installed; test_space.py runs it.

    python space_server.py <port>
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "space"))

OURS = ("modeling_magnet", "configuration_magnet", "magnet_hub", "magnet_train", "magnet_eval", "magnet_cli")


class Barrier:
    """An import hook, placed first, that refuses this project's packages."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"{name} is kept out on purpose", name=name)


sys.meta_path.insert(0, Barrier())

import app  # noqa: E402
import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402

server = gr.mount_gradio_app(FastAPI(), app.page, "/magnet", theme=app.THEME, css=app.CSS, show_error=False)
uvicorn.run(server, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
