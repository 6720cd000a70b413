"""magnet paraphrase: makes sentence pairs for training from plain text with any sequence-to-sequence model."""

import logging

USAGE = """magnet paraphrase [--name value ...]

  magnet paraphrase --model_name_or_path prithivida/parrot_paraphraser_on_T5 --prefix "paraphrase: " \\
      --input texts.txt --output pairs.jsonl"""


def main(args: list[str]) -> None:
    from transformers import HfArgumentParser

    from magnet_train.data.paraphrase import ParaphraseArguments, paraphrase

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = HfArgumentParser(ParaphraseArguments, prog="magnet paraphrase", usage=USAGE, allow_abbrev=False)
    (arguments,) = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    paraphrase(arguments)
