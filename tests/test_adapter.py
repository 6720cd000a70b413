"""The adapter beside the layers and its gate: open in bidirectional and hybrid mode, closed in causal mode; per call, per
thread; under torch.compile, gradient checkpointing, deepcopy, PEFT and quantisation."""

import copy
from concurrent.futures import ThreadPoolExecutor

import families
import pytest
import torch
from families import ADAPTER, build_base, build_magnet, randomize_adapter
from transformers import GenerationMixin

from modeling_magnet import ATTENTION_MODES, FAMILIES
from modeling_magnet.encoding_magnet import EncodingMixin
from modeling_magnet.infilling_magnet import InfillingMixin
from modeling_magnet.modeling_magnet import LowRank, adapter_gate, low_rank_parts

SPANS = torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2], [0, 1, 1, 0, 0, 0, 0, 0]])
NAMES = pytest.mark.parametrize("name", families.EACH)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (2, 8), generator=torch.Generator().manual_seed(5))


def forward(model, ids, mode):
    return model(ids, attention_mode=mode, span_ids=SPANS if mode == "hybrid" else None).logits


def all_modes(model, ids) -> dict:
    with torch.no_grad():
        return {mode: forward(model, ids, mode) for mode in ATTENTION_MODES}


# ---------------------------------------------------------------------------------------------------------- when it acts


@NAMES
def test_open_in_two_modes_and_closed_in_causal(name, ids):
    base = build_base(name)
    without = all_modes(build_magnet(base=base, adapter=None), ids)
    with_adapter = all_modes(build_magnet(base=base), ids)
    paper = all_modes(build_magnet(base=base, causal_adapter=True), ids)
    assert torch.equal(with_adapter["causal"], without["causal"])
    assert (paper["causal"] - without["causal"]).abs().max() > 0.1
    for mode in ("bidirectional", "hybrid"):
        assert (with_adapter[mode] - without[mode]).abs().max() > 0.1
        assert torch.equal(paper[mode], with_adapter[mode])


@NAMES
def test_it_adds_a_low_rank_update_to_every_target(name, ids):
    """The same model with the update added to the weights themselves, by hand."""
    model = build_magnet(name)
    merged = build_magnet(base=copy.deepcopy(build_base(name)), adapter=None)
    parts = list(low_rank_parts(model.model))
    assert len(parts) == 3 * len(ADAPTER["target_modules"])
    with torch.no_grad():
        for target, linear, part in parts:
            assert linear is model.model.get_submodule(target)
            assert (part.A.shape, part.B.shape) == ((4, linear.in_features), (linear.out_features, 4))
            merged.model.get_submodule(target).weight += part.B @ part.A * (8 / 4)  # alpha / r
    expected, found = all_modes(merged, ids), all_modes(model, ids)
    for mode in ("bidirectional", "hybrid"):
        torch.testing.assert_close(found[mode], expected[mode], rtol=0, atol=1e-5)


def test_gate_nests_and_survives_an_exception(ids):
    """Inside a closed gate nothing opens it: so the base model can be asked in any mode."""
    layer = build_magnet().model.layers[0].self_attn.q_proj
    x = torch.ones(1, 64)
    with torch.no_grad():
        opened = layer(x)
        with adapter_gate(False):
            closed = layer(x)
            with adapter_gate(True):
                assert torch.equal(layer(x), closed)
            assert torch.equal(layer(x), closed)
            with pytest.raises(RuntimeError, match="inside"), adapter_gate(True):
                raise RuntimeError("inside")
            assert torch.equal(layer(x), closed)
        assert torch.equal(layer(x), opened)
        with adapter_gate(True), adapter_gate(False):
            assert torch.equal(layer(x), closed)
        base, adapted = build_magnet(adapter=None), build_magnet()
        with adapted.adapter_disabled():
            inside = adapted(ids, attention_mode="bidirectional").logits
        assert torch.equal(inside, base(ids, attention_mode="bidirectional").logits)
    assert not torch.equal(opened, closed)


def test_a_failed_causal_call_leaves_the_gate_open(ids):
    model = build_magnet()
    before = all_modes(model, ids)
    with pytest.raises(Exception, match="size|shape|expand|dimension"):
        model(ids, attention_mask=torch.zeros(2, 1, 3, 5))  # a 4D mask that fits no layer
    after = all_modes(model, ids)
    assert all(torch.equal(after[mode], before[mode]) for mode in ATTENTION_MODES)


@pytest.mark.parametrize("way", ["from_base", "from config", "add_magnet_adapter"])
@NAMES
def test_a_fresh_adapter_is_the_identity(name, way, ids):
    adapter = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    base, cls = build_base(name), FAMILIES[name]
    plain = build_magnet(base=base, adapter=None)
    if way == "from_base":
        model = cls.from_base(base, adapter=adapter)
    elif way == "from config":
        model = cls(cls.config_class.from_base(base.config, adapter=adapter, attn_implementation="eager"))
        missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
        assert not unexpected and all("_lora." in key for key in missing)  # the base's tensors have their own names
    else:
        model = cls.from_base(base)
        model.add_magnet_adapter(adapter)
    parts = [part for _, _, part in low_rank_parts(model)]
    assert len(parts) == 2 * 3
    assert all(part.A.abs().max() > 0 and part.B.abs().max() == 0 for part in parts)
    assert model.config.adapter == adapter
    expected, found = all_modes(plain, ids), all_modes(model.eval(), ids)
    assert all(torch.equal(found[mode], expected[mode]) for mode in ATTENTION_MODES)


