"""Encoding: each kind of system against its formula, baselines by counts, and the scores of mteb."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from magnet_eval import clustering, sts
from magnet_eval.data import Settings, read_graded_pairs, read_stories
from magnet_eval.embedding import ECHO, LEXICAL, ONE_WORD, cosines, encode_words, encoders, found_their_own
from magnet_eval.systems import System

TEXTS = ["It rained.", "Ann stayed in all day long."]
WORDS = ["Ünal", "lives", "in", "Liechtenstein", "."]


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture
def stories():
    return Path(__file__).parents[1] / "examples" / "assets" / "everyday-stories"


def unit(vector):
    return torch.nn.functional.normalize(vector, dim=-1).numpy()


@torch.no_grad()
def states(model, ids, mode="causal"):
    return model.model(torch.tensor([ids]), attention_mode=mode).last_hidden_state[0]


def test_a_base_is_read_at_the_last_token_as_the_mean_as_an_echo_and_as_one_word(model, tokenizer):
    ways = encoders(System("base", model, tokenizer))
    ids = [1, *tokenizer("Say: It rained.", add_special_tokens=False)["input_ids"], 2]
    found = {way: encode(TEXTS, "Say:")[0] for way, encode in ways.items()}
    np.testing.assert_allclose(found["last token"], unit(states(model, ids)[-1]), atol=1e-5)
    np.testing.assert_allclose(found["mean"], unit(states(model, ids).mean(0)), atol=1e-5)
    ids = [1, *tokenizer(ECHO.format(text=TEXTS[0]), add_special_tokens=False)["input_ids"]]
    count = len(tokenizer(f" {TEXTS[0]}", add_special_tokens=False)["input_ids"])
    assert tokenizer.decode(ids[-count:]) == " It rained."
    np.testing.assert_allclose(found["Echo"], unit(states(model, ids)[-count:].mean(0)), atol=1e-5)
    ids = tokenizer(ONE_WORD.format(text=TEXTS[0]), add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(found["PromptEOL"], unit(states(model, [1, *ids])[-1]), atol=1e-5)
    own = ways["last token"](TEXTS)  # its own prompt where no other is told
    np.testing.assert_allclose(own, ways["last token"](TEXTS, model.config.representation_prompt))


def test_magnet_is_read_by_its_own_encode(model, tokenizer):
    for kind in ("magnet", "llm2vec-mntp"):
        (encode,) = encoders(System(kind, model, tokenizer)).values()
        np.testing.assert_allclose(
            encode(TEXTS, "Say:"), model.encode(TEXTS, tokenizer, instruction="Say:"), atol=1e-6
        )
    assert list(encoders(System("fim", model, tokenizer))) == ["last token", "mean", "Echo", "PromptEOL"]


def test_rivals_that_count_words():
    pairs = [(5, "a big dog", "a big dog"), (3, "a big dog", "one big cat"), (0, "a dog", "the cats")]
    found = {system.name: cosines(encoders(system)[""], pairs) for system in LEXICAL}
    np.testing.assert_allclose(found["lexical binary words"], [1, 1 / np.sqrt(6), 0], atol=1e-6)
    tfidf = TfidfVectorizer().fit_transform([pair[side] for side in (1, 2) for pair in pairs]).toarray()
    np.testing.assert_allclose(found["lexical TF-IDF words"], (tfidf[:3] * tfidf[3:]).sum(1))
    assert 0 < found["lexical TF-IDF characters"][1] < 1
    right = found_their_own(encoders(LEXICAL[0])[""], ["a red dog", "some cats"], ["the red dogs", "more cats"])
    assert right.tolist() == [True, True]


def test_retrieval_and_similarity_of_given_vectors():
    table = {"a": [1.0, 0.0], "b": [0.9, np.sqrt(0.19)], "c": [0.0, 1.0], "d": [-1.0, 0.0]}

    def encode(texts):
        return np.array([table[text] for text in texts])

    assert sts.spearman(encode, [(5, "a", "b"), (3, "a", "c"), (0, "a", "d")]) == pytest.approx(100)
    assert sts.spearman(encode, [(0, "a", "b"), (3, "a", "c"), (5, "a", "d")]) == pytest.approx(-100)
    assert found_their_own(encode, ["a", "c"], ["b", "d"]).tolist() == [True, True]
    assert found_their_own(encode, ["a", "c"], ["b", "b"]).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["magnet", "base", "mtp"])
def test_words_are_means_of_outputs(kind, model, tokenizer):
    """One to the left (section 4.1) for MAGNET; at their place for MTP and for a base, which reads with causal attention."""
    pieces = [tokenizer.encode(" " * (n > 0) + word, add_special_tokens=False) for n, word in enumerate(WORDS)]
    ids = [tokenizer.bos_token_id, *(token for piece in pieces for token in piece)]
    hidden = states(model, ids, "causal" if kind == "base" else "bidirectional")
    ends = np.cumsum([len(piece) for piece in pieces]) + (kind != "magnet")  # [BOS] is at 0
    expected = torch.stack([hidden[end - len(piece) : end].mean(0) for piece, end in zip(pieces, ends)])
    other, found = encode_words(System(kind, model, tokenizer), [["Yes", "."], WORDS])
    assert max(map(len, pieces)) > 2 and other.shape == (2, hidden.shape[1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_reads_sentences_and_words(tmp_path):
    from sentence_transformers import SentenceTransformer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "it", "rained", "all", "day", "##s"]
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ).eval()
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    SentenceTransformer(str(tmp_path / "bert")).save(str(tmp_path / "encoder"))
    from magnet_eval.systems import load_system

    system = load_system("encoder-bert", str(tmp_path / "encoder"))
    (vectors,) = encode_words(system, [["it", "rained", "all", "days"]])
    with torch.no_grad():
        hidden = bert(torch.tensor([[2, 4, 5, 6, 7, 8, 3]])).last_hidden_state[0]
    expected = torch.stack([*hidden[1:4], hidden[4:6].mean(0)])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    (sentence,) = encoders(system)["supervised"](["it rained all days"], "ignored")
    np.testing.assert_allclose(sentence, unit(hidden.mean(0)), atol=1e-5)
    with pytest.raises(ValueError, match="baseline=encoder=.*: is not a sentence-transformers folder"):
        load_system("encoder", str(tmp_path / "bert"))


def test_the_table_of_sts(model, tokenizer, stories, monkeypatch):
    system, settings = System("magnet", model, tokenizer), Settings(stories, limit=8)
    figures, _ = sts.measure(system, settings)
    assert [(each.measure.split()[0], each.way) for each in figures] == [
        ("Spearman", ""), ("retrieval,", ""), ("Spearman", "own prompt"), ("retrieval,", "own prompt")]  # fmt: skip
    pairs = read_graded_pairs(stories / "sts.tsv", 8)
    told = sts.spearman(lambda texts: model.encode(texts, tokenizer, instruction=sts.INSTRUCTION), pairs)
    assert figures[0].value == pytest.approx(told) and len(figures[0].columns[0]) == 8
    assert figures[2].value == pytest.approx(sts.spearman(lambda texts: model.encode(texts, tokenizer), pairs))
    assert len(figures[1].columns[0]) == 40  # the sentences of eight stories
    monkeypatch.setattr(model.config, "representation_prompt", "")  # as LLM2Vec is trained
    bare, _ = sts.measure(System("llm2vec", model, tokenizer), settings)
    assert bare[0].value == figures[0].value and bare[2].way == "own prompt"
    unprompted = sts.spearman(lambda texts: model.encode(texts, tokenizer, instruction=""), pairs)
    assert bare[2].value == pytest.approx(unprompted) and bare[2].value != bare[0].value
    figures, _ = sts.measure(LEXICAL[1], settings)
    assert [each.way for each in figures] == ["", ""] and figures[0].tokens is None


@pytest.fixture
def topics(stories, tmp_path):
    """Texts of three labels, as a folder."""
    texts = [story["sentences"] for story in read_stories(stories / "validation.jsonl", 3)]
    rows = [f"{label}\t{text}" for label, story in zip("abc", texts) for text in story]
    (tmp_path / "clustering").mkdir()
    (tmp_path / "clustering" / "topics.tsv").write_text("\n".join(["label\ttext", *rows]), encoding="utf-8")
    return tmp_path


def test_the_table_of_clustering(model, tokenizer, topics):
    (figure,), _ = clustering.measure(System("magnet", model, tokenizer), Settings(topics))
    assert figure.data == "topics" and figure.columns[1].shape == (15, clustering.STARTS) and 0 <= figure.value <= 100
    (figure,), _ = clustering.measure(LEXICAL[2], Settings(topics))
    assert set(figure.columns[1].ravel()) <= {0, 1, 2}
    path = topics / "clustering" / "topics.tsv"
    path.write_text("label\ttext\na\tx\na\ty\n")
    with pytest.raises(ValueError, match="topics.tsv: all texts have the label 'a'"):
        clustering.measure(LEXICAL[0], Settings(topics))


# ----------------------------------------------------------------------------------------------------------------- mteb


def local_task(kind: str, data: dict, main_score: str):
    """A task of mteb on local rows; nothing is downloaded."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskClusteringLegacy
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local({"STS": AbsTaskSTS, "Clustering": AbsTaskClusteringLegacy}[kind]):
        metadata = TaskMetadata(
            name="TwentyNewsgroupsClustering" if kind == "Clustering" else "Local",
            description="Local rows.",
            dataset={"path": "local", "revision": "1"},
            type=kind,
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score=main_score,
        )
        min_score, max_score = 0, 5

        def load_data(self, **kwargs):
            self.dataset, self.data_loaded = {"test": Dataset.from_dict(data)}, True

    return Local()


