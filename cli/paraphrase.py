"""magnet paraphrase: makes sentence pairs for training from plain text with any sequence-to-sequence model.

    magnet paraphrase --model_name_or_path prithivida/parrot_paraphraser_on_T5 --prefix "paraphrase: " \\
        --input texts.txt --output pairs.jsonl
"""

import logging


def main(args: list[str]) -> None:
    if {"-h", "--help"} & set(args):
        from magnet_train.data.paraphrase_arguments import ParaphraseArguments
        from magnet_train.settings.help import help_of

        return print(f"usage: magnet paraphrase [--name value ...]\n\n{__doc__}\n{help_of(ParaphraseArguments)}")
    from transformers import HfArgumentParser

    from magnet_train.data.paraphrase import ParaphraseArguments, paraphrase

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = HfArgumentParser(ParaphraseArguments, prog="magnet paraphrase", allow_abbrev=False)
    (arguments,) = parser.parse_args_into_dataclasses(args, look_for_args_file=False)
    paraphrase(arguments)
