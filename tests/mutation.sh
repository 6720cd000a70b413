#!/usr/bin/env bash
# Changes the attention rule, losses, views and seams one operator at a time, and runs the tests that reach the change.
#   pip install mutmut==3.8.1; tests/mutation.sh [folder]        about 20 minutes on one core; `mutmut results` lists survivors
# mutmut wants the installed names as folders, so the packages are copied under those.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
folder=${1:-$(mktemp -d)}
mkdir -p "$folder/tests" "$folder/examples"
for package in train hub evaluation cli; do
  name=magnet_${package/evaluation/eval}
  cp -r "$root/$package" "$folder/$name"
done
cp -r "$root/modeling_magnet" "$root/configuration_magnet" "$folder"
cp -r "$root/examples/assets" "$folder/examples"
cp -r "$root/tests/assets" "$folder/tests"
for test in conftest families reference infilling training test_modes test_losses test_views test_objectives test_data \
  test_infill_text test_configuration test_faults surviving; do
  cp "$root/tests/$test.py" "$folder/tests"
done
cat >"$folder/pyproject.toml" <<END
[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = "-p no:xdist -p no:cacheprovider -m 'not slow and not gpu and not hub' -k 'not test_tests_named and not test_every_fault and not test_the_faults_are'"
markers = ["slow", "gpu", "shared", "hub"]
[tool.mutmut]
source_paths = ["modeling_magnet", "magnet_train"]
only_mutate = ["magnet_train/views.py", "magnet_train/losses.py", "modeling_magnet/modeling_magnet.py", "modeling_magnet/infilling_magnet.py"]
also_copy = ["configuration_magnet", "magnet_hub", "magnet_eval", "magnet_cli", "examples"]
pytest_add_cli_args_test_selection = ["tests"]
use_git_change_detection = false
END
cd "$folder"
rule="modeling_magnet.modeling_magnet.x_" seams="modeling_magnet.infilling_magnet.x_"
OMP_NUM_THREADS=1 "$python" -m mutmut run --max-children "${MUTANTS_AT_ONCE:-1}" "magnet_train.views.*" "magnet_train.losses.*" \
  "$rule"{span_attention_rule,window_rule,both,span_ids_from_mask,check_span_ids,_changes}"*" \
  "$seams"{split_at_gaps,healed,context_ids,continuation_ids,fill_ids,fill_text,cut_at,overlap,start_tokens}"*"
echo "$folder"
