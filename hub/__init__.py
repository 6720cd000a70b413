"""What leaves for the Hub: a checkpoint with its code and card, its five forms, pushing. Imported as `magnet_hub`."""
