"""The files that load a checkpoint as an encoder: in sentence-transformers for any form that has them, and in vLLM,
text-embeddings-inference (TEI) and llama.cpp for the form `encoder`.

They name only built-in sentence-transformers modules, so the model files stay the only remote code.
"""

import json
from pathlib import Path

from modeling_magnet.encoding_magnet import start_ids

# Table 10, under the names that mteb uses for prompts ("STS" is a task type: all STS tasks)
INSTRUCTIONS = {
    "STS": "Retrieve semantically similar text",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles",
}
DEFAULT = "document"  # mteb would take a custom name for an unknown task
MODULES = ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling")
MODULES += ("base.modules.normalize.Normalize",)


def prompts_of(config) -> dict[str, str]:
    """Prompts by name; those of Table 10 only for a checkpoint trained with an instruction."""
    if not config.representation_prompt:
        return {"query": "", "document": ""}
    own = dict.fromkeys(("query", "document"), config.representation_prompt)
    return {name: f"{instruction} " for name, instruction in (own | INSTRUCTIONS).items()}


def opening_and_end(config, tokenizer) -> dict:
    """
    Tokenizer settings that reproduce the input of `encode()`: the token that opens a text, if any, and [EOS] after it.
    The opening token need not be the tokenizer's [BOS], and sentence-transformers can only pass flags.
    """
    start = start_ids(config, tokenizer)
    settings = {"add_bos_token": bool(start), "add_eos_token": True}  # add_eos_token alone would switch [BOS] off
    if start and start != [tokenizer.bos_token_id]:
        settings["bos_token"] = tokenizer.convert_ids_to_tokens(start[0])
    if tokenizer.pad_token is None:  # batches need one; any will do, it is never attended to
        settings["pad_token"] = tokenizer.eos_token
    return settings


def write_sentence_transformer_files(config, tokenizer, folder: str | Path) -> None:
    """
    Writes `modules.json`, `sentence_bert_config.json`, `config_sentence_transformers.json` and the pooling module.

    Args:
        config ([`MagnetFields`]): Gives pooling, prompt, width and length.
        tokenizer ([`PreTrainedTokenizerBase`]): Of the checkpoint.
        folder (`str` or `Path`): The checkpoint's folder.
    """
    paths = ["", "1_Pooling", "2_Normalize"]
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{module}"}
            for i, (path, module) in enumerate(zip(paths, MODULES))
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "config_kwargs": {"attention_mode": "bidirectional"},
            "processor_kwargs": opening_and_end(config, tokenizer)
            | {"split_special_tokens": True, "model_max_length": config.max_position_embeddings},
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": prompts_of(config),
            "default_prompt_name": DEFAULT,
            "similarity_fn_name": "cosine",
            "requirements": {"transformers": ">=5.23"},
        },
        "1_Pooling/config.json": {
            "embedding_dimension": config.hidden_size,
            "pooling_mode": {"last_token": "lasttoken", "mean": "mean"}[config.pooling],
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
    }
    for name, content in files.items():
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        _write(path, content)


# ------------------------------------------------------------------------------------------------------ the form encoder


def write_encoder_files(config, tokenizer, folder: Path) -> None:
    """
    Turns a saved stock decoder into an encoder. sentence-transformers, vLLM, TEI and llama.cpp read the same few
    files, each in its own way and version: the comments below name who reads each key.

    Args:
        config ([`MagnetFields`]): Of the checkpoint: pooling, prompt, length.
        tokenizer ([`PreTrainedTokenizerBase`]): Of the checkpoint; it is not changed.
        folder (`Path`): With `config.json` and the weights.
    """
    _write_tokenizer(config, tokenizer, folder)
    write_sentence_transformer_files(config, tokenizer, folder)
    _change(folder / "config.json", _engine_keys(config))
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for module in modules:  # older vLLM knows only these names; sentence-transformers reads both
        module["type"] = f"sentence_transformers.models.{module['type'].rsplit('.')[-1]}"
    _write(folder / "modules.json", modules)
    sentences = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    sentences.pop("config_kwargs")  # the attention mode, which config.json has
    sentences |= {"max_seq_length": config.max_position_embeddings, "do_lower_case": False}  # TEI, vLLM
    _write(folder / "sentence_bert_config.json", sentences)
    mean = config.pooling == "mean"
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": mean, "pooling_mode_lasttoken": not mean}
    _change(folder / "1_Pooling" / "config.json", pooling)  # TEI, older vLLM


def _engine_keys(config) -> dict:
    """`is_causal` (transformers, vLLM, llama.cpp) is already in the config; TEI needs these, at the top level."""
    rope = config.rope_parameters
    keys = {"use_bidirectional_attention": True}
    if "full_attention" in rope:  # Gemma 3's sliding layers have their own rotary frequencies
        keys["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    keys["rope_theta"] = rope["rope_theta"]
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return keys | ({"rope_scaling": scaling} if scaling.get("rope_type", "default") != "default" else {})


def _write_tokenizer(config, tokenizer, folder: Path) -> None:
    """A tokenizer that adds opening and end tokens by itself: only sentence-transformers can request them."""
    settings = opening_and_end(config, tokenizer)
    tokenizer.save_pretrained(folder)
    type(tokenizer).from_pretrained(folder, **settings).save_pretrained(folder)
    flags = {name: settings[name] for name in ("add_bos_token", "add_eos_token")}  # llama.cpp
    # this class uses tokenizer.json as is: a family's own may add other tokens around a text
    _change(folder / "tokenizer_config.json", flags | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _change(path: Path, values: dict) -> None:
    _write(path, json.loads(path.read_text(encoding="utf-8")) | values)


def _write(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
