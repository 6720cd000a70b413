"""
Uses checkpoints through pipelines and sentence-transformers where this project is not installed; run as a script of its own.

    python -I fresh_ecosystem.py <checkpoint> <its copy made by sentence-transformers> <token classifier> <results.json>
"""

import json
import sys

if __name__ == "__main__":
    for package in (
        "configuration_magnet",
        "magnet_cli",
        "magnet_eval",
        "magnet_hub",
        "magnet_train",
        "modeling_magnet",
    ):
        sys.modules[package] = None  # importing it fails, as where this project is not installed

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from transformers import AutoModelForCausalLM, pipeline  # noqa: E402

TEXTS = ["Tom was hungry.", "She said </s> and ate a lot of bread and soup.", ""]
TRUST = {"trust_remote_code": True}
torch.set_num_threads(1)


def main(checkpoint: str, copy: str, classifier: str, results: str) -> None:
    facts = {}
    for name, folder in (("checkpoint", checkpoint), ("copy", copy)):
        facts[f"vectors_{name}"] = SentenceTransformer(folder, device="cpu", **TRUST).encode(TEXTS).tolist()
    generate = pipeline("text-generation", model=checkpoint, **TRUST)
    facts["generated"] = generate(TEXTS[0], max_new_tokens=6, do_sample=False)[0]["generated_text"]
    both_ways = {"model_kwargs": {"attention_mode": "bidirectional"}}
    facts["features"] = pipeline("feature-extraction", model=checkpoint, **both_ways, **TRUST)(TEXTS[0])
    facts["causal_features"] = pipeline("feature-extraction", model=checkpoint, **TRUST)(TEXTS[0])
    tag = pipeline("token-classification", model=classifier, **TRUST)
    facts["tags"] = [[token["entity"] for token in text] for text in tag(TEXTS[:2], batch_size=2)]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(checkpoint, **TRUST), LoraConfig(target_modules=["q_proj"])
    )
    facts["trainable"] = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with open(results, "w", encoding="utf-8") as file:
        json.dump(facts, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
