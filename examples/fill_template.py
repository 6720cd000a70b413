"""Fills the `<|gap:name|>` markers of a text file by the rules in a YAML or JSON file.

    python examples/fill_template.py examples/template.txt examples/template.yaml

`gaps` maps names to the arguments of Gap (length, prefix, stop, candidates, ...); every other key is an argument of
infill(), e.g. `order: parallel`, `do_sample: true`, `seed: 3`. The filled text goes to standard output or to --output.
"""

import argparse
import sys
from pathlib import Path

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from magnet_hub.fetch import shipped_checkpoint
from modeling_magnet import Gap


def read_rules(path: Path) -> tuple[dict[str, Gap], dict]:
    """Returns the gaps and the other arguments. JSON is valid YAML."""
    rules = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(rules, dict) or not isinstance(rules.get("gaps", {}), dict):
        raise ValueError(f"{path}: must be a mapping, and `gaps` in it a mapping of names to rules.")
    gaps = {}
    for name, rule in rules.pop("gaps", {}).items():
        if not isinstance(rule, dict) or set(rule) - set(Gap.__dataclass_fields__):
            fields = ", ".join(Gap.__dataclass_fields__)
            raise ValueError(f"{path}: gaps.{name}={rule!r}: must be a mapping with keys among {fields}.")
        gaps[name] = Gap(**rule)
    return gaps, rules


def fill(template: str, gaps: dict[str, Gap], arguments: dict, model, tokenizer):
    set_seed(arguments.pop("seed", 0))
    return model.infill(template, tokenizer, gaps=gaps, return_dict=True, **arguments)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("template", type=Path)
    parser.add_argument("rules", type=Path)
    parser.add_argument("--model", help="default: magnet-smollm2-135m, which is fetched the first time")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    folder = args.model or shipped_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    with args.template.open(encoding="utf-8", newline="") as file:  # keep line endings
        template = file.read()
    try:
        output = fill(template, *read_rules(args.rules), model, tokenizer)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for gap in output.gaps:
        print(f"{gap.name}: {gap.text!r} ({gap.finish_reason})", file=sys.stderr)
    if args.output:
        with args.output.open("w", encoding="utf-8", newline="") as file:
            file.write(output.text)
    else:
        print(output.text, end="")


if __name__ == "__main__":
    main()
