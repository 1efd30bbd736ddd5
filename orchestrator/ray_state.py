"""What Ray Tune knows of a sweep that stops trials early: kept whole, healed, and given back.

Tune writes its state while the driver runs, and a driver may die in the middle of it: files are
then torn, or each whole and of another moment. So the driver keeps copies of complete sets
(`StateGuard`); `heal` puts the newest of them in Tune's folder, or says that there is none; and
`prepare` makes it fit the plan before Tune reads it. What cannot be restored whole is not restored:
the driver builds a new Tuner from the ledger, which has all that matters.

Tune's state is restored for the sake of the scheduler: with the values that it has compared so
far, trials that have ended need not report their curves again. Searchers, schedulers and callbacks
are never read from disk: what Tune pickles of them is a reference to the live object
(`LiveObject`).
"""

from __future__ import annotations

import contextlib
import json
import pickle
import platform
import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger import replace_file

FORMAT = 1
KEPT = 2
_TRIALS = "experiment_state-*.json"
_SUGGESTIONS = "search_gen_state-*.json"
_PICKLES = (_SUGGESTIONS, "searcher-state-*.pkl", "callback-states-*.pkl")
_ENDED = "TERMINATED"
_LONG_RESULTS = ("config", "experiment_tag", "seeds")
_UNRESOLVED = "_Trial__unresolved_config"
_UNFINISHED = ("PENDING", "RUNNING", "PAUSED")

_live: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class NotRestoredError(Exception):
    """Ray Tune did not come back with the trials that it had; nothing has been run."""


class LiveObject:
    """A part of a Tuner that stays what it is when the Tuner is pickled and read back.

    `Tuner.restore` reads searcher, scheduler and callbacks from `tuner.pkl`. A resumed study has
    new ones, made from its ledger: they are what must come out of that file.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        _live[id(self)] = self
        return (_find_live, (id(self),))


def _find_live(identity: int) -> Any:
    """Return the object that was pickled in this process.

    Raises:
        pickle.UnpicklingError: It was pickled by a process that is gone.
    """
    try:
        return _live[identity]
    except KeyError:
        raise pickle.UnpicklingError(
            "this Tuner belonged to a driver that is gone; `nas resume` makes another"
        ) from None


@dataclass(frozen=True)
class Remembered:
    """A trial that Ray Tune knew.

    Attributes:
        trial_id: Its id.
        keys: Ledger keys of its rows, in the order of its seeds.
        params: What was drawn for it.
        config_id: Identity of its configuration.
        block: Index of its grid block.
        ended: Whether it had ended, by itself or by the scheduler.
    """

    trial_id: str
    keys: tuple[str, ...]
    params: Mapping[str, Any]
    config_id: str
    block: int
    ended: bool


def heal(folder: Path) -> list[Remembered]:
    """Put the newest complete set of Tune's files in place of those that a driver left.

    Args:
        folder: Tune's folder of one stage of a study; no driver runs on it.

    Returns:
        The trials in it that ended or can go on. Empty where nothing can be restored: there is no
        complete set, or it is of another version of Ray, of Python or of this format.
    """
    guard = folder / "guard"
    try:
        if json.loads((guard / "about.json").read_text()) != _about():
            return []
    except (OSError, ValueError):
        return []
    for snapshot in sorted(guard.glob("[0-9]*"), reverse=True):
        trials = _complete(snapshot)
        if trials is None:
            continue
        for pattern in (_TRIALS, *_PICKLES):
            for path in folder.glob(pattern):
                path.unlink()
        for path in snapshot.iterdir():
            replace_file(folder / path.name, path.read_bytes())
        found = (_remembered(trial) for trial in trials)
        return [trial for trial in found if trial is not None]
    return []


def prepare(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any] | None],
    ended: Sequence[str],
    *,
    new: int,
    concurrent: int,
) -> None:
    """Make a healed set of files fit what is to be run.

    Args:
        folder: Tune's folder, healed.
        configs: Trials to keep, by id, with their configurations as a new Tuner would get them, or
            None to leave them as they are; others are taken out.
        ended: Ids of those that have ended.
        new: Trials that the searcher gives besides, at most.
        concurrent: Trials side by side.
    """
    (path,) = folder.glob(_TRIALS)
    state = json.loads(path.read_text())
    kept = []
    for text, metadata in state["trial_data"]:
        trial = json.loads(text)
        if trial["trial_id"] in configs:
            trial["config"] = configs[trial["trial_id"]] or trial["config"]
            kept.append([json.dumps(trial), metadata])
    state["trial_data"] = kept
    replace_file(path, json.dumps(state).encode())

    (path,) = folder.glob(_SUGGESTIONS)
    suggestions = pickle.loads(path.read_bytes())
    suggestions.update(counter=len(kept), total_samples=len(kept) + new, finished=False)
    limiter = suggestions.get("name:ConcurrencyLimiter")
    if limiter is not None:
        running = set(configs) - set(ended)
        limiter["max_concurrent"] = concurrent
        limiter["live_trials"] = type(limiter["live_trials"])(running)
    replace_file(path, pickle.dumps(suggestions))


def _about() -> dict[str, Any]:
    """Return what has to be the same for Tune's files to be read: they hold pickles."""
    import ray

    return {"format": FORMAT, "ray": ray.__version__, "python": platform.python_version()}


