"""Systems that fill a gap of unknown length. Each gives a pool of candidates for each gap; `pick` takes one of a pool.

All write at most `MOST` tokens, and of all fills the same is cut off: what the text behind repeats, and spaces.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from magnet_train.fim import fim_markers, fim_row
from modeling_magnet import Gap, InfilledGap
from modeling_magnet.decoding_magnet import end_twins
from modeling_magnet.filling_magnet import GRID
from modeling_magnet.scoring_magnet import cut_join_logprobs
from modeling_magnet.seams_magnet import continuation_ids, cut_at, overlap

from .fill_metrics import target_logprobs
from .infilling import GapExample

MOST = 128  # tokens of a fill
SEARCHED = 64  # tokens of the longest fill of a length search
JOIN = 16  # tokens of the right context that a join score reads
BONUS = 2.0  # nats that each token of a fill is given in the rule `joint_bonus`, about what half of its tokens cost
OWN = 0.3  # weight of a fill's own mean log-probability in the rule `join_own`
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}


@dataclass
class Case:
    """A story without one sentence: texts, and the token ids that stand on either side of the gap."""

    left: str
    gold: str
    right: str
    left_ids: list[int]
    right_ids: list[int]
    length: int  # gold tokens


@dataclass
class Candidate:
    """A fill; `scores` has what the selection rules read."""

    text: str
    finished: bool
    tokens: int
    scores: dict[str, float] = field(default_factory=dict)


def cases_of(stories: list[list[str]], examples: list[GapExample], missing: list[int]) -> list[Case]:
    """The texts of gaps that `sentence_gaps` made; sentence `missing[n]` of story n is the gap."""
    cases = []
    for sentences, example, m in zip(stories, examples, missing):
        left, gold, right = " ".join(sentences[:m]), sentences[m], " ".join(sentences[m + 1 :])
        end = example.start + example.length
        cases.append(Case(left, gold, right, example.ids[: example.start], example.ids[end:], example.length))
    return cases


def batches(items: list, size: int, name: str | None):
    """Slices of a list, with a progress bar if it has a name."""
    return tqdm([items[n : n + size] for n in range(0, len(items), size)], desc=name, disable=name is None)


def pick(pool: list[Candidate], rule: str | None) -> Candidate:
    """The candidate that a rule ranks first. Candidates that never ended are taken only if none did."""
    pool = [candidate for candidate in pool if candidate.finished] or pool
    return pool[0] if rule is None else max(pool, key=lambda candidate: candidate.scores[rule])


def end_settings(model, end: int) -> dict:
    """What `generate()` is told so that END has its twins' probability and they have none; `infill()` does so itself."""
    twins = end_twins(model, end)
    return {"suppress_tokens": twins[1:], "sequence_bias": [[[end], math.log(len(twins))]]} if twins[1:] else {}


# ------------------------------------------------------------------------------------------------------------ MAGNET


def magnet_pools(model, tokenizer, cases, count=1, length="auto", most=MOST, batch_size=128, **settings):
    """What `infill()` writes, `count` alternatives a gap. `length="gold"` tells it each gap's."""
    pools = []
    torch.manual_seed(0)
    for some in batches(cases, 100, "MAGNET"):
        inputs = [[c.left + " ", Gap(length=c.length if length == "gold" else length), " " + c.right] for c in some]
        inputs = [[part.strip(" ") if part == " " else part for part in parts] for parts in inputs]  # no text there
        outputs = model.infill(
            inputs,
            tokenizer,
            max_new_tokens=most,
            num_return_sequences=count,
            join_tokens=JOIN,
            return_dict=True,
            batch_size=batch_size,
            **settings,
        )
        for case, many in zip(some, outputs):
            behind = len(case.right_ids[:JOIN])
            pools.append([_candidate(o.gaps[0], behind) for o in (many if count > 1 else [many])])
    return pools


