"""What a training step computes and keeps, and what its batches pad, counted against the targets of docs/performance.md."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import counts  # noqa: E402


def test_matrix_products_of_a_joint_step():
    counted, least = counts.flops()
    assert least <= counted <= 1.02 * least


def test_passes_through_the_decoder_and_rows_through_the_head():
    """One pass for MNTP and MSG, one for both views of the pairs; logits at the labels and nowhere else."""
    joint, without_sscl, labels = counts.passes()
    assert joint == [["hybrid", labels], ["bidirectional", 0]] and labels > 0
    assert without_sscl == [["hybrid", labels]]


def test_bytes_saved_for_the_backward_pass():
    assert 0 < counts.saved_bytes() <= 46


def test_padding_of_packed_batches():
    for padded, packed in (counts.padding_in_training(), counts.padding_of_pairs()):
        assert 1 <= packed <= 1.05 and padded > 2


def test_padding_of_encode():
    assert 1 <= counts.padding_in_encode() <= 1.05
