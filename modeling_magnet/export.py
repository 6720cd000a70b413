"""Writes a checkpoint that anyone can load: weights, code, tokenizer, SentenceTransformer files, model card."""

from pathlib import Path

from .model_card import write_model_card
from .sentence_transformer import write_sentence_transformer_files


def save_checkpoint(model, tokenizer, folder: str | Path) -> None:
    """
    Saves the default form of a MAGNET checkpoint: all three modes, adapter unmerged, causal mode exactly the base's.

    It loads with `AutoModel*.from_pretrained(folder, trust_remote_code=True)` and with
    `SentenceTransformer(folder, trust_remote_code=True)` where this project is not installed.

    Args:
        model ([`MagnetLlamaForCausalLM`]): Saved in its own dtype, as safetensors.
        tokenizer ([`PreTrainedTokenizerBase`]): Saved beside it.
        folder (`str` or `Path`): Created if it does not exist.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_sentence_transformer_files(model.config, folder)
    write_model_card(model.config, folder)
