"""Continuations by stock `generate()`, and fills of a missing sentence by every kind of system."""

from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from modeling_magnet import Gap
from modeling_magnet.infilling_magnet import Document, cut_at, fill_text, overlap

from .data import STORIES, Settings, files, read_stories
from .fim import fim_examples, fim_format
from .scoring import GapExample, sentence_gaps
from .systems import LEFT_TO_RIGHT, System

MOST = 64  # tokens of a fill
SENTENCE = Gap(stop="sentence")


@dataclass
class Case:
    """A story without one of its middle sentences: texts, and the same gap as token ids."""

    sentences: list[str]
    missing: int
    example: GapExample

    @property
    def left(self) -> str:
        return " ".join(self.sentences[: self.missing])

    @property
    def right(self) -> str:
        return " ".join(self.sentences[self.missing + 1 :])

    @property
    def gold(self) -> str:
        return self.sentences[self.missing]

    @property
    def document(self) -> Document:
        return Document([f"{self.left} ", f" {self.right}"], [Gap()])


@dataclass
class Fill:
    text: str
    finished: bool


def story_cases(stories: list[list[str]], config, tokenizer) -> list[Case]:
    """Removes sentence 2 + n % (length - 2) of story n, so there is text on both sides."""
    cases = []
    for number, sentences in enumerate(story for story in stories if len(story) > 2):
        missing = 1 + number % (len(sentences) - 2)
        examples = sentence_gaps([sentences], config, tokenizer)
        example = examples[missing - len(sentences)]  # without a start token, the first sentence is never missing
        example.story = number
        cases.append(Case(sentences, missing, example))
    return cases


def cases_of(system: System, settings: Settings, most: int) -> list[Case]:
    """Cases from the folder's first file of stories."""
    path = sorted(files(settings.data, STORIES), key=lambda path: path.name != STORIES[1])[0]  # ROC if there is one
    stories = [story["sentences"] for story in read_stories(path, min(most, settings.limit or most))]
    cases = story_cases(stories, system.model.config, system.tokenizer)
    if not cases:
        raise ValueError(f"{path}: has no story of three sentences or more.")
    return cases


class SentenceEnds(StoppingCriteria):
    """Stops a row once it has a complete sentence; it is cut later."""

    def __init__(self, tokenizer, prompt: int):
        self.tokenizer, self.prompt = tokenizer, prompt

    def __call__(self, input_ids, scores, **kwargs):
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        done = [cut_at(text.lstrip(), SENTENCE) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)


@torch.no_grad()
def continuations(
    model,
    tokenizer,
    prompts: list[list[int]],
    new_tokens: int,
    sentence=False,
    ends=True,
    end_ids=(),
    batch_size=32,
    **sampling,
) -> list[list[int]]:
    """
    Ids that stock `generate()` appends to prompts, greedily unless `sampling` is given.

    Args:
        new_tokens (`int`): Maximum number; exact with `ends=False`.
        sentence (`bool`, *optional*, defaults to `False`): Stop after a sentence.
        ends (`bool`, *optional*, defaults to `True`): Whether the end token may be generated.
        end_ids (`list[int]`, *optional*): Tokens that end a row instead of the tokenizer's [EOS], which then stands for them.
    """
    found, end = [None] * len(prompts), tokenizer.eos_token_id
    end_ids = list(end_ids) or [end]
    barred = sorted(set(tokenizer.all_special_ids) - set(end_ids if ends else ()))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in tqdm(range(0, len(order), batch_size), desc="generate", leave=False, disable=None):
        chosen = order[first : first + batch_size]
        length = max(len(prompts[i]) for i in chosen)
        pads = [length - len(prompts[i]) for i in chosen]
        ids = torch.tensor([[end] * pad + prompts[i] for pad, i in zip(pads, chosen)], device=model.device)
        mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in pads], device=model.device)
        rows = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            eos_token_id=end_ids,
            pad_token_id=end_ids[0],
            suppress_tokens=barred or None,
            stopping_criteria=StoppingCriteriaList([SentenceEnds(tokenizer, length)] if sentence else []),
            **sampling or {"do_sample": False},
        )[:, length:].tolist()
        for i, row in zip(chosen, rows):
            last = next((n for n, id in enumerate(row) if id in end_ids), None)
            found[i] = row if last is None else row[:last] + [end]
    return found


