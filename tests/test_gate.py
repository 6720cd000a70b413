"""The adapter's gate: open in bidirectional and hybrid mode, shut in causal mode; per call, per thread."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import GenerationMixin, LlamaForCausalLM
from transformers.modeling_utils import PreTrainedModel

from modeling_magnet import ATTENTION_MODES, MagnetLlamaForCausalLM
from modeling_magnet.adapter_magnet import GatedLoraLinear, adapter_gate
from modeling_magnet.encoding_magnet import EncodingMixin
from modeling_magnet.infilling_magnet import InfillingMixin

SPANS = torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2], [0, 1, 1, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (2, 8), generator=torch.Generator().manual_seed(5))


def forward(model, ids, mode):
    return model(ids, attention_mode=mode, span_ids=SPANS if mode == "hybrid" else None).logits


def all_modes(model, ids) -> dict:
    with torch.no_grad():
        return {mode: forward(model, ids, mode) for mode in ATTENTION_MODES}


# ------------------------------------------------------------------------------------------------------ when it acts


def test_open_in_two_modes_and_shut_in_causal(tiny_magnet, ids):
    with_adapter = all_modes(tiny_magnet(), ids)
    without = all_modes(tiny_magnet(adapter=None), ids)
    assert torch.equal(with_adapter["causal"], without["causal"])
    for mode in ("bidirectional", "hybrid"):
        assert (with_adapter[mode] - without[mode]).abs().max() > 0.1


def test_causal_adapter_opens_it_in_causal_mode(tiny_magnet, ids):
    gated, paper = all_modes(tiny_magnet(), ids), all_modes(tiny_magnet(causal_adapter=True), ids)
    assert (paper["causal"] - gated["causal"]).abs().max() > 0.1
    for mode in ("bidirectional", "hybrid"):
        assert torch.equal(paper[mode], gated[mode])


def test_open_gate_is_the_low_rank_update(tiny_magnet):
    layer = tiny_magnet().model.layers[0].self_attn.q_proj
    assert isinstance(layer, GatedLoraLinear)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    update = layer.lora_B["magnet"].weight @ layer.lora_A["magnet"].weight * (8 / 4)  # alpha / r
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + update).T, rtol=0, atol=1e-5)
        with adapter_gate(False):
            assert torch.equal(layer(x), x @ layer.base_layer.weight.T)


def test_gate_nests_and_survives_an_exception(tiny_magnet, ids):
    """Inside a closed gate nothing opens it: so the base model can be asked in any mode."""
    layer = tiny_magnet().model.layers[0].self_attn.q_proj
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
        base, adapted = tiny_magnet(adapter=None), tiny_magnet()
        with adapter_gate(False):
            inside = adapted(ids, attention_mode="bidirectional").logits
        assert torch.equal(inside, base(ids, attention_mode="bidirectional").logits)
    assert not torch.equal(opened, closed)


def test_a_failed_causal_call_leaves_the_gate_open(tiny_magnet, ids):
    model = tiny_magnet()
    before = all_modes(model, ids)
    with pytest.raises(Exception, match="size|shape|expand|dimension"):
        model(ids, attention_mask=torch.zeros(2, 1, 3, 5))  # a 4D mask that fits no layer
    after = all_modes(model, ids)
    assert all(torch.equal(after[mode], before[mode]) for mode in ATTENTION_MODES)


@pytest.mark.parametrize("way", ["from_llama", "from config", "add_magnet_adapter"])
def test_a_fresh_adapter_is_the_identity(way, tiny_llama, ids):
    adapter = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    llama = tiny_llama()
    if way == "from_llama":
        model = MagnetLlamaForCausalLM.from_llama(llama, adapter=adapter)
    else:
        model = MagnetLlamaForCausalLM.from_llama(llama)
        if way == "from config":
            config = copy.deepcopy(model.config)
            config.adapter = adapter
            model = MagnetLlamaForCausalLM(config)
            weights = {n.replace(".base_layer", ""): p for n, p in model.named_parameters() if "lora" not in n}
            llama.load_state_dict(weights)  # this one was not made from Llama, so Llama takes its weights
        else:
            model.add_magnet_adapter(adapter)
    layers = [module for module in model.modules() if isinstance(module, GatedLoraLinear)]
    assert len(layers) == 2 * 3
    assert all(layer.lora_A["magnet"].weight.abs().max() > 0 for layer in layers)
    with torch.no_grad():
        actual = model.eval()(ids, attention_mode="bidirectional").logits
        assert torch.equal(actual, llama(ids, is_causal=False).logits)


def test_a_second_adapter_is_refused(tiny_magnet):
    with pytest.raises(ValueError, match="already has one"):
        tiny_magnet().add_magnet_adapter({"r": 2, "alpha": 2, "target_modules": ["q_proj"]})


# ---------------------------------------------------------------------------------------- threads, compile, training


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_threads_may_mix_modes(impl, tiny_magnet, ids):
    model = tiny_magnet(impl)
    expected, settings = all_modes(model, ids), copy.deepcopy(model.config.to_dict())

    def work(thread: int) -> int:
        wrong = 0
        for i in range(24):
            mode = ATTENTION_MODES[(thread + i) % 3]
            with torch.no_grad():
                wrong += not torch.equal(forward(model, ids, mode), expected[mode])
        return wrong

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [0] * 8
    assert model.config.to_dict() == settings


def test_generate_in_one_thread_and_encode_in_another(tiny_magnet, ids):
    model = tiny_magnet("sdpa")

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


@pytest.mark.parametrize("mode", ATTENTION_MODES)
def test_gate_under_torch_compile(mode, tiny_magnet, ids):
    """One graph without breaks; the "eager" backend runs exactly what was traced."""
    torch._dynamo.reset()
    model = tiny_magnet("sdpa")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = all_modes(model, ids)[mode]
    with torch.no_grad():
        actual = forward(compiled, ids, mode)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_one_compiled_model_serves_all_modes(tiny_magnet, ids):
    torch._dynamo.reset()
    model = tiny_magnet("sdpa")
    expected, compiled = all_modes(model, ids), torch.compile(model, backend="eager")
    for _ in range(2):
        for mode, actual in all_modes(compiled, ids).items():
            torch.testing.assert_close(actual, expected[mode], rtol=0, atol=1e-5)


def lora_gradients(model, ids, mode) -> dict:
    model.zero_grad()
    forward(model, ids, mode).float().logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if "lora" in name}


@pytest.mark.parametrize("mode", ["bidirectional", "hybrid"])
def test_gradient_checkpointing_gives_the_same_gradients(mode, tiny_magnet, ids):
    model = tiny_magnet("sdpa").train()
    expected = lora_gradients(model, ids, mode)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    recomputed = []
    layer = model.model.layers[1].self_attn.q_proj
    layer.register_forward_hook(lambda *_: recomputed.append(1))
    actual = lora_gradients(model, ids, mode)
    assert len(recomputed) == 2  # it did run twice
    assert all(grad.abs().max() > 0 for grad in expected.values())
    assert all(torch.equal(actual[name], grad) for name, grad in expected.items())


def test_gradient_checkpointing_with_a_shut_gate_is_refused(tiny_magnet, ids):
    model = tiny_magnet().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ValueError, match="causal_adapter=True, or switch gradient checkpointing off"):
        forward(model, ids, "causal")
    with torch.no_grad():
        forward(model, ids, "causal")  # nothing is recomputed
    model.config.causal_adapter = True
    assert all(grad.abs().max() > 0 for grad in lora_gradients(model, ids, "causal").values())


def test_shut_gate_passes_no_gradient_to_the_adapter(tiny_magnet, ids):
    model = tiny_magnet().train()
    forward(model, ids, "causal").sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if "lora" in name)
    assert model.lm_head.weight.grad is not None


# ------------------------------------------------------------------------------------------------- names of the mixins


def names_of(cls) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("__")}


@pytest.mark.parametrize("mixin", [InfillingMixin, EncodingMixin])
def test_mixins_shadow_nothing(mixin):
    """They stand before Llama in the MRO: a helper of the same name would silently replace a method of generate()."""
    taken = set(dir(LlamaForCausalLM)) | set(dir(GenerationMixin))
    assert not names_of(mixin) & taken
    assert not names_of(InfillingMixin) & names_of(EncodingMixin)


def test_causal_lm_overrides_what_it_means_to():
    own = names_of(MagnetLlamaForCausalLM)
    inherited = set(dir(LlamaForCausalLM)) | set(dir(PreTrainedModel)) | set(dir(nn.Module))
    bookkeeping = {"_auto_class", "_abc_impl", "_is_stateful", "_can_set_attn_implementation_cached_value"}
    assert own & inherited - bookkeeping <= {"forward", "prepare_inputs_for_generation", "config_class", "config"}
