"""SSCL in chunks of pairs (`sscl_chunk_size`) against all pairs at once.

python benchmarks/contrastive.py
"""

from common import compared, in_a_fork, magnet, peak_mib, random_llama, row, show, side_by_side
from train_step import PAIR_LENGTH, Step, random_batch

CHUNKS = 4


def calls(layers: int, hidden: int, pairs: int) -> dict:
    batch = random_batch(1, 64, pairs)
    return {
        name: Step(magnet(random_llama(layers, hidden), 16).train(), batch, sscl_alone=True, sscl_chunk_size=size)
        for name, size in (("whole", 0), ("chunked", pairs // CHUNKS))
    }


def timed(layers: int, hidden: int, pairs: int, repeats: int) -> dict[str, list[float]]:
    found = calls(layers, hidden, pairs)
    whole, chunked = found["whole"](), found["chunked"]()
    assert abs(whole - chunked) < 1e-4 * abs(whole), (whole, chunked)
    return side_by_side(found, repeats)


def main(layers: int = 4, hidden: int = 512, pairs: int = 8, repeats: int = 3):
    shape = f"{layers} layers of {hidden}; {pairs} pairs of {PAIR_LENGTH} tokens in {CHUNKS} chunks"
    peaks = {name: peak_mib(lambda name=name: calls(layers, hidden, pairs)[name]) for name in ("whole", "chunked")}
    seconds = in_a_fork(timed, layers, hidden, pairs, repeats)
    memory = f"peak over the model: chunked / whole ({peaks['chunked']:.0f} / {peaks['whole']:.0f} MiB)"
    question = "contrastive gradients in chunks"
    return [
        row(question, shape, "time: chunked / whole", *compared(seconds, "chunked", "whole"), "<= 1.6"),
        row(question, shape, memory, peaks["chunked"] / peaks["whole"], None, "<= 0.65"),
    ]


if __name__ == "__main__":
    show(main())
