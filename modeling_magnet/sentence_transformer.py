"""The files that let `SentenceTransformer(folder, trust_remote_code=True)` read a MAGNET checkpoint.

Only built-in sentence-transformers modules are named, so the model files stay the only remote code.
"""

import json
from pathlib import Path


def write_sentence_transformer_files(config, folder: str | Path) -> None:
    """
    Writes `modules.json`, `sentence_bert_config.json`, `config_sentence_transformers.json` and the pooling module.

    Args:
        config ([`MagnetLlamaConfig`]): Gives pooling, prompt, width and length.
        folder (`str` or `Path`): The checkpoint's folder.
    """
    prompt = f"{config.representation_prompt} " if config.representation_prompt else ""
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
            "prompts": {"query": prompt, "document": prompt, "magnet": prompt},
            "default_prompt_name": "magnet",
            "similarity_fn_name": "cosine",
            "requirements": {"transformers": ">=5.3"},
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
