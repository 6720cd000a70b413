"""Makes examples/assets/magnet-smollm2-135m: the adapter of a trained checkpoint, which magnet fetch puts onto its base.

python examples/ship_adapter.py runs/smollm2-magnet
magnet fetch magnet-smollm2-135m --output_dir runs/shipped
magnet evaluate infill sts --model runs/shipped --data ... --update_card
python examples/ship_adapter.py runs/smollm2-magnet --measured runs/shipped      # again, with its results on the card
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from magnet_hub.card import write_model_card
from magnet_hub.eval_results import Measured, read_eval_results, write_eval_results
from magnet_hub.fetch import ASSETS, HUB_ID, PACKAGE
from magnet_hub.peft_adapter import write_adapter
from magnet_hub.training_summary import read_training_summary

METADATA = {"base_model": HUB_ID, "license": "apache-2.0", "language": "en"}
WANTED = ("adapter_config.json", "adapter_model.safetensors", "config.json", "eval_results.json", "README.md")
SOURCES = f"""
## Sources

* Base: [{HUB_ID}](https://huggingface.co/{HUB_ID}) (Apache-2.0) as the package `{PACKAGE}` has it: 4-bit weights (Q4_1),
  dequantised. The adapter was trained on these and is refused on others.
* Texts: passages of English Wikipedia articles begun in 2018 or later (CC BY-SA 3.0), of OpenStax textbooks
  (CC BY 4.0), fairy tales (public domain) and African Storybook (CC BY), English novels (public domain), TinyStories
  (CDLA-Sharing-1.0), everyday-stories (CC0).
* Sentence pairs: OneStopEnglish, WikiSplit and E2E restaurants (CC BY-SA 4.0), TurkCorpus (text of Wikipedia),
  everyday-stories (CC0), none of which has a sentence of STS12-16, STS-B or SICK; and neighbouring sentences of the texts.
* The adapter: Apache-2.0.
"""


def ship_adapter(checkpoint: Path, folder: Path, measured: list[Measured]) -> None:
    """Writes adapter and settings, both in bfloat16, and the card of the complete checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    summary = read_training_summary(checkpoint, METADATA)
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "adapter"
        write_adapter(model, tokenizer, written, None, summary)
        settings = json.loads((written / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = f"{PACKAGE} ({HUB_ID}, Q4_1)"
        (written / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        model.config.save_pretrained(written)
        shutil.copytree(checkpoint / "1_Pooling", written / "1_Pooling")  # the card names pooling, prompts and code
        for path in (checkpoint / "config_sentence_transformers.json", *checkpoint.glob("*_magnet.py")):
            shutil.copy(path, written)
        write_eval_results(written, measured)
        write_model_card(model.config, written, "magnet", summary)
        if measured:  # --update_card, which comes before, changes no edited card
            with (written / "README.md").open("a", encoding="utf-8") as card:
                card.write(SOURCES)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in WANTED:  # magnet fetch writes the rest anew
            shutil.copyfile(written / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--measured", type=Path, help="the fetched checkpoint, after magnet evaluate --update_card")
    args = parser.parse_args()
    folder = ASSETS / "magnet-smollm2-135m"
    ship_adapter(args.checkpoint, folder, read_eval_results(args.measured) if args.measured else [])
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
