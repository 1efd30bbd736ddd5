"""Nodes that are to go, by a spot notice or `ray drain-node`: their trials move while they can.

Ray starts nothing new on a node that drains and ends nothing that runs there. So each trial
finishes its epoch, after which its state is in the study folder; its process is ended then, and Ray
Tune starts it again on another node. That is no failure of the trial, and it is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.statistics import show_time
from orchestrator.watchdog import called, kill_process

LEAVING = "leaving"
"""Key of a result whose process has been told to end itself."""

EVERY_S = 2.0
Clock = Callable[[], float]


class Draining:
    """Follows which nodes drain, and moves the trials that run there.

    Args:
        told: Takes a line for the person.
        on_move: Called with the configuration of a trial that is about to be moved.
        nodes: Returns the ids of nodes that drain, each with the Unix time in ms at which it goes;
            0 is not known.
        node_of: Returns the id of the node that a trial runs on, or None.
        kill: Ends the process of a trial.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        told: Callable[[str], None],
        on_move: Callable[[dict[str, Any]], None],
        nodes: Callable[[], Mapping[str, int]] | None = None,
        node_of: Callable[[Any], str | None] | None = None,
        kill: Callable[[Any], None] = kill_process,
        clock: Clock = time.time,
    ) -> None:
        self._told, self._on_move, self._kill, self._clock = told, on_move, kill, clock
        self._nodes, self._node_of = nodes or draining_nodes, node_of or node_of_trial
        self._asked = float("-inf")
        self._going: Mapping[str, int] = {}
        self._ready: set[str] = set()  # trials whose epoch is over
        self._waiting: set[str] = set()  # those that are in one, on a node that drains
        self._running: set[str] = set()
        self._moved: set[str] = set()

    def heard(self, trial: Any, result: Mapping[str, Any]) -> None:
        """Take note that a trial has reported an epoch: its state is on disk."""
        if trial.trial_id in self._waiting or result.get(LEAVING):
            self._ready.add(trial.trial_id)

    def look(self, running: Sequence[Any]) -> None:
        """Find out which nodes drain, and end the processes of trials that are to move.

        Args:
            running: All trials that run now.
        """
        known = set(self._going)
        if self._clock() - self._asked >= EVERY_S:
            self._asked = self._clock()
            self._ask()
        before, self._running = self._running, {trial.trial_id for trial in running}
        self._waiting &= self._running
        self._ready &= self._running
        for trial in running:
            name = trial.trial_id
            node = self._node_of(trial) if self._going else None
            if node in self._going and name not in self._waiting:
                self._waiting.add(name)
                # Begun in a process that was kept for it on a node that drained already.
                if node in known and name not in before:
                    self._ready.add(name)
            if name in self._ready:
                self._move(trial)

    def is_moved(self, trial: Any) -> bool:
        """Return, once for each time, whether a failure of a trial is that it was moved."""
        moved = trial.trial_id in self._moved
        self._moved.discard(trial.trial_id)
        return moved

    def _ask(self) -> None:
        going = self._nodes()
        for node, deadline_ms in going.items():
            if node not in self._going:
                left_s = deadline_ms / 1000 - self._clock()
                when = f" in {show_time(left_s)}" if deadline_ms else ""
                self._told(
                    f"node {node[:8]} is to go{when}: its trials finish their epoch and move"
                )
        self._going = dict(going)

    def _move(self, trial: Any) -> None:
        name = trial.trial_id
        self._ready.discard(name)
        self._waiting.discard(name)
        self._running.discard(name)
        self._moved.add(name)
        self._told(f"{called(trial.config)} moves from a node that is to go")
        self._on_move(trial.config)
        # Ray Tune counts the end of the process as a failure; beforehand, since it compares the
        # count with tune.max_failures before it tells anybody.
        trial.run_metadata.num_failures -= 1
        trial.run_metadata.invalidate_cache()
        self._kill(trial)


def draining_nodes() -> dict[str, int]:
    """Return the ids of the nodes that drain, each with when it goes in ms of Unix time, or 0.

    Ray has no public call for it; where this one is missing, no node is known to drain, and trials
    start again when their node has gone.
    """
    from ray._private import state

    ask = getattr(state.state, "get_draining_nodes", None)
    return {} if ask is None else {str(node): int(when) for node, when in ask().items()}


def node_of_trial(trial: Any) -> str | None:
    """Return the id of the node on which the process of a trial runs, or None."""
    from ray._private import state

    actor = trial.temporary_state.ray_actor
    if actor is None:
        return None
    found = state.actors(actor_id=actor._actor_id.hex())
    address = found.get("Address", {}) if isinstance(found, dict) else {}
    node = address.get("NodeID")
    return None if node is None else str(node)
