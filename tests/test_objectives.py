"""What the trainer adds beside the paper's objectives, and how it stops: KL, MTP, FIM, SSCL alone, dropout, messages."""

import copy
import functools

import numpy as np
import pytest
import torch
from training import (
    PAIRS,
    TOKENS,
    Gradients,
    log_of,
    magnet,
    make_trainer,
    relative_difference,
    texts,
    token_losses_by_hand,
)

from magnet_train.fim import FimMarkers, fim_markers, fim_row
from magnet_train.settings.arguments import ViewArguments
from magnet_train.views import IGNORE, SpecialTokens, sample_view
from modeling_magnet import FAMILIES
from modeling_magnet.encoding_magnet import pack

ACTING = {"causal_adapter": True, "projection_head": "none"}
CAUSAL_ROWS = {"all_span_ratio": 0.5, "span_max": 8}


@pytest.fixture
def make(tmp_path):
    return functools.partial(make_trainer, tmp_path)


# ------------------------------------------------------------------------------------------------------- KL to the base


def kl_by_hand(model, base, batches):
    """KL(base || model) of the next token at every place of the rows that are one span, from full logits."""
    total, count = 0.0, 0
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][row].sum())
            if (batch["span_ids"][row, :length] == 0).any():
                continue
            ids = batch["input_ids"][row : row + 1, : length - 1]
            p, q = (m(ids, attention_mode="causal").logits[0].log_softmax(-1) for m in (base, model))
            total = total + (p.exp() * (p - q)).sum()
            count += length - 1
    return total / count


@pytest.mark.parametrize("accumulated", [1, 4])
def test_kl_keeps_causal_rows_close_to_the_base(make, tiny_magnet, accumulated):
    model, gradients = magnet(**ACTING), Gradients()
    reference, base = copy.deepcopy(model), tiny_magnet("sdpa", adapter=None)
    sizes = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    options = {"lambda_mntp": 0, "lambda_sscl": 0, "lambda_kl": 3.0, "view": CAUSAL_ROWS}
    trainer = make(model, pairs=[], callbacks=[gradients], optim="sgd", **options, **sizes)
    trainer.train()
    expected = kl_by_hand(reference, base, trainer.data_collator.batches)
    loss = 3 * expected + token_losses_by_hand(reference, trainer.data_collator.batches)["msg"]
    loss.backward()
    (line,) = log_of(trainer)
    assert line["loss_kl"] == pytest.approx(expected.item(), rel=1e-4) and expected > 1e-3
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)
    found = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert relative_difference(gradients.steps[0], found) < 1e-6


def test_kl_is_zero_for_a_fresh_adapter_and_without_causal_rows(make):
    fresh = magnet(**ACTING)
    for name, parameter in fresh.named_parameters():
        if "_lora.B" in name:
            parameter.data.zero_()
    for model, view in ((fresh, CAUSAL_ROWS), (magnet(**ACTING), {"span_max": 8})):
        trainer = make(model, pairs=[], lambda_sscl=0, lambda_kl=1.0, view=view)
        trainer.train()
        assert log_of(trainer)[0]["loss_kl"] == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------- SSCL alone, dropout


def test_second_stage_alone_runs_no_text(make):
    model, modes = magnet(), []
    model.model.register_forward_pre_hook(
        lambda m, a, kwargs: modes.append(kwargs["attention_mode"]), with_kwargs=True
    )
    trainer = make(model, max_steps=3, sscl_start_step=2, sscl_alone=True)
    trainer.train()
    assert modes == ["hybrid", "hybrid", "bidirectional"]
    lines = log_of(trainer)
    assert [(line["lambda_mntp"], line["lambda_sscl"], line["lambda_msg"]) for line in lines] == [
        (1, 0, 1),
        (1, 0, 1),
        (0, 9, 0),
    ]
    assert ["loss_mntp" in line for line in lines] == [True, True, False]


