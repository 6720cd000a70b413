"""Measuring MAGNET, one file per table of the paper. Imported as `magnet_eval`."""
