"""The README.md of a checkpoint: metadata for the Hub, runnable snippets, its origin, the code that loading runs."""

import hashlib
import json
import logging
import re
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig

from modeling_magnet import MagnetFields

from .card_texts import FORMS, LIMITS, PAPER, PINNING
from .origin import Origin, read_origin
from .results import Measured, read_eval_results

logger = logging.getLogger(__name__)

CARD = "README.md"
MARK = re.compile(r"<!-- magnet card: form=(\w+) repo_id=(\S*) sha256=([0-9a-f]{64})[^>]*-->\s*$")
CODE = "## Code that loading runs"
CODE_ROW = re.compile(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", flags=re.MULTILINE)
CODE_ROWS = re.compile(rf"(?:{CODE_ROW.pattern}\n)+", flags=re.MULTILINE)
NOTE = "a card that was edited no longer has this hash, and magnet push leaves it alone"
ROUNDED_NOTE = (
    "vectors differ from the checkpoint's by up to about a hundredth; exported without `--dtype` they do not"
)
LIBRARIES = ("transformers", "torch", "peft", "sentence-transformers", "safetensors", "huggingface_hub")


def write_model_card(
    config,
    folder: str | Path,
    form: str = "magnet",
    origin: Origin | None = None,
    repo_id: str | None = None,
) -> None:
    """
    Writes `README.md` into a checkpoint's folder, replacing any existing one.

    Args:
        config ([`PreTrainedConfig`]): The checkpoint's; for an adapter, its base's.
        folder (`str` or `Path`): Complete except for the card: code files are hashed, `eval_results.json` is read.
        form (`str`, *optional*, defaults to `"magnet"`):
            `"magnet"`, `"merged"`, `"encoder"`, `"generator"` or `"adapter"`.
        origin ([`Origin`], *optional*):
            Where it comes from: `read_origin(output_dir)` for a run, `checkpoint_origin(folder)` for an exported
            checkpoint; by default read from `folder` itself.
        repo_id (`str`, *optional*): Its name on the Hub, for the snippets.

    Raises:
        `ValueError` for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}.")
    folder = Path(folder)
    origin = checkpoint_origin(folder) if origin is None else origin
    card = ModelCard(f"---\nlibrary_name: {FORMS[form].library}\n---\n")  # parsed once, to get both parts
    measured = read_eval_results(folder)
    card.data = _metadata(form, origin, measured, repo_id)
    card.text = _body(config, folder, form, origin, measured, repo_id)
    _write_marked(folder, str(card).rstrip("\n") + "\n", form, repo_id)


def refresh_model_card(folder: str | Path, repo_id: str | None = None) -> bool:
    """
    Rewrites the card of a checkpoint, after evaluation or with its name on the Hub. Form, base, licence, language and
    datasets are taken from the existing card.

    Args:
        folder (`str` or `Path`): A checkpoint of any form.
        repo_id (`str`, *optional*): Its name on the Hub; by default the one in the card.

    Returns:
        `bool`: `False` if the card was written or edited by hand. Then it is not changed.
    """
    folder, config = Path(folder), _config(Path(folder))
    check_code(folder)  # otherwise the new card would vouch for changed code
    if not is_generated(folder) and (folder / CARD).is_file():
        logger.warning("%s was edited by hand and stays as it is.", CARD)
        return False
    form, named = form_and_name(folder)
    write_model_card(config, folder, form, repo_id=repo_id or named)
    return True


def form_and_name(folder: Path) -> tuple[str, str | None]:
    """A checkpoint's form and its name on the Hub: from its card, if it was written here, otherwise from its files."""
    mark = _mark(folder)
    return (_form(_config(folder), folder), None) if mark is None else (mark[1], mark[2] or None)


def copy_card(source: Path, folder: Path) -> None:
    """Copies a checkpoint's card, edited or not, to a folder where it has other code, and lists that code."""
    text = (source / CARD).read_text(encoding="utf-8")
    restated = CODE_ROWS.sub(lambda _: _code_rows(folder), text, count=1)
    if is_generated(source):
        _write_marked(folder, MARK.sub("", restated), *form_and_name(source))
    else:
        (folder / CARD).write_text(restated, encoding="utf-8")


def check_code(folder: str | Path) -> None:
    """Raises `ValueError` if a code file of the checkpoint does not match the hash in its card."""
    card = Path(folder) / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if CODE not in text:
        return
    stated = dict(CODE_ROW.findall(text.partition(CODE)[2]))
    for path in sorted(Path(folder).glob("*_magnet.py")):
        if stated.get(path.name) != _file_sha256(path):
            raise ValueError(
                f"{path.name}: is not the file whose SHA-256 stands in {CARD}. Export the checkpoint with form='magnet' (--form "
                f"magnet), which writes every file anew; or, if the change is yours, delete {CARD}, and a new one is written."
            )


def is_generated(folder: str | Path) -> bool:
    """Whether the folder's card is exactly as it was written here."""
    return _mark(Path(folder)) is not None


def checkpoint_origin(folder: str | Path) -> Origin:
    """Where a checkpoint comes from: its card, if it was written here, and the settings of its run."""
    folder = Path(folder)
    card = ModelCard.load(folder / CARD, ignore_metadata_errors=True) if is_generated(folder) else None
    return read_origin(folder, card)


def _write_marked(folder: Path, text: str, form: str, repo_id: str | None) -> None:
    mark = f"<!-- magnet card: form={form} repo_id={repo_id or ''} sha256={_sha256(text)}; {NOTE} -->\n"
    (folder / CARD).write_text(text + mark, encoding="utf-8")


def _mark(folder: Path) -> re.Match | None:
    if not (folder / CARD).is_file():
        return None
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    match = MARK.search(text)
    return match if match and _sha256(text[: match.start()]) == match[3] else None


def _config(folder: Path):
    """The configuration in the folder, read by the installed classes; an adapter may have none."""
    if not (folder / "config.json").is_file():
        return None
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _form(config, folder: Path) -> str:
    """The form of a checkpoint without a card."""
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if isinstance(config, MagnetFields):
        return "merged" if config.adapter is None and config.causal_adapter else "magnet"
    return "generator" if config.architectures[0].endswith("ForCausalLM") else "encoder"


# ------------------------------------------------------------------------------------------------------- the metadata


def _metadata(form: str, origin: Origin, measured: list[Measured], repo_id: str | None) -> ModelCardData:
    words = FORMS[form]
    relation = {"base_model_relation": words.relation} if origin.base_model else {}
    index = {}
    if measured:
        name = (repo_id or "MAGNET").split("/")[-1]
        index = {"model_name": name, "eval_results": [result.as_eval_result() for result in measured]}
    return ModelCardData(
        library_name=words.library,
        pipeline_tag=words.pipeline,
        tags=list(words.tags),
        **origin.metadata,
        **relation,
        **index,
    )


# ------------------------------------------------------------------------------------------------------------ the text


def _body(config, folder, form, origin, measured, repo_id) -> str:
    words = FORMS[form]
    name = repo_id or "path/or/hub-id"
    stock = f"a stock `{config.architectures[0]}`" if getattr(config, "architectures", None) else "a stock decoder"
    parts = [
        f"\n# {words.title}",
        words.summary.format(paper=PAPER, causal=_causal(config), stock=stock),
        _licence(origin),
        "## Use",
        words.snippet.format(name=name, length="" if _ends_gaps(config) else ", length=8"),
        "## What is in it",
        _contents(config, folder, form),
        "## Intended use and limits",
        words.limits + LIMITS,
        "## Training",
        _training(origin),
        "## Results",
        _results(measured),
        CODE,
        _code(folder, name),
        "## Versions",
        "Written with " + ", ".join(f"{library} {version(library)}" for library in LIBRARIES) + f". {words.needs}",
    ]
    return "\n\n".join(parts) + "\n"


def _causal(config) -> str:
    if getattr(config, "causal_adapter", False):
        return "Causal mode is adapted too, as in the paper."
    return "Causal mode is the base model's, bit for bit."


def _ends_gaps(config) -> bool:
    return getattr(config, "infill_end_token_id", None) is not None


def _licence(origin) -> str:
    if origin.license:
        return f"Licence: {origin.license_name or origin.license}, that of the base model."
    return "Licence: that of the base model."


def _contents(config, folder, form) -> str:
    lines = []
    if config is not None:
        lines += [f"{config.num_hidden_layers} layers, width {config.hidden_size}, vocabulary {config.vocab_size}"]
        dtype = str(config.dtype).removeprefix("torch.")
        lines += [f"at most {config.max_position_embeddings} tokens, loads as {dtype}"]
        if form in ("merged", "encoder") and dtype in ("bfloat16", "float16"):
            lines += [f"the adapter was merged in float32 and the result rounded to {dtype}: {ROUNDED_NOTE}"]
    if (adapter := _adapter(config, folder)) is not None:
        lines += [f"adapter: LoRA r={adapter['r']}, alpha={adapter['alpha']} on {', '.join(adapter['targets'])}"]
    if isinstance(config, MagnetFields) and form != "generator":
        offsets = ", ".join(map(str, config.infill_free_offsets))
        exact = "gaps of a given length only (`length=`)"
        lines += [
            f"gaps of free length, up to {offsets} tokens at a time, or of a given one"
            if _ends_gaps(config)
            else exact
        ]
    sentences = folder / "config_sentence_transformers.json"
    if sentences.is_file():
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))["pooling_mode"]
        prompts = json.loads(sentences.read_text(encoding="utf-8"))["prompts"]
        named = {prompt: [name for name in prompts if prompts[name] == prompt] for prompt in prompts.values()}
        kinds = "; ".join(
            f"{', '.join(names)}: " + (f"`{prompt}`" if prompt else "none") for prompt, names in named.items()
        )
        lines += [f"sentence vectors: {pooling}, scaled to length 1; prompts: {kinds}"]
    return "\n".join(f"* {line}" for line in lines)


