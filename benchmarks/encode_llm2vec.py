"""encode() against LLM2Vec.encode, from its own package in an environment of its own; not part of `make bench`.

    python -m venv llm2vec && llm2vec/bin/pip install torch==2.13.0 transformers==4.44.2 "numpy>=2" llm2vec==0.2.3
    python benchmarks/encode_llm2vec.py --python llm2vec/bin/python

Both processes stay alive and encode in turns, the same texts with the same random Llama and LoRA adapter. LLM2Vec leaves
the adapter unmerged by default (`merge_peft=False`), which is measured, and merged too. Prints rows as the other
benchmarks do; `run.py` takes them from docs/measured/encode_llm2vec.json.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from common import (
    ATTENTION_AND_MLP,
    ROOT,
    compared,
    load_tokenizer,
    magnet,
    mixed_texts,
    random_llama,
    row,
    short_texts,
    show,
)
from peft import LoraConfig, get_peft_model

OUT = ROOT / "docs" / "measured" / "encode_llm2vec.json"

# runs in LLM2Vec's environment: reads "unmerged 0" or "merged 1" and prints the CPU seconds of encoding texts 0 or 1
PEER = """
import json, sys, time
import torch
from llm2vec import LLM2Vec

torch.set_num_threads(1)
folder, texts = sys.argv[1], json.load(open(sys.argv[1] + "/texts.json"))
load = dict(pooling_mode="eos_token", max_length=512, torch_dtype=torch.float32)
models = {
    name: LLM2Vec.from_pretrained(folder + "/llama", folder + "/lora", merge_peft=merged, **load)
    for name, merged in (("unmerged", False), ("merged", True))
}
print("ready", flush=True)
for line in sys.stdin:
    name, which = line.split()
    started = time.process_time()
    vectors = models[name].encode(texts[int(which)], batch_size=32, show_progress_bar=False)
    print(time.process_time() - started, tuple(vectors.shape)[0], flush=True)
"""


def older_tokenizer(folder: Path) -> None:
    """Rewrites tokenizer.json for tokenizers of 2024, which read merges as "a b", and names the class they know."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["model"]["merges"] = [" ".join(pair) for pair in found["model"]["merges"]]
    path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    known = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")
    settings = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key in known}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    path.write_text(json.dumps(settings), encoding="utf-8")


def write_peer(folder: Path, layers: int, hidden: int, texts: list[list[str]]) -> None:
    """The random Llama, a LoRA adapter that acts, the tokenizer and the texts."""
    llama, tokenizer = random_llama(layers, hidden, len(load_tokenizer())), load_tokenizer()
    llama.save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    older_tokenizer(folder / "llama")
    config = folder / "llama" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"rope_theta": 10000.0, "torch_dtype": "float32"}
    config.write_text(json.dumps(settings), encoding="utf-8")
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=ATTENTION_AND_MLP, init_lora_weights=False)
    torch.manual_seed(1)
    get_peft_model(llama.model, lora).save_pretrained(folder / "lora")
    adapter = folder / "lora" / "adapter_config.json"
    known = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "lora_dropout")  # what PEFT of 2024 reads
    settings = {key: value for key, value in json.loads(adapter.read_text(encoding="utf-8")).items() if key in known}
    adapter.write_text(json.dumps(settings | {"base_model_name_or_path": str(folder / "llama")}), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")


class Peer:
    """LLM2Vec in its process."""

    def __init__(self, python: str, folder: Path):
        command = [python, "-c", PEER, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("ready")

    def _answer(self, expected: str | None = None) -> str:
        for line in self.process.stdout:  # packages may print to it
            if expected is None or line.strip() == expected:
                return line
        raise RuntimeError("LLM2Vec's process ended; its error is above.")

    def encode(self, name: str, which: int, count: int) -> float:
        """CPU seconds of one call."""
        print(name, which, file=self.process.stdin, flush=True)
        seconds, rows = self._answer().split()
        assert int(rows) == count
        return float(seconds)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main(python: str, layers: int = 8, hidden: int = 512, mixed: int = 96, short: int = 192, repeats: int = 3):
    texts, answers = [mixed_texts(mixed), short_texts(short)], []
    with tempfile.TemporaryDirectory() as scratch:
        write_peer(Path(scratch), layers, hidden, texts)
        peer, tokenizer = Peer(python, Path(scratch)), load_tokenizer()
        ours = magnet(random_llama(layers, hidden, len(tokenizer)), 16)
        ours.config.representation_prompt = ""  # LLM2Vec is given none
        seconds = [{name: [] for name in ("ours", "unmerged", "merged")} for _ in texts]
        for round_ in range(repeats + 1):
            for which, group in enumerate(texts):
                started = time.process_time()
                ours.encode(group, tokenizer, show_progress_bar=False)
                each = {"ours": time.process_time() - started}
                each |= {name: peer.encode(name, which, len(group)) for name in ("unmerged", "merged")}
                for name, value in each.items() if round_ else ():  # the first round warms up
                    seconds[which][name].append(value)
        peer.close()
    kinds = ((mixed, "mixed", ">= 2.5"), (short, "STS-like", ">= 1.5"))
    for found, (count, kind, least) in zip(seconds, kinds):
        shape = f"{layers} layers of {hidden}, float32, LoRA r = 16; {count} {kind} texts"
        how = "time: LLM2Vec.encode as it comes (adapter unmerged) / encode() with ours unmerged"
        answers.append(row("encode() against LLM2Vec 0.2.3", shape, how, *compared(found, "unmerged", "ours"), least))
        how = "time: LLM2Vec.encode, adapter merged / encode() with ours unmerged"
        answers.append(row("encode() against LLM2Vec 0.2.3", shape, how, *compared(found, "merged", "ours"), None))
    return answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the python of LLM2Vec's environment")
    answers = main(parser.parse_args().python)
    OUT.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    show(answers)
