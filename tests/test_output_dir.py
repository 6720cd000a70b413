"""The folder that a run writes into, and the final files, of which none is seen in part."""

import pytest
import safetensors.torch
import torch
from conftest import build_magnet
from surviving import TOKENIZER
from training import magnet

from magnet_hub import save
from magnet_train.survival.output_dir import check_writable

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("a file", "there is a file of that name"), ("a file/below", "cannot be written to"), ("/proc", "cannot be")]
    + [("/proc/new", "cannot be written to")],
)
def test_an_output_dir_that_cannot_be_written_is_refused_first(tmp_path, path, reason):
    """Nobody may write into /proc, root neither, whom permission bits do not bind."""
    (tmp_path / "a file").write_text("")
    with pytest.raises(OSError, match=f"output_dir='.*{path}': .*{reason}.*Choose another"):
        check_writable(tmp_path / path)


def test_a_final_file_is_never_seen_in_part(tmp_path, monkeypatch):
    model, other = magnet(), build_magnet(seed=3)
    save.save_checkpoint(model, TOKENIZER, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert save.UNFINISHED not in names and {"1_Pooling", "README.md", WEIGHTS} <= names
    before = (tmp_path / WEIGHTS).read_bytes()

    def fail(config, folder, **kwargs):
        assert (folder / WEIGHTS).is_file() and (tmp_path / WEIGHTS).read_bytes() == before
        raise OSError("no more room")

    with monkeypatch.context() as patch:
        patch.setattr(save, "write_model_card", fail)
        with pytest.raises(OSError, match="no more room"):
            save.save_checkpoint(other, TOKENIZER, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before and not (tmp_path / save.UNFINISHED).exists()

    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier save")
    state = {name: value + 1 for name, value in other.state_dict().items()}
    save.save_checkpoint(other, TOKENIZER, tmp_path, dict(state))  # save_pretrained empties it
    assert {path.name for path in tmp_path.iterdir()} == names
    saved = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(value, state[name]) for name, value in saved.items())