def mixed_scores(join: float, joint: float, tokens: int, behind: int) -> dict[str, float]:
    """`joint_bonus`: nats for each token, against the pull to short fills; `join_own`: the join score, and a little of
    the fill's own mean log-probability under the base, which holds back long fills that merely lead back."""
    own = (joint - behind * join) / max(tokens, 1)
    return {"joint_bonus": joint + BONUS * tokens, "join_own": join + OWN * own}


def _candidate(gap: InfilledGap, behind: int) -> Candidate:
    logprobs = gap.token_logprobs or []
    scores = {
        "join": gap.join_score,
        "joint": gap.joint_score,
        **mixed_scores(gap.join_score, gap.joint_score, len(gap.token_ids), behind),
        "end": -np.inf if gap.end_logprob is None else gap.end_logprob,
        "mean_logprob": sum(logprobs) / len(logprobs) if logprobs else -np.inf,
    }
    return Candidate(gap.text, gap.finish_reason != "max_tokens", len(gap.token_ids), scores)


def search_pools(model, tokenizer, cases, **settings):
    """The length search, as a checkpoint does it that has not learnt to end a gap: all of its lengths up to 64."""
    end, model.config.infill_end_token_id = model.config.infill_end_token_id, None
    try:
        lengths = [length for length in GRID if length <= SEARCHED]
        return magnet_pools(model, tokenizer, cases, len(lengths), most=SEARCHED, batch_size=256, **settings)
    finally:
        model.config.infill_end_token_id = end


def cut_pools(model, tokenizer, cases, written: int = 48):
    """One decode of `written` tokens in the free layout, END barred; each of its beginnings is a candidate."""
    pools = []
    for some in batches(cases, 100, "MAGNET, one decode"):
        inputs = [[c.left + " ", Gap(length=(written, written)), " " + c.right] for c in some]
        outputs = model.infill(inputs, tokenizer, return_dict=True, batch_size=128)
        pools += [_cuts(model, tokenizer, case, output.gaps[0].token_ids) for case, output in zip(some, outputs)]
    return pools


def _cuts(model, tokenizer, case: Case, ids: list[int]) -> list[Candidate]:
    right = case.right_ids[:JOIN]
    joins = cut_join_logprobs(model, case.left_ids, ids, right)
    (own,) = target_logprobs(model, [(case.left_ids, ids)])
    own = np.append(0, np.cumsum(own))
    pool = []
    for count in range(1, len(ids) + 1):
        text = finished_text(ids[:count], case, tokenizer)
        scores = {"join": joins[count] / len(right), "joint": joins[count] + own[count]}
        pool.append(Candidate(text, True, count, scores | mixed_scores(*scores.values(), count, len(right))))
    return pool


def at_sentence_end(pools: list[list[Candidate]]) -> list[list[Candidate]]:
    """Only candidates that end a sentence, where a pool has one."""
    return [[c for c in pool if c.text.endswith((".", "!", "?", '"'))] or pool for pool in pools]


# ---------------------------------------------------------------------------------------- models that read one way


def finished_text(ids: list[int], case: Case, tokenizer) -> str:
    """The characters of a fill, without what the text behind repeats, as `infill()` does."""
    tail = [] if case.left_ids[-1] == tokenizer.bos_token_id else case.left_ids[-1:]
    before = tokenizer.decode(tail, skip_special_tokens=True)
    text = tokenizer.decode(tail + ids, skip_special_tokens=True)[len(before) :].strip()
    repeated = overlap(text, case.right)
    return text[: len(text) - repeated].strip()


class SentenceEnds(StoppingCriteria):
    """Stops a row where its text has ended a sentence; the cut itself comes later."""

    def __init__(self, tokenizer, prompt: int):
        self.tokenizer, self.prompt = tokenizer, prompt

    def __call__(self, input_ids, scores, **kwargs):
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        return torch.tensor([cut_at(text.lstrip(), Gap(stop="sentence")) is not None for text in texts])


