"""magnet evaluate: measures a checkpoint on stories (infilling perplexity, retrieval) and graded sentence pairs.

    magnet evaluate --stories examples/assets/everyday-stories --output results.json
    magnet evaluate --model_name_or_path runs/smol --sts sts.tsv --update_card

Prints a table and writes each figure with its 95 % bootstrap interval. A plain base is evaluated as it is, from left to right.
"""

import json
from dataclasses import asdict
from pathlib import Path

from .model import add_model_flags, chosen_model, load_causal
from .output import replacing
from .parser import Parser


def parse(args: list[str]):
    parser = Parser("magnet evaluate", __doc__)
    parser.add_argument(
        "--stories",
        help="a .jsonl whose rows have sentences (a list) and, for retrieval, paraphrases (one a sentence); or a folder "
        "with such a validation.jsonl and, maybe, sts.tsv",
    )
    parser.add_argument("--sts", help="graded pairs: score<TAB>sentence<TAB>sentence")
    parser.add_argument("--cloze", help="Story Cloze file (tab-separated)")
    parser.add_argument("--limit", type=int, help="only the first so many stories and pairs")
    parser.add_argument("--one_gap", action="store_true", help="one gap a story, not each sentence in turn: quicker")
    parser.add_argument("--batch_size", type=int, default=32, help="rows a forward (default: 32)")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument(
        "--update_card",
        action="store_true",
        help="write eval_results.json into the checkpoint and show it in its card",
    )
    add_model_flags(parser, dtype="float32")
    return parser.parse_args(args)


def main(args: list[str]) -> None:
    options = parse(args)
    for name in ("limit", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: must be at least 1.")
    if options.limit and options.update_card:
        raise ValueError(
            f"limit={options.limit}: a card tells of whole data sets. Leave out --limit, or --update_card; --output writes "
            "figures of a part."
        )
    options.model_name_or_path = chosen_model(options.model_name_or_path)
    data = read_data(options)
    if options.update_card:
        check_card(options.model_name_or_path)
    results = measure(*load_measured(options), data, options)
    print(table(results))
    if options.output:
        with replacing(options.output) as file:
            rows = [asdict(result) for result in results]
            file.write((json.dumps({"model": options.model_name_or_path, "results": rows}, indent=1) + "\n").encode())
    if options.update_card:
        from magnet_hub.card import refresh_model_card
        from magnet_hub.results import write_eval_results

        write_eval_results(options.model_name_or_path, results)
        refresh_model_card(options.model_name_or_path)


def check_card(path: str) -> None:
    from magnet_hub.card import is_generated

    if not Path(path).is_dir():
        raise ValueError(f"update_card: {path!r} is no folder. Download the checkpoint first, or use --output.")
    if not is_generated(path):
        raise ValueError(
            f"update_card: the README.md of {path!r} is not a generated card, or was edited. Use --output."
        )


# ---------------------------------------------------------------------------------------------------------------- data


def read_data(options) -> list[tuple]:
    """The data to measure: tuples of ("stories" or "pairs", flag, name of the data, rows)."""
    from magnet_eval.embedding import read_graded_pairs
    from magnet_eval.stories import read_cloze, read_stories

    data = []
    if options.stories:
        path = Path(options.stories)
        file = path / "validation.jsonl" if path.is_dir() else path
        name = path.resolve().name if path.is_dir() else path.stem
        data.append(("stories", "--stories", name, read(read_stories, file, "stories", is_story)))
        if path.is_dir() and (path / "sts.tsv").is_file():
            data.append(("pairs", "--stories", name, read(read_graded_pairs, path / "sts.tsv", "stories", bool)))
    if options.sts:
        data.append(("pairs", "--sts", Path(options.sts).stem, read(read_graded_pairs, options.sts, "sts", bool)))
    if options.cloze:
        rows = [{"sentences": row} for row in read(read_cloze, options.cloze, "cloze", bool)]
        data.append(("stories", "--cloze", Path(options.cloze).stem, rows))
    if not data:
        raise ValueError("nothing to measure. Name --stories, --sts or --cloze.")
    return [(*what, rows[: options.limit]) for *what, rows in data]


def read(reader, path, flag: str, is_row) -> list:
    try:
        rows = reader(path)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{flag}={str(path)!r}: is not of the form that --help tells ({error!r}).") from error
    wrong = [number for number, row in enumerate(rows, start=1) if not is_row(row)]
    if wrong or not rows:
        where = f"row {wrong[0]}" if wrong else "an empty file"
        raise ValueError(f"{flag}={str(path)!r}: {where} is not of the form that --help tells.")
    return rows


def is_story(row) -> bool:
    sentences = row.get("sentences") if isinstance(row, dict) else None
    texts = sentences and [*sentences, *row.get("paraphrases", [])]
    same = not row.get("paraphrases") or len(row["paraphrases"]) == len(sentences) if texts else False
    return bool(same and all(isinstance(text, str) and text.strip() for text in texts))


# ------------------------------------------------------------------------------------------------------------ measuring


def load_measured(options):
    """The model, its tokenizer, and whether it is adapted (not a plain base)."""
    model, tokenizer = load_causal(options)
    kind = model.config.model_type
    if kind.startswith("magnet_"):
        return model, tokenizer, True
    from modeling_magnet import FAMILIES

    if kind not in FAMILIES:
        raise ValueError(
            f"model_name_or_path={model.name_or_path!r}: is a {kind} checkpoint. Known are {', '.join(FAMILIES)}."
        )
    return FAMILIES[kind].from_base(model).eval(), tokenizer, False


def measure(model, tokenizer, adapted: bool, data, options) -> list:
    from magnet_eval.checkpoint import measure_causal, measure_infilling, measure_retrieval, measure_similarity
    from magnet_eval.embedding import encode_causal

    def encode(texts):
        if not adapted:
            return encode_causal(model, texts, tokenizer, batch_size=options.batch_size)
        return model.encode(texts, tokenizer, batch_size=options.batch_size)

    results, infilling = [], measure_infilling if adapted else measure_causal
    for kind, flag, name, rows in data:
        command = told(options, flag, name)
        if kind == "pairs":
            results.append(measure_similarity(encode, rows, name, command))
            continue
        stories, every = [row["sentences"] for row in rows], not options.one_gap
        results += infilling(model, tokenizer, stories, name, command, every, options.batch_size)
        paraphrases = [text for row in rows for text in row.get("paraphrases", [])]
        sentences = [text for row in rows if row.get("paraphrases") for text in row["sentences"]]
        if paraphrases:
            results.append(measure_retrieval(encode, sentences, paraphrases, name, command))
    return results


def told(options, flag: str, name: str) -> str:
    """The command that reproduces this measurement, with names instead of local paths."""
    command = f"magnet evaluate --model_name_or_path {Path(options.model_name_or_path).name} --dtype {options.dtype}"
    command += f" {flag} {name}" + (" --one_gap" if options.one_gap else "")
    return command + (f" --limit {options.limit}" if options.limit else "")


def table(results) -> str:
    """
    The figures, one per line.

    >>> from magnet_hub.results import Measured
    >>> print(table([Measured("sentence-similarity", "sts", "spearman", 68.7, None, "Spearman x 100", [60.0, 75.5])]))
    data  measure         value  95 % interval
    sts   Spearman x 100  68.70  60.00 to 75.50
    """
    rows = [("data", "measure", "value", "95 % interval")]
    for result in results:
        interval = f"{result.interval[0]:.2f} to {result.interval[1]:.2f}"
        rows.append((result.dataset_name, result.metric_name, f"{result.value:.2f}", interval))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
