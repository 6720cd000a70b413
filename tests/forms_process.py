"""
Loads every form of a checkpoint where this project is not installed; test_forms.py runs it as a script of its own.

    python -I forms_process.py <folder with the forms, inputs.safetensors and texts.json> <folder to write to>
"""

import json
import sys
from pathlib import Path

source = (Path(__file__).parent / "fresh_process.py").read_text(encoding="utf-8")
exec(source.split("import torch")[0])  # hides the installed project

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

torch.set_num_threads(1)
forms, results = Path(sys.argv[1]), Path(sys.argv[2])
inputs = load_file(forms / "inputs.safetensors")
TEXTS = json.loads((forms / "texts.json").read_text(encoding="utf-8"))
TRUST, NO_TRUST = {"trust_remote_code": True}, {"trust_remote_code": False}


@torch.no_grad()
def logits(model, **kwargs) -> torch.Tensor:
    return model(inputs["ids"], attention_mask=inputs["mask"], **kwargs)[0].contiguous()


def in_three_modes(model, name: str) -> dict:
    modes = {"causal": {}, "bidirectional": {}, "hybrid": {"span_ids": inputs["spans"]}}
    return {f"{name}.{mode}": logits(model, attention_mode=mode, **spans) for mode, spans in modes.items()}


def encoded(folder: Path, **trust) -> torch.Tensor:
    return torch.from_numpy(SentenceTransformer(str(folder), device="cpu", **trust).encode(TEXTS))


outputs, classes = {}, {}
for name in ("magnet", "merged", "adapter", "paper_adapter"):
    model = AutoModelForCausalLM.from_pretrained(forms / name, **TRUST)
    tokenizer = AutoTokenizer.from_pretrained(forms / name, **TRUST)
    outputs |= in_three_modes(model, name) | {f"{name}.encoded": torch.from_numpy(model.encode(TEXTS, tokenizer))}
    classes[name] = type(model).__name__
for name in ("magnet", "merged"):
    outputs[f"{name}.sentences"] = encoded(forms / name, **TRUST)

base = AutoModelForCausalLM.from_pretrained(forms / "adapter-base", **TRUST)
outputs |= in_three_modes(base, "base")
peft = PeftModel.from_pretrained(base, forms / "adapter")
outputs |= in_three_modes(peft, "peft")
with peft.disable_adapter():
    outputs["peft_off.causal"] = logits(peft, attention_mode="causal")
outputs["adapter_of_decoder.causal"] = logits(AutoModel.from_pretrained(forms / "adapter", **TRUST))

AutoModelForCausalLM.from_pretrained(forms / "adapter", **TRUST).save_pretrained(results / "again")
outputs |= in_three_modes(AutoModelForCausalLM.from_pretrained(results / "again", **TRUST), "again")

for name in ("generator", "paper_generator"):
    model = AutoModelForCausalLM.from_pretrained(forms / name, **NO_TRUST)
    tokenizer = AutoTokenizer.from_pretrained(forms / name, **NO_TRUST)
    outputs[f"{name}.causal"], classes[name] = logits(model), type(model).__name__
    outputs[f"{name}.ids"] = tokenizer("Tom was hungry.", return_tensors="pt")["input_ids"]
for name in ("encoder", "mean_encoder"):
    outputs[f"{name}.sentences"] = encoded(forms / name, **NO_TRUST)
    model = AutoModel.from_pretrained(forms / name, **NO_TRUST)
    outputs[f"{name}.bidirectional"], classes[name] = logits(model), type(model).__name__

save_file(outputs, results / "outputs.safetensors")
facts = {"classes": classes, "ours": sorted(OUR_PACKAGES & set(sys.modules))}  # noqa: F821
(results / "facts.json").write_text(json.dumps(facts))
