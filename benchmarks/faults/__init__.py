"""The fault campaign: studies on a small real cluster that is broken at random moments.

`nas bench faults` runs it; docs/reliability.md says what it does and what came of it.
"""
