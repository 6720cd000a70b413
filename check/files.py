"""The folder's files: none missing, none that leads out of it, none that runs code when read."""

from transformers.dynamic_module_utils import get_relative_imports

from magnet_hub.trust import shard_problem, shards

from .checkpoint import Checkpoint
from .outcome import Failed, Skipped

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
OPAQUE = {".safetensors", ".png", ".gguf"}  # their first bytes may be anything


def check_files(checkpoint: Checkpoint) -> str:
    """The files needed for loading exist and are not empty."""
    form = checkpoint.form
    needed = {"adapter_config.json"} if form == "adapter" else {"config.json"}
    needed |= {"tokenizer_config.json", "tokenizer.json"}
    if form in ("magnet", "merged", "encoder"):
        needed |= {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
        needed |= {"1_Pooling/config.json"}
    needed |= _code_needed(checkpoint) if checkpoint.is_magnet else set()
    missing = sorted(name for name in needed if not checkpoint.has(name))
    if not checkpoint.weights:
        missing.append("model.safetensors")
    if missing:
        raise Failed(f"missing: {', '.join(missing)}")
    empty = [path.name for path in checkpoint.files if path.stat().st_size == 0]
    if empty:
        raise Failed(f"empty: {', '.join(empty)}")
    size = sum(path.stat().st_size for path in checkpoint.files)
    return f"{len(checkpoint.files)} files, {size / 2**20:,.1f} MiB, form {form}"


def _code_needed(checkpoint) -> set[str]:
    """The files named by `auto_map`, and what they import from each other."""
    named = checkpoint.settings.get("auto_map") or {}
    waiting = {f"{str(entry).split('.')[0]}.py" for entry in named.values()} | {"modeling_magnet.py"}
    needed = set()
    while waiting:
        name = waiting.pop()
        needed.add(name)
        if checkpoint.has(name):
            waiting |= {f"{each}.py" for each in get_relative_imports(checkpoint.folder / name)} - needed
    return needed


def check_paths(checkpoint: Checkpoint) -> str:
    """No link or shard name leads out of the folder (transformers follows both). All else is a regular file."""
    for path in checkpoint.entries:
        if checkpoint.leads_out(path):
            raise Failed(f"{path.relative_to(checkpoint.folder)} is a link that leads out of the folder")
        if not path.is_file() and not path.is_dir():
            raise Failed(f"{path.relative_to(checkpoint.folder)} is no regular file, as a pipe or a device")
    count = 0
    for index in sorted(checkpoint.folder.glob("*.index.json")):
        try:
            names = shards(index)
        except ValueError:
            raise Failed(f"{index.name} has no weight_map") from None
        for name in names:
            if problem := shard_problem(name):
                raise Failed(f"{index.name} names a shard {problem}: {name!r}")
            if not checkpoint.has(name):
                raise Failed(f"{index.name} names {name!r}, which is missing")
        count += len(names)
    return f"no links out of the folder; {count} shards named by an index" if count else "no links out of the folder"


def check_pickles(checkpoint: Checkpoint) -> str:
    """No file runs code when read, judging by names and first bytes."""
    found = [path for path in checkpoint.files if path.suffix in PICKLES or _is_pickle(path)]
    if found:
        names = ", ".join(path.relative_to(checkpoint.folder).as_posix() for path in found)
        raise Failed(f"{names}: may run code when read. Keep it off the Hub; weights belong into safetensors")
    return "safetensors, JSON and text only"


def _is_pickle(path) -> bool:
    if path.suffix in OPAQUE:
        return False
    with path.open("rb") as file:
        first = file.read(4)
    return first[:1] == b"\x80" and first[1:2] in b"\x02\x03\x04\x05" and len(first) > 1 or first == b"PK\x03\x04"


def check_config(checkpoint: Checkpoint) -> str:
    """The settings can be read, and none allows other code to run."""
    _no_widening(checkpoint)
    if checkpoint.form == "adapter":
        return f"an adapter for {checkpoint.read_json('adapter_config.json').get('base_model_name_or_path')!r}"
    try:
        config = checkpoint.config
    except Skipped:
        raise
    except Exception as error:
        raise Failed(f"config.json: {' '.join(str(error).split())}") from None
    if checkpoint.form == "encoder":
        _check_encoder_keys(checkpoint)
    return f"{type(config).__name__}, {checkpoint.architecture}"


def _no_widening(checkpoint) -> None:
    for path in checkpoint.files:
        if path.suffix == ".json" and path.name != "tokenizer.json":
            name = path.relative_to(checkpoint.folder).as_posix()
            for key, value in _pairs(checkpoint.read_json(name)):
                if key == "trust_remote_code" and value:
                    raise Failed(f"{name} sets trust_remote_code: no file may")
                if key == "_attn_implementation_internal" or (key == "attn_implementation" and "/" in str(value)):
                    raise Failed(f"{name} sets {key}={value!r}, which names code elsewhere")
                if key == "auto_map":
                    _check_auto_map(checkpoint, name, value)
    if checkpoint.has("modules.json"):
        for module in checkpoint.read_json("modules.json"):
            if not str(module.get("type")).startswith("sentence_transformers."):
                raise Failed(f"modules.json names {module.get('type')!r}, which is no module of sentence-transformers")


def _pairs(node):
    if isinstance(node, dict):
        yield from node.items()
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _pairs(child)


def _check_auto_map(checkpoint, name, value) -> None:
    if name != "config.json" or not checkpoint.is_magnet:
        raise Failed(f"{name} has an auto_map: this form loads no code from there")
    for entry in value.values() if isinstance(value, dict) else [value]:
        file = f"{str(entry).split('.')[0]}.py"
        if "--" in str(entry) or not checkpoint.has(file):
            raise Failed(f"{name}: auto_map names {entry!r}, which is no file of this folder")


def _check_encoder_keys(checkpoint) -> None:
    """The keys that transformers, vLLM, llama.cpp (is_causal) and TEI (the others) read."""
    expected = {"is_causal": False, "use_bidirectional_attention": True}
    for key, value in expected.items():
        if checkpoint.settings.get(key) is not value:
            raise Failed(
                f"config.json has {key}={checkpoint.settings.get(key)!r}: an encoder needs {str(value).lower()}"
            )
    if "rope_theta" not in checkpoint.settings:
        raise Failed("config.json has no rope_theta at its top level, where text-embeddings-inference reads it")
