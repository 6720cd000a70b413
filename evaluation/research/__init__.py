"""Studies of infill() beyond the paper's tables."""