def _complete(folder: Path) -> list[dict[str, Any]] | None:
    """Return the trials of a set of Tune's files, or None if one is missing or torn."""
    trials: list[dict[str, Any]] = []
    try:
        (path,) = folder.glob(_TRIALS)
        for text, _ in json.loads(path.read_text())["trial_data"]:
            trials.append(json.loads(text))
        for pattern in (_SUGGESTIONS, "callback-states-*.pkl"):
            (path,) = folder.glob(pattern)
            pickle.loads(path.read_bytes())
    except Exception:  # noqa: BLE001 - a torn pickle raises almost anything
        return None
    return trials


def _remembered(trial: Mapping[str, Any]) -> Remembered | None:
    """Return a trial that has ended or can go on; None for one that failed."""
    if trial["status"] not in (_ENDED, *_UNFINISHED):
        return None
    unit = trial["config"]["unit"]
    return Remembered(
        trial_id=trial["trial_id"],
        keys=tuple(unit["rows"].values()),
        params=unit["params"],
        config_id=unit["config_id"],
        block=int(unit["block"]),
        ended=trial["status"] == _ENDED,
    )


def shorten(trial: Any) -> None:
    """Take from a trial that has ended what nobody reads again.

    Tune keeps all trials in memory and in each of its snapshots: 23 kB of each in the file, mostly
    four copies of its configuration, its last result, and means over the last 5 and 10 of each of
    its numbers.

    Args:
        trial: Tune's, after the last callback that reads its configuration or result.
    """
    unit = trial.config["unit"]
    short = {"unit": {name: unit[name] for name in ("rows", "params", "config_id", "block")}}
    trial.config = trial.__dict__[_UNRESOLVED] = short
    trial.evaluated_params = {}
    trial.set_experiment_tag("")
    known = trial.run_metadata
    known.last_result = {
        name: value for name, value in known.last_result.items() if name not in _LONG_RESULTS
    }
    known.metric_analysis, known.metric_n_steps = {}, {}


def make_guard(folder: Path, scheduler: Any, expected: Sequence[str] | None = None) -> Any:
    """Return the Tune callback that keeps complete copies of Tune's state.

    It runs in the driver's loop, between two of Tune's writes, and publishes a copy by renaming its
    folder. It carries the state of the scheduler, which Tune leaves out.

    Args:
        folder: Tune's folder of the stage.
        scheduler: A scheduler of `orchestrator.schedulers`.
        expected: Ids of the trials that Tune must have when it starts; None for a new Tuner.
    """
    from ray import tune

    class StateGuard(LiveObject, tune.Callback):
        """Copies after each of Tune's writes, and at the end."""

        def __init__(self) -> None:
            self.guard = folder / "guard"
            self.copied = 0
            self.began = time.time_ns()
            self.files: list[Path] = []
            self.checked = expected is None
            self.guard.mkdir(parents=True, exist_ok=True)
            for left in self.guard.glob(".tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
            replace_file(self.guard / "about.json", json.dumps(_about()).encode())

        def get_state(self) -> dict[str, Any]:
            return {"scheduler": scheduler.study_state()}

        def set_state(self, state: dict[str, Any]) -> None:
            scheduler.set_study_state(state["scheduler"])
            scheduler.forget(set(expected or ()))

        def on_step_begin(self, trials: Any, **_: Any) -> None:
            if self.checked:
                return
            found = sorted(trial.trial_id for trial in trials)
            if found != sorted(expected or ()):
                raise NotRestoredError(f"{len(found)} trials of {len(expected or ())}")
            self.checked = True

        def on_step_end(self, trials: Any, **_: Any) -> None:
            self.copy(trials)

        def on_experiment_end(self, trials: Any, **_: Any) -> None:
            self.copy(trials)

        def find(self, trials: Any) -> list[Path]:
            """Return Tune's newest files, that of its trials first; none before it has written.

            The folder has an entry for each trial too, so that this is not for every step.
            """
            source = Path(trials[0].storage.experiment_driver_staging_path)
            newest = [max(source.glob(p), default=None) for p in (_TRIALS, *_PICKLES)]
            return [] if newest[0] is None else [path for path in newest if path is not None]

        def copy(self, trials: Any) -> None:
            """Copy Tune's newest files if they are newer than the last copy."""
            if not trials or not self.checked:
                return
            files = self.files or self.find(trials)
            if not files or files[0].stat().st_mtime_ns == self.copied:
                return
            self.copied = files[0].stat().st_mtime_ns
            if self.copied >= self.began:  # of this Tuner, which writes to the same names again
                self.files = files
            stamp = f"{time.time_ns():020d}"
            target = self.guard / f".tmp-{stamp}"
            target.mkdir()
            for path in files:
                shutil.copyfile(path, target / path.name)
            target.rename(self.guard / stamp)
            for old in sorted(self.guard.glob("[0-9]*"))[:-KEPT]:
                with contextlib.suppress(OSError):
                    shutil.rmtree(old)

    return StateGuard()
