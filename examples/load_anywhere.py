"""Loads a MAGNET checkpoint as a user without this project would, and prints its outputs as JSON.

    python examples/load_anywhere.py tests/assets/magnet-tiny

It first blocks imports of this project's packages, so only the checkpoint's files are used.
"""

import importlib
import json
import sys

OURS = ("modeling_magnet", "configuration_magnet")
OURS += ("magnet_hub", "magnet_train", "magnet_eval", "magnet_cli")
TEXTS = ["The boy put on his boots because it was raining.", "As it was raining, the boy pulled his boots on."]
GAPPED = "Mina slid a tray of rolls into her oven. <|gap|> She wrapped the rolls in foil."


class Barrier:
    """An import hook, placed first, that refuses this project's packages."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"{name} is kept out on purpose", name=name)


def main(folder: str) -> None:
    sys.meta_path.insert(0, Barrier())
    for name in OURS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{name} could be imported, so this proves nothing.")

    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    sentences = SentenceTransformer(folder, trust_remote_code=True, model_kwargs={"dtype": torch.float32})
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    print(
        json.dumps(
            {
                "class": f"{type(model).__module__.split('.')[0]}.{type(model).__name__}",
                "texts": TEXTS,
                "causal_logits": logits.tolist(),
                "embeddings": model.encode(TEXTS, tokenizer).tolist(),
                "sentence_transformer": sentences.encode(TEXTS).tolist(),
                "infilled": model.infill(GAPPED, tokenizer, length=10),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
