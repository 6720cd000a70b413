"""magnet_check: what can be wrong with a checkpoint, one function a check; `run.py` has the list."""
