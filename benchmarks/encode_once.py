"""One reading of a text for its vector, its fills and its continuation, against reading it for each.

    python benchmarks/encode_once.py

A random Llama and texts of random words, with a gap in the middle or, as a continuation, at the end.
"""

from common import compared, in_a_fork, load_tokenizer, magnet, random_llama, row, show, side_by_side
from infill import words

from modeling_magnet import Gap

WAYS = {  # what is compared: the two calls
    "encode() and infill(), the text read twice / once": ("encode, infill", "encode once, infill"),
    "encode() and a continuation, the text read twice / once": ("encode, continue", "encode once, continue"),
    "one more fill, the text read again / not": ("infill", "another fill"),
    "encode(), without / with return_cache": ("encode", "encode with cache"),
}


def timed(layers: int, hidden: int, size: int, span: int, repeats: int) -> dict[str, list[float]]:
    model, tokenizer = magnet(random_llama(layers, hidden), 16), load_tokenizer()
    left, right = words(size // 2, tokenizer, 1), words(size - size // 2, tokenizer, 2)
    text, inside, behind = left + right, [left, Gap(length=span), right], [left + right, Gap(length=span)]
    _, kept = model.encode(inside, tokenizer, return_cache=True)

    def once(parts):
        _, context = model.encode(parts, tokenizer, return_cache=True)
        model.infill(parts, tokenizer, context=context)

    def again(parts):
        model.encode(text, tokenizer)
        model.infill(parts, tokenizer)

    calls = {
        "encode": lambda: model.encode(text, tokenizer),
        "encode with cache": lambda: model.encode(inside, tokenizer, return_cache=True),
        "encode, infill": lambda: again(inside),
        "encode once, infill": lambda: once(inside),
        "encode, continue": lambda: again(behind),
        "encode once, continue": lambda: once(behind),
        "infill": lambda: model.infill(inside, tokenizer),
        "another fill": lambda: model.infill(inside, tokenizer, context=kept),
    }
    return side_by_side(calls, repeats)


def main(layers: int = 4, hidden: int = 512, contexts=(256, 1024), span: int = 8, repeats: int = 2) -> list[dict]:
    answers = []
    for size in contexts:
        seconds = in_a_fork(timed, layers, hidden, size, span, repeats)
        shape = f"{layers} layers of {hidden}, LoRA, context {size}, gap of {span}"
        for how, (one, other) in WAYS.items():
            ratio = compared(seconds, one, other)
            answers.append(row("encode once, use twice", shape, f"time: {how}", *ratio, None))
    return answers


if __name__ == "__main__":
    show(main())
