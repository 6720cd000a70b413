"""Table 8: mean Frobenius norm of the adapter's update, alpha / r times BA, by projection and by layer."""

import re

import torch

from modeling_magnet.modeling_magnet import low_rank_parts

from .data import Settings
from .figures import Figure, means
from .systems import System

FILES = ()
KINDS = ("magnet", "llm2vec", "mtp", "causal", "fim")
COMPARED = ()
PAPER = {
    "MAGNET": {
        "adapter: q_proj, mean norm": 1.2386,
        "adapter: k_proj, mean norm": 1.2659,
        "adapter: v_proj, mean norm": 0.3013,
        "adapter: o_proj, mean norm": 0.2716,
    }
}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """The mean over layers, which are resampled, and the norm of each layer."""
    by_projection = {}
    for name, _, part in low_rank_parts(system.model):
        layer, projection = int(re.search(r"layers\.(\d+)\.", name)[1]), name.rsplit(".", 1)[-1]
        by_projection.setdefault(projection, {})[layer] = update_norm(part.A.detach(), part.B.detach()) * part.scale
    if not by_projection:
        return [], {"no adapter": system.name}
    norms = {f"{name}, mean norm": [layers[n] for n in sorted(layers)] for name, layers in by_projection.items()}
    spread = {name: round(float(torch.tensor(row).std()), 4) for name, row in norms.items() if len(row) > 1}
    return means("adapter", norms), {"layers": norms, "standard deviation": spread}


def update_norm(a: torch.Tensor, b: torch.Tensor) -> float:
    """||BA|| of `A` (r, in) and `B` (out, r), from two (r, r) matrices: ||BA||^2 = tr(B^T B A A^T)."""
    a, b = a.double(), b.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())
