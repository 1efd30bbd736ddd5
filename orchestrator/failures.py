"""Of what kind a failure is, by the words that Ray has for it. Imports nothing heavy."""

from __future__ import annotations

_PREEMPTED = "node was preempted"
MOVED = "its node is to go"
_OF_NODES = ("its node has died", "NodeDiedError", _PREEMPTED, MOVED)


def last_failure(error: str) -> str:
    """Return the last entry of the file in which Ray Tune notes the failures of a trial."""
    return error.rpartition("Failure #")[2]


def node_died(error: str) -> bool:
    """Return whether the last failure is the loss of a node, which is no fault of the trial."""
    return any(sign in last_failure(error) for sign in _OF_NODES)


def preempted(error: str) -> bool:
    """Return whether the last failure is one that Ray Tune itself does not count."""
    return _PREEMPTED in last_failure(error)
