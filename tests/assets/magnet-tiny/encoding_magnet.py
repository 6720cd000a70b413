"""Tokenization, sentence embeddings (section 3.2.2) and word embeddings (section 4.1)."""

import logging
import math
import weakref
from collections.abc import Iterable

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# ------------------------------------------------------------------------------------------------------ text to tokens

_literal_tokenizers = weakref.WeakKeyDictionary()  # tokenizer -> (vocabulary size, its literal twin)


def literal_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """
    A copy of a fast tokenizer's backend that treats special tokens in user text, such as `</s>`, as plain text.

    The setting belongs to the backend, which all threads share, so changing it requires a copy.
    """
    size, twin = _literal_tokenizers.get(tokenizer, (None, None))
    if size != len(tokenizer):
        twin = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        twin.encode_special_tokens = True
        twin.no_truncation()
        twin.no_padding()
        _literal_tokenizers[tokenizer] = len(tokenizer), twin
    return twin


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a text, without [BOS] and [EOS]; special tokens in it count as plain text."""
    return literal_tokenizer(tokenizer).encode(text, add_special_tokens=False).ids


def start_ids(config, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that opens a text, as a list: `config.text_start_token_id`, or [BOS] where the tokenizer adds it."""
    if config.text_start_token_id is not None:
        return [config.text_start_token_id]
    return [id for id in tokenizer("")["input_ids"] if id == tokenizer.bos_token_id]