def test_a_step_without_any_weight_is_refused(make):
    trainer = make(lambda_mntp=0, lambda_msg=0, sscl_start_step=2, max_steps=3)
    with pytest.raises(ValueError, match="At step 0 the weights are .*nothing would be trained"):
        trainer.train()


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "llama")]
)
def test_dropout_positives(make, family):
    """A sentence seen twice through dropout: other vectors, other weights; without dropout the loss is that of equals."""
    twins = [(anchor, anchor) for anchor, _ in PAIRS]
    losses = {}
    for rate in (0.0, 0.3):
        trainer = make(magnet(family=family), pairs=twins, sscl_dropout=rate, lambda_mntp=0, lambda_msg=0)
        vectors = []
        encode = trainer.sentence_vectors
        trainer.sentence_vectors = lambda *args: vectors.append(encode(*args)) or vectors[-1]
        trainer.train()
        anchors, positives = vectors[0].unbind(1)
        assert torch.allclose(anchors, positives, atol=1e-6) == (rate == 0)
        losses[rate] = log_of(trainer)[0]["loss_sscl"]
    assert losses[0.0] != losses[0.3]


def test_dropout_is_off_in_the_text_forward(make):
    lines = []
    for rate in (0.0, 0.5):
        trainer = make(magnet(), sscl_dropout=rate, max_steps=2, learning_rate=0)
        trainer.train()
        lines.append(log_of(trainer))
    for plain, dropped in zip(*lines):
        assert plain["loss_mntp"] == dropped["loss_mntp"] and plain["loss_msg"] == dropped["loss_msg"]
        assert plain["loss_sscl"] != dropped["loss_sscl"]


# ------------------------------------------------------------------------------------------------------------ MTP, FIM


def test_mtp_labels_stand_on_the_masked_tokens_themselves():
    ids, starts = np.arange(10, 60), np.zeros(50, bool)
    drawn = [
        sample_view(ids, starts, ViewArguments(mask_objective=kind), TOKENS, np.random.default_rng(0))
        for kind in ("mntp", "mtp")
    ]
    mntp, mtp = (view.mntp_labels for view in drawn)
    assert np.array_equal(drawn[0].input_ids, drawn[1].input_ids)
    assert np.array_equal(mtp[1:], mntp[:-1]) and (mntp != IGNORE).sum() > 3
    places = np.flatnonzero(mtp != IGNORE)
    assert np.array_equal(mtp[places], np.concatenate([[TOKENS.bos], ids])[places])


MARKERS = FimMarkers([90, 91], [92], [93])


def unscramble(row):
    """The text of a fill-in-the-middle row and the length of its middle, by the markers alone."""
    row = row.tolist()
    assert row[0] == TOKENS.bos and row[-1] == TOKENS.end and row[1:3] == [90, 91]
    suffix_at, middle_at = row.index(92), row.index(93)
    prefix, suffix, rest = row[3:suffix_at], row[suffix_at + 1 : middle_at], row[middle_at + 1 : -1]
    return ("spm" if suffix_at == 3 else "psm"), prefix, suffix, rest


def test_fim_rows_hold_the_whole_text_in_both_orders():
    tokens = SpecialTokens(TOKENS.bos, TOKENS.mask, TOKENS.end, TOKENS.ordinary, MARKERS)
    ids, orders, middles = np.arange(10, 70), [], []
    for seed in range(200):
        settings = ViewArguments(fim_ratio=1.0, span_max=20)
        view = sample_view(ids, np.zeros(60, bool), settings, tokens, np.random.default_rng(seed))
        order, prefix, suffix, rest = unscramble(view.input_ids)
        if order == "psm":
            text = prefix + rest + suffix
            middles.append(len(rest))
        else:
            text = rest + suffix
        assert text == ids.tolist()
        assert (view.span_ids == 1).all() and (view.mntp_labels == IGNORE).all()  # causal, and no masks
        assert np.array_equal(view.msg_labels[:-1], view.input_ids[1:]) and view.msg_labels[-1] == IGNORE
        assert view.msg_labels[-2] == TOKENS.end
        assert np.array_equal(view.position_ids, np.arange(len(view.input_ids)))
        orders.append(order)
    assert 70 < orders.count("psm") < 130
    assert min(middles) >= 4 and max(middles) <= 20 and len(set(middles)) > 10


def test_fim_row_tells_where_the_middle_starts():
    for spm in (False, True):
        row, start = fim_row([20, 21], [30, 31, 32], [40], MARKERS, 1, 2, spm)
        assert row[start:].tolist() == [30, 31, 32, 2]


def test_fim_markers_are_ordinary_tokens(tokenizer):
    markers = fim_markers(tokenizer)
    spelled = [tokenizer.decode(ids) for ids in (markers.prefix, markers.suffix, markers.middle)]
    assert spelled == ["<PRE>", "<SUF>", "<MID>"]
    assert not set(markers.prefix + markers.suffix + markers.middle) & set(tokenizer.all_special_ids)


