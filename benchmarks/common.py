"""What the benchmarks share: a random Llama, timing side by side, peak memory in a process of its own, and the rows."""

import ctypes
import gc
import json
import multiprocessing
import random
import time
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

torch.set_num_threads(1)  # CPU seconds of one thread vary least

# ------------------------------------------------------------------------------------------------------------ the model


def llama_config(layers: int = 8, hidden: int = 512, vocab: int = 32000, **settings) -> LlamaConfig:
    shape = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": max(hidden // 64, 1),
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
    }
    return LlamaConfig(**shape | settings)


def random_llama(layers: int = 8, hidden: int = 512, vocab: int = 32000, **settings) -> LlamaForCausalLM:
    """Large enough to show ratios on a CPU."""
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(layers, hidden, vocab, **settings)).eval()


def magnet(llama: LlamaForCausalLM, r: int | None, **fields) -> MagnetLlamaForCausalLM:
    """The same model with MAGNET's modes, and LoRA of rank `r` on all projections."""
    adapter = None if r is None else {"r": r, "alpha": r, "target_modules": ATTENTION_AND_MLP}
    fields = {"mask_token_id": 5, "infill_end_token_id": 2} | fields
    return MagnetLlamaForCausalLM.from_base(llama, adapter=adapter, **fields)


def load_tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "tests" / "assets" / "magnet-tiny-base", trust_remote_code=False)


def cut_texts(count: int, median: int, spread: float, most: int) -> list[str]:
    """English texts of log-normal length: `median` words, at most `most`, cut from the stories of the examples."""
    stories = ROOT / "examples" / "assets" / "everyday-stories" / "train.jsonl"
    lines = stories.read_text(encoding="utf-8").splitlines()
    words = " ".join(" ".join(json.loads(line)["sentences"]) for line in lines).split()
    draw, texts = random.Random(0), []
    for _ in range(count):
        length = min(max(round(median * draw.lognormvariate(0, spread)), 3), most)
        start = draw.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


def mixed_texts(count: int) -> list[str]:
    """From sentences to pages."""
    return cut_texts(count, median=40, spread=0.9, most=300)


def short_texts(count: int) -> list[str]:
    """As long as the sentences of STS."""
    return cut_texts(count, median=11, spread=0.4, most=40)


# ------------------------------------------------------------------------------------------------------- time and memory


def side_by_side(calls: dict, repeats: int, clock=time.process_time, warm_up=True) -> dict[str, list[float]]:
    """Seconds of each call in each round; calls take turns, so that a slow spell affects all of them."""
    seconds = {name: [] for name in calls}
    for call in calls.values() if warm_up else ():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            started = clock()
            call()
            seconds[name].append(clock() - started)
    return seconds


def compared(seconds: dict[str, list[float]], one: str, other: str) -> tuple[float, list[float]]:
    """The ratio of the times of `one` and `other`, each the mean of its faster half (what disturbs a round adds time, but
    a single lucky one should not decide), and the range of the ratios of single rounds."""
    each = [a / b for a, b in zip(seconds[one], seconds[other])]
    first, second = (fmean(sorted(seconds[name])[: (len(each) + 1) // 2]) for name in (one, other))
    return first / second, [min(each), max(each)]


def in_a_fork(function, *args):
    """The result of a call in a child process, which shares what is imported. Forked, so it may be a closure (Linux);
    the parent must not have run a backward pass before."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*args)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__qualname__} failed in its process; the error is above.") from None
    finally:
        process.join()


def peak_mib(build) -> float:
    """MiB of resident memory that `build()()` adds, at its highest, to what `build()` has left there."""
    return in_a_fork(_peak, build)


def _peak(build) -> float:
    call = build()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # the call would fill free pages unseen
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


# --------------------------------------------------------------------------------------------------------------- rows


def row(question: str, shape: str, how: str, ratio: float | None, spread: list[float] | None, target: str | None):
    """One answer: `target` is such as "<= 1.05", or None where a figure has none; `reached` follows from it."""
    return {
        "question": question,
        "shape": shape,
        "how": how,
        "ratio": ratio,
        "spread": spread,
        "target": target,
        "reached": None if ratio is None or target is None else meets(ratio, target),
    }


def meets(ratio: float, target: str) -> bool:
    sign, bound = target.split()
    return {"<=": ratio <= float(bound), ">=": ratio >= float(bound)}[sign]


def show(rows: list[dict]) -> None:
    """Prints what `main()` returned, when a script is run alone."""
    for each in rows:
        print(json.dumps(each))
