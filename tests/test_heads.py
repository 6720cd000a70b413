"""Classification heads of every family: which outputs they read, labels, tuples, padding on either side."""

import copy
import functools

import families
import pytest
import torch
from reference import padding_mask
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

build_magnet = functools.cache(families.build_magnet)  # only copies are changed
LENGTH = 7
TOKENS, TEXTS = AutoModelForTokenClassification, AutoModelForSequenceClassification
NAMES = pytest.mark.parametrize("name", families.EACH)
HEADS = pytest.mark.parametrize("auto", [TOKENS, TEXTS], ids=["tokens", "texts"])
SIDES = pytest.mark.parametrize("side", ["left", "right", "both"])


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (3, LENGTH), generator=torch.Generator().manual_seed(11))


def padded(ids, side) -> dict:
    return {"input_ids": ids, "attention_mask": padding_mask([LENGTH, LENGTH - 2, 3], LENGTH, side)}


def head(auto, name, impl="sdpa", **settings):
    """A classifier over the decoder of `build_magnet(name)`, whose weights it has."""
    magnet = build_magnet(name, impl)
    config = copy.deepcopy(magnet.config)
    for key, value in {"num_labels": 3, **settings}.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        head = auto.from_config(config)
    head.model.load_state_dict(magnet.model.state_dict())
    return head.eval()


def states_and_logits(classifier, inputs):
    with torch.no_grad():
        states = classifier.model(**inputs, attention_mode="bidirectional").last_hidden_state
        return states, classifier(**inputs).logits


@SIDES
@NAMES
def test_token_head_reads_the_output_left_of_a_token(name, side, ids):
    """MNTP trains position i-1 to represent token i; a text's first token has nothing before it, and reads its own."""
    classifier, inputs = head(TOKENS, name), padded(ids, side)
    states, logits = states_and_logits(classifier, inputs)
    assert logits.shape == (3, LENGTH, 3)
    with torch.no_grad():
        by_token = classifier.score(states)
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        first, *others = mask.nonzero().flatten().tolist()
        torch.testing.assert_close(logits[row, first], by_token[row, first], rtol=0, atol=1e-6)
        torch.testing.assert_close(logits[row, others], by_token[row, [i - 1 for i in others]], rtol=0, atol=1e-6)


