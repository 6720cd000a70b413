"""Table 11 and Appendix B: a language model is prompted for the missing sentence, with four zero-shot and three five-shot
prompts. Metrics as in Table 5; the examples are stories that are not evaluated: those after the first 100.
"""

from modeling_magnet.encoding_magnet import text_ids

from .appropriate import RATED_STORIES, join_bits, stand_ins
from .data import STORIES, Settings
from .figures import Figure
from .systems import System
from .writing import Case, cases_of, written

FILES = STORIES
KINDS = ("base",)
COMPARED = ("zero-shot blank",)
SHOTS = 5
PAPER = {"zero-shot": {"people: appropriate %": 5.5}, "five-shot": {"people: appropriate %": 54.5}}


def blank(case: Case) -> str:
    text = f"{case.left} _ {case.right}"
    return (
        f"Generate the missing line represented by _ in the given text: {text}. Generate a single sentence. "
        "The missing line is:"
    )


def contextual(case: Case) -> str:
    return (
        f'Fill in the missing sentence between "{case.left}" and "{case.right}". Generate only one sentence. '
        "The missing sentence is:"
    )


def prefix_suffix(case: Case) -> str:
    return (
        f"Given the prefix and the suffix, generate the middle sentence. Prefix: {case.left}. Suffix: {case.right}. "
        "Generate only one sentence. Middle:"
    )


def line_by_line(case: Case) -> str:
    lines = [s if n != case.missing else "[Missing Line]" for n, s in enumerate(case.sentences)]
    context = " ".join(f"Line {number}: {line}" for number, line in enumerate(lines, start=1))
    return (
        "You have a five-sentence story with some missing text. Here is the context for each line, with the missing line "
        f"indicated: {context} Please generate the missing line of the story. Please generate only the missing line and "
        f"nothing else. The missing line is: Line {case.missing + 1}:"
    )


ZERO_SHOT = {"blank": blank, "contextual": contextual, "prefix-suffix": prefix_suffix, "line-by-line": line_by_line}
FIVE_SHOT = {name: ZERO_SHOT[name] for name in ("blank", "prefix-suffix", "line-by-line")}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """The automatic metrics of Table 5 for each prompt, and the fills."""
    cases = cases_of(system, settings, RATED_STORIES + SHOTS)
    examples, cases = cases[-SHOTS:], cases[:-SHOTS]
    if not cases:
        raise ValueError(
            f"prompting: {len(examples)} stories are only enough for the examples. Give more than {SHOTS}."
        )
    ways = {f"zero-shot {name}": (prompt, []) for name, prompt in ZERO_SHOT.items()}
    ways |= {f"five-shot {name}": (prompt, examples) for name, prompt in FIVE_SHOT.items()}
    found, texts, joins = [], {}, join_bits(cases, settings.judge)
    for way, (prompt, shown) in ways.items():
        prompts = [prompt_ids(system, case, prompt, shown) for case in cases]
        fills = written(system, cases, prompts, settings, True)
        found += stand_ins(cases, fills, way, system.tokenizer, joins)
        texts[way] = [fill.text for fill in fills]
    stories = [{"left": case.left, "right": case.right, "gold": case.gold} for case in cases]
    return found, {"stories": stories, "fills": texts}


def prompt_ids(system: System, case: Case, prompt, shown: list[Case]) -> list[int]:
    """A prompt after solved examples, in the chat template of an instruction-tuned model."""
    tokenizer = system.tokenizer
    if tokenizer.chat_template is None:
        text = "\n\n".join([*(f"{prompt(each)} {each.gold}" for each in shown), prompt(case)])
        return tokenizer("")["input_ids"] + text_ids(text, tokenizer)
    messages = []
    for each in shown:
        messages += [{"role": "user", "content": prompt(each)}, {"role": "assistant", "content": each.gold}]
    messages.append({"role": "user", "content": prompt(case)})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
