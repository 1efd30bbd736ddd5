"""Pytest plug-in of `.ci/run`: a table of the tests that were left out; a failure if none ran.

Load it with `-p tests.report_left_out`. Tests are left out by `pytest.skip("left out: ...")` alone:
for want of data, of a GPU or of root.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

_NONE_RAN = 5
_WANTS = (("data", ("data", "folder", "file")), ("a GPU", ("gpu", "cuda")), ("root", ("root",)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-tests", action="store_true", help="fail where no test has run")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LeftOut(), "left-out-table")


def want(reason: str) -> str:
    """Return what a reason says was wanting: data, a GPU, root or something else."""
    words = reason.lower()
    for name, signs in _WANTS:
        if any(sign in words for sign in signs):
            return name
    return "other"


class LeftOut:
    """Collects what ran and what was left out."""

    def __init__(self) -> None:
        self.ran = 0
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.tests: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self._add(report.nodeid, str(report.longrepr[2]))
        elif report.when == "call":
            self.ran += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self._add(report.nodeid, str(report.longrepr[2]))

    def _add(self, test: str, reason: str) -> None:
        reason = reason.removeprefix("Skipped: ").removeprefix("left out: ")
        key = (want(reason), reason)
        self.reasons[key] += 1
        self.tests.setdefault(key, test)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.getoption("--require-tests") and self.ran == 0:
            session.exitstatus = _NONE_RAN

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        write = terminalreporter.write_line
        write("")
        write(f"{self.ran} tests ran, {sum(self.reasons.values())} were left out")
        if not self.reasons:
            return
        write(f"{'for want of':<12} {'tests':>5}  reason (first test)")
        for (wanted, reason), count in sorted(self.reasons.items()):
            write(f"{wanted:<12} {count:>5}  {reason} ({self.tests[wanted, reason]})")
