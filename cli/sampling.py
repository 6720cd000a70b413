"""The sampling and search flags, with their names and meaning in `generate()`."""

SAMPLED = ("temperature", "top_p", "top_k")
SEARCHED = ("num_beams", "repetition_penalty", "no_repeat_ngram_size")


def add_sampling_flags(parser) -> None:
    group = parser.add_argument_group(
        "choice of tokens", "What transformers' generate() does with them; greedy if none."
    )
    group.add_argument("--do_sample", action="store_true", help="draw tokens at random")
    group.add_argument("--temperature", type=float, help="with --do_sample: below 1 bolder words are rarer")
    group.add_argument("--top_p", type=float, help="with --do_sample: the likeliest tokens of that much probability")
    group.add_argument("--top_k", type=int, help="with --do_sample: the so many likeliest tokens; 0: all")
    group.add_argument("--num_beams", type=int, help="beams of a beam search")
    group.add_argument("--repetition_penalty", type=float, help="above 1 words that are there already are rarer")
    group.add_argument("--no_repeat_ngram_size", type=int, help="no so many tokens in a row twice")
    group.add_argument("--seed", type=int, default=0, help="of --do_sample (default: 0)")


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
            raise ValueError(f"{name}={given[name]}: without effect on greedy text. Add --do_sample.")
    if options.num_beams is not None and options.num_beams < 1:
        raise ValueError(f"num_beams={options.num_beams}: must be at least 1.")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ValueError(f"top_p={options.top_p}: must be above 0 and at most 1.")
    if options.seed < 0:
        raise ValueError(f"seed={options.seed}: must not be negative.")
    return given | {"do_sample": True} if options.do_sample else given
