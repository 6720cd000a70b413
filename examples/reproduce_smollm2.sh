#!/usr/bin/env bash
# The paper's tables on SmolLM2-135M: MAGNET, its rivals with the same base, texts, rows and rank, and ablations with a third of
# that. The report is runs/reproduce_smollm2/report.
#
#   OPEN_TEXT=open-text PAIRS=pairs EVAL=test-sets examples/reproduce_smollm2.sh
#   DRY_RUN=1 examples/reproduce_smollm2.sh     every command on the tiny model of the tests
#
# OPEN_TEXT  wiki-2018, textbooks, novels, tales, tinystories, each .txt.gz: a document per line
# PAIRS      onestopenglish, wiki_turkcorpus, wiki_split, e2e_restaurants, each .tsv.gz: a sentence and its paraphrase per line
# EVAL       the test sets, by the names that magnet evaluate --help lists
# RIVALS     further systems, such as "fim-qwen=QWEN2.5-CODER-0.5B encoder-mpnet=MPNET encoder-minilm=MINILM encoder-bge=BGE"
# JUDGE      a language model for join bits that is none of the systems
#
# Repeat the command to resume: what is done is skipped. A step takes 10 to 14 s on two CPU cores, so MAGNET and each control
# about three hours, and the ablations about five together.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/reproduce_common.sh

POINTS="50 100 200 267" SAVED="--save_steps 50 --save_total_limit 9"
TEXTS=() PARAPHRASES=()
if [ -n "${DRY_RUN:-}" ]; then
  POINTS="1 2"
else
  BASE=${BASE:-runs/smollm2-base}
  for source in wiki-2018.txt.gz=20700:5500 textbooks.txt.gz=24:2000 novels.txt.gz=16000:2500 tales.txt.gz=571:4000 \
    tinystories.txt.gz=2286; do
    TEXTS+=(--source "${OPEN_TEXT:?names a folder of open text}/$source")
  done
  for source in onestopenglish=4245 wiki_turkcorpus=4644 wiki_split=3000 e2e_restaurants=600; do
    PARAPHRASES+=(--source "${PAIRS:?names a folder of paraphrases}/${source/=/.tsv.gz=}")
  done
  : "${EVAL:?names the folder of the test sets}"
fi

# ------------------------------------------------------------------------------------------------------- base and data
once "$BASE" magnet fetch smollm2-135m --output_dir "$BASE"
once "$RUNS/texts.txt" python examples/prepare_open_text.py --output_file "$RUNS/texts.txt" "${TEXTS[@]}" \
  --stories "$TRAIN" --copies 4
once "$RUNS/pairs.jsonl" python examples/prepare_pairs.py --output_file "$RUNS/pairs.jsonl" "${PARAPHRASES[@]}" \
  --stories "$TRAIN" --neighbours "$RUNS/texts.txt=13800"
test_sets
if [ -z "${DRY_RUN:-}" ] && [ ! -f "$RUNS/eval/documents/documents.txt" ]; then # the next 200 articles after those of the texts
  mkdir -p "$RUNS/eval/documents"
  gunzip -c "$OPEN_TEXT/wiki-2018.txt.gz" | sed -n "20701,20900p" >"$RUNS/eval/unfinished"
  mv "$RUNS/eval/unfinished" "$RUNS/eval/documents/documents.txt"
fi

# ------------------------------------------------------------------------------------------------------------- training
# Two phases for every system: 800 steps of 16 rows, then 90 steps of 8 rows and 40 pairs; a rank of 32 on all projections.
first() { # NAME FLAGS...
  train "$1" --config smollm2 --model_name_or_path "$BASE" --train_file "$RUNS/texts.txt" "${@:2}"
}
second() { # NAME CHECKPOINT FLAGS...
  train "$1" --config smollm2_sscl --model_name_or_path "$2" --train_file "$RUNS/texts.txt" \
    --pairs_file "$RUNS/pairs.jsonl" "${@:3}"
}

merged() { # NAME CHECKPOINT
  once "$RUNS/$1" magnet export --model_name_or_path "$2" --form merged --output_dir "$RUNS/$1"
}

