#!/usr/bin/env bash
# The paper's recipes on SmolLM2-1.7B, which fits a GPU of 24 GB.
#
#   TEXTS=wiki.train.raw EVAL=test-sets examples/reproduce_smollm2_1_7b.sh
#   SLICE=1 examples/reproduce_smollm2_1_7b.sh      ten steps and a few texts, for less than 15 minutes
#   DRY_RUN=1 examples/reproduce_smollm2_1_7b.sh    every command on the tiny model of the tests
#
# TEXTS, EVAL, PAIRS and RIVALS are explained in reproduce_paper.sh. Repeat the command to resume. Hours of an RTX 4090, counted as
# in reproduce_llama2_7b.sh (4 x 1.7e9 operations a token, a third more, 40 % of 165e12 a second), for as many tokens, 69 million in
# 4200 steps: 2.6; with sentence pairs 3.1; llm2vec-mntp 0.6; llm2vec 1.9; magnet-sscl 0.5. The paper's numbers are of
# Llama-2-7B; the report shows them beside these.
set -euo pipefail
cd "$(dirname "$0")/.."

BASE=${BASE:-HuggingFaceTB/SmolLM2-1.7B}
BASE_CONFIG='{"vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
  "num_attention_heads": 32, "max_position_embeddings": 8192, "rope_theta": 130000, "tie_word_embeddings": true}'
# 32 rows and 64 pairs a step, 4 and 8 at a time
MEMORY="--dtype bfloat16 --activation_checkpointing true --per_device_train_batch_size 4 --gradient_accumulation_steps 8
  --per_device_pair_batch_size 8 --sample_by paragraph --text_start_token <|endoftext|>"
LLM2VEC_PAIRS="--per_device_pair_batch_size 16" # 128 a step
source examples/reproduce_paper.sh
