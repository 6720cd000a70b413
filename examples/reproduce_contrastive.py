"""The control "causal + contrastive": `magnet train`, except that sentence pairs are read with causal attention.

    python examples/reproduce_contrastive.py --config smollm2_sscl --model_name_or_path runs/causal-1 --all_span_ratio 1 \\
        --lambda_mntp 0 --output_dir runs/causal-contrastive

Same pairs, prompt, pooling, temperature and negatives as MAGNET's, so what differs is the attention alone. The checkpoint needs
`causal_adapter`; here it comes from next-token prediction. `magnet evaluate` reads it as a baseline `causal-contrastive=...`.
"""

import sys
from unittest.mock import patch

from magnet_train.run import run
from magnet_train.trainer import MagnetTrainer


class ReadCausally:
    """A model whose forward pass is causal, where transformers reads packed texts off the positions."""

    def __init__(self, model):
        self.model, self.training = model, model.training

    def __call__(self, **inputs):
        del inputs["document_ids"]
        return self.model(**inputs | {"attention_mode": "causal"})


class CausalPairsTrainer(MagnetTrainer):
    def sentence_vectors(self, model, chunk, number: int = 0):
        if not self.model.config.causal_adapter:
            raise ValueError("causal_adapter=False: the adapter would be off. Start from a checkpoint that has it on.")
        return super().sentence_vectors(ReadCausally(model), chunk, number)


if __name__ == "__main__":
    with patch("magnet_train.run.MagnetTrainer", CausalPairsTrainer):
        run(sys.argv[1:])
