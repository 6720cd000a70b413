"""The settings of `magnet paraphrase`. Imports no torch, so that `--help` is fast."""

from dataclasses import dataclass, field


@dataclass
class ParaphraseArguments:
    """The settings of `magnet paraphrase`."""

    model_name_or_path: str = field(metadata={"help": "Sequence-to-sequence model: a folder or a Hub id."})
    input: str = field(metadata={"help": "Texts, as train_file of magnet train: a file, a folder or a Hub id."})
    output: str = field(metadata={"help": "The .jsonl that is written; rows have text and positive."})
    text_column: str = field(default="text", metadata={"help": "Column with the text; a list is joined by spaces."})
    unit: str = field(default="line", metadata={"help": "line: a whole text (one a line); sentence: each sentence."})
    min_words: int = field(default=20, metadata={"help": "Only lines or sentences with more words."})
    limit: int = field(default=0, metadata={"help": "Only the first so many; 0: all."})
    prefix: str = field(default="", metadata={"help": "Put before each, as 'paraphrase: ' for Parrot."})
    batch_size: int = field(default=32, metadata={"help": "Sentences at a time."})
    num_beams: int = field(default=4, metadata={"help": "Beams; 1: none."})
    num_return_sequences: int = field(
        default=4, metadata={"help": "Candidates for a sentence; the first that differs from it is taken."}
    )
    do_sample: bool = field(default=False, metadata={"help": "Sample instead of taking the likeliest."})
    top_p: float = field(default=1.0, metadata={"help": "Sampling: the likeliest tokens of that much probability."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling: below 1 bolder words are rarer."})
    max_input_tokens: int = field(default=512, metadata={"help": "A longer sentence loses its end, and is counted."})
    max_new_tokens: int = field(default=128, metadata={"help": "Most tokens of a paraphrase."})
    seed: int = field(default=0, metadata={"help": "Of sampling; each batch draws from (seed, batch)."})
    bf16: bool = field(default=False, metadata={"help": "Weights in bfloat16."})
    device: str = field(default="auto", metadata={"help": "auto (a GPU if there is one), cpu, cuda, cuda:1 ..."})
    on_bad: str = field(default="raise", metadata={"help": "Rows that cannot be used: raise, or skip and count them."})

    def __post_init__(self):
        for name, allowed in (("unit", ("line", "sentence")), ("on_bad", ("raise", "skip"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}.")
        for name in ("batch_size", "num_beams", "num_return_sequences", "max_input_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        for name in ("min_words", "limit", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative.")
        if not (0 < self.top_p <= 1 and 0 < self.temperature < float("inf")):
            raise ValueError(
                f"top_p={self.top_p}, temperature={self.temperature}: need 0 < top_p <= 1, temperature > 0."
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences}: {self.num_beams} beams give no more candidates. "
                "Lower it, raise num_beams, or set do_sample=true."
            )
