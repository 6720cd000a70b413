"""Table 4: perplexity of the missing tokens, compared with left-to-right systems and trivial baselines.

Each sentence of a story is removed in turn (of the first 500 stories), and a line of each block of code. Documents are split
into passages of whole sentences with up to three missing spans of 8 to 32 tokens (section 4.3), and into windows with one gap
of 1 to 128 tokens, for the curve by length. All systems with the same tokenizer predict the same tokens; bits per character of
the missing sentences also compare different tokenizers. Stories and documents are resampled for the intervals. *Free length +
END* adds the cost of ending the gap. *Right side: another's* and *none* use given lengths: the increase in perplexity shows
what the content and the presence of the right context are worth. Fill-in-the-middle has one gap per row: in a passage with
several it sees the earlier ones filled, as a left-to-right model does, while MAGNET sees none of them.
"""

import numpy as np

from modeling_magnet.encoding_magnet import start_ids, text_ids

from .data import (
    CODE,
    DOCUMENTS,
    STORIES,
    WIKITEXT,
    Settings,
    files,
    name_of,
    passages,
    read_code,
    read_documents,
    read_stories,
)
from .figures import Figure
from .fim import fim_examples, fim_format
from .scoring import GapExample, free_offset, perplexity_figure, sentence_gaps, span_costs, whole_texts
from .systems import System

FILES = (*STORIES, *WIKITEXT, *DOCUMENTS, *CODE)
KINDS = ("magnet", "base", "causal", "fim", "llm2vec")
COMPARED = ("given length", "free length + END")
MOST_STORIES = 500
SPANS, SHORTEST, LONGEST = 3, 8, 32
LENGTHS = ((1, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128))
AROUND, WINDOWS = 128, 50  # tokens around a gap of the curve, and gaps of each length
PAPER = {
    "Llama-2-7B, left to right": {"ROC: perplexity": 13.93, "Wikitext: perplexity": 22.04},
    "MAGNET, given length": {"ROC: perplexity": 9.52, "Wikitext: perplexity": 15.46},
}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """Figures in every layout that the system supports."""
    model, tokenizer, found, left_out = system.model, system.tokenizer, [], {}
    for path in files(settings.data, FILES):
        data, sentences = name_of(path), path.name in STORIES or path.suffix == ".py"
        if path.suffix == ".py":
            blocks = read_code(path, settings.limit)
            texts = ["\n".join(block) for block in blocks]
            examples = sentence_gaps(blocks, model.config, tokenizer, every=False, joint="\n")
        elif path.name in STORIES:
            most = min(MOST_STORIES, settings.limit or MOST_STORIES)
            stories = [story["sentences"] for story in read_stories(path, most)]
            texts = [" ".join(story) for story in stories]
            examples = sentence_gaps(stories, model.config, tokenizer, every=not settings.fast)
        else:
            texts = read_documents(path, settings.limit)
            examples = document_gaps(texts, model.config, tokenizer, per_document=5 if path.name in WIKITEXT else 2)
            found += by_length(system, data, texts, settings)
            texts = [passage for text in texts for passage in passages(text)[:1]]
        kept = [example for example in examples if fits(example, system)]
        if not kept:
            raise ValueError(f"{path}: none of {len(examples)} gaps fits into the positions of {system.name}.")
        if len(kept) < len(examples):
            left_out[f"{data}: gaps too long for {system.name}"] = len(examples) - len(kept)
        figures = layouts(system, data, kept, settings.batch_size)
        whole = whole_texts(texts, model.config, tokenizer)
        nats = span_costs(model, whole, "causal", settings.batch_size)
        figures.append(
            perplexity_figure(data, nats, whole, "whole texts", measure="perplexity of whole texts, causal mode")
        )
        if sentences:
            figures += [per_character(each, kept, tokenizer) for each in figures if each.measure == "perplexity"]
        found += figures
    return found, left_out


def per_character(figure: Figure, examples: list[GapExample], tokenizer) -> Figure:
    """Bits per character of the missing sentences, from their perplexity; another tokenizer's are comparable."""
    stories = np.unique([example.story for example in examples], return_inverse=True)[1]
    lengths = [len(tokenizer.decode(example.middle).strip()) for example in examples]
    columns = [figure.columns[0] / np.log(2), np.bincount(stories, lengths)]
    return Figure(figure.data, "bits per character", "ratio_of_sums", columns, figure.way, figure.tokens)


def layouts(
    system: System, data: str, examples: list[GapExample], batch_size: int, measure="perplexity"
) -> list[Figure]:
    """The same gaps in every layout of a system, and for MAGNET with other right contexts."""

    def figure(rows, nats, way, what=measure):
        return perplexity_figure(data, nats, rows, way, measure=what)

    def costs(rows, layout):
        return span_costs(system.model, rows, layout, batch_size, show_progress_bar=True)

    found = [figure(examples, costs(examples, "causal"), "left to right")]
    if system.kind == "fim":
        return fim_figures(system, data, examples, batch_size, measure) + found
    if not system.fills_gaps:
        return found
    exact = costs(examples, "exact")
    found.insert(0, figure(examples, exact, "given length"))
    if system.ends_gaps:
        found.insert(1, figure(examples, costs(examples, "free"), "free length + END"))
    chosen = [i for i, example in enumerate(examples) if is_two_sided(example)]
    two_sided = [examples[i] for i in chosen]
    if measure == "perplexity" and len({example.story for example in two_sided}) > 1:
        strangers, alone = with_the_right_of_another(two_sided), without_right(two_sided)
        what = "perplexity, right side"
        found.append(figure(two_sided, exact[chosen], "own", what))
        found.append(figure(strangers, costs(strangers, "exact"), "another's", what))
        found.append(figure(alone, costs(alone, "exact"), "none", what))
    return found


