"""
Runs the Python snippets of model cards as someone does who has not installed this project; test_model_card.py starts it.

    python -I run_card.py <checkpoint> [<checkpoint> ...]
"""

import re
import sys
from pathlib import Path

source = (Path(__file__).parent / "fresh_process.py").read_text(encoding="utf-8")
exec(source.split("import torch")[0])  # hides the installed project

for folder in sys.argv[1:]:
    card = Path(folder, "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        assert "path/or/hub-id" in block
        print(f"== {Path(folder).name}", flush=True)
        exec(compile(block.replace("path/or/hub-id", folder), "README.md", "exec"), {})
assert not OUR_PACKAGES & set(sys.modules)  # noqa: F821
