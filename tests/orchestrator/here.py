"""The command in the test's own process, on a Ray cluster that all such tests share.

What a process of its own costs (imports, Ray, MLflow's tables and its drain) is paid once or not at
all. `drive` is for tests that kill the driver or look at what only a new process shows.
"""

from __future__ import annotations

import contextlib
import functools
import io
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli, display, sweep, tracking
from orchestrator.progress import Progress
from spaces.core.plugins import ENVIRONMENT_VARIABLE
from tests.orchestrator import drive

ON_RAY = "ray: {address: auto}\n"
"""What an experiment says to run on the shared cluster."""


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Have a Ray cluster of two CPUs, and give its address; nobody is connected to it."""
    with drive.short_ray_folder():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            from ray.cluster_utils import Cluster

            node = {"num_cpus": 2, "include_dashboard": False}
            running = Cluster(initialize_head=True, head_node_args=node)
        try:
            yield str(running.address)
        finally:
            running.shutdown()


class Watching:
    """A reporter that calls `watch` at every tick of the driver, in its process."""

    def __init__(self, reporter: Any, watch: Callable[[], None]) -> None:
        self._reporter, self._watch = reporter, watch

    def update(self, progress: Progress) -> None:
        self._reporter.update(progress)
        self._watch()

    def message(self, text: str) -> None:
        self._reporter.message(text)

    def close(self) -> None:
        self._reporter.close()


class Nas:
    """Runs `nas` in this process, and keeps MLflow out unless told otherwise.

    Args:
        address: Of the cluster that experiments with `ON_RAY` run on.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(
        self,
        *words: str | Path,
        root: Path,
        watch: Callable[[], None] | None = None,
        mlflow: bool = False,
    ) -> tuple[int, str]:
        """Return the exit code and all that was printed.

        Args:
            words: What follows `nas`.
            root: Folder of studies.
            watch: Called again and again while trials run; what it raises ends the command.
            mlflow: Whether the study is sent to MLflow.
        """
        printed = io.StringIO()
        with (
            self._surroundings(root, watch, mlflow),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            pytest.raises(SystemExit) as ended,
        ):
            cli.main([str(word) for word in words])
        return int(ended.value.code or 0), printed.getvalue()

    @contextlib.contextmanager
    def _surroundings(
        self, root: Path, watch: Callable[[], None] | None, mlflow: bool
    ) -> Iterator[None]:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            patch.setenv("RAY_ADDRESS", self.address)
            patch.setenv("NAS_ROOT", str(root))
            patch.setenv(ENVIRONMENT_VARIABLE, "")  # so that what the command sets is undone too
            patch.delenv(ENVIRONMENT_VARIABLE)
            # Its file would stay open; what Ray says is of no interest here.
            patch.setattr(sweep, "_quiet", lambda log: None)
            if watch is not None:
                reporter, watched = display.reporter, watch
                patch.setattr(display, "reporter", lambda: Watching(reporter(), watched))
                often = functools.partial(sweep.make_callback, tick_s=0.0)
                patch.setattr(sweep, "make_callback", often)
            if not mlflow:
                # Tables and drain are processes of their own: the outbox is left as it is.
                patch.setattr(tracking, "start_drain", lambda study, uri: None)
                patch.setattr(tracking, "wait_a_while", lambda process, seconds: True)
            try:
                yield
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)  # Tune leaves its own
