"""The checkpoint a command uses: its flags, and loading it."""

import os
import re
import sys
from pathlib import Path

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def add_model_flags(parser, dtype: str = "auto") -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name_or_path",
        help="checkpoint: a folder or a Hub id (default: the environment variable MAGNET_MODEL, else "
        "magnet-smollm2-135m, see magnet fetch)",
    )
    group.add_argument("--revision", help="commit, branch or tag of a Hub id")
    group.add_argument("--dtype", default=dtype, choices=("auto", "float32", "bfloat16", "float16"))
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1 ...")


def chosen_model(given: str | None) -> str:
    """
    The flag, else MAGNET_MODEL, else the shipped checkpoint, which is fetched the first time.

    Raises:
        `ValueError` if the path does not exist; `OSError` if the shipped checkpoint's base cannot be downloaded.
    """
    path = given or os.environ.get("MAGNET_MODEL")
    if not path:
        from magnet_hub.fetch import shipped_checkpoint

        print("no --model_name_or_path: using magnet-smollm2-135m", file=sys.stderr)
        return str(shipped_checkpoint())
    if not Path(path).is_dir() and not HUB_ID.fullmatch(path):
        raise ValueError(f"model_name_or_path={path!r}: no such folder, and not a Hub id. Pass one that exists.")
    return path


def load_magnet(options):
    """A MAGNET model of any family in eval mode, and its tokenizer. Runs the installed code, never the checkpoint's."""
    model, tokenizer = load_causal(options)
    kind = model.config.model_type
    if not kind.startswith("magnet_"):
        from modeling_magnet import FAMILIES

        advice = "Adapt it with magnet train" if kind in FAMILIES else f"magnet train adapts {', '.join(FAMILIES)}"
        raise ValueError(
            f"model_name_or_path={model.name_or_path!r}: is a {kind} checkpoint, not a MAGNET one. {advice}; load an "
            "exported encoder with SentenceTransformer."
        )
    return model, tokenizer


def load_causal(options):
    """Any causal language model in eval mode, and its tokenizer."""
    path, settings = chosen_model(options.model_name_or_path), {"revision": options.revision}
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    import modeling_magnet  # noqa: F401 - registers MAGNET with the Auto classes
    from magnet_hub.trust import check_finite, check_source

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    device = torch_device(options.device)
    try:
        check_source(path, options.revision)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **settings)
        settings |= {"dtype": options.dtype, "use_safetensors": True}
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, **settings)
        check_finite(model)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"model_name_or_path={path!r}: {error}") from error
    return model.to(device).eval(), tokenizer


def torch_device(name: str):
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={name!r}: cannot be used ({reason}). Leave it out to use the best available."
        ) from None
    return torch.device(name)
