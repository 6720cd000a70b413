"""magnet_check: checks of a checkpoint, one function per check; `run.py` has the list."""
