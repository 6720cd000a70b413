"""Functions that programs and agents can call, over HTTP or as Model Context Protocol tools."""

from checkpoint import load
from embedding import nearest, read_sentences
from filling import MAX_DRAFTS, MAX_NEW_TOKENS, alternatives, decoding_arguments
from generating import compare


def infill(text: str, length: int = 0, num_alternatives: int = 1, seed: int = 0) -> list[dict]:
    """
    Fill the gaps of a text from both sides.

    Args:
        text: The text, with <|gap|> or <|gap:name|> where something is missing.
        length: Exact number of tokens of each gap; 0 lets the model end it.
        num_alternatives: How many fills to return, best first; above 1 they are sampled.
        seed: Seed for sampling.

    Returns:
        The alternatives: whole text, score, and each gap's text, span, tokens and finish reason.
    """
    if not 0 <= length <= MAX_NEW_TOKENS:
        raise ValueError(f"length={length}: must lie between 0 and {MAX_NEW_TOKENS}.")
    if not 1 <= num_alternatives <= MAX_DRAFTS:
        raise ValueError(f"num_alternatives={num_alternatives}: must lie between 1 and {MAX_DRAFTS}.")
    kind = "sampling" if num_alternatives > 1 else "greedy"
    decoding = decoding_arguments(kind, num_alternatives, 0.7, 0.95)
    return alternatives(load(), text, {"length": length or "auto"}, decoding, seed=seed)


def nearest_sentences(query: str, sentences: list[str]) -> list[list]:
    """
    Rank sentences by the cosine similarity of their embeddings to a query's.

    Args:
        query: Text to compare with.
        sentences: At least two sentences.

    Returns:
        Rows of rank, cosine and sentence.
    """
    return nearest(load(), read_sentences("\n".join(sentences)), query)


def generate(prompt: str, max_new_tokens: int = 40) -> dict:
    """
    Continue a text greedily with the base model, in causal mode, and with the adapter on, and compare the three.

    Args:
        prompt: Text to continue.
        max_new_tokens: Number of tokens to generate.

    Returns:
        For each: the continuation, whether its logits equal the base's bit for bit, and the perplexity.
    """
    if not 1 <= max_new_tokens <= 128:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must lie between 1 and 128.")
    return compare(load(), prompt, max_new_tokens)
