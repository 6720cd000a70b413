r"""A text as clickable words: a click turns a word into a gap, and a gap back into its word.

A piece is a word with the white space before it, or a marker such as `<|gap|>` or `<|gap:name|>`. Adjacent clicked
words are one gap. `\<|gap|>` is text, as in `infill()`.
"""

import itertools
import re

GAP = "<|gap|>"
MARKER = r"<\|gap(?::[^|<>]*)?\|>"
PIECE = re.compile(rf"\s*(?:(?<!\\)(?:\\\\)*(?P<marker>{MARKER})|(?:(?!(?<!\\){MARKER})\S)+|\s+$)")


def read_pieces(text: str) -> list[dict]:
    """
    Splits a text into pieces; joined, they are the text again.

    Example:

    ```python
    >>> [piece["text"] for piece in read_pieces("Tom ate. <|gap|> He slept.")]
    ['Tom', ' ate.', ' <|gap|>', ' He', ' slept.']

    ```
    """
    return [
        {
            "text": match[0],
            "shown": entities(match["marker"][2:-2].replace(":", " ") if match["marker"] else match[0].strip()),
            "marker": match["marker"] is not None,
            "gap": match["marker"] is not None,
            "breaks": "\n" in match[0],
        }
        for match in PIECE.finditer(text)
    ]


def entities(text: str) -> str:
    """
    A text as HTML of letters, digits and numeric entities. Gradio evaluates a template's output again as a JavaScript
    template literal, so `${...}` in a user's text would run as code, and a backslash would be lost.

    Example:

    ```python
    >>> entities("${it}")
    '&#36;&#123;it&#125;'

    ```
    """
    return "".join(character if character.isalnum() else f"&#{ord(character)};" for character in text)


def write_text(pieces: list[dict]) -> str:
    """The text of pieces, with one marker for each run of gaps: the run's own (named) marker, if it has one."""
    text = ""
    for is_gap, run in itertools.groupby(pieces, key=lambda piece: piece["gap"]):
        run = list(run)
        if not is_gap:
            text += "".join(piece["text"] for piece in run)
            continue
        first = run[0]["text"]
        space = first[: len(first) - len(first.lstrip())]
        marker = next((piece["text"].lstrip() for piece in run if piece["marker"]), GAP)
        text += space + marker
    return text


def click(pieces: list[dict], index: int) -> list[dict]:
    """The pieces after a click on one: a word toggles; a marker, whose words are unknown, is removed."""
    if not 0 <= index < len(pieces):  # the text changed before a slow click arrived
        return pieces
    if pieces[index]["marker"]:
        return pieces[:index] + pieces[index + 1 :]
    clicked = pieces[index] | {"gap": not pieces[index]["gap"]}
    return [*pieces[:index], clicked, *pieces[index + 1 :]]
