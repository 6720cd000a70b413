"""What a run is told: recipes and flags, checked, and kept with the run."""
