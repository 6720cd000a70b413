"""infill_stream(): what is being written, told while it is written, from a thread that fills the gaps."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from .gaps_magnet import Document, InfilledGap
from .seams_magnet import fill_text, shown_safely


@dataclass
class InfillEvent:
    """
    A piece of a fill.

    Attributes:
        item (`int`): Which text of a batch.
        gap (`int`): Which gap of the text.
        name (`str`, *optional*): The gap's name.
        text (`str`): What has come since the gap's last event.
        done (`bool`): Whether the gap is filled.
        finish_reason (`str`, *optional*): Of a gap that is done, as in [`InfilledGap`].
    """

    item: int
    gap: int
    name: str | None
    text: str
    done: bool = False
    finish_reason: str | None = None


class StreamClosed(Exception):
    """The caller wants no more events."""


class InfillStreamer:
    """Makes events of what `infill()` tells it; each gap's shown text only ever grows."""

    def __init__(self, tokenizer, end: int | None):
        self.tokenizer, self.control = tokenizer, set(tokenizer.all_special_ids) | {end}
        self.events, self.closed = queue.SimpleQueue(), threading.Event()
        self._shown = {}  # (item, gap) -> text

    def written(self, jobs, fills: list[list[int]]) -> bool:
        """Told after each token; returns whether to stop. Rows of one gap that compete are not shown."""
        if len(fills) == len(jobs) and len({(id(job.document), job.gap) for job in jobs}) == len(jobs):
            for job, fill in zip(jobs, fills):
                if job.shows:
                    self._show(job, fill)
        return self.closed.is_set()

    def _show(self, job, fill):
        document, gap = job.document, job.gap
        fill = fill[: next((n for n, token in enumerate(fill) if token in self.control), len(fill))]
        text = fill_text(job.begun + fill, document, gap, self.tokenizer)
        text = shown_safely(text, document.gaps[gap], document.texts[gap + 1])
        before = self._shown.get((document.number, gap), "")
        if text.startswith(before) and len(text) > len(before):
            self._shown[document.number, gap] = text
            self.events.put(InfillEvent(document.number, gap, document.gaps[gap].name, text[len(before) :]))

    def filled(self, document: Document, gap: int, fill: InfilledGap) -> None:
        """Told when a gap has its fill."""
        if self.closed.is_set():
            raise StreamClosed
        before = self._shown.pop((document.number, gap), "")
        assert fill.text.startswith(before), (before, fill.text)
        rest = fill.text[len(before) :]
        name = document.gaps[gap].name
        self.events.put(InfillEvent(document.number, gap, name, rest, True, fill.finish_reason))


def stream_events(model, inputs, tokenizer, arguments) -> Iterator[InfillEvent]:
    """Runs `infill()` in a thread and yields its events; closing the iterator ends the thread after its next token."""
    streamer = InfillStreamer(tokenizer, model.config.infill_end_token_id)

    def run():
        try:
            model.infill(inputs, tokenizer, streamer=streamer, **arguments)
            streamer.events.put(None)
        except StreamClosed:
            pass
        except BaseException as error:  # raised where the events are read
            streamer.events.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (event := streamer.events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        streamer.closed.set()
        thread.join()
