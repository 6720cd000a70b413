"""How a run lives: complete checkpoints, resuming the same run, signals."""
