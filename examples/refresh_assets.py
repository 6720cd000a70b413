"""Copies the model code of this clone into tests/assets/magnet-tiny, and rewrites its card. The weights do not change.

python examples/refresh_assets.py
"""

import shutil
from pathlib import Path

from transformers import AutoTokenizer

from magnet_hub.card import checkpoint_summary, write_model_card
from magnet_hub.sentence_transformer import write_sentence_transformer_files
from modeling_magnet import MagnetLlamaConfig

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "assets" / "magnet-tiny"


def main() -> None:
    summary = checkpoint_summary(FOLDER)
    for shipped in FOLDER.glob("*.py"):
        shipped.unlink()
    for source in (ROOT / "modeling_magnet").glob("*_magnet.py"):
        shutil.copyfile(source, FOLDER / source.name)
    config = MagnetLlamaConfig.from_pretrained(FOLDER)
    write_sentence_transformer_files(config, AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=False), FOLDER)
    write_model_card(config, FOLDER, summary=summary)


if __name__ == "__main__":
    main()