def test_fim_rows_train(make):
    tokens = SpecialTokens(1, 4, 2, np.arange(10, 90), MARKERS)
    trainer = make(magnet(**ACTING), pairs=[], lambda_sscl=0, lambda_mntp=0, view={"fim_ratio": 1.0, "span_max": 8})
    trainer.train_dataset.tokens = tokens
    for text in trainer.train_dataset.texts:
        text.ids[text.ids >= 90] = 11
    trainer.train()
    (line,) = log_of(trainer)
    (batch,) = trainer.data_collator.batches
    assert (batch["input_ids"] == 93).sum() == 8  # each row has its <MID>
    assert line["loss_msg"] > 0 and line["loss_mntp"] == 0


# ---------------------------------------------------------------------------------------------- why a run had to stop


def test_a_broken_loss_names_its_rows(make):
    """A row whose logits are infinite is named by where it stands in its file, with those in the same packed row."""
    model = magnet()
    trainer = make(model, rows=texts(8), max_steps=2)
    row, poison = 5, 96
    trainer.train_dataset.texts[row].ids[:] = poison
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = float("inf")
    for other in range(8):
        if other != row:
            ids = trainer.train_dataset.texts[other].ids
            ids[ids == poison] = 11
    trainer.train_dataset.tokens = SpecialTokens(1, 4, 2, np.arange(10, 90))
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    origins = [trainer.train_dataset.origin(number) for number in range(8)]
    assert "at step 0" in str(error.value) and origins[row] in str(error.value)
    (batch,) = trainer.data_collator.batches[:1]
    documents = pack({}, batch["attention_mask"])[0]["document_ids"]
    broken = int((batch["text_rows"] == row).nonzero())
    together = set(documents[(documents == broken).any(1)].unique().tolist()) - {-1}
    together = {int(batch["text_rows"][text]) for text in together}
    named = {number for number, origin in enumerate(origins) if origin in str(error.value)}
    assert named == together and len(named) < 4


def test_a_broken_pair_is_named(make):
    model = magnet()
    pairs = [(list(anchor), list(positive)) for anchor, positive in PAIRS]
    pairs[3] = (pairs[3][0], [1, 95, 95, 2])
    trainer = make(model, pairs=pairs, lambda_mntp=0, lambda_msg=0)
    with torch.no_grad():
        model.model.embed_tokens.weight[95] = float("nan")
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert "loss_sscl is nan at step 0" in str(error.value)
    assert trainer.train_dataset.pairs.origin(3) in str(error.value)


def test_a_gradient_that_is_not_finite_stops_the_run(make):
    model = magnet("none")
    weight = next(p for name, p in model.named_parameters() if "layers.1.self_attn.q_proj_lora.B" in name)
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = copy.deepcopy(model.state_dict())
    trainer = make(model, max_steps=2, learning_rate=1e-2)
    with pytest.raises(FloatingPointError, match=r"layers.1.self_attn.q_proj_lora.B.* not finite at step 0"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_out_of_memory_says_what_was_in_the_step_and_what_to_change(make):
    model = magnet()

    def full(*args):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    model.model.layers[1].register_forward_pre_hook(full)
    trainer = make(model)
    with pytest.raises(torch.OutOfMemoryError) as error:
        trainer.train()
    message = str(error.value)
    for part in ("at step 0", "8 rows of", "16 pairs of", "2 GiB", "activation_checkpointing", "sscl_chunk_size"):
        assert part in message


def test_tokens_per_second_counts_texts_and_sentences(make):
    trainer = make(max_steps=2, logging_steps=2)
    seconds = []
    stop = trainer.metrics.stop_clock

    def stopped():
        stop()
        seconds.append(trainer.metrics._seconds)

    trainer.metrics.stop_clock = stopped
    trainer.train()
    tokens = sum(
        batch[mask].sum().item()
        for batch in trainer.data_collator.batches
        for mask in ("attention_mask", "pair_attention_mask")
    )
    (line,) = log_of(trainer)
    assert len(seconds) == 2 and 0 < seconds[0] < seconds[1]
    assert line["tokens_per_second"] == pytest.approx(tokens / seconds[1], rel=1e-6)
