"""mteb runs a local task on a checkpoint, with the paper's instruction for STS tasks, and gets the figure of magnet_eval."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from magnet_eval.embedding import read_graded_pairs, sts_spearman
from magnet_hub.sentence_transformer import INSTRUCTIONS
from modeling_magnet import MagnetLlamaForCausalLM

mteb = pytest.importorskip("mteb")
ASSETS = Path(__file__).parents[1] / "examples" / "assets"
PAIRS = read_graded_pairs(ASSETS / "everyday-stories" / "sts.tsv")


def everyday_stories_task():
    """The shipped graded pairs as one of mteb's STS tasks; nothing is downloaded."""
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class EverydayStoriesSTS(AbsTaskSTS):
        metadata = TaskMetadata(
            name="EverydayStoriesSTS",
            description="Graded pairs of sentences of everyday stories.",
            dataset={"path": "everyday-stories", "revision": "1"},
            type="STS",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        min_score, max_score = 0, 5

        def load_data(self, **kwargs):
            columns = {"score": [p[0] for p in PAIRS], "sentence1": [p[1] for p in PAIRS]}
            self.dataset = {"test": Dataset.from_dict(columns | {"sentence2": [p[2] for p in PAIRS]})}
            self.data_loaded = True

    return EverydayStoriesSTS()


def test_a_local_task(recwarn):
    folder = str(ASSETS / "magnet-tiny")
    in_float32 = {"dtype": torch.float32}  # in bfloat16 the composition of a batch shows in the second decimal
    sentences = SentenceTransformer(folder, trust_remote_code=True, device="cpu", model_kwargs=in_float32)
    results = mteb.evaluate(
        sentences, everyday_stories_task(), cache=None, co2_tracker=False, encode_kwargs={"batch_size": 32}
    )
    assert not [w for w in recwarn if "is not valid" in str(w.message)]  # names of prompts that mteb does not know
    (result,) = results.task_results
    found = 100 * result.scores["test"][0]["cosine_spearman"]
    model = MagnetLlamaForCausalLM.from_pretrained(folder, **in_float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(instruction):
        return lambda texts: model.encode(texts, tokenizer, instruction=instruction)

    assert found == pytest.approx(sts_spearman(encode(INSTRUCTIONS["STS"]), PAIRS), abs=0.005)
    assert abs(found - sts_spearman(encode(""), PAIRS)) > 0.2  # the instruction was there
    print(f"mteb {found:.3f}, magnet_eval {sts_spearman(encode(INSTRUCTIONS['STS']), PAIRS):.3f}")
