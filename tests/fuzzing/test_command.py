"""`nas bench fuzz`: its table, its exit code, and what it says without Hypothesis."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.fuzzing import running
from benchmarks.fuzzing.genotypes import Genotypes, Named
from benchmarks.fuzzing.outcomes import Finding, Outcome
from orchestrator import cli


def nas(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "fuzz", *words])
    return int(ended.value.code or 0)


def test_equal_seeds_count_equal_ends(capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for _ in range(2):
        assert nas("--inputs", "60", "--seed", "3", "--kind", "genotype", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["inputs"], document["findings"]) == (17, 0)  # 28 % of 60
        counts.append(document["kinds"][0]["outcomes"])
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) == 17


def test_a_finding_is_shown_and_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Genotypes):
        """Finds something in every input."""

        def check(self, item: Named) -> Outcome:
            raise Finding("loss", "a row is gone")

    monkeypatch.setitem(running.KINDS, "genotype", (Failing, 0.5))
    assert nas("--inputs", "6", "--kind", "genotype") == 1
    out = capsys.readouterr().out
    assert "loss: a row is gone\n" in out
    assert "3 inputs of seed 0" in out
    assert "3 findings" in out


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("--kind", "genotypes") == 2
    assert "Did you mean 'genotype'?" in capsys.readouterr().err


def test_without_hypothesis_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("benchmarks.fuzzing.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("benchmarks.fuzzing.running")
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert nas() == 2
    assert "pip install 'nas-orchestrator[dev]'" in capsys.readouterr().err
