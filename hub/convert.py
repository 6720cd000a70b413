"""
Converts a checkpoint of MAGNET 0.1.0, which kept its adapter in PEFT layers, to the current format, in a new folder.

    python -m magnet_hub.convert OLD NEW

Tensors keep their values and get new names, code files are the installed ones; settings, tokenizer and evaluation
results are copied. OLD is not changed.
"""

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

import modeling_magnet

from .card import CARD, copy_card
from .eval_results import EVAL_RESULTS, read_eval_results, write_eval_results
from .push import files_to_push
from .save import check_output_dir, unfinished_folder
from .sentence_transformer import write_sentence_transformer_files
from .training_summary import CONFIGURATION, LOG
from .trust import check_source

NAMES = {".base_layer.": ".", ".lora_A.magnet.weight": "_lora.A", ".lora_B.magnet.weight": "_lora.B"}
INDEX = "model.safetensors.index.json"
NOT_COPIED = (CARD, EVAL_RESULTS, INDEX)


def convert_checkpoint(old: str | Path, new: str | Path) -> None:
    """
    Args:
        old (`str` or `Path`): The folder of a checkpoint, language model or classifier, in the old format.
        new (`str` or `Path`): A folder that does not exist yet, or is empty.

    Raises:
        `ValueError` if `new` is not empty, or the tensors do not match the configuration.
    """
    old, new = Path(old), Path(new)
    check_output_dir(new)
    check_source(old)
    config = AutoConfig.from_pretrained(old, trust_remote_code=False)
    with unfinished_folder(new) as folder:
        for file in [*files_to_push(old), CONFIGURATION, LOG]:
            if file.endswith(".safetensors"):
                weights = {renamed(key): tensor for key, tensor in load_file(old / file).items()}
                save_file(weights, folder / file, metadata={"format": "pt"})
            elif (old / file).is_file() and file not in NOT_COPIED and not file.endswith(".py"):
                (folder / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(old / file, folder / file)
        if (old / INDEX).is_file():
            index = json.loads((old / INDEX).read_text(encoding="utf-8"))
            index["weight_map"] = {renamed(key): file for key, file in index["weight_map"].items()}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for code in Path(modeling_magnet.__file__).parent.glob("*_magnet.py"):
            shutil.copyfile(code, folder / code.name)
        # raises if the tensors do not fit
        getattr(modeling_magnet, config.architectures[0]).from_pretrained(folder)
        if (folder / "modules.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            write_sentence_transformer_files(config, tokenizer, folder)
        if measured := read_eval_results(old):
            write_eval_results(folder, measured)
        if (old / CARD).is_file():
            copy_card(old, folder)


def renamed(key: str) -> str:
    """The new name of a tensor."""
    for before, after in NAMES.items():
        key = key.replace(before, after)
    return key


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="checkpoint folder")
    parser.add_argument("new", help="new or empty folder")
    folders = parser.parse_args(args)
    convert_checkpoint(folders.old, folders.new)
    print(f"written: {folders.new}")


if __name__ == "__main__":
    main()
