"""magnet generate: continues texts from left to right (causal attention).

    magnet generate "One day, a little girl" --max_new_tokens 40
    magnet generate --input prompts.txt --do_sample --top_p 0.9 --json
    magnet generate "One day, a little girl" --stream

Works with any causal checkpoint. The prompt comes back as it was, with what follows it. In Python: model.generate().
"""

import json

from .model import add_model_flags, load_causal
from .output import lines_to
from .parser import Parser
from .sampling import add_sampling_flags, sampling
from .texts import add_text_flags, in_batches, read_texts


def parse(args: list[str]):
    parser = Parser("magnet generate", __doc__)
    add_text_flags(parser, "a text to continue; several may follow each other")
    parser.add_argument("--output", help="file to write (default: standard output)")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a line: prompt, continuation, finish_reason"
    )
    parser.add_argument("--stream", action="store_true", help="show the text while it is written")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="most tokens (default: 64)")
    parser.add_argument("--min_new_tokens", type=int, default=0, help="fewest tokens")
    parser.add_argument("--num_return_sequences", type=int, default=1, help="alternatives for each text")
    parser.add_argument("--batch_size", type=int, default=8, help="texts continued at once (default: 8)")
    add_sampling_flags(parser)
    add_model_flags(parser)
    options = parser.parse_args(args)
    check(options)
    return options


def check(options) -> None:
    for name in ("max_new_tokens", "num_return_sequences", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: must be at least 1.")
    if not 0 <= options.min_new_tokens <= options.max_new_tokens:
        raise ValueError(f"min_new_tokens={options.min_new_tokens}: must lie between 0 and max_new_tokens.")
    several = options.num_return_sequences > 1
    if several and not options.do_sample and (options.num_beams or 1) < options.num_return_sequences:
        raise ValueError(
            f"num_return_sequences={options.num_return_sequences}: greedy text has no alternative. Add --do_sample, or "
            f"--num_beams {options.num_return_sequences}."
        )
    if options.stream and (several or options.json or options.output or (options.num_beams or 1) > 1):
        raise ValueError(
            "stream: shows one text on standard output. Leave out num_return_sequences, num_beams, json and output."
        )


def main(args: list[str]) -> None:
    options = parse(args)
    settings, texts = sampling(options), read_texts(options)
    batches = in_batches(texts, 1 if options.stream else options.batch_size)
    model, tokenizer = load_causal(options)
    check_vocabulary(model, tokenizer, options)
    from transformers import set_seed

    set_seed(options.seed)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with lines_to(options.output) as write:
        for batch in batches:
            for prompt, continuation, reason in continued(model, tokenizer, batch, settings, options):
                if options.json:
                    found = {"prompt": prompt, "continuation": continuation, "finish_reason": reason}
                    write(json.dumps(found, ensure_ascii=False))
                elif not options.stream:
                    write(prompt + continuation)


def check_vocabulary(model, tokenizer, options) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"model_name_or_path={model.name_or_path!r}: the tokenizer has {len(tokenizer)} tokens, the model {rows}. One of "
            "them is of another checkpoint."
        )
    for name in ("num_beams", "num_return_sequences"):
        if (getattr(options, name) or 1) > rows:
            raise ValueError(f"{name}={getattr(options, name)}: the model has only {rows} tokens to begin with.")


def continued(model, tokenizer, batch, settings: dict, options):
    """Yields (prompt, continuation, why it ended); alternatives follow each other."""
    from transformers import TextStreamer

    inputs = prompts(model, tokenizer, batch, options)
    length = inputs["input_ids"].shape[1]
    sequences = model.generate(
        **inputs,
        **settings,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens or None,
        num_return_sequences=options.num_return_sequences,
        pad_token_id=tokenizer.pad_token_id,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True) if options.stream else None,
    )  # (texts x alternatives, length + new)
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    for row, sequence in enumerate(sequences.tolist()):
        ids = sequence[length:]
        ended = next((n for n, token in enumerate(ids) if token in ends), None)
        text = after(sequence[:length], ids[:ended], tokenizer)
        yield batch[row // options.num_return_sequences].text, text, "max_tokens" if ended is None else "end_token"


def prompts(model, tokenizer, batch, options) -> dict:
    """Token ids and mask, padded on the left; control tokens spelt out in a text are text."""
    from modeling_magnet.encoding_magnet import check_text

    for each in batch:
        check_text(each.origin, each.text)
    inputs = tokenizer(
        [each.text for each in batch],
        split_special_tokens=True,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_token_type_ids=False,
        verbose=False,
    )
    limit = model.config.max_position_embeddings
    for each, mask in zip(batch, inputs["attention_mask"]):
        if int(mask.sum()) == 0:
            raise ValueError(f"{each.origin}: is empty, and this tokenizer begins no text by itself. Give a word.")
        if int(mask.sum()) + options.max_new_tokens > limit:
            raise ValueError(
                f"{each.origin}: {int(mask.sum())} tokens and max_new_tokens={options.max_new_tokens} exceed "
                f"max_position_embeddings={limit}. Shorten the text, or lower max_new_tokens."
            )
    return inputs.to(model.device)


def after(prompt: list[int], ids: list[int], tokenizer) -> str:
    """The text of `ids` where they follow the prompt: decoded alone, some tokenizers would drop its first space."""
    known = tokenizer.decode(prompt, skip_special_tokens=True)
    return tokenizer.decode(prompt + ids, skip_special_tokens=True)[len(known) :]
