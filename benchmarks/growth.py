"""How cost grows: time and memory against length, batch, gaps and parameters, with fitted exponents.

    python benchmarks/growth.py

Each figure is the best of a few calls. `exponent` is the slope in log-log over all sizes (time ~ size^exponent), its
range those of neighbouring sizes. The last rows say on paper what that means for a billion texts.
"""

import numpy as np
import torch
from common import in_a_fork, load_tokenizer, magnet, peak_mib, random_llama, row, show, side_by_side
from infill import Case, with_gaps, words
from train_step import Step, random_batch

from magnet_train.settings.precision import gemm_rate

LENGTHS = (64, 256, 1024, 2048)
H200 = 0.5 * 790e12  # FLOP/s: half of what its matrix products reach in bfloat16
PARAMETERS = {"SmolLM2-135M": 106e6, "Llama-2-7B": 6.48e9}  # without embeddings


def embedder(hidden: int = 256, layers: int = 4):
    model = magnet(random_llama(layers, hidden, 4096), None)
    model.config.representation_prompt = ""
    return model


def encode_length(size: int):
    return encode_batch(1, size)


def encode_batch(count: int, length: int = 64):
    model, tokenizer = embedder(), load_tokenizer()
    texts = [words(length - 2, tokenizer, seed) for seed in range(count)]
    return lambda: model.encode(texts, tokenizer, batch_size=count)


def encode_parameters(hidden: int):
    model, tokenizer = embedder(hidden), load_tokenizer()
    text = words(254, tokenizer)
    return lambda: model.encode(text, tokenizer)


def infill_length(size: int):
    model, case = embedder(), Case(size, load_tokenizer(), span=16)
    return lambda: case.infill(model)


def infill_gaps(gaps: int):
    model, tokenizer = embedder(), load_tokenizer()
    parts = with_gaps(256, gaps, 16, tokenizer)
    return lambda: model.infill(parts, tokenizer, order="parallel")


def step_length(size: int):
    batch = random_batch(1, size, 0, vocab=4096)
    return Step(magnet(random_llama(4, 256, 4096), 16).train(), batch, lambda_sscl=0)


def layer_parameters(hidden: int, layers: int = 4) -> int:
    return layers * (4 * hidden**2 + 3 * hidden * (hidden * 11 // 4))


CURVES = {  # name: how a call is built for a size, the sizes, and what they count
    "encode() by length": (encode_length, LENGTHS, "tokens"),
    "encode() by batch": (encode_batch, (1, 4, 16, 32), "texts of 64 tokens"),
    "encode() by width": (encode_parameters, (128, 256, 512, 1024), "parameters of the layers"),
    "infill() by context": (infill_length, LENGTHS, "tokens"),
    "infill() by gaps": (infill_gaps, (1, 4, 16), "gaps of 16 tokens in 256, in parallel"),
    "training step by length": (step_length, LENGTHS, "tokens of one row"),
}


def best_seconds(build, size: int, repeats: int) -> float:
    return min(side_by_side({"call": build(size)}, repeats)["call"])


def curve(name: str, most: int, repeats: int) -> dict:
    build, sizes, unit = CURVES[name]
    sizes = [size for size in sizes if size <= most]
    seconds = [in_a_fork(best_seconds, build, size, repeats) for size in sizes]
    mib = [peak_mib(lambda size=size: build(size)) for size in sizes]
    x = [layer_parameters(size) for size in sizes] if "width" in name else list(sizes)
    return {"name": name, "unit": unit, "x": x, "seconds": seconds, "mib": mib}


def exponents(x: list[float], y: list[float]) -> tuple[float, list[float]]:
    """The slope in log-log over all points, and the range of those between neighbours."""
    x, y = np.log(x), np.log(y)
    each = np.diff(y) / np.diff(x)
    return float(np.polyfit(x, y, 1)[0]), [float(each.min()), float(each.max())]


def days(tokens: float, parameters: float, rate: float) -> float:
    """Days to encode so many tokens at a rate of FLOP/s: 2 operations a parameter and token."""
    return 2 * parameters * tokens / rate / 86400


def main(most: int = 2048, repeats: int = 2) -> list[dict]:
    answers = []
    for name in CURVES:
        found = curve(name, most, repeats)
        ends = f"{found['x'][0]:,} to {found['x'][-1]:,} {found['unit']}"
        answer = row("growth of time", ends, f"exponent, {name}", *exponents(found["x"], found["seconds"]), None)
        answers.append(answer | {"curve": found})
    by_width = answers[list(CURVES).index("encode() by width")]["curve"]
    here = 2 * by_width["x"][-1] * 256 / by_width["seconds"][-1]  # FLOP/s of the widest model
    question, shape = "a billion texts of 32 tokens", "on paper: 2 FLOPs a parameter and token"
    core = f"one core here, at {here / 1e9:.0f} of {gemm_rate(torch.float32):.0f} GFLOP/s in float32"
    for machine, rate in ((core, here), ("one H200 at half of 790 TFLOP/s", H200)):
        for model, parameters in PARAMETERS.items():
            answers.append(row(question, shape, f"days, {model}, {machine}", days(32e9, parameters, rate), None, None))
    return answers


if __name__ == "__main__":
    show(main())