def padded(rows: list[list[int]], device=None, value: int = 0) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    Rows of token ids as one tensor, padded on the right.

    Args:
        rows (`list[list[int]]`): At least one.
        device (`torch.device`, *optional*): Where to put it.
        value (`int`, *optional*, defaults to 0): Padding id; any valid id will do.

    Returns:
        ids and mask, `torch.LongTensor` of shape `(rows, longest)`; the mask is 0 at padding.
    """
    rows = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(rows, batch_first=True, padding_value=value)  # (B, L)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()  # (B, L)
    return ids.to(device), mask.to(device)


def first_fit(lengths: list[int], width: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """The row and the start of each text in rows of at most `width`, longest texts first, each in the first row with
    room; and the shape (rows, width) that holds them."""
    taken, places = [], [(0, 0)] * len(lengths)
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = next((row for row, used in enumerate(taken) if used + lengths[text] <= width), len(taken))
        if row == len(taken):
            taken.append(0)
        places[text] = row, taken[row]
        taken[row] += lengths[text]
    return places, (len(taken), max(taken))


def pack(rows: dict[str, torch.Tensor], mask: torch.Tensor, width: int | None = None):
    """
    Puts several padded texts into one row, which leaves little padding, about 3 %. The texts do not see each other.

    Args:
        rows (`dict[str, torch.LongTensor]` of shape `(batch, length)`): The decoder's inputs.
        mask (`torch.LongTensor` of shape `(batch, length)`): 0 at padding.
        width (`int`, *optional*):
            Most tokens of a packed row. Defaults to what leaves least padding, up to 1.5 times the longest text.

    Returns:
        The same inputs packed, with `position_ids` and `document_ids`, of shape `(packed rows, width)`, and a function
        that brings states of shape `(packed rows, width, d)` back to `(batch, length, d)`, 0 at padding.

    Example:

    ```python
    >>> import torch
    >>> from modeling_magnet.encoding_magnet import pack
    >>> ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [9, 0, 0, 0]])
    >>> packed, unpack = pack({"input_ids": ids}, (ids > 0).long())
    >>> packed["input_ids"], packed["document_ids"]
    (tensor([[5, 6, 7, 8],
            [5, 6, 9, 0]]), tensor([[ 0,  0,  0,  0],
            [ 1,  1,  2, -1]]))

    ```
    """
    lengths, positions = mask.sum(1).tolist(), mask.cumsum(1) - 1  # (B, L)
    widths = (width,) if width else (max(lengths) * (8 + eighths) // 8 for eighths in range(5))
    places, shape = min((first_fit(lengths, width) for width in widths), key=lambda fit: math.prod(fit[1]))
    row, start = torch.tensor(places, device=mask.device).T[..., None]  # (B, 1) each
    slots, real = start + positions, mask.bool()  # (B, L)
    where = (row.expand_as(slots)[real], slots[real])

    def packed(tensor: torch.Tensor, padding: int = 0) -> torch.Tensor:
        return tensor.new_full(shape, padding).index_put(where, tensor[real])

    numbers = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)
    inputs = {name: packed(tensor) for name, tensor in ({"position_ids": positions} | rows).items()}

    def unpack(states: torch.Tensor) -> torch.Tensor:
        return states[row, slots.clamp(0, shape[1] - 1)].masked_fill(~real[..., None], 0)

    return inputs | {"document_ids": packed(numbers, -1)}, unpack


# ----------------------------------------------------------------------------------------------------- texts to vectors

BOTH_WAYS = {"attention_mode": "bidirectional"}


class EncodingMixin:
    """`encode()` and `encode_words()` for every `Magnet*ForCausalLM`."""

    def pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """
        Sentence vectors from token vectors, by `config.pooling`.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, length, d)`): Last hidden states.
            attention_mask (`torch.LongTensor` of shape `(batch, length)`): 0 at padding, on either side.

        Returns:
            `torch.Tensor` of shape `(batch, d)`.
        """
        return pooled(hidden_states, attention_mask, self.config.pooling)

    @torch.no_grad()
    def encode(
        self,
        texts: str | list,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str | None = None,
        batch_size: int = 32,
        normalize: bool = True,
        show_progress_bar: bool | None = None,
        return_cache: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, dict]:
        r"""
        Embeds texts: `[BOS] instruction text [EOS]`, bidirectional attention, pooled at [EOS] (section 3.2.2).

        Args:
            texts (`str` or `list[str]`): Texts to embed. Special tokens in them count as plain text.
            tokenizer ([`PreTrainedTokenizerBase`]): The checkpoint's tokenizer (a fast one).
            instruction (`str`, *optional*, defaults to `config.representation_prompt`): `""` for none.
            batch_size (`int`, *optional*, defaults to 32): Texts per forward.
            normalize (`bool`, *optional*, defaults to `True`): Scale vectors to unit length.
            show_progress_bar (`bool`, *optional*): Defaults to `True` for more than four batches; none with `return_cache`.
            return_cache (`bool`, *optional*, defaults to `False`):
                Also return the context, for [`~InfillingMixin.infill`] and `generate()` to start from. A text may then
                be a list of strings and [`Gap`] objects, whose positions are left free. At most `batch_size` texts.

        Returns:
            `np.ndarray` of shape `(N, d)`, float32; `(d,)` for a single text. Texts longer than
            `max_position_embeddings` are truncated (but keep [EOS]), with one warning that counts them.

            With `return_cache`, a tuple of these vectors and the context, a `dict`: `input_ids`, `attention_mask` and
            `position_ids` of shape `(N, longest)`, `cache` (`DynamicCache`) and `instruction`. Nothing is
            truncated.

        Raises:
            `ValueError` naming the first item that is not a string, or a `batch_size` below 1; with `return_cache`, more
            texts than `batch_size`, or one longer than `max_position_embeddings`.

        Example:

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_magnet import MagnetLlamaForCausalLM
        >>> model = MagnetLlamaForCausalLM.from_pretrained("tests/assets/magnet-tiny")
        >>> tokenizer = AutoTokenizer.from_pretrained("tests/assets/magnet-tiny", trust_remote_code=True)
        >>> model.encode(["A cat sleeps.", "Rain fell."], tokenizer).shape
        (2, 192)

        ```
        """
        check_tokenizer(tokenizer, self.config)
        if not isinstance(texts, Iterable):
            raise ValueError(f"texts={texts!r}: must be a string or a list of strings.")
        prompt = self.config.representation_prompt if instruction is None else instruction
        check_text("instruction", prompt)
        if return_cache:
            hidden, context, single = self._encode_contexts(texts, tokenizer, prompt, batch_size)
            vectors = self.pool(hidden, context["attention_mask"]).float().cpu().numpy()
        else:
            single = isinstance(texts, str)
            rows = self._rows([texts] if single else list(texts), tokenizer, prompt)
            vectors = np.zeros((len(rows), self.config.hidden_size), dtype=np.float32)
            for chosen, hidden, mask in last_states(self.model, rows, batch_size, show_progress_bar, **BOTH_WAYS):
                vectors[chosen] = self.pool(hidden, mask).float().cpu().numpy()
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        vectors = vectors[0] if single else vectors
        return (vectors, context) if return_cache else vectors

    def _rows(self, texts: list[str], tokenizer, prompt: str) -> list[list[int]]:
        """Token ids of `[BOS] prompt text [EOS]`; a text that is too long loses its end."""
        for number, text in enumerate(texts):
            check_text(f"texts[{number}]", text)
        start = start_ids(self.config, tokenizer)
        rows = [[*start, *text_ids(f"{prompt} {text}" if prompt else text, tokenizer)] for text in texts]
        limit = self.config.max_position_embeddings - 1  # room for [EOS]
        if too_long := sum(len(row) > limit for row in rows):
            logger.warning(
                "%d of %d texts are longer than %d tokens and lose their end.", too_long, len(rows), limit + 1
            )
        return [row[:limit] + [tokenizer.eos_token_id] for row in rows]

    @torch.no_grad()
    def encode_words(
        self,
        sentences: list[list[str]],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> list[np.ndarray]:
        r"""
        Embeds the words of sentences. Token i is represented by the output at i-1, which MNTP trains to predict it; a
        word is the mean of its tokens (section 4.1). Without a start token, the first token represents itself.

        Args:
            sentences (`list[list[str]]`): Sentences, each a list of words, which are joined by single spaces.
            tokenizer ([`PreTrainedTokenizerBase`]): The checkpoint's tokenizer (a fast one).
            batch_size (`int`, *optional*, defaults to 32): Sentences per forward.
            show_progress_bar (`bool`, *optional*): Defaults to `True` for more than four batches; none with `return_cache`.

        Returns:
            One float32 array of shape `(number of words, d)` per sentence.

        Raises:
            `ValueError` for an item that is not a list of non-empty words, or a sentence longer than
            `max_position_embeddings` (its last words would get no vector).
        """
        check_tokenizer(tokenizer, self.config)
        start, rows, owners = start_ids(self.config, tokenizer), [], []
        for number, words in enumerate(sentences):
            if not (
                isinstance(words, (list, tuple)) and words and all(isinstance(w, str) and w.strip() for w in words)
            ):
                raise ValueError(f"sentences[{number}]={words!r}: must be a list of words, none of them empty.")
            check_text(f"sentences[{number}]", " ".join(words))
            ids, owner = tokens_of_words(words, tokenizer)
            if len(start + ids) > self.config.max_position_embeddings:
                raise ValueError(
                    f"sentences[{number}] has {len(start + ids)} tokens: at most max_position_embeddings="
                    f"{self.config.max_position_embeddings} fit. Split the sentence."
                )
            rows.append(start + ids)
            owners.append(owner)
        vectors = [np.zeros((0, self.config.hidden_size), dtype=np.float32)] * len(rows)
        for chosen, hidden, mask in last_states(self.model, rows, batch_size, show_progress_bar, **BOTH_WAYS):
            own = own_token_states(hidden, mask)[:, len(start) :]  # (b, L, d), without the start token
            for i, states in zip(chosen, own.float().cpu().numpy()):
                vectors[i] = mean_by_word(states, owners[i], len(sentences[i]))
        return vectors


@torch.no_grad()
def last_states(decoder, rows: list[list[int]], batch_size: int, show_progress_bar: bool | None = None, **inputs):
    """Yields (row numbers, last hidden states (b, L, d), mask (b, L)), longest rows first to reduce padding."""
    check_positive("batch_size", batch_size)
    batches = batches_of_like_length([len(row) for row in rows], batch_size)
    hide = len(batches) <= 4 if show_progress_bar is None else not show_progress_bar
    for chosen in tqdm(batches, desc="encode", disable=hide):
        ids, mask = padded([rows[i] for i in chosen], decoder.device)
        if "flash" in decoder.config._attn_implementation and inputs == BOTH_WAYS:  # one row, without any padding
            packed, unpack = pack({"input_ids": ids}, mask, int(mask.sum()))
            yield chosen, unpack(decoder(**packed, **inputs).last_hidden_state), mask
        else:
            yield chosen, decoder(input_ids=ids, attention_mask=mask, **inputs).last_hidden_state, mask


ENOUGH_TOKENS = 512  # a forward of fewer costs more than the padding that it saves


def batches_of_like_length(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Row numbers of each forward, longest rows first: at most `batch_size`, and none that would be more than a tenth
    padding once there are enough tokens."""
    batches = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        width = lengths[batches[-1][0]] if batches else 0
        is_full = not batches or len(batches[-1]) == batch_size
        if is_full or (lengths[row] < 0.9 * width and len(batches[-1]) * width >= ENOUGH_TOKENS):
            batches.append([])
        batches[-1].append(row)
    return batches


