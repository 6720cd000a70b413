"""Copies the model code of this clone into examples/assets/magnet-tiny, with hashes anew; the weights stay as they are.

python examples/refresh_assets.py
"""

import shutil
from pathlib import Path

from modeling_magnet import MagnetLlamaConfig
from modeling_magnet.model_card import write_model_card
from modeling_magnet.sentence_transformer import write_sentence_transformer_files

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "assets" / "magnet-tiny"

for shipped in FOLDER.glob("*.py"):
    shipped.unlink()
for source in (ROOT / "modeling_magnet").glob("*_magnet.py"):
    shutil.copyfile(source, FOLDER / source.name)
config = MagnetLlamaConfig.from_pretrained(FOLDER)
write_sentence_transformer_files(config, FOLDER)
write_model_card(config, FOLDER)
