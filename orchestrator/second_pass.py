"""The second pass: trials that ran out of memory run once more, with more of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator import more_room
from orchestrator.monitor import Monitor
from orchestrator.plan_runner import PlanRunner
from orchestrator.units import Unit


def give_room(
    plans: PlanRunner,
    monitor: Monitor,
    units: Sequence[Unit],
    run: Callable[[list[Unit]], list[Unit]],
) -> list[Unit]:
    """Run those once more that ran out of memory, with more of it; return those left out.

    No scheduler looks at them: there is nothing that ran beside them to compare them with.

    Args:
        plans: Runs them.
        monitor: Follows them, and has followed them before.
        units: What has run.
        run: Runs units of these, and returns those that are left out.
    """
    for room in more_room.rooms(plans.experiment, monitor.stage, plans.concurrent):
        if not all(monitor.ended(unit) for unit in units):
            break  # interrupted
        again = [unit for unit in units if monitor.ran_out(unit) and room.takes(unit)]
        if not again:
            continue
        plans.reporter.message(f"out of memory: {len(again)} run again {room.words}")
        monitor.reopen(again)
        with plans.with_room(room):
            left_out = run(again)
        if left_out:
            return left_out
        monitor.give_up()
    return []
