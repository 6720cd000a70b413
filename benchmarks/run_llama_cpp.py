"""
Compares the forms `generator` and `encoder` in llama.cpp with their checkpoint. Writes docs/measured/llama_cpp.json.

    pip install llama-cpp-python gguf sentencepiece
    pip download --no-deps --no-binary :all: llama-cpp-python && tar xzf llama_cpp_python-*.tar.gz
    python benchmarks/run_llama_cpp.py llama_cpp_python-*/vendor/llama.cpp

The argument is a source tree of llama.cpp, for its convert_hf_to_gguf.py; llama.cpp runs inside `llama-cpp-python`.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from magnet_hub.export import export_checkpoint
from modeling_magnet import MagnetLlamaForCausalLM

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "tests" / "assets" / "magnet-tiny"
STORIES = ROOT / "examples" / "assets" / "everyday-stories" / "validation.jsonl"
WRITTEN = ROOT / "docs" / "measured" / "llama_cpp.json"
SENTENCES, PROMPTS, NEW_TOKENS = 64, 16, 40

# llama.cpp identifies a BPE pre-tokenizer by a hash of its output on one text, so it knows only published tokenizers.
# magnet-tiny's is byte-level BPE with GPT-2's pattern, which the converter must be told.
CONVERT = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0] + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def convert(source: str, folder: Path, kind: str) -> Path:
    target = folder.with_name(f"{folder.name}-{kind}.gguf")
    command = [sys.executable, "-c", CONVERT, source, str(folder), "--outtype", kind, "--outfile", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def opened(path: Path, **settings):
    """Opens the file in llama.cpp, with one thread and a float32 cache like ours."""
    import llama_cpp

    whole = {"n_ctx": 512, "n_batch": 512, "n_ubatch": 512, "n_threads": 1, "n_threads_batch": 1, "n_gpu_layers": 0}
    cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    return llama_cpp.Llama(str(path), verbose=False, **whole | cache | settings)


def vectors(path: Path, texts: list[str], **settings) -> np.ndarray:
    import llama_cpp

    encoder = opened(path, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST, **settings)
    found = np.array([encoder.embed(text, normalize=True) for text in texts])
    encoder.close()
    return found


def compare_vectors(found: np.ndarray, expected: np.ndarray) -> dict:
    return {
        "largest_difference": float(abs(found - expected).max()),
        "smallest_cosine": float((found * expected).sum(1).min()),
    }


def continuations(path: Path, prompts: list[str]) -> list[str]:
    generator, found = opened(path), []
    for prompt in tqdm(prompts, desc=path.name, leave=False):
        generator.reset()
        answer = generator.create_completion(prompt, max_tokens=NEW_TOKENS, temperature=0)
        found.append(answer["choices"][0]["text"])
    generator.close()
    return found


@torch.no_grad()
def our_continuations(model, tokenizer, prompts: list[str]) -> list[str]:
    texts = []
    for prompt in tqdm(prompts, desc="ours", leave=False):
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def main(source: str) -> None:
    import llama_cpp

    torch.set_num_threads(1)
    lines = STORIES.read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["sentences"][0] for line in lines[:SENTENCES]]
    prompts = [" ".join(sentence.split()[:6]) for sentence in sentences[:PROMPTS]]
    model = MagnetLlamaForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=False)
    expected, ours = model.encode(sentences, tokenizer), our_continuations(model, tokenizer, prompts)
    instructed = [f"{model.config.representation_prompt} {sentence}" for sentence in sentences]
    measured = {"llama-cpp-python": version("llama-cpp-python"), "gguf": version("gguf"), "sentences": len(sentences)}
    measured |= {"prompts": len(prompts), "new_tokens": NEW_TOKENS}
    with tempfile.TemporaryDirectory() as scratch:
        for form in ("encoder", "generator"):
            export_checkpoint(CHECKPOINT, Path(scratch) / form, form, dtype="float32")
        for kind in ("f32", "f16"):  # q8_0 crashes 0.3.36 with a segmentation fault (docs/LOG.md)
            encoder = convert(source, Path(scratch) / "encoder", kind)
            generator = convert(source, Path(scratch) / "generator", kind)
            same = sum(a == b for a, b in zip(continuations(generator, prompts), ours))
            measured[kind] = {"same_greedy_texts": same} | compare_vectors(vectors(encoder, instructed), expected)
        encoder = Path(scratch) / "encoder-f32.gguf"
        wrong = compare_vectors(
            vectors(encoder, instructed, attention_type=llama_cpp.LLAMA_ATTENTION_TYPE_CAUSAL), expected
        )
        measured["f32_if_attention_were_causal"] = wrong
        measured["f32_without_instruction"] = compare_vectors(vectors(encoder, sentences), expected)
        half = {"type_k": llama_cpp.GGML_TYPE_F16, "type_v": llama_cpp.GGML_TYPE_F16}
        cache = compare_vectors(vectors(encoder, instructed, **half), expected)
        measured["f32_with_the_default_f16_cache"] = cache
    WRITTEN.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
