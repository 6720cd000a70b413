"""Uses an installed wheel as a user would: python use_wheel.py PATH_TO_ASSETS, from a folder outside the checkout."""

import subprocess
import sys
from pathlib import Path

import modeling_magnet
from magnet_train.settings.recipes import read_recipe

assets = Path(sys.argv[1]).resolve()
assert "site-packages" in modeling_magnet.__file__, "the checkout was imported, not the wheel"
assert read_recipe("paper")["mask_ratio"] == 0.2, "the recipes are not in the wheel"

magnet = Path(sys.executable).with_name("magnet")
flags = ["--model_name_or_path", str(assets / "magnet-tiny")]
text = "Tom was hungry. <|gap|> He was full."
for command in (
    ["--help"],
    ["infill", text, *flags, "--length", "8"],
    ["check", str(assets / "magnet-tiny")],
    ["evaluate", "infill", "--limit", "5", *flags],
):
    done = subprocess.run([magnet, *command], check=True, capture_output=True, text=True)
    print(done.stdout)
    assert command[0] != "infill" or (done.stdout.startswith("Tom was hungry.") and "<|gap|>" not in done.stdout)