@torch.no_grad()
def written_rows(model, tokenizer, prompts, count=1, sentence=False, batch_size=128, name=None):
    """Ids that stock `generate()` writes behind prompts: `count` samples each, or the greedy row."""
    found, settings = [None] * len(prompts), end_settings(model, tokenizer.eos_token_id)
    barred = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id} | set(settings.pop("suppress_tokens", []))
    settings |= SAMPLING if count > 1 else {"do_sample": False}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    torch.manual_seed(0)
    for chosen in batches(order, max(1, batch_size // count), name):
        length = max(len(prompts[i]) for i in chosen)
        pads = [length - len(prompts[i]) for i in chosen]
        ids = torch.tensor([[tokenizer.bos_token_id] * pad + prompts[i] for pad, i in zip(pads, chosen)])
        mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in pads])
        stops = StoppingCriteriaList([SentenceEnds(tokenizer, length)] if sentence else [])
        rows = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=MOST,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            suppress_tokens=sorted(barred),
            stopping_criteria=stops,
            num_return_sequences=count,
            use_cache=True,
            **settings,
        )[:, length:].tolist()
        for n, i in enumerate(chosen):
            found[i] = rows[n * count : (n + 1) * count]
    return found


def one_way_pools(model, base, tokenizer, cases, prompts, count=1, sentence=False, name=None):
    """Pools of a model that writes left to right behind prompts, scored by the same base model as MAGNET's."""
    pools, eos = [], tokenizer.eos_token_id
    for case, rows in zip(cases, written_rows(model, tokenizer, prompts, count, sentence, name=name)):
        pools.append([_one_way(row, eos, sentence, case, tokenizer) for row in rows])
    if count > 1:
        score_joins(base, tokenizer, cases, pools)
    return pools


def _one_way(row, eos, sentence, case, tokenizer) -> Candidate:
    stop = row.index(eos) if eos in row else len(row)
    ended, ids = stop < len(row), row[:stop]
    text = finished_text(ids, case, tokenizer)
    cut = cut_at(text + " ", Gap(stop="sentence")) if sentence else None
    if cut is not None and (ended or len(ids) < MOST or cut < len(text)):
        text, ended = text[:cut], True
    return Candidate(text, ended, stop)


def score_joins(base, tokenizer, cases, pools) -> None:
    """Sets the join and joint scores of candidates, as `infill()` defines them."""
    rows, kept = [], []
    for case, pool in zip(cases, pools):
        for candidate in pool:
            ids = fill_ids(candidate.text, case, tokenizer)
            rows.append((case.left_ids, ids + case.right_ids[:JOIN]))
            kept.append((candidate, len(ids)))
    for (candidate, length), values in zip(kept, target_logprobs(base, rows, name="join scores")):
        behind = values[length:]
        candidate.scores["join"] = float(behind.mean()) if len(behind) else float(values.mean())
        candidate.scores["joint"] = float(values.sum())
        candidate.scores |= mixed_scores(candidate.scores["join"], candidate.scores["joint"], length, len(behind))


def fill_ids(text: str, case: Case, tokenizer) -> list[int]:
    if not case.left:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return continuation_ids(" " + text, tokenizer) if text else []


def fim_prompts(cases: list[Case], tokenizer, spm: bool) -> list[list[int]]:
    """Fill-in-the-middle prompts, up to where the middle is to be written."""
    markers = fim_markers(tokenizer)
    prompts = []
    for case in cases:
        row, start = fim_row(case.left_ids[1:], [], case.right_ids, markers, case.left_ids[0], -1, spm)
        prompts.append(row[:start].tolist())
    return prompts


def fim_examples(cases: list[Case], examples: list[GapExample], tokenizer, spm: bool, end: bool) -> list[GapExample]:
    """The same gaps in fill-in-the-middle order, for `infill_perplexity`; with `end` the end token counts as theirs."""
    markers, rows = fim_markers(tokenizer), []
    for case, example in zip(cases, examples):
        gold = example.ids[example.start : example.start + example.length]
        parts = (case.left_ids[1:], gold, case.right_ids, markers, case.left_ids[0], tokenizer.eos_token_id)
        row, start = fim_row(*parts, spm)
        rows.append(GapExample(row.tolist(), start, len(gold) + end, example.story))
    return rows
