"""Studies of infill() that no table of the paper needs."""
