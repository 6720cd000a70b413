"""magnet demo: SmolLM2-135M as a MAGNET model, shown in a few minutes on two cores.

    magnet demo --output_dir runs/demo

Fetches the base and puts the shipped adapter on it (once; offline afterwards). Then: its results measured again on a
slice, gaps filled, nearest sentences, a continuation equal to the base's, and a minute of training.
"""

import sys
import time
from pathlib import Path

from .evaluate import CARD
from .parser import Parser

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "assets"  # in a clone only
SLICE = 14  # every 14th held-out story is measured again
FILLED = 8
RIVER = (  # written for this demo, in the manner of an encyclopedia
    "The Elva is a river in the north of the province. It rises in the marshes above Tarn and flows west for ninety "
    "kilometres. <|gap|> Since the dam was built, the floods have stopped, and the town draws its drinking water from the "
    "lake behind it."
)
CHOICE = (
    "Nadia opened the letter with shaking hands. <|gap|> She had been accepted, and she danced around the kitchen."
)
TEMPLATE = "On Saturday the children went to the <|gap:place|>. <|gap:deed|> They came home with sand in their shoes."
QUERIES = ("Someone repaired a vehicle.", "The pet was lost and then found.", "It was raining too hard to go outside.")
PROMPT = "The three most important things to pack for a hike are"


def main(args: list[str]) -> None:
    parser = Parser("magnet demo", __doc__)
    parser.add_argument(
        "--output_dir", default="runs/demo", help="output folder for report.md, curves.png and the log"
    )
    parser.add_argument("--train_seconds", type=float, default=60, help="duration of the training (default: 60)")
    options = parser.parse_args(args)

    from transformers.utils import logging

    logging.set_verbosity_error()
    demo(Path(options.output_dir), options.train_seconds)


def demo(output_dir: Path, train_seconds: float) -> str:
    """Prints the report part by part, and writes it to `report.md`."""
    from magnet_eval.data import read_stories
    from magnet_eval.systems import load
    from magnet_hub.fetch import ASSETS

    checkpoint, base = models()
    start, parts = time.monotonic(), []

    def tell(title: str, text: str) -> None:
        parts.append(f"## {title}\n\n{text}")
        print(f"\n{parts[-1]}", flush=True)

    stories = ASSETS / "everyday-stories"
    held_out = read_stories(stories / "validation.jsonl")
    model, tokenizer = load(str(checkpoint))
    tell(f"{checkpoint.name}, measured", measured(model, tokenizer, stories, checkpoint))
    tell("Gaps filled, length free", fills(model, tokenizer, held_out))
    tell("Nearest sentences", nearest(model, tokenizer, held_out))
    tell("Generation", continuation(model, tokenizer, base))
    del model
    tell("A minute of training", training(base, read_stories(stories / "train.jsonl"), output_dir, train_seconds))
    report = "# MAGNET demo\n\n" + "\n\n".join([*parts, f"Computed in {time.monotonic() - start:.0f} s."])
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "report.md").write_text(report + "\n", encoding="utf-8")
    print(f"\n{report.splitlines()[-1]} Written: {output_dir}/report.md, curves.png and train_log.jsonl.")
    return report


def models() -> tuple[Path, Path]:
    """The MAGNET checkpoint to show, and its base."""
    from magnet_hub.fetch import from_package, shipped_checkpoint

    try:
        return shipped_checkpoint(), from_package()
    except OSError as error:
        if not FIXTURES.is_dir():
            raise
        print(f"magnet demo: {error}\nThe tiny model of the tests stands in; it knows little.", file=sys.stderr)
        return FIXTURES / "magnet-tiny", FIXTURES / "magnet-tiny-base"


def measured(model, tokenizer, data: Path, checkpoint: Path) -> str:
    """The results on the model card beside those on a few stories, with the latter's intervals."""
    from magnet_eval.data import read_graded_pairs, read_stories
    from magnet_eval.embedding import cosines
    from magnet_eval.figures import Figure
    from magnet_eval.scoring import infill_perplexity, sentence_gaps
    from magnet_hub.eval_results import read_eval_results

    stories = read_stories(data / "validation.jsonl")[::SLICE]
    examples = sentence_gaps([story["sentences"] for story in stories], model.config, tokenizer)
    ways = CARD["perplexity"][-1]
    layouts = {"given length": "exact", "free length + END": "free", "left to right": "causal"}
    found = {ways[way]: infill_perplexity(model, examples, layout) for way, layout in layouts.items()}
    pairs = read_graded_pairs(data / "sts.tsv")
    columns = [cosines(lambda texts: model.encode(texts, tokenizer), pairs), [grade for grade, *_ in pairs]]
    found[CARD["Spearman x 100"][-1]["own prompt"]] = Figure("", "Spearman", "spearman", columns)
    full = {row.metric_name: row.value for row in read_eval_results(checkpoint) if row.dataset_name == data.name}
    lines = ["| | on the card | here | 95 % interval | |", "|---|---|---|---|---|"]
    for name, figure in found.items():
        low, high = figure.estimate.interval
        verdict = "agree" if low <= full[name] <= high else "**differ**"
        lines.append(f"| {name} | {full[name]:.1f} | {figure.value:.1f} | {low:.1f}-{high:.1f} | {verdict} |")
    note = f"Here: {len(examples)} gaps in {len(stories)} of the held-out stories, {len(pairs)} pairs of sentences."
    return "\n".join([*lines, "", note])


