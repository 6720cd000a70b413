"""Text to vectors: sentence embeddings (section 3.2.2) and word embeddings (section 4.1), bidirectional attention."""

import logging
from collections.abc import Iterable

import numpy as np
import torch
from tqdm.auto import tqdm

from .gaps_magnet import check_positive, check_text
from .seams_magnet import encoded_text, text_ids

logger = logging.getLogger(__name__)


class EncodingMixin:
    """`encode()` and `encode_words()` for [`MagnetLlamaForCausalLM`]."""

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
        texts: str | list[str],
        tokenizer,
        instruction: str | None = None,
        batch_size: int = 32,
        normalize: bool = True,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        r"""
        Embeds texts: `[BOS] instruction text [EOS]`, bidirectional attention, pooled at [EOS] (section 3.2.2).

        Args:
            texts (`str` or `list[str]`): What to embed. Control tokens spelt out in a text stay text.
            tokenizer ([`PreTrainedTokenizerBase`]): The checkpoint's tokenizer.
            instruction (`str`, *optional*, defaults to `config.representation_prompt`): `""` for none.
            batch_size (`int`, *optional*, defaults to 32): Texts per forward.
            normalize (`bool`, *optional*, defaults to `True`): Scale vectors to unit length.
            show_progress_bar (`bool`, *optional*): Defaults to `True` for more than four batches.

        Returns:
            `np.ndarray` of shape `(N, d)`, float32; `(d,)` for a single string. A text beyond
            `max_position_embeddings` loses its end (never its [EOS]), with one warning that counts such texts.

        Raises:
            `ValueError` naming the first item that is no string, or a `batch_size` below 1.

        Example:

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_magnet import MagnetLlamaForCausalLM
        >>> model = MagnetLlamaForCausalLM.from_pretrained("examples/assets/magnet-tiny")
        >>> tokenizer = AutoTokenizer.from_pretrained("examples/assets/magnet-tiny", trust_remote_code=True)
        >>> model.encode(["A cat sleeps.", "Rain fell."], tokenizer).shape
        (2, 192)

        ```
        """
        if not isinstance(texts, Iterable):
            raise ValueError(f"texts={texts!r}: must be a string or a list of strings.")
        single = isinstance(texts, str)
        texts = [texts] if single else list(texts)
        prompt = self.config.representation_prompt if instruction is None else instruction
        self._check_encode(texts, tokenizer, batch_size)
        rows = [self._sentence_ids(f"{prompt} {text}" if prompt else text, tokenizer) for text in texts]
        rows = self._truncate(rows)
        vectors = np.zeros((len(rows), self.config.hidden_size), dtype=np.float32)
        for chosen, hidden, mask in self._forward_sorted(rows, tokenizer, batch_size, show_progress_bar):
            vectors[chosen] = self.pool(hidden, mask).float().cpu().numpy()
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors[0] if single else vectors

    @torch.no_grad()
    def encode_words(
        self,
        sentences: list[list[str]],
        tokenizer,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> list[np.ndarray]:
        r"""
        Embeds the words of sentences. Token i is represented by the output at i-1, which MNTP trains to predict it; a
        word is the mean of its tokens (section 4.1).

        Args:
            sentences (`list[list[str]]`): Sentences, each a list of words; they are joined by single spaces.
            tokenizer ([`PreTrainedTokenizerBase`]): The checkpoint's tokenizer (a fast one).
            batch_size (`int`, *optional*, defaults to 32): Sentences per forward.
            show_progress_bar (`bool`, *optional*): Defaults to `True` for more than four batches.

        Returns:
            One float32 array of shape `(number of words, d)` a sentence.

        Raises:
            `ValueError` for an item that is no list of non-empty words, or a sentence beyond
            `max_position_embeddings` (its last words would get no vector).
        """
        self._check_encode(
            [" ".join(words) if _are_words(words) else None for words in sentences], tokenizer, batch_size
        )
        rows, owners = [], []
        for number, words in enumerate(sentences):
            ids, owner = _tokens_of_words(words, tokenizer)
            if len(ids) > self.config.max_position_embeddings:
                raise ValueError(
                    f"sentences[{number}] has {len(ids)} tokens: at most max_position_embeddings="
                    f"{self.config.max_position_embeddings} fit. Split the sentence."
                )
            rows.append(ids)
            owners.append(owner)
        vectors = [np.zeros((0, self.config.hidden_size), dtype=np.float32)] * len(rows)
        for chosen, hidden, _ in self._forward_sorted(rows, tokenizer, batch_size, show_progress_bar):
            for i, states in zip(chosen, hidden.float().cpu().numpy()):
                vectors[i] = _mean_by_word(states, owners[i], len(sentences[i]))
        return vectors

    def _check_encode(self, texts, tokenizer, batch_size):
        check_positive("batch_size", batch_size)
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: encoding needs bos_token and eos_token; set both.")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"item {number} of the input is not text (or, for encode_words, not a list of words)."
                )
            check_text(f"item {number} of the input", text)

    def _sentence_ids(self, text, tokenizer) -> list[int]:
        ids = text_ids(text, tokenizer)
        return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]

    def _truncate(self, rows):
        limit = self.config.max_position_embeddings
        too_long = sum(len(row) > limit for row in rows)
        if too_long:
            logger.warning("%d of %d texts are longer than %d tokens and lose their end.", too_long, len(rows), limit)
        return [row if len(row) <= limit else row[: limit - 1] + row[-1:] for row in rows]

    def _forward_sorted(self, rows, tokenizer, batch_size, show_progress_bar):
        """Yields (row numbers, last hidden states (b, L, d), mask (b, L)), longest rows first, so padding is small."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        hide = len(batches) <= 4 if show_progress_bar is None else not show_progress_bar
        for chosen in tqdm(batches, desc="encode", disable=hide):
            length = len(rows[chosen[0]])
            ids = torch.zeros(len(chosen), length, dtype=torch.long)  # any valid id will do where the mask is 0
            mask = torch.zeros_like(ids)
            for row, i in enumerate(chosen):
                ids[row, : len(rows[i])] = torch.tensor(rows[i])
                mask[row, : len(rows[i])] = 1
            ids, mask = ids.to(self.device), mask.to(self.device)
            outputs = self.model(ids, attention_mask=mask, attention_mode="bidirectional")
            yield chosen, outputs.last_hidden_state, mask


def pooled(hidden_states: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Sentence vectors (B, d) from token vectors (B, L, d): the last real token's, or the mean."""
    if pooling == "mean":
        weights = attention_mask[..., None].to(hidden_states.dtype)  # (B, L, 1)
        return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
    last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)  # (B,)
    return hidden_states[torch.arange(len(last), device=last.device), last]


def _are_words(words) -> bool:
    return isinstance(words, (list, tuple)) and len(words) > 0 and all(isinstance(w, str) and w.strip() for w in words)


def _tokens_of_words(words, tokenizer):
    """Ids with [BOS] and, for each token behind it, the number of the word it belongs to."""
    text = " ".join(words)
    # a word owns the space before it: rare characters follow a token that is only that space
    word_of_char = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])[1:]
    encoded = encoded_text(text, tokenizer, return_offsets_mapping=True)
    # a token's last character: "Ġcat" may start on the space, but always ends inside its word
    owner = [int(word_of_char[max(end - 1, 0)]) for _, end in encoded["offset_mapping"]]
    return [tokenizer.bos_token_id, *encoded["input_ids"]], np.array(owner)


def _mean_by_word(states, owner, n_words) -> np.ndarray:
    """states (L, d): row i represents token i+1, which is owner[i]'s. Returns (n_words, d)."""
    sums = np.zeros((n_words, states.shape[1]), dtype=np.float32)
    np.add.at(sums, owner, states[: len(owner)])
    counts = np.bincount(owner, minlength=n_words).astype(np.float32)
    return sums / np.maximum(counts, 1)[:, None]
