# Sourced by reproduce_*.sh; it runs nothing by itself.
#
#   train NAME FLAGS...   magnet train into $RUNS/NAME, unless it is there; an interrupted run is resumed
#   once PATH COMMAND...  COMMAND, unless PATH is there
#   evaluate ...          magnet evaluate into $RUNS/report
#   named NAME...         NAME=$RUNS/NAME, as --baseline takes it
#
# With DRY_RUN=1 every command runs on the tiny model of the tests, with $TINY after its own flags. The commands are collected and
# `finish` runs them in one process: importing torch would take longer than most of them.

RUNS=${RUNS:-runs/${DRY_RUN:+dry-}$(basename "$0" .sh)}
PYTHON=${PYTHON:-python}
STORIES=examples/assets/everyday-stories
TRAIN=$STORIES/train.jsonl
TINY=
mkdir -p "$RUNS"

if [ -n "${DRY_RUN:-}" ]; then
  BASE=tests/assets/magnet-tiny-base
  EVAL=$STORIES
  EVALUATE="--fast --limit 6"
  TRAIN=$RUNS/stories.jsonl
  head -n 40 $STORIES/train.jsonl >"$TRAIN"
  TINY="--max_steps 2 --sscl_start_step 0 --warmup_steps 0 --save_strategy steps --save_steps 1 --save_total_limit 2
    --logging_steps 1 --use_cpu true --dtype float32 --bf16 false --text_start_token <s> --disable_tqdm true
    --gradient_accumulation_steps 1 --per_device_train_batch_size 4 --per_device_pair_batch_size 8
    --max_length 96 --pair_max_length 48 --span_max 32 --min_words 5 --free_offset 8 --long_free_offset 40"
  : >"$RUNS/commands.txt"
fi

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@" >>"$RUNS/commands.txt"
    echo >>"$RUNS/commands.txt"
  elif [ "$1" = python ]; then
    "$PYTHON" "${@:2}"
  else
    "$@"
  fi
}

train() { # of a checkpoint, config.json is written last
  if [ ! -f "$RUNS/$1/config.json" ]; then
    run ${TRAINER:-magnet train} "${@:2}" $TINY --output_dir "$RUNS/$1" --resume true
  fi
}

once() {
  if [ ! -e "$1" ]; then
    run "${@:2}"
  fi
}

evaluate() { run magnet evaluate "$@" --out "$RUNS/report" --data "$RUNS/eval" ${EVALUATE:-} ${JUDGE:+--judge "$JUDGE"}; }

named() { for name in "$@"; do echo "$name=$RUNS/$name"; done; }

has() { [ -n "$(find "$RUNS/eval" -path "$1" -print -quit)" ]; }

test_sets() { # a copy of $EVAL, and code that no model has read: this repository's
  if [ ! -d "$RUNS/eval" ]; then
    rm -rf "$RUNS/eval.part"
    mkdir -p "$RUNS/eval.part/code"
    cp -RL "$EVAL" "$RUNS/eval.part/"
    chmod -R u+w "$RUNS/eval.part"
    cat evaluation/*.py >"$RUNS/eval.part/code/code.py"
    mv "$RUNS/eval.part" "$RUNS/eval"
  fi
}

finish() {
  if [ -n "${DRY_RUN:-}" ]; then
    "$PYTHON" - "$RUNS/commands.txt" <<'PYTHON'
import runpy
import shlex
import sys
from pathlib import Path

from magnet_cli.main import main

for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    print(f"$ {line}", flush=True)
    program, *args = shlex.split(line)
    if program == "magnet":
        main(args)
    else:
        sys.argv = args
        runpy.run_path(args[0], run_name="__main__")
PYTHON
  fi
  echo "Report: $RUNS/report/report.html"
}