@pytest.mark.parametrize("loaded_as", ["ours", "sentence-transformers"])
def test_mteb_gets_the_same_similarity(loaded_as, base_model_path, stories, recwarn):
    mteb = pytest.importorskip("mteb")
    from sentence_transformers import SentenceTransformer

    from magnet_eval.systems import load_system

    folder, pairs = str(base_model_path.parent / "magnet-tiny"), read_graded_pairs(stories / "sts.tsv")
    rows = {"score": [p[0] for p in pairs], "sentence1": [p[1] for p in pairs], "sentence2": [p[2] for p in pairs]}
    task, system = local_task("STS", rows, "cosine_spearman"), load_system("magnet", folder)
    if loaded_as == "ours":
        found = sts.by_mteb(system, task, "").value
    else:  # as a user would, with the prompts that the checkpoint names; in bfloat16 a batch's composition would show
        model = SentenceTransformer(
            folder, trust_remote_code=True, device="cpu", model_kwargs={"dtype": torch.float32}
        )
        result = mteb.evaluate(model, task, cache=None, co2_tracker=False, encode_kwargs={"batch_size": 32})
        found = 100 * result.task_results[0].scores["test"][0]["cosine_spearman"]
        assert not [w for w in recwarn if "is not valid" in str(w.message)]  # names of prompts that mteb does not know
    table = sts.measure(system, Settings(stories))[0]
    (figure,) = [each for each in table if each.way == "" and each.statistic == "spearman"]
    (own,) = [each for each in table if each.way == "own prompt" and each.statistic == "spearman"]
    assert (
        found == pytest.approx(figure.value, abs=0.005) and abs(found - own.value) > 0.2
    )  # the instruction was there


def test_mteb_gets_the_same_clusters(model, tokenizer, topics):
    pytest.importorskip("mteb")
    lines = [line.split("\t") for line in (topics / "clustering" / "topics.tsv").read_text().splitlines()[1:]]
    labels, texts = ([row[n] for row in lines] for n in (0, 1))
    task = local_task("Clustering", {"sentences": [texts], "labels": [labels]}, "v_measure")
    system = System("magnet", model, tokenizer)
    found = clustering.by_mteb(system, task, "")
    vectors = model.encode(texts, tokenizer, instruction=clustering.INSTRUCTION)
    expected = clustering.k_means(vectors, 3, task.seed)
    from sklearn.metrics import v_measure_score

    assert found.measure == "mteb: v_measure x 100" and found.estimate.interval is None
    assert found.value == pytest.approx(100 * v_measure_score(labels, expected), abs=1e-3)
