"""Classifiers over MAGNET's bidirectional states: one label a token (section 4.1) or one a text (section 4.2)."""

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from .encoding_magnet import pooled


class TokenClassificationMixin:
    """
    A linear classifier on every token, read from the output one to its left: MNTP trains position i-1 to represent
    token i (section 4.1). Bidirectional unless the call says otherwise.
    """

    def add_classifier(self) -> None:
        self.num_labels = self.config.num_labels
        self.dropout = nn.Dropout(0.1)  # the paper's rate for its word-level tasks
        self.score = nn.Linear(self.config.hidden_size, self.config.num_labels)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        attention_mode: str | None = "bidirectional",
        **kwargs,
    ) -> TokenClassifierOutput:
        r"""
        Args (beside those of [`MagnetLlamaModel`]):
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*): Classes; -100 at tokens not to be learnt.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            attention_mode=attention_mode,
            **kwargs,
        )
        hidden_states = shift_to_own_token(outputs.last_hidden_state, attention_mask)
        hidden_states = hidden_states.to(self.score.weight.dtype)  # the head may be kept in float32
        logits = self.score(self.dropout(hidden_states))  # (B, L, num_labels)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def shift_to_own_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Moves each output one to the right, onto the token it represents; a row's first real token keeps its own."""
    shifted = torch.cat([hidden_states[:, :1], hidden_states[:, :-1]], dim=1)  # (B, L, d)
    if attention_mask is None:
        return shifted
    left_is_real = nn.functional.pad(attention_mask, (1, 0))[:, :-1].bool()  # (B, L)
    return torch.where(left_is_real[..., None], shifted, hidden_states)


class SequenceClassificationMixin:
    """
    A linear classifier on the vector that `encode()` gives: the last token's (tokenize with [EOS] behind the text), or
    the mean, by `config.pooling`. Bidirectional unless the call says otherwise.
    """

    def add_classifier(self) -> None:
        self.num_labels = self.config.num_labels
        self.score = nn.Linear(self.config.hidden_size, self.config.num_labels, bias=False)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        attention_mode: str | None = "bidirectional",
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""
        Args (beside those of [`MagnetLlamaModel`]):
            attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                0 at padding, on either side. It tells the last token, not the padding's id: where a tokenizer pads with
                [EOS], transformers' own heads would read the token before it.
            labels (`torch.Tensor`, *optional*):
                Classes `(batch,)`, or floats for regression and several labels, as `config.problem_type` says.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            attention_mode=attention_mode,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        mask = hidden_states.new_ones(hidden_states.shape[:2]) if attention_mask is None else attention_mask
        vectors = pooled(hidden_states, mask, self.config.pooling).to(self.score.weight.dtype)
        logits = self.score(vectors)  # (B, num_labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
