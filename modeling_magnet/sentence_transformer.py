"""The files that let `SentenceTransformer(folder, trust_remote_code=True)` read a MAGNET checkpoint.

Only built-in sentence-transformers modules are named, so the model files stay the only remote code.
"""

import json
from pathlib import Path

# Table 10, under the names by which mteb looks prompts up ("STS" is a task type: all STS tasks)
INSTRUCTIONS = {
    "STS": "Retrieve semantically similar text",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles",
}


def prompts_of(config) -> dict[str, str]:
    """Prompts by name; those of Table 10 only for a checkpoint that was trained with an instruction."""
    if not config.representation_prompt:
        return {"query": "", "document": "", "magnet": ""}
    own = dict.fromkeys(("query", "document", "magnet"), config.representation_prompt)
    return {name: f"{instruction} " for name, instruction in (own | INSTRUCTIONS).items()}


def write_sentence_transformer_files(config, folder: str | Path) -> None:
    """
    Writes `modules.json`, `sentence_bert_config.json`, `config_sentence_transformers.json` and the pooling module.

    Args:
        config ([`MagnetLlamaConfig`]): Gives pooling, prompt, width and length.
        folder (`str` or `Path`): The checkpoint's folder.
    """
    modules = ["base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling"]
    modules += ["base.modules.normalize.Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{module}"}
            for i, (path, module) in enumerate(zip(paths, modules))
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "config_kwargs": {"attention_mode": "bidirectional"},
            "processor_kwargs": {
                "add_bos_token": True,  # add_eos_token alone would switch it off
                "add_eos_token": True,
                "split_special_tokens": True,
                "model_max_length": config.max_position_embeddings,
            },
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": prompts_of(config),
            "default_prompt_name": "magnet",
            "similarity_fn_name": "cosine",
            "requirements": {"transformers": ">=5.18"},
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
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
