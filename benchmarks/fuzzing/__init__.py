"""Random files: experiments, study folders, outboxes, genotypes and checkpoints, whole and broken.

A `Kind` draws inputs with Hypothesis and tries each in the product, in this process. What it tries
has to end in one of three ways: taken, refused with a clear message, or repaired and said. A
traceback, a wait, a word that helps nobody and a row that is gone without a word are findings.
`nas bench fuzz` tries many, `tests/fuzzing` few; both use the kinds of this package.
"""
