"""The README.md of a checkpoint: metadata for the Hub, snippets that run, and what loading it executes."""

import hashlib
from pathlib import Path

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [magnet, text-infilling, feature-extraction, sentence-transformers, custom_code]
---

# MAGNET checkpoint

One set of weights that generates (causal attention), embeds (bidirectional) and fills gaps (hybrid), after
[MAGNET](https://huggingface.co/papers/2501.08648) (Khosla et al., ACL 2025). Causal mode is {causal}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from sentence_transformers import SentenceTransformer

folder = "path/or/hub-id"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model.infill("Tom was hungry. <|gap|> He was full.", tokenizer{length})
model.encode(["A cat sleeps.", "Rain fell."], tokenizer)
SentenceTransformer(folder, trust_remote_code=True).encode(["A cat sleeps."])
```

Needs `transformers >= 5.3` and `peft`. Gaps: {gaps}. Adapter: {adapter}.

Loading runs the Python files below; pin `revision=<commit>` to run only what you have read.

| file | sha256 |
|---|---|
{hashes}
"""


def write_model_card(config, folder: str | Path) -> None:
    """Writes `README.md` into a saved checkpoint's folder."""
    folder = Path(folder)
    free = config.infill_end_token_id is not None
    hashes = [
        f"| `{path.name}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
        for path in sorted(folder.glob("*.py"))
    ]
    adapter = config.adapter
    card = CARD.format(
        causal="adapted too (`causal_adapter`)" if config.causal_adapter else "the base model's, bit for bit",
        length="" if free else ", length=8",
        gaps="exact or free length" if free else "exact length only (`length=`)",
        adapter="none" if adapter is None else f"LoRA r={adapter['r']}, alpha={adapter['alpha']}",
        hashes="\n".join(hashes),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
