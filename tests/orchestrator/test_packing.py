"""Shares of a GPU that are found from the memory that trials need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import memory, packing
from orchestrator.display import estimate_lines
from orchestrator.estimate import estimate
from orchestrator.packing import MARGIN, MOST_SHARING, PROCESS_BYTES, Packing, share_of
from orchestrator.planning import identity, recorded
from orchestrator.sweep import _bundles
from orchestrator.tune_section import _gpu_share
from orchestrator.units import Unit

GB = 10**9


@given(peak=st.integers(1, 200 * GB), there=st.integers(1, 200 * GB))
def test_a_share_is_the_smallest_of_which_all_fit(peak: int, there: int) -> None:
    share = share_of(peak, there)
    assert _gpu_share(share) is None  # what a file may say, and what Ray counts right
    sharing = round(1 / share)
    each = MARGIN * peak + PROCESS_BYTES
    assert sharing == 1 or sharing * each <= there
    assert (sharing + 1) * each > there or sharing == MOST_SHARING


def test_what_could_not_be_measured_has_a_gpu_to_itself() -> None:
    assert share_of(None, 80 * GB) == 1.0
    assert share_of(GB, None) == 1.0
    assert share_of(90 * GB, 80 * GB) == 1.0
    assert share_of(10 * GB, 80 * GB) == 0.1666


def unit(name: str, genotype: str | None = None) -> Unit:
    if genotype is None:
        settings: dict[str, Any] = {"method": {"name": name}, "space": {}, "search": {}}
        return Unit("search", settings, {0: name}, name, 0, {}, name, 1)
    settings = {"space": {}, "retrain": {"channels": name}}
    extra = {"genotype_hash": genotype}
    return Unit("retrain", settings, {0: genotype}, name, 0, {}, name, 1, extra)


class Machine:
    """Measures by a table, and remembers what it was asked."""

    def __init__(self, **peaks: int | None) -> None:
        self.peaks = peaks
        self.asked: list[list[str]] = []
        self.said: list[str] = []
        self.packing = Packing(self.measure, self.said.append)

    def measure(
        self, requests: Sequence[Mapping[str, Any]]
    ) -> tuple[Sequence[int | None], int | None]:
        names = [_name(request["config"]) for request in requests]
        assert {request["config"]["device"] for request in requests} == {"cuda"}
        self.asked.append(names)
        return [self.peaks[name] for name in names], 80 * GB


def _name(config: Mapping[str, Any]) -> str:
    return str(config["method"]["name"] if "method" in config else config["unit"]["genotype_hash"])


def test_each_kind_is_measured_once_and_all_together() -> None:
    machine = Machine(small=GB, large=30 * GB, odd=None)
    units = [unit("small"), unit("large"), unit("small")]
    assert machine.packing.least(units) == 1 / 16
    assert [machine.packing.share(each) for each in units] == [1 / 16, 0.5, 1 / 16]
    assert machine.packing.share(unit("odd")) == 1.0
    assert machine.packing.share(unit("large")) == 0.5
    assert machine.asked == [["small", "large"], ["odd"]]
    assert machine.said == [
        "gpus: auto, small: 16 on a GPU, each 1.0 GB at its peak of the 80.0 GB there are",
        "gpus: auto, large: 2 on a GPU, each 30.0 GB at its peak of the 80.0 GB there are",
        "gpus: auto, odd: its memory could not be measured, so it has a GPU to itself",
    ]


def test_of_many_genotypes_a_few_are_measured_and_the_largest_stands_for_the_rest() -> None:
    machine = Machine(**{f"g{index}": index * GB for index in range(20)}, other=GB)
    units = [unit("36 channels", f"g{index}") for index in range(1, 20)]
    machine.packing.measure([*units, unit("16 channels", "other")])
    assert machine.asked == [[*(f"g{index}" for index in range(1, 9)), "other"]]
    assert machine.packing.peak(units[0]) == GB
    assert machine.packing.peak(units[-1]) == 8 * GB
    assert machine.packing.peak(unit("16 channels", "another")) == GB
    assert len(machine.asked) == 1


def test_a_trial_occupies_the_share_that_was_found() -> None:
    config = {"unit": {"gpus": 0.25}, "search": {}}
    assert _bundles({"cpu": 2.0, "gpu": 1.0}, config).bundles == [{"CPU": 2.0, "GPU": 0.25}]


def test_a_dry_run_packs_as_the_run_will(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def peaks_on_gpu(
        requests: Sequence[Mapping[str, Any]], address: str
    ) -> tuple[list[int | None], int | None]:
        assert address == "local"
        return [GB * 20] * len(requests), 80 * GB

    found = experiment("tune.per_trial.gpus=auto")
    assert recorded(identity(found, plugins_digest=None))["per_trial"]["gpu"] == 1.0
    monkeypatch.setattr(memory, "peaks_on_gpu", peaks_on_gpu)
    monkeypatch.setattr("orchestrator.estimate.device_of", lambda _: "cpu")
    monkeypatch.setattr("orchestrator.checks.visible_gpus", lambda: 2)
    said = estimate_lines(estimate(found))
    (resources,) = (line for line in said if line.startswith("resources"))
    assert "1 CPUs and 0.3333 GPUs a trial" in resources
    (weight,) = (line for line in said if line.startswith("memory"))
    assert "20.0 GB a trial" in weight
    assert "TOO LITTLE" not in weight
    assert any("gpus: auto" in line and "3 on a GPU" in line for line in said)


def test_without_auto_nothing_is_packed(experiment: Any) -> None:
    assert packing.make_packing(experiment(), print) is None
    weighed = packing.weigh(experiment(), [])
    assert (weighed.gpus, weighed.peaks, weighed.notes) == (0.0, {}, [])


def test_on_a_cluster_a_node_with_a_gpu_measures(
    nas_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shared cluster has none: what is asked of Ray is all that can be seen here."""
    import ray

    asked: list[Any] = []

    def remote(*functions: Any, **resources: Any) -> Any:
        if "num_gpus" in resources:
            asked.append(resources.pop("num_gpus"))
        return original(*functions, **resources) if functions or resources else original

    original = ray.remote
    monkeypatch.setattr(ray, "remote", remote)
    assert memory.peaks_on_gpu([], nas_here.address) == ([], None)
    assert asked == [1]
