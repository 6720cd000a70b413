"""Which tokens reach which, in each mode and backend, at batch 1 and padded: changes one token, compares hidden states."""

import contextlib

import torch
from transformers.utils import is_flash_attn_2_available

from modeling_magnet import span_attention_rule

from .checkpoint import MODES, Checkpoint
from .outcome import Failed, Skipped

BACKENDS = ("eager", "sdpa", "flex_attention", "flash_attention_2")
SPANS = torch.tensor([[0, 0, 1, 1, 2, 2, 0, 0]])  # two adjacent spans, context on both sides
LENGTH = SPANS.shape[1]
PADDING = {"left": (3, 0), "right": (0, 3)}
# largest change by summation order, relative to a vector's length; on six layers 1e-6 and 2e-2 were measured
SLACK = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 3e-2}


def check_modes(checkpoint: Checkpoint, backend: str) -> str:
    """Bidirectional attention looks to the right, causal does not, hybrid obeys the one rule."""
    with attending_by(checkpoint, backend):
        modes = modes_on(checkpoint, backend)
        rows = perturbed(checkpoint)
        for mode in modes:
            compare(reached_alone(checkpoint, mode, rows), mode, "batch 1")
            for side in PADDING:
                compare(reached_padded(checkpoint, mode, rows, side), mode, f"padded on the {side}")
    return f"{', '.join(modes)}: each token reaches those it should, batch 1 and padded"


def check_padding(checkpoint: Checkpoint, backend: str) -> str:
    """A text's vectors do not depend on the padding tokens, and equal those of the text alone. The latter is tested in
    float32 only: over 30 layers, bfloat16 rounding can grow without limit."""
    largest = 0.0
    with attending_by(checkpoint, backend):
        row = perturbed(checkpoint)[:1]
        for mode in modes_on(checkpoint, backend):
            alone = checkpoint.states(mode, row, spans=SPANS)
            for side in PADDING:
                padded = padded_states(checkpoint, mode, row, side)
                if not torch.equal(padded, padded_states(checkpoint, mode, row, side, filler=1)):
                    raise Failed(f"{mode}, padded on the {side}: the padding's own tokens change the vectors")
                largest = max(largest, apart(padded, alone))
                if checkpoint.model.dtype == torch.float32 and not largest <= SLACK[torch.float32]:
                    raise Failed(f"{mode}, padded on the {side}: vectors change by {largest:.1%} of their length")
        if checkpoint.model.dtype != torch.float32:
            return "the padding's own tokens change nothing; --dtype float32 compares with the text alone"
    return f"vectors change by at most {largest:.0e} of their length"


@contextlib.contextmanager
def attending_by(checkpoint: Checkpoint, backend: str):
    """The model uses this backend while the block runs; raises `Skipped` if it is unavailable."""
    checkpoint.require_loadable()
    if reason := why_not(backend, checkpoint):
        raise Skipped(reason)
    model = checkpoint.model
    if backend == "flash_attention_2" and model.dtype == torch.float32:
        raise Skipped("needs float16 or bfloat16: --dtype bfloat16")
    before = model.config._attn_implementation
    model.set_attn_implementation(backend)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def why_not(backend: str, checkpoint: Checkpoint) -> str:
    """Why a backend is not tried; empty if it is."""
    on_cpu = torch.device(checkpoint.device).type == "cpu"
    if checkpoint.backends is not None and backend not in checkpoint.backends:
        return "not asked for"
    if backend == "flash_attention_2" and not is_flash_attn_2_available():
        return "flash-attn is not installed"
    if backend == "flash_attention_2" and on_cpu:
        return "needs a GPU"
    if backend == "flex_attention" and on_cpu and checkpoint.backends is None:
        return f"is compiled for minutes on a CPU; ask for it with --attn_implementation {backend}"
    return ""


def modes_on(checkpoint: Checkpoint, backend: str) -> list[str]:
    return [mode for mode in MODES[checkpoint.form] if not (mode == "hybrid" and "flash" in backend)]


def perturbed(checkpoint: Checkpoint) -> torch.Tensor:
    """A text of random tokens in row 0, and the same with another token at j in row j + 1; (LENGTH + 1, LENGTH)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(checkpoint.config.vocab_size, generator=generator)[: LENGTH + 1]
    rows = ids[:LENGTH].repeat(LENGTH + 1, 1)
    rows[torch.arange(1, LENGTH + 1), torch.arange(LENGTH)] = ids[LENGTH]
    return rows


def reached_alone(checkpoint: Checkpoint, mode: str, rows: torch.Tensor) -> torch.Tensor:
    """Whether the token at i (rows of the result) notices a change at j (columns); one forward per row."""
    return noticed(torch.cat([checkpoint.states(mode, row[None], spans=SPANS) for row in rows]))


def reached_padded(checkpoint: Checkpoint, mode: str, rows: torch.Tensor, side: str) -> torch.Tensor:
    return noticed(padded_states(checkpoint, mode, rows, side))


def padded_states(checkpoint: Checkpoint, mode: str, rows: torch.Tensor, side: str, filler: int = 0) -> torch.Tensor:
    """Hidden states of the real tokens, in a batch padded to a longer row; (rows, LENGTH, d)."""
    pad = torch.nn.functional.pad
    ids, mask = pad(rows, PADDING[side], value=filler), pad(torch.ones_like(rows), PADDING[side])
    spans = pad(SPANS.expand_as(rows), PADDING[side])
    ids = torch.cat([ids, ids[:1].masked_fill(mask[:1] == 0, int(rows[0, 0]))])  # the longer row
    mask, spans = torch.cat([mask, torch.ones_like(mask[:1])]), torch.cat([spans, spans[:1]])
    states = checkpoint.states(mode, ids, mask, spans)[: len(rows)]
    return states[:, PADDING[side][0] :][:, :LENGTH]


def noticed(states: torch.Tensor) -> torch.Tensor:
    """`states` (1 + LENGTH, LENGTH, d): unchanged, then with each token replaced. A masked token contributes exactly 0."""
    change = (states[1:] - states[:1]).abs().amax(-1)  # (changed j, position i)
    return (change > 0).T


def compare(reached: torch.Tensor, mode: str, where: str) -> None:
    wrong = (reached != allowed(mode)).nonzero().tolist()
    if wrong:
        i, j = wrong[0]
        verb = "notices" if reached[i, j] else "does not notice"
        side = "to its right" if j > i else "to its left" if j < i else "itself"
        raise Failed(f"{mode}, {where}: token {i} {verb} token {j} {side} ({len(wrong)} such pairs of {LENGTH**2})")


def allowed(mode: str) -> torch.Tensor:
    """The one rule as a table, (LENGTH, LENGTH); through several layers no token reaches further than through one."""
    spans = {"bidirectional": torch.zeros_like(SPANS), "causal": torch.ones_like(SPANS), "hybrid": SPANS}[mode]
    places = torch.arange(LENGTH)
    return span_attention_rule(spans)(0, 0, places[:, None], places[None, :])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance between two vectors, relative to their length."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())
