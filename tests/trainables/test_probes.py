"""Diagnostics that cost time: exact, and without a trace in the search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core.errors import PluginSettingsError
from spaces.core.mixture import Mixture
from tests.trainables.searches import SPACES, differences, flat, small_search
from trainables import probes
from trainables.probes import alpha_hessian, hessian_values, one_hot, probe_gap
from trainables.search import SearchTrial
from trainables.settings import Diagnostics, DiscretizationGap, Hessian

pytestmark = pytest.mark.usefixtures("tiny_plugins")

EVERY = {"hessian": {"every": 2}, "discretization_gap": {"every": 3}}
PROBED = {
    "hessian_eigenvalue", "hessian_norm", "hessian_trace", "discretization_gap",
    "discretization_gap_loss", "diagnostics_time_s",
}  # fmt: skip


def probed_search(diagnostics: Any, **search: Any) -> SearchTrial:
    plain = small_search(**search)
    return SearchTrial(
        space=SPACES["nasbench201"],
        dataset="tiny",
        method=search.get("method", "darts"),
        search=plain.settings,
        diagnostics=diagnostics,
    )


def hessian_of(trial: SearchTrial, norm: Any = "batch", decay: float = 0.0) -> Tensor:
    batch = next(trial._data.validation())
    at = trial._bilevel.point(trial.epoch)
    return alpha_hessian(trial._bilevel, at, batch, norm, weight_decay=decay)


def moved(method: Any = "darts", **search: Any) -> SearchTrial:
    """A search of which two epochs are done, so that no row of alphas is near uniform."""
    trial = small_search(method, precision="float64", alpha_lr=0.3, **search)
    for _ in range(2):
        trial.run_epoch()
    return trial


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_hessian_is_symmetric_and_its_rows_know_the_softmax(norm: Any) -> None:
    trial = moved()
    decay = 0.25
    hessian = hessian_of(trial, norm, decay)
    assert hessian.shape == (30, 30)
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-10)
    # The softmax of a row ignores a constant: without decay H 1_row = 0, with it decay 1_row.
    for row in range(6):
        ones = torch.zeros(30, dtype=torch.float64)
        ones[5 * row : 5 * row + 5] = 1.0
        torch.testing.assert_close(hessian @ ones, decay * ones, rtol=0, atol=1e-10)
    # Edges act on each other: blocks off the diagonal are not zero.
    assert hessian[:5, 5:10].abs().max() > 1e-6


def test_hessian_is_the_difference_of_gradients() -> None:
    """Central difference of first gradients, at a radius below the network's kinks."""
    trial = moved()
    hessian = hessian_of(trial)
    batch = next(trial._data.validation())
    at = trial._bilevel.point(trial.epoch)
    alpha = trial.alphas["cell"]
    kept = alpha.detach().clone()

    def gradient(shift: Tensor) -> Tensor:
        with torch.no_grad():
            alpha.copy_(kept + shift)
        loss = trial._bilevel.loss_at_alphas(at, batch, "batch")
        (found,) = torch.autograd.grad(loss, [alpha])
        return found.flatten()

    radius = 1e-6
    for column in (0, 7, 29):
        shift = torch.zeros_like(kept)
        shift.view(-1)[column] = radius
        found = (gradient(shift) - gradient(-shift)) / (2 * radius)
        torch.testing.assert_close(found.detach(), hessian[:, column], rtol=1e-4, atol=1e-7)


def test_both_cell_types_share_one_hessian() -> None:
    trial = small_search(space="darts", precision="float64", batch_size=12)
    bilevel = trial._bilevel
    keep = {name: alpha[:1, :2] for name, alpha in trial.alphas.items()}
    # 224 rows would take long: two alphas of each type, in the place of all.
    small = {n: a.detach().clone().requires_grad_() for n, a in keep.items()}
    full = {name: alpha.detach().clone() for name, alpha in trial.alphas.items()}
    relax: Callable[..., Any] = bilevel.method.relax

    def put_in(given: dict[str, Tensor], at: Any) -> Any:
        whole = {
            name: torch.cat(
                [torch.cat([given[name], full[name][:1, 2:]], dim=1), full[name][1:]], dim=0
            )
            for name in given
        }
        return relax(whole, at)

    object.__setattr__(bilevel.method, "relax", put_in)
    bilevel.alphas = bilevel.logits = small
    hessian = hessian_of(trial)
    assert hessian.shape == (4, 4)
    assert hessian[:2, 2:].abs().max() > 0


def test_the_largest_algebraic_eigenvalue_is_not_the_norm() -> None:
    basis, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    hessian = basis @ torch.diag(torch.tensor([-5.0, 1.0, 0.5], dtype=torch.float64)) @ basis.T
    found = hessian_values(hessian)
    assert found["hessian_eigenvalue"] == pytest.approx(1.0)
    assert found["hessian_norm"] == pytest.approx(5.0)
    assert found["hessian_trace"] == pytest.approx(-3.5)


