"""`MagnetTrainer` from Python: data sets in, a trained MAGNET model out; and what is refused with a sentence."""

import copy

import datasets
import pytest
import torch
from conftest import BASE_MODEL
from datasets import Dataset
from families import build_base
from transformers import AutoTokenizer, LlamaForCausalLM

from magnet_train import MagnetTrainer, MagnetTrainingArguments, ViewArguments
from modeling_magnet import FAMILIES

NAMES = ["Tom", "Mina", "Jorge", "Elif", "Sam", "Ada", "Kim", "Lee"]
STORY = "{} was hungry. There was no bread, so a loaf had to be baked. It took an hour and it smelt of home."
VIEW = {"max_length": 48, "span_max": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """`datasets` writes its cache into a folder of the test's own, and says nothing."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.fixture
def texts():
    return Dataset.from_dict({"text": [STORY.format(name) for name in NAMES], "number": range(8)})


@pytest.fixture
def pairs():
    columns = {"text": "{} was hungry.", "positive": "{} wanted food."}
    return Dataset.from_dict({name: [form.format(each) for each in NAMES] for name, form in columns.items()})


@pytest.fixture
def make(tmp_path, texts, tokenizer, text_magnet):
    """`make(model=None, **changes)`: a trainer on the texts, told anything that it or its arguments take."""

    def make(model=None, view=VIEW, **changes):
        given = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "use_cpu": True, "disable_tqdm": True}
        given |= {"per_device_train_batch_size": 4, "per_device_pair_batch_size": 8, "save_strategy": "no"}
        given |= {"sscl_start_step": 0, "learning_rate": 1e-2, "logging_steps": 1}
        own = {"train_dataset": texts, "processing_class": tokenizer, "view_args": ViewArguments(**view)}
        for name in ("train_dataset", "processing_class", "eval_dataset", "train_pairs", "eval_pairs"):
            if name in changes:
                own[name] = changes.pop(name)
        model = text_magnet() if model is None else model
        return MagnetTrainer(model, MagnetTrainingArguments(**given | changes), **own)

    return make


def changed(model, before) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def log_of(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def test_texts_alone_train_mntp_and_msg(make, text_magnet):
    model = text_magnet(projection_head="linear")
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = copy.deepcopy(model.state_dict())
    trainer = make(model)
    trainer.train()
    assert trainer.model is model
    assert changed(model, before) == {name for name in before if "_lora." in name}
    assert [line["step"] for line in log_of(trainer)] == [1, 2]
    assert all(line["loss_mntp"] > 0 and line["loss_msg"] > 0 for line in log_of(trainer))
    assert not any("loss_sscl" in line for line in log_of(trainer))
    assert trainer.train_dataset.origin(2) == "train_dataset:3"


def test_pairs_and_held_out_data(make, text_magnet, texts, pairs):
    model = text_magnet(projection_head="linear")
    before = copy.deepcopy(model.state_dict())
    held_out = Dataset.from_dict({"text": ["Ben slept.", "Zoe ran."], "positive": ["Ben was asleep.", "Zoe raced."]})
    unseen = Dataset.from_dict({"text": ["A text of its own, on which nothing is trained, of some length."] * 2})
    trainer = make(model, train_pairs=pairs, eval_dataset=unseen, eval_pairs=held_out)
    measured = trainer.evaluate()
    trainer.train()
    assert all(measured[f"eval_loss_{name}"] > 0 for name in ("mntp", "msg", "sscl"))
    assert all(line["loss_sscl"] > 0 for line in log_of(trainer))
    trained = {name for name in before if "_lora." in name or "projection_head" in name}
    assert changed(model, before) == trained
    assert {trainer.train_dataset.pairs.origin(row) for row in range(8)} == {f"train_pairs:{n}" for n in range(1, 9)}
    assert trainer.eval_dataset.pairs.origin(1) == "eval_pairs:2"


def test_sentences_alone_are_pairs_under_dropout(make, pairs):
    sentences = pairs.remove_columns("positive")
    with pytest.raises(ValueError, match=r"train_pairs: no column 'positive'; it has \['text'\].*sscl_dropout"):
        make(train_pairs=sentences)
    trainer = make(train_pairs=sentences, sscl_dropout=0.3)
    trainer.train()
    assert all(anchor == positive for anchor, positive in trainer.train_dataset.pairs.pairs)
    assert log_of(trainer)[0]["loss_sscl"] > 0


@pytest.mark.parametrize(
    "family",
    [name if name in ("llama", "gemma3_text") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_the_folder_of_a_base_is_enough(family, make, tmp_path, tokenizer):
    """Its family is found; the new adapter is trained, and causal mode stays the base's."""
    base = build_base(family, "sdpa", vocab_size=4096, max_position_embeddings=512, pad_token_id=0)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trainer = make(str(tmp_path / "base"), processing_class=None, seed=3)
    trainer.train()
    model = trainer.model
    assert type(model) is FAMILIES[family] and model.config.adapter["r"] == 16
    assert all(p.abs().max() > 0 for name, p in model.named_parameters() if name.endswith("_lora.B"))
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False).eos_token_id == 2
    again = FAMILIES[family].from_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 70, 80, 90, 100, 110, 120, 130]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, base(ids).logits)
        trained = model.eval()(ids, attention_mode="bidirectional").logits
        assert torch.equal(again(ids, attention_mode="bidirectional").logits, trained)


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(make):
    found = []
    for seed in (3, 3, 4):
        trainer = make(str(BASE_MODEL), seed=seed, processing_class=None)
        trainer.train()
        found.append({name: p.clone() for name, p in trainer.model.named_parameters() if "_lora." in name})
    first, again, other = found
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_free_gaps_are_written_into_the_configuration(make, text_magnet, tokenizer):
    model = text_magnet(infill_end_token_id=None, mask_token_id=None)
    make(model, view=VIEW | {"gap_layout": "mixed", "free_offset": 16})
    assert (model.config.infill_end_token_id, model.config.infill_free_offsets) == (tokenizer.eos_token_id, [16])
    assert tokenizer.decode(model.config.mask_token_id) == "_"


