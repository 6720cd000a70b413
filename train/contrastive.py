"""Contrastive batches larger than memory: chunks of pairs, with precomputed gradients of their vectors.

L_SSCL couples all pairs of a step, so their graphs would have to be in memory together. Instead (as in GradCache) all
sentences are encoded without a graph, the gradient of the loss with respect to each *vector* is computed, and then
each chunk is encoded again with a graph to add its share: dL/dw = sum over chunks of <dL/dv, dv/dw>. The gradient is
the same; the cost is one more forward of the sentences.
"""

import torch


def pair_chunks(batch: dict, size: int) -> list[dict]:
    """
    Cuts the pairs of a batch into chunks.

    Args:
        batch (`dict`): `pair_input_ids` and `pair_attention_mask` of shape `(2 P, S)`, first all anchors and then all
            positives, and `pair_ids` and `pair_rows` of shape `(P,)`.
        size (`int`): Pairs per chunk; 0 for a single chunk.

    Returns:
        Dictionaries like `batch`.
    """
    pairs = len(batch["pair_ids"])
    size = size or pairs
    return [_chunk(batch, torch.arange(start, min(start + size, pairs)), pairs) for start in range(0, pairs, size)]


def _chunk(batch, chosen, pairs):
    chosen = chosen.to(batch["pair_ids"].device)
    sentences = torch.cat([chosen, chosen + pairs])  # (2 size,)
    per_pair = {name: batch[name][chosen] for name in ("pair_ids", "pair_rows") if name in batch}
    return per_pair | {name: batch[name][sentences] for name in ("pair_input_ids", "pair_attention_mask")}


def vector_gradients(loss_of, vectors: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """
    The loss over the vectors of all chunks, and its gradient with respect to each chunk's.

    Args:
        loss_of (callable): Takes all vectors, `(n, 2, d)`, and returns a scalar.
        vectors (list of `torch.Tensor` of shape `(chunk, 2, d)`): Computed without a graph.

    Returns:
        The loss, and a list of tensors shaped like `vectors`.
    """
    with torch.enable_grad():
        everything = torch.cat(vectors).detach().requires_grad_()  # (n, 2, d)
        loss = loss_of(everything)
        (gradient,) = torch.autograd.grad(loss, everything)
    return loss.detach(), list(gradient.split([len(chunk) for chunk in vectors]))


def with_value(carrier: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A scalar with the gradient of `carrier` and the value of `value`."""
    return carrier - carrier.detach() + value.detach()
