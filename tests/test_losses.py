"""The three losses against loops over the paper's formulas (section 3.2)."""

import doctest
import math

import pytest
import torch

import magnet_train.losses
from magnet_train.losses import kl_loss, mntp_loss, msg_loss, sscl_loss

TOKEN_LOSSES = pytest.mark.parametrize("token_loss", [mntp_loss, msg_loss])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(random(*shape, seed=seed), dim=-1)


def surprise(logits, target) -> float:
    """-log p(target), by hand."""
    logits = logits.tolist()
    return math.log(sum(math.exp(value) for value in logits)) - logits[target]


def info_nce(anchors, positives, tau, own, left_out=()) -> float:
    """L_SSCL of section 3.2.2; `left_out` holds (anchor, candidate) pairs that are no negatives."""
    total = 0.0
    for i, e in enumerate(anchors):
        scores = [math.exp(sum(a * b for a, b in zip(e.tolist(), p.tolist())) / tau) for p in positives]
        among = sum(score for j, score in enumerate(scores) if (i, j) not in left_out)
        total -= math.log(scores[own[i]] / among)
    return total / len(anchors)


# -------------------------------------------------------------------------------------------------------- token losses


@TOKEN_LOSSES
@pytest.mark.parametrize("num_items", [None, 5, 12, torch.tensor(12)])
def test_token_loss_equals_the_formula(token_loss, num_items):
    logits, targets = 3 * random(5, 11), torch.tensor([0, 10, 3, 3, 7])
    expected = sum(surprise(row, target) for row, target in zip(logits, targets.tolist())) / int(
        5 if num_items is None else num_items
    )
    assert token_loss(logits, targets, num_items).item() == pytest.approx(expected, rel=1e-6)


@TOKEN_LOSSES
def test_a_single_target_counts_once(token_loss):
    assert token_loss(torch.zeros(1, 4), torch.tensor([2])).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("num_items", [None, 9])
def test_kl_equals_the_formula(num_items):
    logits, base = 2 * random(3, 7), 2 * random(3, 7, seed=1)
    p, q = base.softmax(-1), logits.softmax(-1)
    expected = (p * (p / q).log()).sum().item() / (num_items or 3)
    assert kl_loss(logits, base, num_items).item() == pytest.approx(expected, rel=1e-5)


@TOKEN_LOSSES
def test_parts_of_a_batch_add_up_to_the_whole(token_loss):
    logits, targets = random(9, 11), torch.arange(9)
    parts = [token_loss(logits[a:b], targets[a:b], num_items=9) for a, b in ((0, 1), (1, 6), (6, 6), (6, 9))]
    assert sum(parts).item() == pytest.approx(token_loss(logits, targets).item(), rel=1e-6)


@TOKEN_LOSSES
def test_gradient_is_softmax_minus_one_hot(token_loss):
    logits, targets = random(4, 7).requires_grad_(), torch.tensor([6, 0, 2, 2])
    token_loss(logits, targets, 10).backward()
    expected = (logits.detach().softmax(-1) - torch.nn.functional.one_hot(targets, 7)) / 10
    torch.testing.assert_close(logits.grad, expected, rtol=1e-6, atol=1e-8)


@TOKEN_LOSSES
@pytest.mark.parametrize("num_items", [None, 0, 7, torch.tensor(0)])
def test_no_target_gives_zero_and_no_gradient(token_loss, num_items):
    hidden, head = random(3, 5).requires_grad_(), random(5, 11, seed=1).requires_grad_()
    nothing = torch.zeros(3, dtype=torch.bool)
    loss = token_loss((hidden @ head)[nothing], torch.empty(0, dtype=torch.long), num_items)
    assert loss.item() == 0.0
    loss.backward()
    assert (hidden.grad == 0).all() and (head.grad == 0).all()


@TOKEN_LOSSES
def test_bfloat16_logits_are_summed_in_float32(token_loss):
    logits = random(64, 301).bfloat16()
    targets = torch.arange(64)
    loss = token_loss(logits, targets)
    assert loss.dtype == torch.float32
    expected = sum(surprise(row.double(), target) for row, target in zip(logits, range(64))) / 64
    assert loss.item() == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------- SSCL


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("pairs", [1, 2, 6])
def test_sscl_equals_the_formula(pairs, tau):
    anchors, positives = unit(pairs, 8), unit(pairs, 8, seed=1)
    expected = info_nce(anchors, positives, tau, own=range(pairs))
    assert sscl_loss(anchors, positives, tau).item() == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_sscl_takes_the_papers_temperature_by_default():
    anchors, positives = unit(4, 8), unit(4, 8, seed=1)
    assert sscl_loss(anchors, positives) == sscl_loss(anchors, positives, temperature=0.1)


def test_repeated_texts_are_no_negatives():
    anchors, positives = unit(4, 8), unit(4, 8, seed=1)
    ids = torch.tensor([5, 9, 5, 7])
    same_text = ids[:, None] == ids[None]
    before = same_text.clone()
    expected = info_nce(anchors, positives, 0.1, own=range(4), left_out={(0, 2), (2, 0)})
    loss = sscl_loss(anchors, positives, 0.1, same_text=same_text)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss < sscl_loss(anchors, positives, 0.1)
    assert torch.equal(same_text, before)  # the caller's tensor is not changed


def test_left_out_texts_get_no_gradient():
    same_text = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    gradients = []
    for changed in (None, 1, 2):
        anchors, positives = unit(3, 8).requires_grad_(), unit(3, 8, seed=1)
        if changed is not None:
            positives[changed] = unit(1, 8, seed=2)[0]
        sscl_loss(anchors, positives, 0.1, same_text=same_text).backward()
        gradients.append(anchors.grad[0])
    assert torch.equal(gradients[0], gradients[1])  # the first anchor never sees the second's positive
    assert not torch.equal(gradients[0], gradients[2]) and gradients[0].isfinite().all()


def test_one_pair_has_no_negative_and_no_loss():
    anchors, positives = unit(1, 8).requires_grad_(), unit(1, 8, seed=1)
    loss = sscl_loss(anchors, positives)
    loss.backward()
    assert loss.item() == 0.0 and (anchors.grad == 0).all()


def test_no_pairs_give_zero_and_no_gradient():
    anchors = torch.empty(0, 8, requires_grad=True)
    loss = sscl_loss(anchors, torch.empty(0, 8))
    loss.backward()
    assert loss.item() == 0.0 and anchors.grad.shape == (0, 8)


def test_sscl_gradient_reaches_both_sides():
    def of(anchors, positives):
        similarity = anchors @ positives.T / 0.1
        return (similarity.logsumexp(1) - similarity.diagonal()).mean()

    sides = [unit(5, 8, seed=s).requires_grad_() for s in (0, 1)]
    found = torch.autograd.grad(sscl_loss(*sides, 0.1), sides)
    expected = torch.autograd.grad(of(*sides), sides)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_doctests():
    result = doctest.testmod(magnet_train.losses)
    assert result.attempted >= 4 and result.failed == 0