@pytest.mark.parametrize("method", ["darts", "sampled", "sdarts_rs"])
def test_diagnostics_change_no_result(method: Any) -> None:
    # What a look after the first epoch has moved is seen in the second.
    plain = small_search(method, epochs=2, batch_size=24)
    plain.run()
    probed = SearchTrial(
        space=SPACES["nasbench201"],
        dataset="tiny",
        method=method,
        search=plain.settings,
        diagnostics={"hessian": {"every": 1}, "discretization_gap": {"statistics": "re_estimated"}},
    )
    probed.run()
    for entry in probed.curve:
        for name in PROBED & entry.keys():
            del entry[name]
    assert differences(plain, probed) == []


def test_they_run_every_so_many_epochs_and_after_the_last() -> None:
    trial = probed_search(EVERY, epochs=5, batch_size=24)
    trial.run()
    with_hessian = [entry["epoch"] for entry in trial.curve if "hessian_trace" in entry]
    with_gap = [entry["epoch"] for entry in trial.curve if "discretization_gap" in entry]
    assert (with_hessian, with_gap) == ([2, 4, 5], [3, 5])
    assert probed_search(None).time_diagnostics() == {}
    fresh = probed_search(EVERY)
    before = fresh.state_dict()
    seconds = fresh.time_diagnostics()
    assert seconds.keys() == {"hessian", "discretization_gap"}
    assert min(seconds.values()) > 0.0
    after = flat(fresh.state_dict())
    for path, leaf in flat(before).items():
        same = torch.equal(leaf, after[path]) if isinstance(leaf, Tensor) else leaf == after[path]
        assert same, path


def test_the_gap_is_that_of_the_genotype_alone() -> None:
    trial = moved()
    bilevel, data = trial._bilevel, trial._data
    at = bilevel.point(1)
    found = probe_gap(
        bilevel, data, at, DiscretizationGap(), space=trial.space, genotype=trial.genotype
    )
    best = trial.op_weights["cell"].argmax(dim=1)
    discrete = torch.nn.functional.one_hot(best, 5).double()
    values = [
        bilevel.evaluate(Mixture({"cell": q}), data.validation(), "batch").tolist()
        for q in (trial.op_weights["cell"], discrete)
    ]
    assert found["discretization_gap"] == pytest.approx(values[0][1] - values[1][1], abs=1e-12)
    assert found["discretization_gap_loss"] == pytest.approx(values[1][0] - values[0][0], abs=1e-12)
    assert found["discretization_gap_loss"] != 0.0
    # One-hot op weights have nothing to lose.
    hard = trial.op_weights["cell"] = discrete
    bilevel.fixed = {"cell": hard}
    nothing = probe_gap(
        bilevel, data, at, DiscretizationGap(), space=trial.space, genotype=trial.genotype
    )
    assert nothing["discretization_gap_loss"] == 0.0


def test_re_estimated_statistics_forget_those_of_the_mixture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = moved()
    arguments = (trial._bilevel, trial._data, trial._bilevel.point(1))
    settings = DiscretizationGap(statistics="re_estimated")
    given = {"space": trial.space, "genotype": trial.genotype}
    found = probe_gap(*arguments, settings, **given)
    for buffer in trial._bilevel.supernet.buffers():
        buffer.add_(1.0)
    # 0.9^50 of the old statistics is left: 0.5 % of the shift by 1.
    shifted, again = (probe_gap(*arguments, settings, **given) for _ in range(2))
    assert shifted["discretization_gap_loss"] != found["discretization_gap_loss"]
    assert shifted == again
    # 0.9^180 of it is 6e-9.
    monkeypatch.setattr(probes, "_REESTIMATION_BATCHES", 180)
    one = probe_gap(*arguments, settings, **given)
    for buffer in trial._bilevel.supernet.buffers():
        buffer.sub_(1.0)
    without = probe_gap(*arguments, settings, **given)
    assert one["discretization_gap_loss"] == pytest.approx(
        without["discretization_gap_loss"], abs=1e-6
    )


def test_one_hot_keeps_the_genotypes_operations_alone() -> None:
    trial = small_search(space="darts")
    found = one_hot(trial.space, trial.genotype, trial.op_weights)
    for name, matrix in found.items():
        assert matrix.sum() == len(trial.genotype.cell(name).edges) == 8
        again = trial.space.discretize(found).cell(name)
        assert again == trial.genotype.cell(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hessian": {"every": 0}}, "diagnostics.hessian.every must be > 0, got 0"),
        ({"hessian": {"evry": 2}}, "Did you mean 'every'"),
        ({"hesian": {}}, "Did you mean 'hessian'"),
        ({"discretization_gap": {"statistics": "own"}}, "must be one of batch, re_estimated"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        probed_search(given)


def test_settings_can_be_ready_made() -> None:
    made = Diagnostics(hessian=Hessian(every=1))
    assert probed_search(made).diagnostics is made
