"""Pushes a checkpoint folder to the Hugging Face Hub; errors are reported in one line that never shows the token."""

import glob
import json
import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .card import check_code, refresh_model_card
from .trust import finite_tensors, shards

# Only the files of a checkpoint: the folder of a run also holds optimizer states and the user's own files.
FILES = """
    *_magnet.py *.safetensors *.safetensors.index.json README.md adapter_config.json added_tokens.json chat_template.jinja
    config.json config_sentence_transformers.json eval_results.json generation_config.json merges.txt modules.json
    sentence_bert_config.json special_tokens_map.json tokenizer.json tokenizer.model tokenizer_config.json vocab.json
    1_Pooling/config.json 2_Normalize/config.json
""".split()
REFUSALS = {  # by status; others may be temporary
    401: (PermissionError, "Run `hf auth login`, or set HF_TOKEN."),
    403: (PermissionError, "Use a token with write access, or a name of your own."),
    404: (FileNotFoundError, "Check the name and the revision."),
}


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """
    Creates the repository if missing, writes its name into the model card, and uploads the checkpoint's files
    with [`~huggingface_hub.HfApi.upload_folder`].

    An interrupted push can be repeated: files already uploaded are not sent again.

    Args:
        folder (`str` or `Path`): A checkpoint of any form ([`~magnet_hub.export.export_checkpoint`]).
        repo_id (`str`): `"name/model"`.
        private (`bool`, *optional*): Whether a new repository is private. An existing one must match.
        revision (`str`, *optional*, defaults to `"main"`): The branch, created if missing.
        commit_message (`str`, *optional*): Defaults to `"Upload MAGNET checkpoint"`.
        create_pr (`bool`, *optional*, defaults to `False`): Opens a pull request instead of committing.
        token (`str`, *optional*): By default that of `hf auth login`, or of `HF_TOKEN`.

    Returns:
        `str`: The commit's URL, whose last part is the hash to pin as `revision`; or the pull request's URL.

    Raises:
        `ValueError`: a folder that is not a complete checkpoint, or holds a link, a weight that is NaN or infinite,
        code that does not match its card, or the token; a bad name; an existing repository that is public.
        `PermissionError`: no token, an invalid one (401), no write access (403).
        `FileNotFoundError`: no such name or branch (404). `ConnectionError`: the Hub cannot be reached, or disconnects.
        `OSError`: a conflict (409), too many requests (429), a server error (5xx), or any other.
    """
    folder, token = Path(folder), _checked_token(token)
    check_folder(folder)
    _check_contents(folder, token)
    check_code(folder)
    try:
        return _upload(HfApi(token=token), folder, repo_id, private, revision, commit_message, create_pr)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        failure = _in_one_line(error, repo_id, token)
    raise failure  # outside of `except`: a chained exception may show a request's headers


def _upload(api: HfApi, folder: Path, repo_id: str, private, revision, commit_message, create_pr) -> str:
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            "private=True: the repository exists and is public. Make it private in its settings, or choose another."
        )
    if revision and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    refresh_model_card(folder, repo_id)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message or "Upload MAGNET checkpoint",
        create_pr=create_pr,
        allow_patterns=[glob.escape(name) for name in files_to_push(folder)],
    )
    return commit.pr_url or commit.commit_url


def files_to_push(folder: Path) -> list[str]:
    """
    The names of the checkpoint's files. Raises `ValueError` for a link among them: an upload would follow it to any
    local file.
    """
    found = []
    for path in (path for pattern in FILES for path in folder.glob(pattern)):
        name = path.relative_to(folder)
        if any((folder / part).is_symlink() for part in (name, *name.parents[:-1])):
            raise ValueError(f"{name}: is a link, or in a linked folder. Put the file itself into {str(folder)!r}.")
        if not path.is_file():
            raise ValueError(f"{name}: is not a regular file. Remove it from {str(folder)!r}.")
        found.append(name.as_posix())
    return found


def check_folder(folder: Path) -> None:
    """Raises `ValueError` unless the folder is complete and loads from the Hub as it does locally."""
    name, files, wanted = f"folder={str(folder)!r}", files_to_push(folder), []
    if "adapter_config.json" in files:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        if Path(base).is_absolute() or Path(base).is_dir():
            raise ValueError(
                f"{name}: the adapter's base is the folder {base!r}, which is only local. Push that folder first, then "
                "export the adapter again with base_model_name_or_path set to its name on the Hub."
            )
    elif "config.json" not in files:
        raise ValueError(f"{name}: has no config.json. Pass a checkpoint folder.")
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        wanted = ["tokenizer_config.json"]
        if str(config.get("model_type")).startswith("magnet_"):
            wanted += ["modeling_magnet.py", "modules.json"]  # else SentenceTransformer would use causal mean vectors
    for index in (file for file in files if file.endswith(".index.json")):
        wanted += shards(folder / index)
    missing = [file for file in wanted if file not in files]
    if missing or not any(file.endswith(".safetensors") for file in files):
        raise ValueError(
            f"{name}: is incomplete, it has no {missing[0] if missing else 'weights'}. Export it with form='magnet' "
            "(--form magnet), which rewrites every file."
        )


def _check_contents(folder: Path, token: str) -> None:
    """Raises `ValueError` for an empty file, one that holds the token, or weights that are damaged or not finite."""
    for name in files_to_push(folder):
        if (folder / name).stat().st_size == 0:
            raise ValueError(f"{name}: is empty. Save the checkpoint again.")
        if name.endswith(".safetensors"):
            for _ in finite_tensors(folder / name):
                pass
        elif token.encode() in (folder / name).read_bytes():
            raise ValueError(f"{name}: contains the Hub token. Remove it, and revoke the token if others saw it.")


def _checked_token(token: str | None) -> str:
    token = (token or get_token() or "").strip()
    if not re.fullmatch("[!-~]+", token):  # httpx would show any other in its error
        found = "has invalid characters" if token else "none was found"
        raise PermissionError(f"token: {found}. Run `hf auth login`, or set HF_TOKEN, with a write token.")
    return token


def _in_one_line(error: Exception, repo_id: str, token: str) -> Exception:
    if type(error) is RuntimeError and error.__cause__:  # as huggingface_hub wraps the failed upload of a large file
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    kind, advice = REFUSALS.get(status, (OSError, "Push again: only missing files are sent."))
    if isinstance(error, ValueError):
        kind, advice = ValueError, ""
    elif status is None and isinstance(error, (HTTPError, ConnectionError)):
        kind = ConnectionError
    said = " ".join(str(error).split()).replace(token, "<token>") or type(error).__name__
    return kind(f"repo_id={repo_id!r}: {said} {advice}".strip())
