"""The three losses of MAGNET as pure functions (section 3.2), the KL term of the recipe `merged`, and the head a few rows
at a time."""

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule

from .contrastive import with_value

HEAD_ROWS = {
    "cpu": 256,
    "cuda": 2048,
}  # logits of so many positions are in memory at once: 32 MB a 256 with 32,000 tokens


def _token_cross_entropy(logits, targets, num_items=None):
    """Sum of -log p(target) over the rows, divided by max(count, 1): an empty batch gives 0, never NaN."""
    count = len(targets) if num_items is None else num_items
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def mntp_loss(
    logits: torch.Tensor, targets: torch.Tensor, num_items: int | torch.Tensor | None = None
) -> torch.Tensor:
    """
    Masked next token prediction, L_MNTP of section 3.2.1: the output at position l predicts the masked token l+1.

    Args:
        logits (`torch.Tensor` of shape `(masked tokens, vocab_size)`): Outputs one to the left of each masked token.
        targets (`torch.LongTensor` of shape `(masked tokens,)`): The tokens that were masked.
        num_items (`int`, *optional*): Number to divide by, if the batch is spread over steps or processes.
            Defaults to the number of targets. (The paper divides by N L; a mean per target does not depend on padding.)

    Returns:
        Scalar float32 tensor, in nats per token.

    Example:

    ```python
    >>> import torch
    >>> from magnet_train.losses import mntp_loss
    >>> mntp_loss(torch.zeros(3, 4), torch.tensor([0, 1, 2]))  # log 4
    tensor(1.3863)

    ```
    """
    return _token_cross_entropy(logits, targets, num_items)


def msg_loss(logits: torch.Tensor, targets: torch.Tensor, num_items: int | torch.Tensor | None = None) -> torch.Tensor:
    """
    Missing span generation, L_MSG of section 3.2.3: predicts each span token from the context and the span's past. The
    context token left of the gap predicts the first one; in the free layout the last one predicts the end token.

    Arguments and result as in [`mntp_loss`].
    """
    return _token_cross_entropy(logits, targets, num_items)


def kl_loss(
    logits: torch.Tensor, base_logits: torch.Tensor, num_items: int | torch.Tensor | None = None
) -> torch.Tensor:
    """
    KL(base || model) of the next-token distributions, which keeps an adapter that acts in causal mode close to the base.

    Args:
        logits, base_logits (`torch.Tensor` of shape `(tokens, vocab_size)`): Outputs with and without the adapter.
        num_items (`int`, *optional*): As in [`mntp_loss`].

    Returns:
        Scalar float32 tensor, in nats per token.

    Example:

    ```python
    >>> import torch
    >>> from magnet_train.losses import kl_loss
    >>> kl_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.0]]))
    tensor(0.1201)

    ```
    """
    count = len(logits) if num_items is None else num_items
    log_p, log_base = logits.float().log_softmax(-1), base_logits.float().log_softmax(-1)
    total = F.kl_div(log_p, log_base, reduction="sum", log_target=True)
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def sscl_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    temperature: float = 0.1,
    same_text: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Self-supervised contrastive learning, L_SSCL of section 3.2.2: InfoNCE with in-batch negatives.

    Args:
        anchors (`torch.Tensor` of shape `(pairs, d)`): Sentence vectors e, of unit length.
        positives (`torch.Tensor` of shape `(pairs, d)`): Vectors e+ of their paraphrases.
        temperature (`float`, *optional*, defaults to 0.1): tau of Appendix A.
        same_text (`torch.BoolTensor` of shape `(pairs, pairs)`, *optional*): `True` where a candidate repeats a text of
            the anchor's own pair. Such candidates are excluded from the sum, since they are not negatives.

    Returns:
        Scalar float32 tensor: the mean over anchors; 0 for no pairs.

    Example:

    ```python
    >>> import torch
    >>> from magnet_train.losses import sscl_loss
    >>> vectors = torch.eye(2)
    >>> sscl_loss(vectors, vectors, temperature=1.0)  # log(1 + 1/e)
    tensor(0.3133)

    ```
    """
    own = torch.arange(len(anchors), device=anchors.device)
    similarity = anchors.float() @ positives.float().T / temperature  # (pairs, pairs)
    if same_text is not None:
        repeated = same_text & ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        similarity = similarity.masked_fill(repeated, float("-inf"))
    return F.cross_entropy(similarity, own, reduction="sum") / max(len(anchors), 1)


def head_logits(model, states: torch.Tensor) -> torch.Tensor:
    """Logits of last hidden states, as the families' `forward` make them: Granite divides them, Gemma caps them."""
    head, config = model.lm_head, model.config
    # FSDP's hooks on the head would take the backward pass of a chunk for that of the step
    logits = (head.forward if isinstance(head, FSDPModule) else head)(states)
    if (scaling := getattr(config, "logits_scaling", 1.0)) != 1:
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def loss_in_chunks(loss_of, states: torch.Tensor) -> torch.Tensor:
    """
    A loss that is a sum over positions, without keeping the logits of all of them for the backward pass: the gradient of
    the states is formed a few hundred positions at a time in the forward pass.

    Args:
        loss_of (callable):
            Takes some rows of `states` and a boolean tensor of shape `(positions,)` that says which, returns a scalar. It
            may depend on no other tensor that wants a gradient: the language-modelling head is frozen.
        states (`torch.Tensor` of shape `(positions, d)`):
            Last hidden states; may have a graph.

    Returns:
        Scalar float32 tensor, with a graph even for no positions.

    Example:

    ```python
    >>> import torch
    >>> from magnet_train.losses import loss_in_chunks
    >>> states = torch.ones(5, 2, requires_grad=True)
    >>> loss = loss_in_chunks(lambda some, chosen: some.square().sum(), states)
    >>> loss.backward()
    >>> loss.item(), states.grad.unique()
    (10.0, tensor([2.]))

    ```
    """
    leaf, total = states.detach(), torch.zeros((), device=states.device)
    gradient, scale = torch.zeros_like(leaf, dtype=torch.float32), max(len(leaf), 1)
    for rows in torch.arange(len(leaf), device=leaf.device).split(HEAD_ROWS.get(leaf.device.type, 2048)):
        some = leaf[rows].requires_grad_(states.requires_grad)
        chosen = torch.zeros(len(leaf), dtype=torch.bool, device=leaf.device).index_fill(0, rows, True)
        loss = loss_of(some, chosen)
        if states.requires_grad:  # scaled, because those of a mean over many positions are too small for float16
            (loss * scale).backward()
            gradient[rows] = some.grad.float() / scale
        total = total + loss.detach()
    return with_value((states.float() * gradient).sum(), total)
