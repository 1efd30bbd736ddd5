"""Benchmark tables of true accuracies, one plug-in a file; never an input of a search."""
