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
MODULES = {  # by folder
    "": "base.modules.transformer.Transformer",
    "1_Pooling": "sentence_transformer.modules.pooling.Pooling",
    "2_Normalize": "base.modules.normalize.Normalize",
}


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
        config ([`MagnetFields`]): Provides pooling, prompt, width and length.
        tokenizer ([`PreTrainedTokenizerBase`]): Of the checkpoint.
        folder (`str` or `Path`): The checkpoint's folder.
    """
    _write(Path(folder), _files(config, tokenizer))


def write_encoder_files(config, tokenizer, folder: Path) -> None:
    """
    Turns a saved stock decoder into an encoder. sentence-transformers, vLLM, TEI and llama.cpp read the same few
    files, each in its own way: the comments below say which reads each key.

    Args:
        config ([`MagnetFields`]): Of the checkpoint: pooling, prompt, length.
        tokenizer ([`PreTrainedTokenizerBase`]): Of the checkpoint; it is not changed.
        folder (`Path`): With `config.json`, the tokenizer and the weights.
    """
    files = _files(config, tokenizer)
    for module in files["modules.json"]:  # older vLLM knows only these names; sentence-transformers reads both
        module["type"] = f"sentence_transformers.models.{module['type'].rsplit('.')[-1]}"
    sentences = files["sentence_bert_config.json"]
    del sentences["config_kwargs"]  # the attention mode, which config.json has
    sentences |= {"max_seq_length": config.max_position_embeddings, "do_lower_case": False}  # TEI, vLLM
    mean = config.pooling == "mean"
    flags = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": mean, "pooling_mode_lasttoken": not mean}
    files["1_Pooling/config.json"] |= flags  # TEI, older vLLM
    files["config.json"] = _read(folder / "config.json") | _engine_keys(config)
    # only sentence-transformers can ask a tokenizer for opening and end tokens: this one adds them by itself
    settings = opening_and_end(config, tokenizer)
    type(tokenizer).from_pretrained(folder, **settings).save_pretrained(folder)
    flags = {name: settings[name] for name in ("add_bos_token", "add_eos_token")}  # llama.cpp
    # this class uses tokenizer.json as is: a family's own may add other tokens around a text
    flags["tokenizer_class"] = "PreTrainedTokenizerFast"
    files["tokenizer_config.json"] = _read(folder / "tokenizer_config.json") | flags
    _write(folder, files)


def _files(config, tokenizer) -> dict[str, dict | list]:
    """The files that sentence-transformers reads, by name."""
    processor = opening_and_end(config, tokenizer)
    processor |= {"split_special_tokens": True, "model_max_length": config.max_position_embeddings}
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{module}"}
            for i, (path, module) in enumerate(MODULES.items())
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "config_kwargs": {"attention_mode": "bidirectional"},
            "processor_kwargs": processor,
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": prompts_of(config),
            "default_prompt_name": DEFAULT,
            "similarity_fn_name": "cosine",
            "requirements": {"transformers": ">=5.24"},
        },
        "1_Pooling/config.json": {
            "embedding_dimension": config.hidden_size,
            "pooling_mode": {"last_token": "lasttoken", "mean": "mean"}[config.pooling],
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
    }


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


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(folder: Path, files: dict[str, dict | list]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