def fills_of(system: System, cases: list[Case], settings: Settings) -> dict[str, list[Fill]]:
    """The fills of every case, in each way that the system fills gaps. Those of *own end* and *given length* are not cut."""
    if system.fills_gaps:
        ways = {"given length": infilled(system, cases, settings, told_length=True)}
        return (both_ends("", infilled(system, cases, settings)) if system.ends_gaps else {}) | ways
    if system.kind == "fim":
        found = {}
        for order in fim_format(system).orders:
            found |= both_ends(order, fim_fills(system, cases, order, settings))
        return found
    if system.kind in LEFT_TO_RIGHT:
        return {"left to right": written(system, cases, [case.example.left for case in cases], settings, True)}
    return {}


def both_ends(way: str, fills: list[Fill]) -> dict[str, list[Fill]]:
    return {way: [one_sentence(fill) for fill in fills], f"{way}, own end".removeprefix(", "): fills}


def one_sentence(fill: Fill) -> Fill:
    """A fill cut after its first sentence, which finishes it."""
    cut = cut_at(f"{fill.text} ", SENTENCE)
    return fill if cut is None else Fill(fill.text[:cut], True)


def most_tokens(settings: Settings) -> int:
    return 16 if settings.fast else MOST


def infilled(system: System, cases: list[Case], settings: Settings, told_length: bool = False) -> list[Fill]:
    """Fills by `infill()`, greedily."""
    lengths = [case.example.length if told_length else "auto" for case in cases]
    inputs = [[f"{case.left} ", Gap(length), f" {case.right}"] for case, length in zip(cases, lengths)]
    most, size = min(most_tokens(settings), max(system.model.config.infill_free_offsets)), settings.batch_size
    fills = []
    for first in tqdm(range(0, len(inputs), size), desc="infill", leave=False, disable=None):
        some = inputs[first : first + size]
        outputs = system.model.infill(some, system.tokenizer, max_new_tokens=most, return_dict=True, batch_size=size)
        fills += [Fill(each.gaps[0].text.strip(), each.gaps[0].finish_reason != "max_tokens") for each in outputs]
    return fills


def fim_fills(system: System, cases: list[Case], order: str, settings: Settings) -> list[Fill]:
    rows = [fim_examples(case.example, system, order, end=False, middle=False)[0] for case in cases]
    return written(system, cases, [row.left for row in rows], settings, False, fim_format(system).ends)


def written(
    system: System, cases: list[Case], prompts: list[list[int]], settings: Settings, sentence: bool, end_ids=()
) -> list[Fill]:
    """Fills of a left-to-right model after prompts; what repeats the right side is cut off, as in `infill()`."""
    model, tokenizer, most = system.model, system.tokenizer, most_tokens(settings)
    rows = continuations(model, tokenizer, prompts, most, sentence, end_ids=end_ids, batch_size=settings.batch_size)
    return [fill_of(row, case, tokenizer, sentence) for row, case in zip(rows, cases)]


def fill_of(row: list[int], case: Case, tokenizer, sentence: bool) -> Fill:
    """The fill in a row of ids: up to its end token, or the end of its first sentence."""
    end = tokenizer.eos_token_id
    ids = row[: row.index(end)] if end in row else row
    text = fill_text(ids, case.document, 0, tokenizer).strip()
    fill = Fill(text[: len(text) - overlap(text, case.right)].strip(), end in row)
    return one_sentence(fill) if sentence else fill
