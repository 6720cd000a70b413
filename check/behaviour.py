"""Checks of use: the adapter's gate, modes mixed in threads, infilling, sentence encoding."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from accelerate import init_empty_weights

from .checkpoint import MODES, Checkpoint
from .modes import SLACK, SPANS, apart, perturbed
from .outcome import Failed, Skipped

THREADS, ROUNDS = 6, 4
LEFT, RIGHT = "Tom was hungry. ", " He was full."


def check_gate(checkpoint: Checkpoint) -> str:
    """Causal mode is the base bit for bit unless `causal_adapter`; turning the adapter on changes the output."""
    checkpoint.require_loadable()
    if not checkpoint.is_magnet or checkpoint.config.adapter is None:
        raise Skipped("no adapter: it is merged, or there was none")
    ids, gated = perturbed(checkpoint), not checkpoint.config.causal_adapter
    base = base_states(checkpoint, ids)
    causal = checkpoint.states("causal", ids)
    if gated and not torch.equal(causal, base):
        raise Failed(f"causal mode is not the base: states differ by up to {(causal - base).abs().max():.2g}")
    if not gated and torch.equal(causal, base):
        raise Failed("causal_adapter=true, but causal mode is the base: the adapter does nothing")
    on = checkpoint.states("bidirectional", ids)
    with checkpoint.gate(False):
        off = checkpoint.states("bidirectional", ids)
    if torch.equal(on, off):
        raise Failed("the adapter does nothing: on or off, bidirectional mode computes the same (untrained?)")
    share = apart(on, off)
    what = "causal mode is the base, bit for bit" if gated else "the adapter acts in causal mode too"
    return f"{what}; the adapter moves bidirectional vectors by up to {share:.0%} of their length"


@torch.no_grad()
def base_states(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states of the stock decoder with the same weights, without the adapter; nothing is copied."""
    _, decoder_class = checkpoint.stock_classes
    config = checkpoint.config.to_base()
    config._attn_implementation = checkpoint.model.config._attn_implementation
    with init_empty_weights(include_buffers=False):
        base = decoder_class(config)
    weights = checkpoint.decoder.state_dict(keep_vars=True)
    base.load_state_dict({name: value for name, value in weights.items() if "_lora." not in name}, assign=True)
    base = base.to(checkpoint.device).eval()
    return base(ids.to(checkpoint.device), use_cache=False).last_hidden_state.float().cpu()


def check_threads(checkpoint: Checkpoint) -> str:
    """Threads that mix modes on one model get the results of single calls."""
    checkpoint.require_loadable()
    rows, modes = perturbed(checkpoint)[:1], MODES[checkpoint.form]
    single = {mode: checkpoint.states(mode, rows, spans=SPANS) for mode in modes}
    jobs = [modes[n % len(modes)] for n in range(THREADS * ROUNDS)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda mode: checkpoint.states(mode, rows, spans=SPANS), jobs))
    for mode, states in zip(jobs, found):
        difference = apart(states, single[mode])
        if not difference <= SLACK[checkpoint.model.dtype]:
            raise Failed(f"{mode} in {THREADS} threads: vectors differ by {difference:.1%} of their length")
    return f"{len(jobs)} calls in {THREADS} threads, {', '.join(modes)} mixed, as single calls"


def check_infill(checkpoint: Checkpoint) -> str:
    """A gap is filled, and the text around it comes back character by character."""
    model, tokenizer = checkpoint.causal_lm, checkpoint.tokenizer
    lengths = [4] + (["auto"] if model.config.infill_end_token_id is not None else [])
    most, found = min(16, max(model.config.infill_free_offsets)), []
    for length in lengths:
        output = model.infill(
            f"{LEFT}<|gap|>{RIGHT}", tokenizer, length=length, max_new_tokens=most, do_sample=False, return_dict=True
        )
        if not (output.text.startswith(LEFT.rstrip()) and output.text.endswith(RIGHT.lstrip())):
            raise Failed(f"length={length}: the text around the gap did not come back: {output.text!r}")
        gap = output.gaps[0]
        if length == 4 and len(gap.token_ids) != 4:
            raise Failed(f"length=4: {len(gap.token_ids)} tokens were written")
        found.append(f"{len(gap.token_ids)} tokens ({gap.finish_reason})")
    return f"{' and '.join(found)}, the text around them unchanged"


def check_encode(checkpoint: Checkpoint) -> str:
    """Sentence vectors are finite, of length 1, and the same alone and in a batch."""
    texts = ["A cat sleeps.", "Rain fell all day and all night on the roof.", ""]
    model, tokenizer = checkpoint.causal_lm, checkpoint.tokenizer
    together = model.encode(texts, tokenizer, show_progress_bar=False)
    if not np.isfinite(together).all() or not np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-3):
        raise Failed("a sentence's vector is not finite, or not of length 1")
    alone = np.stack([model.encode(text, tokenizer) for text in texts])
    difference = float(np.linalg.norm(together - alone, axis=1).max())
    if not difference <= SLACK[model.dtype]:
        raise Failed(f"vectors alone and in a batch differ by {difference:.1%}")
    return f"vectors of length 1 in {together.shape[1]} dimensions, alone and in a batch"
