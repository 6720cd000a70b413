"""Pushes a checkpoint folder to the Hugging Face Hub; errors are reported in one line that never shows the token."""

import glob
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .card import check_code, refresh_model_card

logger = logging.getLogger(__name__)

# Only the files of a checkpoint: the folder of a run also holds optimizer states and the user's own files.
FILES = [
    "*_magnet.py",
    "*.safetensors",
    "*.safetensors.index.json",
    "README.md",
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "config_sentence_transformers.json",
    "eval_results.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
]
TRIES = 5
LONGEST_WAIT = 300  # seconds a server may ask for
TRANSIENT = (408, 429, 500, 502, 503, 504)


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """
    Creates the repository if there is none, writes its name into the model card, and uploads the checkpoint's files.

    An interrupted push can be repeated: files that are already there are not sent again.

    Args:
        folder (`str` or `Path`): A checkpoint of any form ([`~magnet_hub.forms.export_checkpoint`]).
        repo_id (`str`): `"name/model"`.
        private (`bool`, *optional*): Whether a new repository is private. An existing one must match.
        revision (`str`, *optional*, defaults to `"main"`): The branch, created if there is none.
        commit_message (`str`, *optional*): Defaults to `"Upload MAGNET checkpoint"`.
        token (`str`, *optional*): By default that of `hf auth login`, or of `HF_TOKEN`.

    Returns:
        `str`: The commit's URL, whose last part is the hash to pin as `revision`.

    Raises:
        `ValueError`: a folder that is not a complete checkpoint, or holds a link, a weight that is NaN or infinite, or
        code that does not match its card; a bad name; an existing repository that is public.
        `PermissionError`: no token, one that is refused (401), no right to write (403).
        `FileNotFoundError`: no such name or branch (404). `ConnectionError`: the Hub cannot be reached, or hangs up.
        `OSError`: a conflict (409), too many requests (429), a failing server (5xx), or another refusal.
    """
    folder, token = Path(folder), _token(token)
    files = files_to_push(folder)
    check_folder(folder)
    check_weights(folder, files)
    check_code(folder)
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(
            f"repo_id={repo_id!r}: needs your name or an organisation's before it, as in 'name/{repo_id}'."
        )
    api = HfApi(token=token)
    told = f"repo_id={repo_id!r}"
    _call(lambda: api.create_repo(repo_id, private=private, exist_ok=True), told, token)
    if private and not _call(lambda: api.model_info(repo_id), told, token).private:
        raise ValueError(
            f"private=True: {repo_id} exists and is public. Make it private in its settings, or choose another."
        )
    if revision not in (None, "main") and not revision.startswith("refs/"):
        _call(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), told, token)
    refresh_model_card(folder, repo_id)
    files = files_to_push(folder)  # with the card, if there was none
    upload = {"repo_id": repo_id, "folder_path": folder, "revision": revision}
    upload |= {"commit_message": commit_message or "Upload MAGNET checkpoint"}
    upload |= {"allow_patterns": [glob.escape(name) for name in files]}
    return str(_call(lambda: api.upload_folder(**upload), told, token).commit_url)


def files_to_push(folder: Path) -> list[str]:
    """
    The names of the checkpoint's files. Raises `ValueError` for a link among them: an upload would follow it to any
    local file.
    """
    found = []
    for path in (path for pattern in FILES for path in folder.glob(pattern)):
        name = path.relative_to(folder)
        if any((folder / part).is_symlink() for part in (name, *name.parents[:-1])):
            raise ValueError(f"{name}: is, or lies behind, a link. Put the file itself into {str(folder)!r}.")
        if not path.is_file():
            raise ValueError(f"{name}: is no regular file. Take it out of {str(folder)!r}.")
        found.append(name.as_posix())
    return found


def check_weights(folder: Path, files: list[str]) -> None:
    """Raises `ValueError` for a tensor that holds NaN or infinity, or a file that cannot be read."""
    for name in (name for name in files if name.endswith(".safetensors")):
        try:
            with safe_open(folder / name, "pt") as weights:
                for key in weights.keys():
                    tensor = weights.get_tensor(key)
                    # isfinite() does not support one-byte floats
                    if not (tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite().all():
                        raise ValueError(f"{name}: {key} is not finite (NaN or infinity). Push another checkpoint.")
        except SafetensorError as error:
            raise ValueError(f"{name}: cannot be read ({error}). Save the checkpoint again.") from None


def check_folder(folder: Path) -> None:
    """Raises `ValueError` unless the folder is complete and loads from the Hub as it does locally."""
    name = f"folder={str(folder)!r}"
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        if Path(base).is_absolute() or Path(base).is_dir():
            raise ValueError(
                f"{name}: the adapter's base is the folder {base!r}, which nobody else has. Push that folder first, then "
                "export the adapter again with base_model_name_or_path set to its name on the Hub."
            )
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name}: has no config.json. Pass the folder of a checkpoint.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wanted = ["tokenizer_config.json"]
    if str(config.get("model_type")).startswith("magnet_"):
        wanted += ["modeling_magnet.py", "modules.json"]  # else SentenceTransformer would use causal mean vectors
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{name}: is not complete, it has no {missing[0] if missing else 'weights'}. Export it with form='magnet' "
            "(--form magnet), which writes every file anew."
        )