def fills(model, tokenizer, stories: list[dict]) -> str:
    import torch

    texts, gold = [], []
    for number, story in enumerate(stories[:FILLED]):
        sentences, gone = list(story["sentences"]), 1 + number % 4  # the first sentence has no left side
        gold.append(sentences[gone])
        sentences[gone] = "<|gap|>"
        texts.append(" ".join(sentences))
    outputs = model.infill([*texts, RIVER], tokenizer, return_dict=True, stop="sentence")
    lines = [f"{n}. {bold(output)}" for n, output in enumerate(outputs, 1)]
    lines = [f"{line}\n   (it was: {was})" for line, was in zip(lines, gold)] + lines[len(gold) :]
    torch.manual_seed(0)
    ways = model.infill(
        CHOICE, tokenizer, return_dict=True, num_return_sequences=3, num_candidates=8, do_sample=True, stop="sentence"
    )
    lines += ["", "Alternatives, sampled, best first:", ""] + [f"* {bold(output)}" for output in ways]
    gaps = {"place": model.Gap(length=1), "deed": model.Gap(stop="sentence")}
    named = model.infill(TEMPLATE, tokenizer, gaps=gaps, return_dict=True)
    lines += ["", "A template with named gaps:", "", f"* {bold(named)}"]
    lines += [f"  {gap.name}: {gap.text.strip()!r} ({gap.finish_reason})" for gap in named.gaps]
    return "\n".join(lines)


def bold(output) -> str:
    """The whole text with its fills in bold."""
    text, end = "", 0
    for gap in output.gaps:
        first, last = gap.span
        fill = output.text[first:last]
        inner = fill.strip()
        text += output.text[end:first] + fill.replace(inner, f"**{inner}**", 1) if inner else output.text[end:last]
        end = last
    return text + output.text[end:]


def nearest(model, tokenizer, stories: list[dict], count: int = 2) -> str:
    sentences = [sentence for story in stories[:40] for sentence in story["sentences"]]
    similarity = model.encode(list(QUERIES), tokenizer) @ model.encode(sentences, tokenizer, show_progress_bar=True).T
    lines = [f"Of {len(sentences)} sentences:", ""]
    for query, row in zip(QUERIES, similarity):
        best = [f"{sentences[i]} ({row[i]:.2f})" for i in (-row).argsort()[:count]]
        lines.append(f"* {query} → " + " / ".join(best))
    return "\n".join(lines)


def continuation(model, tokenizer, base: Path) -> str:
    """A greedy continuation, which is the stock base's token by token."""
    import torch
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(base, dtype=model.dtype, trust_remote_code=False).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")
    settings = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    ours, theirs = (each.generate(**prompt, **settings)[0] for each in (model, stock))
    with torch.no_grad():
        equal = torch.equal(model(ours[None]).logits, stock(ours[None]).logits)
    if not torch.equal(ours, theirs) or not equal:
        raise RuntimeError("causal mode is not the base: the two continuations or their logits differ.")
    written = tokenizer.decode(ours[prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    new = len(ours) - prompt["input_ids"].shape[1]
    return f"> {PROMPT} **{' '.join(written.split())}**\n\n{new} tokens and all logits equal to the stock base's."


def training(base: Path, stories: list[dict], output_dir: Path, seconds: float) -> str:
    """Trains the three objectives on the stories from the plain base, for a time instead of a number of steps."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from magnet_train import MagnetTrainer, MagnetTrainingArguments, ViewArguments
    from magnet_train.curves import CurvesCallback, log_path, read_log

    class StopsAfter(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.end = time.monotonic() + seconds

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = time.monotonic() > self.end and state.global_step >= 2

    texts = Dataset.from_list([{"text": " ".join(story["sentences"])} for story in stories])
    both = [pair for story in stories for pair in zip(story["sentences"], story["paraphrases"])]
    pairs = Dataset.from_list([{"text": text, "positive": positive} for text, positive in both])
    args = MagnetTrainingArguments(
        output_dir=str(output_dir),
        max_steps=len(stories),
        per_device_train_batch_size=4,
        per_device_pair_batch_size=8,
        sscl_start_step=0,
        learning_rate=6e-4,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    view = ViewArguments(
        gap_layout="mixed", free_offset=64, span_max=48, sentence_span_ratio=0.8, max_length=128, pair_max_length=64
    )
    trainer = MagnetTrainer(
        str(base),
        args,
        train_dataset=texts,
        train_pairs=pairs,
        view_args=view,
        callbacks=[CurvesCallback(), StopsAfter()],
    )
    trainer.train()
    lines = [line for line in read_log(log_path(output_dir)) if "loss" in line]
    few = max(1, len(lines) // 4)
    rows = ["| loss | first steps | last steps |", "|---|---|---|"]
    for name in ("mntp", "msg", "sscl"):
        values = [line[f"loss_{name}"] for line in lines]
        rows.append(f"| {name.upper()} | {sum(values[:few]) / few:.2f} | {sum(values[-few:]) / few:.2f} |")
    told = f"{len(lines)} steps of 4 stories and 8 pairs of sentences, from the plain base; means of {few} steps (curves.png)."
    return "\n".join([*rows, "", told])
