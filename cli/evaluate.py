"""magnet evaluate: the paper's tables and figures for a checkpoint and its baselines, with intervals, in one report.

    magnet evaluate infill sts --model runs/smol --update_card
    magnet evaluate all --model runs/magnet --data data/ --out report/ \\
        --baseline base=smollm2 causal=runs/clm fim=runs/fim llm2vec=runs/llm2vec --judge runs/judge

The name of a baseline starts with its kind: base, causal, fim, llm2vec, mtp, encoder or magnet. Add a suffix to compare
several, as in causal-r64; a number is a training step, as in magnet-400. Results are kept in the report folder and reused
while weights, data and settings stay the same, and the report shows all of them: systems can be evaluated one at a time.
--fast uses a few texts of each set.
"""

import argparse
import shlex
from pathlib import Path

import magnet_assets

from .model import add_model_flags, chosen_model, load_causal, torch_device
from .parser import Parser

CARD = {  # measures shown in a model card: Hub task, metric, task name, and the metric's name for each way
    "perplexity": (
        "text-generation",
        "perplexity",
        "Infilling",
        {
            "given length": "perplexity of the missing text, given length",
            "free length + END": "perplexity of the missing text and its end",
            "left to right": "the same from the left alone, causal mode",
        },
    ),
    "perplexity of whole texts, causal mode": (
        "text-generation",
        "perplexity",
        "Generation",
        {"whole texts": "perplexity of whole texts, causal mode"},
    ),
    "Spearman x 100": (
        "sentence-similarity",
        "spearman",
        "Sentence similarity",
        {"own prompt": "Spearman x 100", "": "Spearman x 100, instruction of STS"},
    ),
    "retrieval, top-1 %": (
        "sentence-similarity",
        "accuracy",
        "Retrieval of paraphrases",
        {"own prompt": "top-1, percent", "": "top-1, percent, instruction of STS"},
    ),
}


def parse(args: list[str]):
    parser = Parser("magnet evaluate", __doc__)
    parser.add_argument("tables", nargs="+", help="words, sts, clustering, infill, appropriate, repetition, knowledge, norms, "
                        "ablation, prompting, generations, mtp, modes; or all: those with data")  # fmt: skip
    parser.add_argument("--model", dest="model_name_or_path", help="alias of --model_name_or_path; may be NAME=PATH")
    parser.add_argument("--baseline", nargs="+", default=[], metavar="NAME=PATH", help="checkpoints to compare with")
    parser.add_argument(
        "--data",
        default=str(Path(magnet_assets.__file__).with_name("everyday-stories")),
        help="data folder, with validation.jsonl (sentences, paraphrases), cloze2016_val.tsv, sts/*.tsv or sts.tsv (score, "
        "sentence, sentence), wiki.valid.raw, documents.txt (one per line), conll2003/train.txt and valid.txt, "
        "clustering/*.tsv (label, text), arc_easy.jsonl, lm_eval/*.yaml, code/*.py, "
        "at any depth (default: the shipped everyday-stories)",
    )
    parser.add_argument("--out", default="report", help="report folder (default: report)")
    parser.add_argument("--judge", help="independent language model, for the join bits of fills")
    parser.add_argument("--tasks", nargs="+", default=[], help="mteb or lm-eval tasks; downloads their data")
    parser.add_argument("--train_file", nargs="+", help="training text to search for evaluation text (default: the files "
                        "in the checkpoints' training_config.yaml)")  # fmt: skip
    parser.add_argument("--limit", type=int, help="use the first LIMIT stories, pairs, documents of each set")
    parser.add_argument("--fast", action="store_true", help="use a few of each, as a smoke test")
    parser.add_argument("--batch_size", type=int, default=16, help="batch size (default: 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--update_card",
        action="store_true",
        help="write eval_results.json and the model card of the checkpoint; full data sets only",
    )
    add_model_flags(parser, dtype="float32")
    return parser.parse_args(args)