def _token(token: str | None) -> str:
    token = (token or get_token() or "").strip()
    if not token:
        raise PermissionError(
            "token: none was found. Run `hf auth login`, or set HF_TOKEN, with a token that may write."
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise PermissionError("token: has characters that no token has. Copy it again from the Hub's settings.")
    return token


# -------------------------------------------------------------------------------------------------------- what may fail


def _call(action: Callable, what: str, token: str):
    """`action()`, retried after transient errors; any failure becomes one line without the token."""
    for attempt in range(1, TRIES + 1):
        try:
            return action()
        except Exception as error:  # everything, because any message or chained exception may show a request's headers
            failure, wait = _explain(error, what, token), _wait(error, attempt)
        if wait is None or attempt == TRIES:
            break
        logger.warning("%s Trying again in %.0f s.", str(failure).split(". ")[0] + ".", wait)
        time.sleep(wait)
    raise failure  # outside of `except`, so that nothing is chained to it


def _wait(error: Exception, attempt: int) -> float | None:
    """Seconds before the next try; `None` if another try is useless, or huggingface_hub has made its own six."""
    response = getattr(_root(error), "response", None)
    if _is_cut(error):
        return None if _was_repeated(_root(error)) else 2.0 ** (attempt - 1)
    if response is None or response.status_code not in TRANSIENT or _was_repeated(_root(error)):
        return None
    asked = response.headers.get("Retry-After", "")
    wait = float(asked) if asked.isdigit() else 2.0 ** (attempt - 1)
    return wait if wait <= LONGEST_WAIT else None


def _was_repeated(error: Exception) -> bool:
    """huggingface_hub retries requests before and during an upload, but not creating a repository or a commit."""
    try:
        request = error.response.request if isinstance(error, HfHubHTTPError) else error.request
    except RuntimeError:  # httpx raises it without a request
        return False
    return request.method == "PUT" or "/preupload/" in request.url.path or "/info/lfs/" in request.url.path


def _root(error: Exception) -> Exception:
    """The error inside the RuntimeError that wraps a failed upload of a large file."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_cut(error: Exception) -> bool:
    """Whether httpx (httpx2 since huggingface_hub 2) received no response."""
    root = _root(error)
    return type(root).__module__.split(".")[0] in ("httpx", "httpx2") and not isinstance(root, HfHubHTTPError)


def _explain(error: Exception, what: str, token: str) -> Exception:
    root = _root(error)
    if isinstance(root, OfflineModeIsEnabled):
        return ConnectionError(f"{what}: offline mode is on. Unset HF_HUB_OFFLINE.")
    if _is_cut(error):
        return ConnectionError(
            f"{what}: the connection to the Hub failed ({_line(root, token)}). Nothing is lost: push again, and only what is "
            "missing is sent."
        )
    status = root.response.status_code if isinstance(root, HfHubHTTPError) else None
    kind, text = REFUSALS.get(status, (OSError, "{said}."))
    if status is not None and status >= 500:
        kind, text = OSError, "the Hub fails ({status}). Push again later: only what is missing is sent."
    if status is None and isinstance(root, ValueError):
        kind = ValueError
    return kind(f"{what}: " + text.format(status=status, said=_line(root, token)))


REFUSALS = {
    401: (PermissionError, "the token is refused (401). Run `hf auth login` anew, or set HF_TOKEN."),
    403: (
        PermissionError,
        "the token may not write there (403). Use one with the right to write, or a name of your own.",
    ),
    404: (FileNotFoundError, "not found on the Hub (404). Check the name and the revision; {said}."),
    409: (OSError, "someone else changed it at the same time (409). Push again."),
    429: (OSError, "too many requests (429). Wait a few minutes and push again: only what is missing is sent."),
}


def _line(error: Exception, token: str) -> str:
    """The message of the server or the library, in one line, without the token."""
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return " ".join(said.split()).replace(token, "<token>").rstrip(".")[:300]
