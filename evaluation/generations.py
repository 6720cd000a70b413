"""Tables 12 and 13: fills and continuations of every system, side by side."""

from modeling_magnet.encoding_magnet import start_ids, text_ids

from .data import STORIES, Settings
from .figures import Figure
from .systems import System
from .writing import cases_of, continuations, fills_of

FILES = STORIES
KINDS = ("magnet", "llm2vec", "base", "causal", "fim")
COMPARED = ()
PAPER = {}
COUNT, NEW_TOKENS = 8, 96
BEGINNINGS = ("The film was well received", "After 1805, the exploits of")  # Table 13's


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """No figures, only texts: `{"fills": {text: {way: fill}}, "continuations": {...}}`."""
    cases = cases_of(system, settings, COUNT)
    shown = {f"{case.left} ____ {case.right}": {"people": case.gold} for case in cases}
    for way, fills in fills_of(system, cases, settings).items():
        for texts, each in zip(shown.values(), fills):
            texts[way] = each.text
    if system.kind == "fim":
        return [], {"fills": shown, "continuations": {}}
    texts = [*BEGINNINGS, *(case.sentences[0] for case in cases[:2])]
    prompts = [start_ids(system.model.config, system.tokenizer) + text_ids(text, system.tokenizer) for text in texts]
    rows = continuations(system.model, system.tokenizer, prompts, 24 if settings.fast else NEW_TOKENS, ends=False)
    written = {text: {"": system.tokenizer.decode(row, skip_special_tokens=True)} for text, row in zip(texts, rows)}
    return [], {"fills": shown, "continuations": written}
