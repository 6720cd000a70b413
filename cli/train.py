"""magnet train --config default --model_name_or_path HuggingFaceTB/SmolLM2-135M --train_file texts.txt ..."""


def main(args: list[str]) -> None:
    from magnet_train.run import run

    run(args)
