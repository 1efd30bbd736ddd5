"""Candidate operations, one file each or several of a family, found by file name."""
