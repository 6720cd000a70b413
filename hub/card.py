"""The model card (README.md): fills `card_template.md`, lists and checks code hashes, detects edits."""

import hashlib
import json
import logging
import re
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig

from modeling_magnet import MagnetFields

from . import FORMS
from .eval_results import read_eval_results
from .training_summary import TrainingSummary, read_training_summary

logger = logging.getLogger(__name__)

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
MARK = re.compile(r"<!-- magnet card: form=(\w+) repo_id=(\S*) sha256=([0-9a-f]{64})[^>]*-->\s*$")
NOTE = "a card that was edited no longer has this hash, and magnet push leaves it alone"
CODE = "## Code that loading runs"
CODE_ROW = re.compile(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", flags=re.MULTILINE)
TAGS = {
    "encoder": ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense"],
    "generator": ["text-generation"],
    "adapter": ["lora", "text-infilling", "feature-extraction", "custom_code"],
}
ALL_MODES = ["text-infilling", "feature-extraction", "sentence-transformers", "custom_code"]
LIBRARIES = {"encoder": "sentence-transformers", "adapter": "peft"}
VERSIONS = ("transformers", "torch", "peft", "sentence-transformers", "safetensors", "huggingface_hub")


def write_model_card(
    config,
    folder: str | Path,
    form: str = "magnet",
    summary: TrainingSummary | None = None,
    repo_id: str | None = None,
) -> None:
    """
    Writes `README.md` into a checkpoint's folder, replacing any existing one.

    Args:
        config ([`PreTrainedConfig`], *optional*): The checkpoint's; `None` for an adapter.
        folder (`str` or `Path`): Complete except for the card: code files are hashed, `eval_results.json` is read.
        form (`str`, *optional*, defaults to `"magnet"`):
            `"magnet"`, `"merged"`, `"encoder"`, `"generator"` or `"adapter"`.
        summary ([`TrainingSummary`], *optional*):
            How it was trained: `read_training_summary(output_dir)` for a run, `checkpoint_summary(folder)` for an exported
            checkpoint; by default read from `folder` itself.
        repo_id (`str`, *optional*): Its name on the Hub, for the snippets.

    Raises:
        `ValueError` for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}.")
    folder = Path(folder)
    summary = checkpoint_summary(folder) if summary is None else summary
    measured = read_eval_results(folder)
    relation = "adapter" if form == "adapter" else "finetune"
    metadata = ModelCardData(
        library_name=LIBRARIES.get(form, "transformers"),
        pipeline_tag="sentence-similarity" if form == "encoder" else "text-generation",
        tags=["magnet", *TAGS.get(form, ALL_MODES)],
        base_model_relation=relation if summary.metadata.get("base_model") else None,
        model_name=(repo_id or "MAGNET").split("/")[-1] if measured else None,
        eval_results=[each.as_eval_result() for each in measured] or None,
        **summary.metadata,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        form=form,
        config=config,
        summary=summary,
        measured=measured,
        name=repo_id or "path/or/hub-id",
        ends_gaps=getattr(config, "infill_end_token_id", None) is not None,
        adapter=_adapter(config, folder),
        pooling=_json(folder / "1_Pooling" / "config.json").get("pooling_mode"),
        prompts=_json(folder / "config_sentence_transformers.json").get("prompts"),
        code=_code(folder),
        versions={library: version(library) for library in VERSIONS},
    )
    _write(folder, re.sub(r"\n{3,}", "\n\n", str(card)).rstrip("\n") + "\n", form, repo_id)


def refresh_model_card(folder: str | Path, repo_id: str | None = None) -> bool:
    """
    Rewrites the card of a checkpoint, after evaluation or with its name on the Hub. Form, base, licence, language and
    datasets are taken from the existing card.

    Args:
        folder (`str` or `Path`): A checkpoint of any form.
        repo_id (`str`, *optional*): Its name on the Hub; by default the one in the card.

    Returns:
        `bool`: `False` if the card was written or edited by hand. Then it is not changed.

    Raises:
        `ValueError` if the card does not match the checkpoint's code: a new one would vouch for it.
    """
    folder = Path(folder)
    check_code(folder)
    mark = _mark(folder)
    if mark is None and (folder / CARD).is_file():
        logger.warning("%s was edited by hand and is not changed.", CARD)
        return False
    has_config = (folder / "config.json").is_file()  # an adapter has none
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False) if has_config else None
    form, named = (_form(config), None) if mark is None else mark
    write_model_card(config, folder, form, repo_id=repo_id or named)
    return True


def copy_card(source: Path, folder: Path) -> None:
    """Copies a checkpoint's card, edited or not, to a folder with other code, and lists that code."""
    text, mark = (source / CARD).read_text(encoding="utf-8"), _mark(source)
    rows = "\n".join(f"| `{name}` | `{sha256}` |" for name, sha256 in _code(folder).items())
    text = re.sub(rf"(?:{CODE_ROW.pattern}\n?)+", f"{rows}\n", text, count=1, flags=re.MULTILINE)
    if mark is None:
        (folder / CARD).write_text(text, encoding="utf-8")
    else:
        _write(folder, MARK.sub("", text), *mark)


def check_code(folder: str | Path) -> None:
    """Raises `ValueError` if a code file of the checkpoint does not match the hash in its card."""
    card = Path(folder) / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if CODE not in text:
        return
    stated = dict(CODE_ROW.findall(text.partition(CODE)[2]))
    for name, sha256 in _code(Path(folder)).items():
        if stated.get(name) != sha256:
            raise ValueError(
                f"{name}: does not match its SHA-256 in {CARD}. Export the checkpoint with form='magnet' (--form magnet), "
                f"which rewrites every file; or, if the change is yours, delete {CARD} to have it rewritten."
            )


def is_generated(folder: str | Path) -> bool:
    """Whether the folder's card was generated and not edited since."""
    return _mark(Path(folder)) is not None


def checkpoint_summary(folder: str | Path) -> TrainingSummary:
    """How a checkpoint was trained: from its card, if it was generated, and the settings of its run."""
    folder = Path(folder)
    known = ModelCard.load(folder / CARD).data.to_dict() if is_generated(folder) else None
    return read_training_summary(folder, known)


def _write(folder: Path, text: str, form: str, repo_id: str | None) -> None:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    mark = f"<!-- magnet card: form={form} repo_id={repo_id or ''} sha256={sha256}; {NOTE} -->\n"
    (folder / CARD).write_text(text + mark, encoding="utf-8")


def _mark(folder: Path) -> tuple[str, str | None] | None:
    """Form and Hub name of the card, if it was generated and not edited since."""
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
    match = MARK.search(text)
    if match is None or hashlib.sha256(text[: match.start()].encode()).hexdigest() != match[3]:
        return None
    return match[1], match[2] or None


def _form(config) -> str:
    """The form of a checkpoint without a card."""
    if config is None:
        return "adapter"
    if isinstance(config, MagnetFields):
        return "merged" if config.adapter is None and config.causal_adapter else "magnet"
    return "generator" if config.architectures[0].endswith("ForCausalLM") else "encoder"


def _adapter(config, folder: Path) -> dict | None:
    found = _json(folder / "adapter_config.json")
    if not found:
        return getattr(config, "adapter", None)
    return {"r": found["r"], "alpha": found["lora_alpha"], "target_modules": sorted(found["target_modules"])}


def _code(folder: Path) -> dict[str, str]:
    """The SHA-256 of each code file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*_magnet.py"))}


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
