"""How one trial runs: methods, datasets, search and retraining."""