first magnet-1
second magnet "$RUNS/magnet-1"
# the same weights with the adapter on in causal mode, as in the paper
merged magnet-paper "$RUNS/magnet"

# causal-LM: each row is one span
CAUSAL="--all_span_ratio 1 --causal_adapter true --lambda_mntp 0"
first causal-1 $CAUSAL
second causal "$RUNS/causal-1" $CAUSAL --lambda_sscl 0
# and with sentence pairs, all of it with causal attention
TRAINER="python examples/reproduce_contrastive.py" second causal-contrastive "$RUNS/causal-1" $CAUSAL

# fill-in-the-middle; a tenth of the rows stays as it is, as in MAGNET's first phase
FIM="--fim_ratio 0.9 --all_span_ratio 0.1 --max_spans 1 --gap_layout exact --clean_context_ratio 0 --causal_adapter true
  --lambda_mntp 0 --lambda_sscl 0"
first fim-1 $FIM
second fim "$RUNS/fim-1" $FIM

# LLM2Vec: MNTP, then SimCSE with the first sentences of the pairs
MNTP="--lambda_mntp 1 --lambda_msg 0 --max_spans 0 --all_span_ratio 0 --gap_layout exact"
ONLY_PAIRS="--lambda_mntp 0 --lambda_msg 0 --lambda_sscl 1 --mask_ratio 0 --max_spans 0 --gap_layout exact"
first llm2vec-mntp $MNTP --causal_adapter true --pooling mean --representation_prompt ""
second llm2vec "$RUNS/llm2vec-mntp" $ONLY_PAIRS --positives dropout --sscl_dropout 0.3

# ablations (Table 9), and MTP against MNTP (Figure 6), with a third of both phases
THIRD="--max_steps 267" LAST="--max_steps 30"
first mntp-1 $MNTP $THIRD $SAVED
first mtp $MNTP --mask_objective mtp $THIRD $SAVED
first msg-1 --lambda_mntp 0 --mask_ratio 0 $THIRD
first all-1 $THIRD $SAVED
second magnet-mntp "$RUNS/mntp-1" $MNTP --lambda_sscl 0 $LAST
second magnet-sscl "$BASE" $ONLY_PAIRS $LAST
second magnet-mntp-msg "$RUNS/all-1" --lambda_sscl 0 $LAST
second magnet-sscl-msg "$RUNS/msg-1" --lambda_mntp 0 --mask_ratio 0 $LAST
second magnet-all "$RUNS/all-1" $LAST

# ----------------------------------------------------------------------------------------------------------- evaluation
# One report, which holds the results of all these commands.
OURS="--model magnet=$RUNS/magnet"
if has "*arc_easy.jsonl"; then # first of all: is the base what its authors published?
  evaluate knowledge --model base="$BASE"
  evaluate knowledge $OURS --baseline $(named magnet-paper)
fi
evaluate infill repetition $OURS --baseline $(named magnet-paper)
evaluate sts norms $(if has "*conll*/valid.txt"; then echo words; fi) $OURS --baseline \
  $(named magnet-mntp magnet-sscl magnet-mntp-msg magnet-sscl-msg magnet-all)

# Figures 5 and 6: a system per step of the runs with a third of the training; for repetition, the adapter is on
for step in $POINTS; do
  merged "paper-$step" "$RUNS/all-1/checkpoint-$step"
  merged "llm2vec-$step" "$RUNS/mntp-1/checkpoint-$step"
done
evaluate repetition $OURS --baseline \
  $(for n in $POINTS; do echo "magnet-paper-$n=$RUNS/paper-$n llm2vec-mntp-$n=$RUNS/llm2vec-$n"; done)
evaluate mtp $OURS --baseline \
  $(for n in $POINTS; do echo "mtp-$n=$RUNS/mtp/checkpoint-$n magnet-mntp-$n=$RUNS/mntp-1/checkpoint-$n"; done)

evaluate all $OURS --baseline base="$BASE" $(named causal causal-contrastive fim llm2vec-mntp llm2vec) ${RIVALS:-}
finish
