"""A system to evaluate: a loaded checkpoint and its kind."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from magnet_hub.trust import check_finite, check_source
from modeling_magnet import FAMILIES

KINDS = {
    "magnet": "all three modes",
    "llm2vec": "vectors with bidirectional attention, text left to right",
    "mtp": "as llm2vec; a masked token is predicted at its own position (Appendix D)",
    "base": "everything left to right",
    "causal": "the same, with its adapter: a causal-LM or causal contrastive LoRA",
    "fim": "fills gaps in fill-in-the-middle order: a LoRA trained on it, or a stock model with tokens of its own for it",
    "encoder": "a sentence-transformers folder, frozen and supervised, vectors only",
    "lexical": "word or character counts, vectors only",
}
LEFT_TO_RIGHT = ("base", "causal", "fim")
BOTH_WAYS = ("magnet", "llm2vec", "mtp")


@dataclass
class System:
    """
    A system of a table.

    Args:
        name (`str`): Name in the tables. It starts with the kind, as in `"llm2vec-mntp"`; a number at the end is the
            training step, as in `"magnet-3400"`, for the curves of Figures 5 and 6.
        model (`Magnet*ForCausalLM` or `SentenceTransformer`, *optional*): In eval mode; `None` for word counts.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The checkpoint's.
        path (`str`, *optional*): Where it was loaded from.

    Raises:
        `ValueError` for a name that does not start with a kind.

    Example:

    ```python
    >>> from magnet_eval.systems import System
    >>> System("llm2vec-mntp-3400").kind, System("llm2vec-mntp-3400").step
    ('llm2vec', 3400)

    ```
    """

    name: str
    model: Any = None
    tokenizer: Any = None
    path: str = ""

    def __post_init__(self):
        if self.kind not in KINDS or not re.fullmatch(r"[\w.+ ,-]+", self.name):
            known = "; ".join(f"{kind}: {how}" for kind, how in KINDS.items())
            raise ValueError(
                f"baseline={self.name!r}: must start with a kind of system, as in causal or causal-r64. Kinds: {known}."
            )

    @property
    def kind(self) -> str:
        return re.split("[- ]", self.name)[0]

    @property
    def step(self) -> int | None:
        """The training step, if the name ends with one."""
        found = re.search(r"-(\d+)$", self.name)
        return int(found[1]) if found else None

    @property
    def fills_gaps(self) -> bool:
        """Whether it attends to the right. A merged checkpoint has its adapter in the weights."""
        return self.kind == "magnet" and is_adapted(self.model)

    @property
    def ends_gaps(self) -> bool:
        return self.fills_gaps and self.model.config.infill_end_token_id is not None


def is_adapted(model) -> bool:
    """Whether a model was trained to attend to the right."""
    return model.config.adapter is not None or model.config.causal_adapter


def load(path: str, dtype="float32", device=None) -> tuple:
    """A MAGNET checkpoint, or a base as a MAGNET model without adapter, in eval mode; and its tokenizer."""
    check_source(path)
    family = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type.removeprefix("magnet_")
    if family not in FAMILIES:
        raise ValueError(f"{path}: {family} models are not supported. Use one of {', '.join(FAMILIES)}.")
    model = FAMILIES[family].from_pretrained(path, dtype=dtype)
    check_finite(model)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_system(name: str, path: str, dtype="float32", device=None) -> System:
    """Loads a system of any kind with weights."""
    system = System(name, path=path)
    if system.kind != "encoder":
        system.model, system.tokenizer = load(path, dtype, device)
        return system
    from sentence_transformers import SentenceTransformer

    if not Path(path, "modules.json").is_file():
        raise ValueError(f"baseline={name}={path}: is not a sentence-transformers folder (no modules.json).")
    system.model = SentenceTransformer(path, device=device, trust_remote_code=False)
    system.tokenizer = system.model.tokenizer
    return system
