"""magnet paraphrase --model_name_or_path prithivida/parrot_paraphraser_on_T5 --input texts.txt --output pairs.jsonl"""

import logging
import sys


def main(args: list[str]) -> None:
    from transformers import HfArgumentParser

    from magnet_train.paraphrase import ParaphraseArguments, paraphrase

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = HfArgumentParser(ParaphraseArguments, prog="magnet paraphrase", allow_abbrev=False)
    try:
        (arguments,) = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
        paraphrase(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"magnet paraphrase: {error}")
