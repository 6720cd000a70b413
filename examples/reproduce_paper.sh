# Sourced by reproduce_llama2_7b.sh and reproduce_smollm2_1_7b.sh, which set BASE, BASE_CONFIG and MEMORY: the recipes of the paper
# and of its baselines, with the paper's budget, on one GPU.
#
# TEXTS  Wikitext-103, train split, raw: wiki.train.raw        EVAL  test sets, as for reproduce_smollm2.sh
# PAIRS  sentence pairs, {"text", "positive"} a line; by default paraphrases of TEXTS by a T5 model of the Hub
# Similarity, clustering and knowledge come through mteb and lm-eval, which download their data: pip install 'magnet-llm[eval]'.
#
# SLICE=1    ten steps of each of the two main runs, and infilling, similarity, norms and modes on a few texts: speed, memory and that
#            it works, sized for less than 15 minutes. Unless BASE is a folder, random weights of its size stand in.
# DRY_RUN=1  every command on the tiny model of the tests
source examples/reproduce_common.sh

if [ -n "${DRY_RUN:-}${SLICE:-}" ]; then
  TEXTS=$RUNS/texts.txt PAIRS=$RUNS/pairs.jsonl
  once "$TEXTS" python examples/prepare_open_text.py --output_file "$TEXTS" --stories "$TRAIN" --copies 4
  once "$PAIRS" python examples/prepare_pairs.py --output_file "$PAIRS" --stories "$TRAIN"
fi
if [ -n "${SLICE:-}" ] && [ -z "${DRY_RUN:-}" ]; then
  EVAL=${EVAL:-$STORIES}
  EVALUATE="--limit 20" TABLES="infill sts norms modes"
  TINY="--max_steps 10 --sscl_start_step 5 --logging_steps 1 --save_strategy no"
  if [ ! -d "$BASE" ]; then
    BASE=$RUNS/random-base TINY="$TINY --text_start_token <s>"
    once "$BASE" python - "$BASE" "$BASE_CONFIG" <<'PYTHON'
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

folder, config = sys.argv[1:]
with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**json.loads(config)), dtype=torch.bfloat16)
model.save_pretrained(folder)
AutoTokenizer.from_pretrained("tests/assets/magnet-tiny-base").save_pretrained(folder)
PYTHON
  fi
fi
PAIRS=${PAIRS:-$RUNS/pairs.jsonl}
: "${TEXTS:?names the training texts}" "${EVAL:?names the folder of the test sets}"
if [ -z "${DRY_RUN:-}${SLICE:-}" ]; then
  once "$PAIRS" magnet paraphrase --model_name_or_path prithivida/parrot_paraphraser_on_T5 --prefix "paraphrase: " \
    --input "$TEXTS" --unit line --output "$PAIRS"
fi
test_sets

# ------------------------------------------------------------------------------------------------------------- training
recipe() { # NAME RECIPE FLAGS...
  train "$1" --config "$2" --model_name_or_path "$BASE" --train_file "$TEXTS" $MEMORY "${@:3}"
}
recipe magnet-paper paper --pairs_file "$PAIRS" # Tables 1 to 8
recipe magnet default --pairs_file "$PAIRS"     # ours: gaps that end by themselves, causal mode the base's
SYSTEMS="magnet-paper"
if [ -z "${SLICE:-}" ]; then
  recipe causal clm_control
  recipe fim fim_control
  recipe llm2vec-mntp llm2vec_mntp
  recipe llm2vec llm2vec $LLM2VEC_PAIRS
  recipe mtp mtp
  recipe magnet-mntp ablation_mntp
  recipe magnet-sscl ablation_sscl --pairs_file "$PAIRS"
  recipe magnet-mntp-msg ablation_mntp_msg
  recipe magnet-sscl-msg ablation_sscl_msg --pairs_file "$PAIRS"
  SYSTEMS="magnet-paper causal fim llm2vec-mntp llm2vec"
fi

# ----------------------------------------------------------------------------------------------------------- evaluation
if [ -z "${DRY_RUN:-}" ]; then
  EVALUATE="${EVALUATE:-} --dtype bfloat16"
fi
if [ -z "${SLICE:-}" ]; then
  evaluate sts norms $(if has "*conll*/valid.txt"; then echo words; fi) --model magnet="$RUNS/magnet" --baseline \
    $(named magnet-mntp magnet-sscl magnet-mntp-msg magnet-sscl-msg)
  evaluate mtp --model magnet="$RUNS/magnet" --baseline $(named mtp magnet-mntp)
fi
evaluate ${TABLES:-all} --model magnet="$RUNS/magnet" --baseline base="$BASE" $(named $SYSTEMS) ${RIVALS:-}
if [ -z "${DRY_RUN:-}${SLICE:-}" ]; then # sets that mteb and lm-eval download, as a report of their own each
  for table in "sts STS12 STS13 STS14 STS15 STS16 STSBenchmark SICK-R" \
    "clustering BiorxivClusteringS2S TwentyNewsgroupsClustering MedrxivClusteringS2S" \
    "knowledge hellaswag bbh_fewshot arc_easy arc_challenge nq_open mmlu"; do
    magnet evaluate ${table%% *} --tasks ${table#* } --out "$RUNS/report-${table%% *}" --dtype bfloat16 \
      --model magnet="$RUNS/magnet" --baseline base="$BASE" $(named magnet-paper llm2vec-mntp llm2vec)
  done
fi
finish
