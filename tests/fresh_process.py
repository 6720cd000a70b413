"""
Loads checkpoints as someone does who has not installed this project; test_checkpoint.py runs it as a script of its own.

    python -I fresh_process.py <folder with checkpoints fp32, bf16 and qwen3> <folder to write to>
"""

import json
import sys
from pathlib import Path

OUR_PACKAGES = {"configuration_magnet", "magnet_cli", "magnet_eval", "magnet_hub", "magnet_train", "modeling_magnet"}


class NotInstalled:
    """Hides the installed project, whichever way it was installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in OUR_PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def assert_not_importable() -> None:
    for name in OUR_PACKAGES:
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported, so this would prove nothing")


sys.meta_path.insert(0, NotInstalled)
assert_not_importable()

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

torch.set_num_threads(1)
checkpoints, results = Path(sys.argv[1]), Path(sys.argv[2])
TRUST = {"trust_remote_code": True}


def in_three_modes(model, inputs: dict, name: str) -> dict:
    outputs = {}
    for mode in ("causal", "bidirectional", "hybrid"):
        spans = {"span_ids": inputs["spans"]} if mode == "hybrid" else {}
        with torch.no_grad():
            output = model(inputs["ids"], attention_mask=inputs["mask"], attention_mode=mode, **spans)
        outputs[f"{name}.{mode}"] = output[0].contiguous()
    return outputs


def refusal_without_trust(folder) -> str:
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    fp32, inputs = checkpoints / "fp32", load_file(checkpoints / "inputs.safetensors")
    config = AutoConfig.from_pretrained(fp32, **TRUST)
    causal_lm = AutoModelForCausalLM.from_pretrained(fp32, **TRUST)
    tokens = AutoModelForTokenClassification.from_pretrained(fp32, num_labels=5, **TRUST)
    sequences = AutoModelForSequenceClassification.from_pretrained(fp32, num_labels=5, **TRUST)
    bf16 = AutoModelForCausalLM.from_pretrained(checkpoints / "bf16", **TRUST)

    outputs = in_three_modes(causal_lm, inputs, "causal_lm") | in_three_modes(bf16, inputs, "bf16")
    qwen3 = AutoModelForCausalLM.from_pretrained(checkpoints / "qwen3", **TRUST)
    outputs |= in_three_modes(qwen3, inputs, "qwen3")
    outputs |= in_three_modes(AutoModel.from_pretrained(fp32, **TRUST), inputs, "model")
    outputs |= in_three_modes(tokens.model, inputs, "token_classification")
    outputs |= in_three_modes(sequences.model, inputs, "sequence_classification")
    with torch.no_grad():
        outputs["token_logits"] = tokens(inputs["ids"], attention_mask=inputs["mask"]).logits
        outputs["sequence_logits"] = sequences(inputs["ids"], attention_mask=inputs["mask"]).logits

    tokenizer = AutoTokenizer.from_pretrained(fp32, **TRUST)
    text, filled = "The cat <|gap|> on the mat.", {"length": 4, "do_sample": False}
    outputs["encoded"] = torch.from_numpy(causal_lm.encode(["A cat sleeps.", "Rain fell all day."], tokenizer))

    causal_lm.save_pretrained(results / "saved_again")
    again = AutoModelForCausalLM.from_pretrained(results / "saved_again", **TRUST)
    outputs |= in_three_modes(again, inputs, "saved_again")
    tokens.save_pretrained(results / "token_classifier")
    again = AutoModelForTokenClassification.from_pretrained(results / "token_classifier", **TRUST)
    with torch.no_grad():
        outputs["token_logits_again"] = again(inputs["ids"], attention_mask=inputs["mask"]).logits

    save_file(outputs, results / "outputs.safetensors")
    facts = {
        "config_module": type(config).__module__,
        "model_module": type(causal_lm).__module__,
        "qwen3_class": type(qwen3).__name__,
        "attention_mode": config.attention_mode,
        "refusal": refusal_without_trust(fp32),
        "infilled": causal_lm.infill(text, tokenizer, **filled),
        "bf16_dtypes": sorted({str(parameter.dtype) for parameter in bf16.parameters()}),
        "modules_of_ours": sorted(OUR_PACKAGES & set(sys.modules)),
    }
    (results / "facts.json").write_text(json.dumps(facts))


main()
