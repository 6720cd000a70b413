"""magnet train --config default --model_name_or_path HuggingFaceTB/SmolLM2-135M --train_file texts.txt ..."""

OTHERS = """Also all of transformers' TrainingArguments: --help_all lists and explains them."""


def main(args: list[str]) -> None:
    if {"-h", "--help"} & set(args):
        from magnet_train.settings.help import train_help

        return print(train_help(OTHERS))
    if "--help_all" in args:
        return print(help_all())
    from magnet_train.run import run

    run(args)


def help_all() -> str:
    """Importing TrainingArguments takes seconds, so `--help` leaves them out."""
    from transformers import TrainingArguments

    from magnet_train.settings.help import help_of, train_help

    return train_help(f"transformers' {help_of(TrainingArguments)}")