def test_a_second_adapter_is_refused():
    with pytest.raises(ValueError, match="already has one"):
        build_magnet().add_magnet_adapter({"r": 2, "alpha": 2, "target_modules": ["q_proj"]})


# --------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("name, impl", [("llama", "eager"), ("mistral", "sdpa")])
def test_threads_may_mix_modes(name, impl, ids):
    model = build_magnet(name, impl)
    expected, settings = all_modes(model, ids), copy.deepcopy(model.config.to_dict())

    def work(thread: int) -> int:
        wrong = 0
        for i in range(9):
            mode = ATTENTION_MODES[(thread + i) % 3]
            with torch.no_grad():
                wrong += not torch.equal(forward(model, ids, mode), expected[mode])
        return wrong

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [0] * 8
    assert model.config.to_dict() == settings


def test_generate_in_one_thread_and_encode_in_another(ids):
    model = build_magnet("llama", "sdpa")

    def generated(_=None):
        return model.generate(ids, max_new_tokens=5, do_sample=False)

    def encoded(_=None):
        with torch.no_grad():
            return forward(model, ids, "bidirectional")

    text, vectors = generated(), encoded()
    with ThreadPoolExecutor(4) as threads:
        texts, embeddings = threads.map(generated, range(8)), threads.map(encoded, range(24))
        assert all(torch.equal(one, text) for one in texts)
        assert all(torch.equal(one, vectors) for one in embeddings)


# ------------------------------------------------------------------------------------------ compile, train, copy, inspect


@pytest.mark.slow
@pytest.mark.parametrize("mode", ATTENTION_MODES)
@pytest.mark.parametrize("name", families.EACH)
def test_gate_under_torch_compile(name, mode, ids):
    """One graph without breaks; the "eager" backend runs exactly what was traced."""
    torch._dynamo.reset()
    model = build_magnet(name, "sdpa")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = all_modes(model, ids)[mode]
    with torch.no_grad():
        actual = forward(compiled, ids, mode)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_one_compiled_model_serves_all_modes(ids):
    torch._dynamo.reset()
    model = build_magnet("llama", "sdpa")
    expected, compiled = all_modes(model, ids), torch.compile(model, backend="eager")
    for _ in range(2):
        for mode, actual in all_modes(compiled, ids).items():
            torch.testing.assert_close(actual, expected[mode], rtol=0, atol=1e-5)


def adapter_gradients(model, ids, mode) -> dict:
    model.zero_grad()
    forward(model, ids, mode).float().logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if "_lora." in name}


@pytest.mark.parametrize("mode, use_reentrant", [("bidirectional", True), ("hybrid", False)])
@NAMES
def test_gradient_checkpointing_gives_the_same_gradients(name, mode, use_reentrant, ids):
    model = build_magnet(name, "sdpa").train()
    model.enable_input_require_grads()
    expected = adapter_gradients(model, ids, mode)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    recomputed = []
    layer = model.model.layers[1].self_attn.q_proj
    layer.register_forward_hook(lambda *_: recomputed.append(1))
    actual = adapter_gradients(model, ids, mode)
    assert len(recomputed) == 2  # it did run twice
    assert all(grad.abs().max() > 0 for grad in expected.values())
    assert all(torch.equal(actual[name], grad) for name, grad in expected.items())


def test_gradient_checkpointing_with_a_closed_gate_is_refused(ids):
    model = build_magnet().train()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ValueError, match="causal_adapter=True, or switch gradient checkpointing off"):
        forward(model, ids, "causal")
    with torch.no_grad():
        forward(model, ids, "causal")  # nothing is recomputed
    model.config.causal_adapter = True
    assert all(grad.abs().max() > 0 for grad in adapter_gradients(model, ids, "causal").values())


def test_closed_gate_passes_no_gradient_to_the_adapter(ids):
    model = build_magnet().train()
    forward(model, ids, "causal").sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if "_lora." in name)
    assert model.lm_head.weight.grad is not None


@NAMES
def test_a_deep_copy_has_an_adapter_of_its_own(name, ids):
    model = build_magnet(name)
    before, copied = all_modes(model, ids), copy.deepcopy(model)
    assert all(torch.equal(logits, before[mode]) for mode, logits in all_modes(copied, ids).items())
    randomize_adapter(copied, seed=9)
    assert all(torch.equal(logits, before[mode]) for mode, logits in all_modes(model, ids).items())
    changed = all_modes(copied, ids)
    assert torch.equal(changed["causal"], before["causal"])
    assert all((changed[mode] - before[mode]).abs().max() > 0.1 for mode in ("bidirectional", "hybrid"))


def test_each_target_is_adapted_once(ids):
    """Adapters are attached again after loading, where a quantised layer is another object; never twice."""
    model = build_magnet()
    again = copy.deepcopy(model)
    for candidate in (model, again, type(model).from_base(again)):
        for _, linear, part in low_rank_parts(candidate):
            assert isinstance(part, LowRank)
            assert linear.forward.args[1] is part
            assert (
                linear.forward.args[0].__self__ is linear and linear.forward.args[0].__func__ is type(linear).forward
            )


# --------------------------------------------------------------------------------------------------- names of the mixins


def names_of(cls) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("__")}


@pytest.mark.parametrize("mixin", [InfillingMixin, EncodingMixin])
@NAMES
def test_mixins_shadow_nothing(name, mixin):
    """They stand before the stock class in the MRO: a helper of the same name would silently replace a method of its."""
    assert not names_of(mixin) & (set(dir(type(build_base(name)))) | set(dir(GenerationMixin)))
    assert not names_of(InfillingMixin) & names_of(EncodingMixin)
