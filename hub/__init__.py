"""Saving, exporting and pushing checkpoints. Imported as `magnet_hub`."""

FORMS = ("magnet", "merged", "encoder", "generator", "adapter")