def fim_figures(system: System, data: str, examples: list[GapExample], batch_size: int, measure: str) -> list[Figure]:
    """Perplexity in fill-in-the-middle order, without and with the cost of the end token."""
    found, owners = [], np.repeat(np.arange(len(examples)), [len(example.spans) for example in examples])
    for order in fim_format(system).orders:
        rows = [row for end in (False, True) for each in examples for row in fim_examples(each, system, order, end)]
        costs = span_costs(system.model, rows, "causal", batch_size, show_progress_bar=True)  # reads each row once
        for end, nats in enumerate(np.split(costs, 2)):
            way = f"{order}, free length" + " + END" * end
            nats = np.bincount(owners, nats)
            found.append(perplexity_figure(data, nats, examples, way, measure=measure))  # END adds cost, not tokens
    return found


def fits(example: GapExample, system: System) -> bool:
    """Whether it fits into the model's positions in every layout."""
    config, lengths = system.model.config, [length for _, length in example.spans]
    offsets = config.infill_free_offsets if system.ends_gaps else []
    if offsets and max(lengths) > max(offsets):
        return False
    extra = sum(free_offset(config, length) - length for length in lengths) if offsets else 0
    return len(example.ids) + extra <= config.max_position_embeddings


# ---------------------------------------------------------------------------------------------------------- documents


def document_gaps(documents: list[str], config, tokenizer, per_document: int = 2, seed: int = 0) -> list[GapExample]:
    """
    Passages with up to three spans of 8 to 32 tokens, separated by at least one token.

    Args:
        documents (`list[str]`): The units of resampling.
        config, tokenizer: As in [`sentence_gaps`].
        per_document (`int`, *optional*, defaults to 2): Passages per document, spread over it.
        seed (`int`, *optional*, defaults to 0): Seed of the spans.
    """
    rng, opening, examples = np.random.default_rng(seed), start_ids(config, tokenizer), []
    for number, document in enumerate(documents):
        cut = passages(document)
        for place in np.unique(np.linspace(0, len(cut) - 1, per_document).astype(int)) if cut else ():
            ids = opening + text_ids(cut[place], tokenizer)
            spans, position = [], len(opening) + 1
            for left in range(SPANS, 0, -1):  # each in its share of the remaining tokens
                length = int(rng.integers(SHORTEST, LONGEST + 1))
                room = (len(ids) - position) // left - length - 1
                if room < 1:
                    continue
                start = position + int(rng.integers(0, room))
                spans.append((start, length))
                position = start + length + 1
            if spans:
                examples.append(GapExample(ids, spans, number))
    return examples


def by_length(system: System, data: str, texts: list[str], settings: Settings) -> list[Figure]:
    """One gap in the middle of a window, for each range of lengths that fits the model."""
    opening, found = start_ids(system.model.config, system.tokenizer), []
    documents = [text_ids(text, system.tokenizer) for text in texts]
    for shortest, longest in LENGTHS:
        room = AROUND + longest
        count = min(WINDOWS, settings.limit or WINDOWS)
        examples = windows(documents, opening, (shortest, longest), count, room)
        examples = [example for example in examples if fits(example, system)]
        if len(examples) > 1:
            measure = f"perplexity of gaps of {shortest} to {longest} tokens"
            found += layouts(system, data, examples, settings.batch_size, measure)
    return found


def windows(documents: list[list[int]], opening: list[int], lengths: tuple[int, int], count: int, room: int):
    """`count` gaps of a range of lengths, each in the middle of a window of `room` tokens of a document."""
    rng, long, examples = np.random.default_rng(lengths), [ids for ids in documents if len(ids) > room], []
    for number in range(count if long else 0):
        ids, length = long[number % len(long)], int(rng.integers(lengths[0], lengths[1] + 1))
        first = int(rng.integers(0, len(ids) - room + 1))
        window = opening + ids[first : first + room - len(opening)]
        examples.append(GapExample(window, [((room - length) // 2, length)], number))
    return examples


# --------------------------------------------------------------------------------------------------- trivial baselines


def with_the_right_of_another(examples: list[GapExample]) -> list[GapExample]:
    """Each gap with the right context of the next story's gap: the extra cost is what its own is worth."""
    found = []
    for number, example in enumerate(examples):
        others = (examples[(number + n) % len(examples)] for n in range(1, len(examples)))
        other = next(each for each in others if each.story != example.story and each.right)
        found.append(GapExample(example.left + example.middle + other.right, example.spans, example.story))
    return found


def without_right(examples: list[GapExample]) -> list[GapExample]:
    """Each gap at the end of its text."""
    return [GapExample(example.left + example.middle, example.spans, example.story) for example in examples]


def is_two_sided(example: GapExample) -> bool:
    """Whether it has one gap and text after it."""
    return len(example.spans) == 1 and bool(example.right)
