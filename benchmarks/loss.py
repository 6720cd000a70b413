"""The token losses alone: MagnetTrainer's against full logits, from given last states.

python benchmarks/loss.py
"""

import torch
import torch.nn.functional as F
from common import compared, in_a_fork, magnet, peak_mib, random_llama, row, show, side_by_side
from train_step import NO_END, Step, random_batch
from transformers.modeling_outputs import BaseModelOutputWithPast

from magnet_train.views import IGNORE


def calls(rows: int, length: int, hidden: int, vocab: int) -> dict:
    """Forward and backward of L_MNTP + L_MSG. The decoder gives the same states at once, so that only the head is left."""
    model = magnet(random_llama(1, hidden, vocab), None, **NO_END).train()
    states = torch.randn(rows, length, hidden, requires_grad=True)
    model.model.forward = lambda *args, **kwargs: BaseModelOutputWithPast(last_hidden_state=states)
    ours = Step(model, random_batch(rows, length, rows, vocab), lambda_sscl=0)

    def full() -> float:
        logits = model(ours.batch["input_ids"]).logits.float().flatten(0, 1)
        labels = [ours.batch[name].flatten() for name in ("mntp_labels", "msg_labels")]
        loss = sum(F.cross_entropy(logits, each, ignore_index=IGNORE) for each in labels)
        loss.backward()
        return float(loss.detach())

    return {"full": full, "ours": ours}


def timed(rows: int, length: int, hidden: int, vocab: int, repeats: int) -> dict[str, list[float]]:
    found = calls(rows, length, hidden, vocab)
    full, ours = found["full"](), found["ours"]()
    assert abs(full - ours) < 1e-4 * full, (full, ours)
    return side_by_side(found, repeats)


def main(rows=2, length=512, hidden=512, vocab=32000, repeats=3, rows_in_memory=8) -> list[dict]:
    labels = random_batch(rows, length, rows, vocab)
    share = sum((labels[name] != IGNORE).float().mean() for name in ("mntp_labels", "msg_labels"))
    shape = f"x {length} tokens, width {hidden}, {vocab:,} tokens of vocabulary; labels at {100 * share:.0f} %"
    seconds = in_a_fork(timed, rows, length, hidden, vocab, repeats)
    sizes = (rows_in_memory, length, hidden, vocab)
    full, ours = (peak_mib(lambda name=name: calls(*sizes)[name]) for name in ("full", "ours"))
    time, memory = "time: full logits / ours", f"memory: full logits / ours ({full:.0f} / {ours:.0f} MiB)"
    return [
        row("LM head and loss", f"{rows} {shape}", time, *compared(seconds, "full", "ours"), ">= 2.5"),
        row("LM head and loss", f"{rows_in_memory} {shape}", memory, full / ours, None, ">= 10"),
    ]


if __name__ == "__main__":
    show(main())
