"""Edits a story: named gaps with their own rules, alternatives, given candidates, and a streamed fill.

python examples/infill.py                     # magnet-smollm2-135m, which is fetched the first time
python examples/infill.py --model path/or/hub-id
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from magnet_hub.fetch import shipped_checkpoint
from modeling_magnet import Gap

STORY = """Mina slid a tray of rolls into her oven. <|gap:meanwhile|> She wrapped the rolls in foil. \
Her brother came home. <|gap:brother|> They ate the rolls together."""
GAPS = {
    "meanwhile": Gap(length=(6, 24), stop="sentence"),
    "brother": Gap(prefix="He was", stop="sentence", max_new_tokens=24),
}
BEGINNING = STORY.split(" Her brother")[0]


def named_gaps(model, tokenizer) -> None:
    print("-- one story, two gaps: the second is written knowing the first")
    output = model.infill(STORY, tokenizer, gaps=GAPS, return_dict=True)
    print(output.text)
    for gap in output.gaps:
        print(f"   {gap.name}: {gap.text!r}, ends by {gap.finish_reason}, characters {gap.span[0]}-{gap.span[1]}")


def alternatives(model, tokenizer) -> None:
    print("\n-- eight drafts of the first gap; the three behind which the story goes on best")
    sampling = {"do_sample": True, "top_p": 0.9, "num_candidates": 8, "num_return_sequences": 3}
    torch.manual_seed(1)
    gaps = {"meanwhile": GAPS["meanwhile"]}
    for output in model.infill(BEGINNING, tokenizer, gaps=gaps, return_dict=True, **sampling):
        print(f"   {output['meanwhile'].score:.2f}  {output['meanwhile'].text}")


def candidates(model, tokenizer) -> None:
    print("\n-- nothing is generated: which of these words fits")
    words = ["soup", "a stone", "the moon", "his boots"]
    parts = ["Tom was hungry. His mother cooked ", Gap(candidates=words, name="food"), ". He ate it all."]
    ranked = model.infill(parts, tokenizer, return_dict=True, num_return_sequences=len(words))
    for output in ranked:
        print(f"   {output['food'].score:7.2f}  {output['food'].text}")


def streaming(model, tokenizer) -> None:
    print("\n-- while it is written")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.infill(BEGINNING, tokenizer, stop="sentence", streamer=streamer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: magnet-smollm2-135m")
    args = parser.parse_args()
    folder = args.model or shipped_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for part in (named_gaps, alternatives, candidates, streaming):
        part(model, tokenizer)


if __name__ == "__main__":
    main()
