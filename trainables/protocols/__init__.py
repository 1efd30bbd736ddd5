"""Protocols: settings of a retraining as they were published, one file each."""