def _adapter(config, folder) -> dict | None:
    path = folder / "adapter_config.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"r": found["r"], "alpha": found["lora_alpha"], "targets": sorted(found["target_modules"])}
    adapter = getattr(config, "adapter", None)
    return adapter and {"r": adapter["r"], "alpha": adapter["alpha"], "targets": adapter["target_modules"]}


def _training(origin) -> str:
    if origin.base_model:
        base = f"Base: [{origin.base_model}](https://huggingface.co/{origin.base_model})."
    else:
        base = "Base: a model that is not named here."
    if not origin.settings:
        return base
    data = "; ".join(f"{what}: `{name}`" for what, name in origin.data.items())
    rows = [f"| {name} | {value} |" for name, value in origin.settings.items()]
    text = f"{base} Trained with `magnet train`. {data[:1].upper() + data[1:]}.\n\n"
    text += "\n".join(["| setting | value |", "|---|---|", *rows])
    if origin.log:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in origin.log.items())
        text += f"\n\nAt the end of the log: {figures}."
    return text


def _results(measured) -> str:
    if not measured:
        return "Not measured. `magnet evaluate` writes its figures here."
    rows = [
        f"| {each.task_name or each.task_type} | {each.dataset_name} | {each.metric_name or each.metric} | {each.shown} |"
        for each in measured
    ]
    text = "\n".join(["| task | data | measure | value (95 % interval) |", "|---|---|---|---|", *rows])
    commands = list(dict.fromkeys(each.command for each in measured if each.command))
    if commands:
        text += "\n\n```bash\n" + "\n".join(commands) + "\n```"
    return text


def _code(folder, name) -> str:
    rows = _code_rows(folder)
    if not rows:
        return "None: there is no Python file here, and `trust_remote_code` is not needed."
    return PINNING.format(name=name) + "\n\n| file | sha256 |\n|---|---|\n" + rows.rstrip("\n")


def _code_rows(folder: Path) -> str:
    return "".join(f"| `{path.name}` | `{_file_sha256(path)}` |\n" for path in sorted(folder.glob("*_magnet.py")))


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
