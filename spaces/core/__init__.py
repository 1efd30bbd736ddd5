"""Machinery shared by every space: engine, genotypes, plug-in look-up."""
