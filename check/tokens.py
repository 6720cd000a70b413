"""The special tokens: inside the vocabulary, distinct where they must be, and added where they belong."""

from safetensors import safe_open

from modeling_magnet.encoding_magnet import start_ids

from .checkpoint import TOKENIZER_SETTINGS, Checkpoint
from .outcome import Failed, Skipped

SENTENCES = "sentence_bert_config.json"
ROWS = ("model.embed_tokens.weight", "embed_tokens.weight")


def check_tokens(checkpoint: Checkpoint) -> str:
    """Mask, END, bos, eos and pad are in the vocabulary and equal the tokenizer's, and the embedding has enough rows."""
    checkpoint.require_loadable()
    config, tokenizer, rows = checkpoint.config.to_dict(), checkpoint.tokenizer, embedding_rows(checkpoint)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    names += ("text_start_token_id", "mask_token_id", "infill_end_token_id")
    ids = {name: config.get(name) for name in names if config.get(name) is not None}
    for name, value in ids.items():
        for token in value if isinstance(value, list) else [value]:
            if not 0 <= token < rows:
                raise Failed(f"config.json has {name}={token}, outside the {rows} rows of the embedding")
    if len(tokenizer) > rows:
        raise Failed(f"the tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        theirs, ours = getattr(tokenizer, name), ids.get(name)
        if theirs is not None and ours is not None and theirs not in (ours if isinstance(ours, list) else [ours]):
            raise Failed(f"{name} is {theirs} in the tokenizer, {ours} in config.json")
    _check_own_tokens(ids, tokenizer)
    return f"{len(tokenizer)} tokens, {rows} rows; " + ", ".join(f"{name[:-9]} {value}" for name, value in ids.items())


def embedding_rows(checkpoint: Checkpoint) -> int:
    for path in checkpoint.weights:
        with safe_open(path, framework="pt") as file:
            for name in set(ROWS) & set(file.keys()):
                return file.get_slice(name).get_shape()[0]
    raise Failed("the weights have no embedding")


def _check_own_tokens(ids, tokenizer) -> None:
    mask, end = ids.get("mask_token_id"), ids.get("infill_end_token_id")
    control = set(tokenizer.all_special_ids)
    if mask is not None and mask in control:
        raise Failed(f"mask_token_id={mask} is the control token {tokenizer.convert_ids_to_tokens(mask)!r}")
    if end is not None and end != tokenizer.eos_token_id:
        raise Failed(f"infill_end_token_id={end} is not the tokenizer's eos_token_id={tokenizer.eos_token_id}")


def check_sentences(checkpoint: Checkpoint) -> str:
    """With sentence-transformers' settings, the tokenizer adds the start token and [EOS], also after truncation."""
    checkpoint.require_loadable()
    if not checkpoint.has(SENTENCES):
        raise Skipped("no files for sentence-transformers")
    given = checkpoint.read_json(SENTENCES)
    settings = given.get("processor_kwargs", {})
    if unknown := sorted(settings.keys() - set(TOKENIZER_SETTINGS)):
        raise Failed(f"{SENTENCES} passes {', '.join(unknown)} to the tokenizer")
    mode = given.get("config_kwargs", {}).get("attention_mode")
    if checkpoint.is_magnet and mode != "bidirectional":
        raise Failed(f"{SENTENCES} has attention_mode={mode!r}, sentences are encoded with 'bidirectional'")
    tokenizer = checkpoint.load_tokenizer(**settings)
    limit = min(tokenizer.model_max_length, given.get("max_seq_length") or tokenizer.model_max_length)
    if limit > checkpoint.config.max_position_embeddings:
        raise Failed(f"sentences may have {limit} tokens, the model {checkpoint.config.max_position_embeddings}")
    start = opening(checkpoint)
    for text, what in (("A cat sleeps.", "a short text"), ("It rained. " * limit, "a text that is cut off")):
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        if len(ids) > limit:
            raise Failed(f"{what} has {len(ids)} tokens, more than {limit}")
        if ids[: len(start)] != start:
            raise Failed(f"{what} does not begin with {tokenizer.decode(start)}")
        if not start and ids[0] == tokenizer.bos_token_id:
            raise Failed(f"{what} begins with {tokenizer.bos_token}, which encode() does not put there")
        if ids[-1:] != [tokenizer.eos_token_id]:
            raise Failed(f"{what} does not end with [EOS], where its vector is read")
    control = "".join(tokenizer.all_special_tokens)
    inside = set(tokenizer(f"A {control} cat.", truncation=True, max_length=limit)["input_ids"][1:-1])
    if inside & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}):
        raise Failed("control tokens spelt out in a text become control tokens (split_special_tokens is off)")
    around = f"{tokenizer.decode(start)} and [EOS] around" if start else "[EOS] behind"
    return f"{around} every text, also when cut at {limit} tokens"


def opening(checkpoint: Checkpoint) -> list[int]:
    """The start token, as a list of one token or none; a stock form leaves it to its tokenizer."""
    if checkpoint.is_magnet:
        return start_ids(checkpoint.config, checkpoint.tokenizer)
    tokenizer = checkpoint.tokenizer
    return [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]