# ------------------------------------------------------------------------------------------------------------- refused


def test_too_few_rows_are_refused(make):
    """They used to end a run after 0 steps, without a word."""
    message = (
        "per_device_train_batch_size=32: 8 rows fill no batch, so nothing would be trained. Lower it, or give more"
    )
    with pytest.raises(ValueError, match=message):
        make(per_device_train_batch_size=32, per_device_pair_batch_size=64)
    trainer = make(per_device_train_batch_size=32, per_device_pair_batch_size=64, dataloader_drop_last=False)
    trainer.train()
    assert trainer.state.global_step == 2


def test_several_gpus_in_one_process_are_refused(make, monkeypatch):
    """nn.DataParallel's threads have gates of their own."""
    monkeypatch.setattr(MagnetTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs in one process .* torchrun --nproc_per_node 2, or accelerate launch"):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processing_class": None}, "processing_class=None: give the model's tokenizer"),
        (
            {"train_dataset": Dataset.from_dict({"story": ["a"]})},
            r"train_dataset: no column 'text'; it has \['story'\]",
        ),
        ({"train_dataset": [{"text": "A story."}]}, "train_dataset: list is no datasets.Dataset with a column 'text'"),
        ({"train_dataset": Dataset.from_dict({"text": ["A story.", None]})}, "train_dataset:2: 'text' holds 'None'"),
        ({"train_pairs": Dataset.from_dict({"positive": ["a"]})}, "train_pairs: no column 'text'"),
        ({"eval_dataset": Dataset.from_dict({"story": ["a"]})}, "eval_dataset: no column 'text'"),
        ({"view": VIEW | {"max_spans": 0}}, "max_spans=0: MSG"),
        ({"view": VIEW | {"span_max": 64}}, "span_max=64: must be below max_length=48"),
        ({"view": {"max_length": 1024}}, "max_length=1024 .* beyond max_position_embeddings=512"),
        ({"lambda_kl": 1.0, "view": VIEW | {"all_span_ratio": 0.5}}, "lambda_kl=1.0: with causal_adapter=False"),
    ],
)
def test_what_cannot_be_trained_is_told(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_model_that_has_nothing_to_train_is_refused(make, text_magnet):
    with pytest.raises(
        ValueError, match="model: it has no adapter, so nothing would be trained. Load it with adapter="
    ):
        make(text_magnet(adapter=None))
    with pytest.raises(ValueError, match="model: LlamaForCausalLM has no attention modes. Give its name or folder"):
        make(LlamaForCausalLM.from_pretrained(BASE_MODEL))


def test_pairs_that_are_never_trained_are_warned_of(make, pairs, caplog):
    make(sscl_start_step=3400)
    assert "SSCL is never trained" not in caplog.text  # no pairs, none expected
    make(train_pairs=pairs, sscl_start_step=3400)
    assert "sscl_start_step=3400: not reached in max_steps=2 steps, so SSCL is never trained" in caplog.text


def test_the_package_offers_what_it_names():
    import magnet_train

    assert {name for name in magnet_train.__all__ if getattr(magnet_train, name)} == set(magnet_train.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        magnet_train.Trainer
