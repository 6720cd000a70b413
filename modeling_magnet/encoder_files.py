"""What the encoder form needs beside a stock LlamaModel's weights, for readers that know nothing of MAGNET.

sentence-transformers, vLLM, text-embeddings-inference and llama.cpp read the same few files, each in its own way and of its
own age; every key below names who reads it.
"""

import json
from pathlib import Path

from transformers import AutoTokenizer

from .sentence_transformer import write_sentence_transformer_files

MODULES = ("Transformer", "Pooling", "Normalize")


def write_encoder_files(config, tokenizer, folder: Path) -> None:
    """
    Completes a saved `LlamaModel` to an encoder.

    Args:
        config ([`MagnetLlamaConfig`]): Of the checkpoint: pooling, prompt, length.
        tokenizer ([`PreTrainedTokenizerBase`]): Of the checkpoint; it is not changed.
        folder (`Path`): With `config.json` and the weights.
    """
    _write_tokenizer(tokenizer, folder)
    write_sentence_transformer_files(config, folder)
    _change(folder / "config.json", _engine_keys(config))
    # older vLLM knows modules by these names only; sentence-transformers reads both
    _change_modules(folder / "modules.json")
    sentences = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    sentences.pop("config_kwargs")  # the attention mode, which stands in config.json as is_causal
    sentences |= {"max_seq_length": config.max_position_embeddings, "do_lower_case": False}  # TEI, vLLM
    _write(folder / "sentence_bert_config.json", sentences)
    mean = config.pooling == "mean"
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": mean, "pooling_mode_lasttoken": not mean}
    _change(folder / "1_Pooling" / "config.json", pooling)  # TEI, older vLLM


def _engine_keys(config) -> dict:
    """`is_causal` (transformers, vLLM, llama.cpp) is in the config already; TEI wants these two, at the top level."""
    rope = dict(config.rope_parameters)
    keys = {"use_bidirectional_attention": True, "rope_theta": rope.pop("rope_theta")}
    return keys | ({"rope_scaling": rope} if rope.get("rope_type", "default") != "default" else {})


def _write_tokenizer(tokenizer, folder: Path) -> None:
    """A tokenizer that adds [BOS] and [EOS] by itself: only sentence-transformers can be told to ask for them."""
    tokenizer.save_pretrained(folder)
    flags = {"add_bos_token": True, "add_eos_token": True}  # add_eos_token alone would switch [BOS] off
    AutoTokenizer.from_pretrained(folder, **flags).save_pretrained(folder)
    _change(folder / "tokenizer_config.json", flags)  # llama.cpp


def _change_modules(path: Path) -> None:
    modules = json.loads(path.read_text(encoding="utf-8"))
    for module in modules:
        name = next(name for name in MODULES if module["type"].endswith(f".{name}"))
        module["type"] = f"sentence_transformers.models.{name}"
    _write(path, modules)


def _change(path: Path, values: dict) -> None:
    _write(path, json.loads(path.read_text(encoding="utf-8")) | values)


def _write(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
