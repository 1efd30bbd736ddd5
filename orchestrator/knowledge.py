"""What searcher and scheduler knew when a stage ended: for people, and for checks from outside.

Both are made from the ledger, or restored, at each start of a driver. Nothing reads this file to go
on: it says afterwards whether they had all trials in their comparison.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from orchestrator.ledger import replace_file

FILE = "known.json"


def note(folder: Path, searcher: Any, scheduler: Any) -> None:
    """Write `known.json` into a stage's folder of Ray's files.

    Args:
        folder: The folder.
        searcher: Says what it knows by `knowledge()`, or knows nothing of values.
        scheduler: Has a `study_state()`, or compares nothing.
    """
    state = scheduler.study_state() if getattr(scheduler, "stateful", False) else {}
    known = {
        "time": time.time(),
        "searcher": searcher.knowledge() if hasattr(searcher, "knowledge") else None,
        "scheduler": {
            # Counts are enough: a trial of Ray's has another id after a rebuild.
            "rungs": [[milestone, len(values)] for milestone, values in state.get("rungs", [])],
            "trials": len(state.get("results", {})),
        },
    }
    replace_file(folder / FILE, json.dumps(known).encode(), durable=False)
