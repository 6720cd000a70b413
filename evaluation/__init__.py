"""The paper's tables and figures, one file each, and what they share. Imported as `magnet_eval`.

systems.py      a checkpoint and its kind                figures.py    a value, its interval, paired comparisons
data.py         reads stories, passages, pairs           scoring.py    log-likelihoods of tokens
embedding.py    sentence and word vectors                writing.py    continuations and fills
fim.py          gaps in fill-in-the-middle order         claims.py     the paper's claims, tested
report.py       one report of all results                plots.py      its plots
"""