def main(args: list[str]) -> None:
    options = parse(args)
    for name in ("limit", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: must be at least 1.")
    if options.update_card and (options.limit or options.fast):
        raise ValueError(
            f"limit={options.limit}, fast={options.fast}: a model card needs full data sets. Drop these, or --update_card."
        )
    if not Path(options.data).is_dir():
        raise ValueError(f"data={options.data!r}: no such folder.")
    if len(options.tasks) and len(options.tables) > 1 or options.tasks and options.tables == ["all"]:
        raise ValueError(f"tables={options.tables}: --tasks needs a single table: sts, clustering or knowledge.")
    from magnet_eval.data import Settings, overlaps, training_files
    from magnet_eval.report import markdown_table, write_report
    from magnet_eval.run import provenance, run, table_module

    for name in options.tables if options.tables != ["all"] else ():
        table_module(name)
    systems = named_systems(options)
    if options.update_card:
        check_card(systems[0][1])
    settings = Settings(
        Path(options.data), options.limit, options.fast, options.batch_size, options.seed, tasks=tuple(options.tasks)
    )
    load = loader(options, start_token(systems, options))
    settings.judge = load("base", options.judge) if options.judge else None
    out, about = Path(options.out), provenance(told(options, systems), settings, options.dtype)
    results, left_out = run(options.tables, systems, settings, out, about, load)
    named = [file for _, path in systems for file in training_files(path)]
    training = list(dict.fromkeys(map(Path, named if options.train_file is None else options.train_file)))
    gone = [path.name for path in training if not path.is_file()]
    training = [path for path in training if path.is_file()]
    found = overlaps(settings, training)
    if gone or not training:
        what = f"not at hand: {', '.join(gone)}" if gone else "no training text is at hand"
        left_out["evaluation text in the training text"] = f"{what}. Pass --train_file"
    pivots = write_report(results, left_out, systems[0][0], out, found)
    for name, pivot in pivots.items():
        rows = [
            [row, *(f"{cells[c].value:.2f}" if c in cells else "" for c in pivot.columns)]
            for row, cells in pivot.cells.items()
        ]
        if rows:
            print(f"{name}\n\n{markdown_table(['', *pivot.columns], rows)}\n")
    print(f"Written: {out}/report.html, report.md and results.json, with intervals and comparisons.")
    if options.update_card:
        update_card(results, *systems[0])


def named_systems(options) -> list[tuple[str, str]]:
    """Names and paths of the model and its baselines."""
    from transformers import PreTrainedConfig

    from magnet_eval.systems import System

    given = options.model_name_or_path
    if given and "=" in given:
        systems = [tuple(given.split("=", 1))]
    else:
        path = chosen_model(given)
        settings, _ = PreTrainedConfig.get_config_dict(path, revision=options.revision)
        systems = [("magnet" if str(settings.get("model_type")).startswith("magnet_") else "base", path)]
    for baseline in options.baseline:
        if "=" not in baseline:
            raise ValueError(f"baseline={baseline!r}: must be NAME=PATH, as in base=smollm2.")
        systems.append(tuple(baseline.split("=", 1)))
    for name, path in systems:
        System(name)
        chosen_model(path)
    if len({name for name, _ in systems}) < len(systems):
        raise ValueError(
            f"baseline: the names {[name for name, _ in systems]} must differ, such as causal and causal-2."
        )
    return systems


def revision_of(path: str, options) -> str | None:
    """`--revision` is the model's; the baselines are other repositories."""
    return options.revision if path == (options.model_name_or_path or "").split("=", 1)[-1] else None


def start_token(systems, options) -> str | None:
    """The token that opens every text of the first checkpoint that names one."""
    from transformers import AutoTokenizer, PreTrainedConfig

    from magnet_eval.systems import System

    for path in [path for name, path in systems if System(name).kind != "encoder"]:
        settings, _ = PreTrainedConfig.get_config_dict(path, revision=revision_of(path, options))
        if (token := settings.get("text_start_token_id")) is not None:
            return AutoTokenizer.from_pretrained(path, trust_remote_code=False).convert_ids_to_tokens(token)
    return None


def loader(options, start: str | None = None):
    """
    A function that loads a system from its name and path. Stock models open a text with the token `start` if their
    tokenizer has it and adds none of its own; otherwise nothing would predict a text's first token.
    """

    def load(name: str, path: str):
        from magnet_eval.systems import System, load_system
        from modeling_magnet import FAMILIES

        if System(name).kind == "encoder":
            return load_system(name, path, device=torch_device(options.device))
        given = {"model_name_or_path": path, "revision": revision_of(path, options)}
        model, tokenizer = load_causal(argparse.Namespace(**vars(options) | given))
        kind = model.config.model_type
        if not kind.startswith("magnet_"):
            if kind not in FAMILIES:
                raise ValueError(f"{name}={path}: {kind} models are not supported. Use one of {', '.join(FAMILIES)}.")
            fields = {}
            if start in tokenizer.get_vocab() and not tokenizer("")["input_ids"]:
                fields = {"text_start_token_id": tokenizer.convert_tokens_to_ids(start)}
            model = FAMILIES[kind].from_base(model, **fields).eval()
        return System(name, model, tokenizer, path)

    return load


def told(options, systems) -> str:
    """The command that reproduces the results, with names instead of local paths."""
    words = ["magnet", "evaluate", *options.tables, "--model", f"{systems[0][0]}={Path(systems[0][1]).name}"]
    if systems[1:]:
        words += ["--baseline", *(f"{name}={Path(path).name}" for name, path in systems[1:])]
    words += ["--data", Path(options.data).resolve().name, "--dtype", options.dtype, "--seed", str(options.seed)]
    for name in ("limit", "judge"):
        if value := getattr(options, name):
            words += [f"--{name}", Path(str(value)).name]
    return shlex.join(
        [*words, *(["--tasks", *options.tasks] if options.tasks else []), *(["--fast"] if options.fast else [])]
    )


# ----------------------------------------------------------------------------------------------------------- model card


def check_card(path: str) -> None:
    from magnet_hub.card import is_generated

    if not Path(path).is_dir():
        raise ValueError(
            f"update_card: {path!r} is not a folder. Download the checkpoint first, or drop --update_card."
        )
    if not is_generated(path):
        raise ValueError(
            f"update_card: the README.md of {path!r} is not a generated card, or was edited. Drop --update_card."
        )


def update_card(results, name: str, path: str) -> None:
    """Writes the model's `infill` and `sts` results into its card."""
    from magnet_hub.card import refresh_model_card
    from magnet_hub.eval_results import Measured, write_eval_results

    measured = []
    for result in results:
        for figure in result.figures if result.system == name else ():
            if figure.measure in CARD and figure.way in CARD[figure.measure][-1]:
                task, metric, words, ways = CARD[figure.measure]
                interval = figure.estimate.interval and [round(end, 2) for end in figure.estimate.interval]
                value, command = round(figure.value, 2), result.about["command"]
                measured.append(Measured(task, figure.data, metric, value, words, ways[figure.way], interval, command))
    if not measured:
        raise ValueError("update_card: a card shows infill and sts, and neither was evaluated. Add one of them.")
    write_eval_results(path, measured)
    refresh_model_card(path)