def pooled(hidden_states: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Sentence vectors (B, d) from token vectors (B, L, d): the last real token's, or the mean."""
    if pooling == "mean":
        weights = attention_mask[..., None].to(hidden_states.dtype)  # (B, L, 1)
        return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
    last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)  # (B,)
    return hidden_states[torch.arange(len(last), device=last.device), last]


def own_token_states(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Shifts each output one to the right, onto the token it represents; a row's first real token keeps its own."""
    shifted = torch.cat([hidden_states[:, :1], hidden_states[:, :-1]], dim=1)  # (B, L, d)
    if attention_mask is None:
        return shifted
    left_is_real = torch.nn.functional.pad(attention_mask, (1, 0))[:, :-1].bool()  # (B, L)
    return torch.where(left_is_real[..., None], shifted, hidden_states)


def tokens_of_words(words: list[str], tokenizer) -> tuple[list[int], np.ndarray]:
    """Token ids and, for each token, the index of its word."""
    # a word owns the space before it, which is a token of its own before rare characters
    word_of_char = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])[1:]
    encoded = literal_tokenizer(tokenizer).encode(" ".join(words), add_special_tokens=False)
    # use a token's last character: "Ġcat" may start on the space, but ends inside its word
    owner = [int(word_of_char[max(end - 1, 0)]) for _, end in encoded.offsets]
    return encoded.ids, np.array(owner)


