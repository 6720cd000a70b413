#!/usr/bin/env bash
# Makes tests/assets/magnet-tiny from tests/assets/magnet-tiny-base, and the causal-LM control it is compared with.
#   examples/make_magnet_tiny.sh novels.txt.gz tinystories.txt.gz
# Texts have one document a line. Both runs go side by side, with one thread each.
set -euo pipefail
cd "$(dirname "$0")/.."
novels=$1 tinystories=$2

python examples/prepare_tiny_data.py --text "$novels:10000" "$tinystories*3" \
  --stories examples/assets/everyday-stories/train.jsonl --output_dir runs/magnet-tiny-data

export OMP_NUM_THREADS=1
magnet train --config magnet_tiny --output_dir runs/magnet-tiny &
# next-token prediction is MSG with every token in one span: same base, adapter, texts, rows and steps
magnet train --config magnet_tiny --all_span_ratio 1 --lambda_mntp 0 --lambda_sscl 0 --causal_adapter true \
  --output_dir runs/magnet-tiny-control &
wait

python - <<'PYTHON'
import shutil
import torch
from transformers import AutoTokenizer
from modeling_magnet import MagnetLlamaForCausalLM
from magnet_hub.save import save_checkpoint

model = MagnetLlamaForCausalLM.from_pretrained("runs/magnet-tiny", dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained("runs/magnet-tiny", trust_remote_code=False)
save_checkpoint(model, tokenizer, "tests/assets/magnet-tiny")
for name in ("train_log.jsonl", "curves.png"):
    shutil.copy(f"runs/magnet-tiny/{name}", f"docs/magnet-tiny/{name}")
PYTHON
# two bytes a weight in the repository, float32 once loaded: no figure hangs on how a CPU rounds bfloat16
sed -i 's/"dtype": "bfloat16"/"dtype": "float32"/' tests/assets/magnet-tiny/config.json
python -m magnet_eval.stories --stories examples/assets/everyday-stories \
  --model tests/assets/magnet-tiny-base runs/magnet-tiny-control tests/assets/magnet-tiny \
  >docs/measured/stories.jsonl