@SIDES
@NAMES
def test_sequence_head_reads_the_last_real_token(name, side, ids):
    classifier, inputs = head(TEXTS, name), padded(ids, side)
    states, logits = states_and_logits(classifier, inputs)
    last = [int(mask.nonzero().max()) for mask in inputs["attention_mask"]]
    expected = torch.stack([classifier.score(states[row, place]) for row, place in enumerate(last)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


@SIDES
def test_sequence_head_may_pool_by_the_mean(side, ids):
    classifier, inputs = head(TEXTS, "llama", pooling="mean"), padded(ids, side)
    states, logits = states_and_logits(classifier, inputs)
    rows = zip(states, inputs["attention_mask"].bool())
    expected = classifier.score(torch.stack([row[mask].mean(0) for row, mask in rows]))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


@HEADS
@NAMES
def test_without_a_padding_mask_all_tokens_are_real(name, auto, ids):
    """Also those with the padding's id, which is [EOS] in many tokenizers: stock heads would leave out the last token."""
    ids = ids.clone()
    ids[:, -1] = 3
    classifier = head(auto, name)
    with torch.no_grad():
        expected = classifier(ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(classifier(ids).logits, expected, rtol=0, atol=1e-6)


@HEADS
@NAMES
def test_padding_has_no_effect(name, auto, ids):
    classifier, inputs = head(auto, name), padded(ids, "both")
    _, logits = states_and_logits(classifier, inputs)
    other = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 50)
    _, changed = states_and_logits(classifier, inputs | {"input_ids": other})
    real = inputs["attention_mask"].bool() if auto is TOKENS else slice(None)
    assert torch.equal(changed[real], logits[real])
    with torch.no_grad():  # row 1 alone, without its padding
        alone = classifier(ids[1:2, 1:-1]).logits
    found = logits[1:2, 1:-1] if auto is TOKENS else logits[1:2]
    torch.testing.assert_close(alone, found, rtol=0, atol=1e-5)


@HEADS
@NAMES
def test_bidirectional_unless_told_otherwise(name, auto, ids):
    """A head must not change with the config's mode, which is the generator's."""
    classifier = head(auto, name)
    assert classifier.config.attention_mode == "causal"
    changed = ids[:, :4].clone()  # all in reach of one another, in every family
    changed[:, -1] = (changed[:, -1] + 1) % 97

    def first_state(ids, **mode):
        states = []
        hook = classifier.model.norm.register_forward_hook(lambda *call: states.append(call[-1]))
        with torch.no_grad():
            classifier(ids, **mode)
        hook.remove()
        return states[0][:, 0]

    assert not torch.equal(first_state(ids[:, :4]), first_state(changed))
    causal = {"attention_mode": "causal"}
    assert torch.equal(first_state(ids[:, :4], **causal), first_state(changed, **causal))


LABELS = {
    TOKENS: torch.tensor([[0, 1, 2, -100, 1, 0, 2], [-100, 1, 1, 2, 2, 0, 0], [-100] * 4 + [1, 1, 1]]),
    TEXTS: torch.tensor([0, 2, 1]),
}


@HEADS
@NAMES
def test_loss_is_cross_entropy_and_trains_head_and_adapter(name, auto, ids):
    classifier, labels = head(auto, name).train(), LABELS[auto]
    output = classifier(ids, labels=labels)
    expected = cross_entropy(output.logits.reshape(-1, 3), labels.flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    gradients = {key: p.grad for key, p in classifier.named_parameters() if "_lora." in key or "score" in key}
    assert len(gradients) > 3 * 4 * 2
    assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in gradients.values())


@pytest.mark.parametrize(
    "settings, labels, loss",
    [
        ({"num_labels": 1}, torch.tensor([0.5, 1.0, -2.0]), lambda logits, y: mse_loss(logits[:, 0], y)),
        ({}, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]]), binary_cross_entropy_with_logits),
    ],
    ids=["regression", "several labels"],
)
def test_other_problem_types(settings, labels, loss, ids):
    classifier = head(TEXTS, "qwen3", **settings)
    output = classifier(ids, labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


@HEADS
@NAMES
def test_tuples(name, auto, ids):
    classifier = head(auto, name, impl="eager")
    kwargs = {"labels": LABELS[auto], "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        named, plain = classifier(ids, **kwargs), classifier(ids, **kwargs, return_dict=False)
    assert type(plain) is tuple and len(plain) == 4
    loss, logits, hidden_states, attentions = plain
    assert torch.equal(loss, named.loss) and torch.equal(logits, named.logits)
    assert len(hidden_states) == 4 and all(map(torch.equal, hidden_states, named.hidden_states))
    assert len(attentions) == 3 and all(map(torch.equal, attentions, named.attentions))
    assert (attentions[1].sum(-1) - 1).abs().max() < 1e-5


@HEADS
@NAMES
def test_embeddings_instead_of_ids(name, auto, ids):
    classifier, inputs = head(auto, name), padded(ids, "left")
    embeds = classifier.get_input_embeddings()(ids)
    with torch.no_grad():
        given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
        assert torch.equal(classifier(**given).logits, classifier(**inputs).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@HEADS
def test_half_precision(auto, dtype, ids, tmp_path):
    head(auto, "llama").save_pretrained(tmp_path)
    classifier = auto.from_pretrained(tmp_path, dtype=dtype)
    assert classifier.model.dtype == dtype
    loss = classifier(ids, labels=LABELS[auto]).loss
    loss.backward()
    assert loss.isfinite() and classifier.score.weight.grad.isfinite().all()


@HEADS
@NAMES
def test_saved_and_loaded(name, auto, ids, tmp_path):
    classifier = head(auto, name)
    classifier.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, classifier(ids).logits)