def mean_by_word(states: np.ndarray, owner: np.ndarray, n_words: int) -> np.ndarray:
    """Mean (n_words, d) of each word's token states (L, d)."""
    sums = np.zeros((n_words, states.shape[1]), dtype=np.float32)
    np.add.at(sums, owner, states[: len(owner)])
    counts = np.bincount(owner, minlength=n_words).astype(np.float32)
    return sums / np.maximum(counts, 1)[:, None]


# -------------------------------------------------------------------------------------------------------------- checks


def check_tokenizer(tokenizer, config) -> None:
    """Raises `ValueError` unless this is a fast tokenizer with [EOS] and no more tokens than the model."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer={tokenizer!r:.80}: must be the checkpoint's tokenizer, AutoTokenizer.from_pretrained(...)."
        )
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer: {type(tokenizer).__name__} is a slow one; load it with AutoTokenizer.")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"tokenizer: has {len(tokenizer)} tokens, the model vocab_size={config.vocab_size}. Use the checkpoint's own, or "
            "resize_token_embeddings()."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: has no eos_token, which ends what is encoded and what is infilled. Set one.")


def check_text(where: str, text) -> None:
    """Rejects non-strings and lone surrogates (from broken UTF-16), for which the tokenizer's own error is unclear."""
    if not isinstance(text, str):
        raise ValueError(f"{where}={text!r:.80}: must be a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the character at {error.start} is half of a surrogate pair; clean the text with "
            "text.encode('utf-8', 'replace').decode()."
        ) from None


def check_positive(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a positive integer.")
