"""Writes the encoder form of a checkpoint as ONNX, also with 8-bit weights, for ONNX Runtime and OpenVINO.

pip install onnx onnxruntime onnxscript openvino
magnet export --model_name_or_path runs/smol --form encoder --output_dir runs/encoder
python examples/export_onnx.py --model runs/encoder --output_dir runs/encoder-onnx --int8 --compare

Reads any folder of a stock bidirectional decoder with the files of sentence-transformers. --compare prints the speed and
the Spearman correlation of each runtime on the shipped graded pairs, beside torch.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from magnet_eval.data import read_graded_pairs
from magnet_eval.sts import spearman
from modeling_magnet.encoding_magnet import pooled

PAIRS = Path(__file__).parent / "assets" / "everyday-stories" / "sts.tsv"
TOLERANCE = 1e-4  # of the states, relative to the largest


class LastStates(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


class OnnxEncoder:
    """`encode()` as sentence-transformers does it, without torch's model: default prompt, pooling, unit length."""

    def __init__(self, folder: str | Path, file: str = "model.onnx", runtime: str = "onnxruntime"):
        folder = Path(folder)
        settings = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        prompts = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **settings["processor_kwargs"])
        self.prompt = prompts["prompts"].get(prompts["default_prompt_name"], "")
        self.pooling = "mean" if pooling["pooling_mode"] == "mean" else "last_token"
        if runtime == "openvino":
            import openvino

            compiled = openvino.Core().compile_model(folder / file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            self.run = lambda inputs: compiled(inputs)[0]
        else:
            session = InferenceSession(folder / file, providers=["CPUExecutionProvider"])
            self.run = lambda inputs: session.run(None, inputs)[0]

    def states(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Last hidden states (B, L, d)."""
        return self.run({"input_ids": input_ids, "attention_mask": attention_mask})

    def encode(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        vectors = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer(
                [self.prompt + texts[i] for i in chosen], padding=True, truncation=True, return_tensors="np"
            )
            mask = batch["attention_mask"].astype(np.int64)
            hidden = torch.from_numpy(self.states(batch["input_ids"].astype(np.int64), mask))
            for i, vector in zip(chosen, pooled(hidden, torch.from_numpy(mask), self.pooling).numpy()):
                vectors[i] = vector / np.linalg.norm(vector)
        return np.stack(vectors)


def export(folder: str | Path, output_dir: str | Path, int8: bool = False) -> None:
    """Writes `model.onnx`, and `model_int8.onnx` if asked for, beside the tokenizer and the settings."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    config, output_dir = model.config, Path(output_dir)
    if getattr(config, "is_causal", True) and not getattr(config, "use_bidirectional_attention", False):
        raise ValueError(f"--model {folder}: is causal. Export it with: magnet export --form encoder")
    shutil.copytree(folder, output_dir, ignore=shutil.ignore_patterns("*.safetensors*", "README.md"))
    ids = torch.randint(config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    longest = config.max_position_embeddings
    sizes = {0: torch.export.Dim("batch", max=4096), 1: torch.export.Dim("length", min=2, max=longest)}
    torch.onnx.export(
        LastStates(model),
        (ids, mask),
        output_dir / "model.onnx",
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes=(sizes, sizes),
        verbose=False,
    )
    check(model, output_dir)
    if int8:  # the weights of matrix products; activations are quantised as they come
        files = output_dir / "model.onnx", output_dir / "model_int8.onnx"
        options = {"weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul"], "per_channel": True}
        # weights of 7 bits: without VNNI, the products of 8-bit ones overflow their 16 bits, and vectors are noise
        quantize_dynamic(*files, **options, reduce_range=True)
        check_int8(model, output_dir)


@torch.no_grad()
def check(model, output_dir: Path) -> None:
    """Raises `RuntimeError` unless the file gives torch's states, in which a later token changes an earlier one."""
    session = OnnxEncoder(output_dir)
    ids = torch.randint(model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[2, 5:] = 0
    states = session.states(ids.numpy(), mask.numpy())
    expected = model(ids, attention_mask=mask).last_hidden_state.numpy()
    difference = np.abs(states - expected)[mask.bool().numpy()].max() / np.abs(expected).max()
    if difference > TOLERANCE:
        raise RuntimeError(f"{output_dir}: the ONNX states differ from torch's by {difference:.1e} of the largest.")
    ids[0, 1] = (ids[0, 1] + 1) % model.config.vocab_size  # next to the first: a window may be short
    change = np.abs(session.states(ids.numpy(), mask.numpy())[0, 0] - states[0, 0]).max()
    if change < 1e-3 * np.abs(states).max():
        raise RuntimeError(f"{output_dir}: a later token does not change the first one's state: attention is causal.")


@torch.no_grad()
def check_int8(model, output_dir: Path) -> None:
    """Raises `RuntimeError` where the 8-bit states have lost torch's: some processors lack the instructions."""
    ids = torch.randint(model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    states = OnnxEncoder(output_dir, "model_int8.onnx").states(ids.numpy(), np.ones(ids.shape, np.int64))
    expected = model(ids).last_hidden_state
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(states), expected, dim=-1).mean()
    if cosine < 0.7:
        raise RuntimeError(
            f"{output_dir}/model_int8.onnx: cosine {cosine:.2f} to torch's states. Use model.onnx here."
        )


def compare(folder: str | Path, output_dir: Path, int8: bool) -> None:
    """Prints one line a runtime; they take turns, and the best of three counts."""
    pairs = read_graded_pairs(PAIRS)
    texts = [text for _, *both in pairs for text in both]
    sentences = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    encoders = {"torch": lambda texts: sentences.encode(texts, show_progress_bar=False)}
    for file in ("model.onnx", "model_int8.onnx")[: 1 + int8]:
        for runtime in ("onnxruntime", "openvino"):
            encoders[f"{runtime} {file}"] = OnnxEncoder(output_dir, file, runtime).encode
    vectors = {name: encode(texts) for name, encode in encoders.items()}
    seconds = dict.fromkeys(encoders, float("inf"))
    for _ in range(3):
        for name, encode in encoders.items():
            started = time.process_time()
            encode(texts)
            seconds[name] = min(seconds[name], time.process_time() - started)
    for name, encode in encoders.items():
        cosine = (vectors[name] * vectors["torch"]).sum(1).min()
        print(
            f"{name:28} {len(texts) / seconds[name]:7.1f} texts/CPU second  {seconds['torch'] / seconds[name]:.2f}x  "
            f"Spearman x 100 {spearman(encode, pairs):.2f}  smallest cosine to torch {cosine:.6f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder that `magnet export --form encoder` wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--int8", action="store_true", help="also write model_int8.onnx")
    parser.add_argument("--compare", action="store_true", help="measure speed and quality; needs openvino")
    args = parser.parse_args()
    export(args.model, args.output_dir, args.int8)
    if args.compare:
        compare(args.model, args.output_dir, args.int8)


if __name__ == "__main__":
    main()
