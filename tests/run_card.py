"""
Runs the Python snippets of model cards as someone does who has not installed this project; test_model_card.py starts it.

    python -I run_card.py <checkpoint> [<checkpoint> ...]
"""

import re
import sys
from pathlib import Path

OURS = {
    "configuration_magnet",
    "magnet_check",
    "magnet_cli",
    "magnet_eval",
    "magnet_hub",
    "magnet_train",
    "modeling_magnet",
}


class NotInstalled:
    """Hides the installed project, whichever way it was installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled)
for folder in sys.argv[1:]:
    card = Path(folder, "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        assert "path/or/hub-id" in block
        print(f"== {Path(folder).name}", flush=True)
        exec(compile(block.replace("path/or/hub-id", folder), "README.md", "exec"), {})
assert not OURS & set(sys.modules)
