"""examples/export_onnx.py: ONNX files of the encoder form attend in both directions and give torch's vectors."""

import sys
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from magnet_hub.export import export_checkpoint
from magnet_hub.save import save_checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
sys.path.append(str(Path(__file__).parents[1] / "examples"))
import export_onnx  # noqa: E402 - imports onnxruntime

pytestmark = pytest.mark.slow
TEXTS = ["Tom ate.", "It rained all day, and the river rose.", "", "She said </s> to him."]


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma3_text"])
def folders(request, tmp_path_factory, tokenizer):
    """An encoder and what was made of it; windows are shorter than the texts."""
    work = tmp_path_factory.mktemp(request.param)
    base = families.build_base(request.param, "sdpa", vocab_size=4096, pad_token_id=0)
    save_checkpoint(families.build_magnet(base=base, mask_token_id=66), tokenizer, work / "magnet")
    export_checkpoint(work / "magnet", work / "encoder", "encoder")
    export_onnx.export(work / "encoder", work / "onnx", int8=True)
    return work


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_vectors_are_those_of_torch(folders, runtime):
    pytest.importorskip(runtime)
    expected = SentenceTransformer(str(folders / "encoder"), device="cpu").encode(TEXTS)
    for batch_size in (1, 3):
        vectors = export_onnx.OnnxEncoder(folders / "onnx", runtime=runtime).encode(TEXTS, batch_size)
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("file", ["model.onnx", "model_int8.onnx"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_later_token_changes_the_first_state(folders, runtime, file):
    pytest.importorskip(runtime)
    encoder = export_onnx.OnnxEncoder(folders / "onnx", file, runtime)
    ids = np.array([[1, 50, 60, 70]])
    before = encoder.states(ids, np.ones_like(ids))
    ids[0, 2] = 80  # within the window
    after = encoder.states(ids, np.ones_like(ids))
    assert np.abs(after - before)[0, 0].max() > 0.01 * np.abs(before).max()


def test_eight_bits_that_lose_the_states_are_refused(folders):
    """ONNX Runtime's did on a processor without VNNI; here, those of another model."""
    other = families.build_base(seed=1, vocab_size=4096, pad_token_id=0).model
    with pytest.raises(RuntimeError, match=r"model_int8\.onnx: cosine -?0\.\d\d to torch's states. Use model.onnx"):
        export_onnx.check_int8(other, folders / "onnx")


def test_every_projection_has_8_bits(folders):
    nodes = onnx.load(folders / "onnx" / "model_int8.onnx").graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("MatMulInteger") == 3 * 7  # layers, and the linear maps of each


def test_a_causal_folder_is_refused(folders, tmp_path):
    causal = tmp_path / "causal"
    export_checkpoint(folders / "magnet", causal, "generator")
    with pytest.raises(ValueError, match="is causal. Export it with: magnet export --form encoder"):
        export_onnx.export(causal, tmp_path / "onnx")


def test_a_wrong_file_is_noticed(folders, monkeypatch):
    """One with other states, and one in which a later token has no effect."""
    encoder = export_onnx.AutoModel.from_pretrained(folders / "encoder", dtype=torch.float32).eval()
    states, seen = export_onnx.OnnxEncoder.states, []

    def scaled(self, ids, mask):
        return states(self, ids, mask) * (1 + 1e-3)

    def unchanged(self, ids, mask):
        seen.append(states(self, ids, mask))
        return seen[0]

    for wrong, match in ((scaled, "differ from torch's"), (unchanged, "attention is causal")):
        monkeypatch.setattr(export_onnx.OnnxEncoder, "states", wrong)
        with pytest.raises(RuntimeError, match=match):
            export_onnx.check(encoder, folders / "onnx")
