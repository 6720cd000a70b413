#!/usr/bin/env bash
# The paper, on the paper's base: Llama-2-7B on one GPU of 80 GB.
#
#   TEXTS=wiki.train.raw EVAL=test-sets examples/reproduce_llama2_7b.sh
#   SLICE=1 examples/reproduce_llama2_7b.sh      ten steps and a few texts, for less than 15 minutes
#   DRY_RUN=1 examples/reproduce_llama2_7b.sh    every command on the tiny model of the tests
#
# TEXTS, EVAL, PAIRS and RIVALS are explained in reproduce_paper.sh. Repeat the command to resume.
#
# Hours of an A100, counted and not measured: 4 x 6.7e9 operations for each of a run's tokens (LoRA needs no gradients of the
# weights), a third more for activation checkpointing, at 40 % of the GPU's 312e12 a second.
#
#   run                                     million tokens   hours   the paper's numbers (docs/results.md has a column for yours)
#   magnet-paper, magnet                        69 + 13        6.5   words 92.64 98.31 93.34; STS 79.36; ROC 9.52, Wikitext 15.46
#   causal, fim                                    69          5.5   base, left to right: ROC 13.93, Wikitext 22.04
#   llm2vec-mntp                                   16          1.3   words 91.61 97.16 92.61
#   llm2vec                                     16 + 33        3.9   STS 75.92; Rep-4 .4747 and .5243, MAGNET's .2047 and .2573
#   mtp, magnet-mntp, magnet-mntp-msg              69          5.5   words 92.44 98.11 93.18 and 92.51 98.20 93.38
#   magnet-sscl                                    13          1.0   STS12-16 69.06 84.53 78.07 84.09 78.52
#   magnet-sscl-msg                             69 + 13        6.5   STS12-16 68.46 84.52 77.33 84.35 79.17
set -euo pipefail
cd "$(dirname "$0")/.."

BASE=${BASE:-meta-llama/Llama-2-7b-hf}
BASE_CONFIG='{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
  "num_attention_heads": 32, "max_position_embeddings": 4096}'
# 32 rows and 64 pairs a step, 8 and 16 at a time; docs/scale.md has the memory
MEMORY="--dtype bfloat16 --activation_checkpointing true --per_device_train_batch_size 8 --gradient_accumulation_steps 4
  --per_device_pair_batch_size 16 --sample_by paragraph"
LLM2VEC_PAIRS="--per_device_pair_batch_size 32" # 128 a step
source examples/reproduce_paper.sh
