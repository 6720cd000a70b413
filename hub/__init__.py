"""Saving a checkpoint with its code and card, exporting its five forms, pushing. Imported as `magnet_hub`."""
