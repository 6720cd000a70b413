"""The sampling and search flags, with their names and meaning in `generate()`."""

import math

SAMPLED = ("temperature", "top_p", "top_k")
SEARCHED = ("num_beams", "repetition_penalty", "no_repeat_ngram_size")


def add_sampling_flags(parser) -> None:
    group = parser.add_argument_group(
        "sampling and search", "As in transformers' generate(); greedy decoding by default."
    )
    group.add_argument("--do_sample", action="store_true", help="sample tokens")
    group.add_argument("--temperature", type=float, help="with --do_sample: lower is less random")
    group.add_argument("--top_p", type=float, help="with --do_sample: total probability of the top tokens to keep")
    group.add_argument("--top_k", type=int, help="with --do_sample: number of top tokens to keep; 0: all")
    group.add_argument("--num_beams", type=int, help="number of beams for beam search")
    group.add_argument("--repetition_penalty", type=float, help="above 1: makes repeated tokens less likely")
    group.add_argument("--no_repeat_ngram_size", type=int, help="never repeat n-grams of this size")
    group.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")


def sampling(options) -> dict:
    """
    The flags that were given, as arguments of `generate()`.

    Raises:
        `ValueError` for a sampling flag without `--do_sample`, and for values out of range, which generate() ignores or
        fails on.
    """
    given = {name: getattr(options, name) for name in (*SAMPLED, *SEARCHED) if getattr(options, name) is not None}
    for name in SAMPLED:
        if name in given and not options.do_sample:
            raise ValueError(f"{name}={given[name]}: has no effect without sampling. Add --do_sample.")
    if options.num_beams is not None and options.num_beams < 1:
        raise ValueError(f"num_beams={options.num_beams}: must be at least 1.")
    if options.temperature is not None and not 0 < options.temperature < math.inf:
        raise ValueError(f"temperature={options.temperature}: must be above 0 and finite.")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ValueError(f"top_p={options.top_p}: must be above 0 and at most 1.")
    if options.seed < 0:
        raise ValueError(f"seed={options.seed}: must not be negative.")
    return given | {"do_sample": True} if options.do_sample else given
