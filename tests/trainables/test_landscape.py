"""A slice through the loss: its directions, its centre, and a search left as it was."""

from __future__ import annotations

import pytest
import torch

from spaces.core.mixture import Mixture
from tests.trainables.searches import flat, small_search
from trainables.landscape import directions, landscape
from trainables.search import SearchTrial

pytestmark = pytest.mark.usefixtures("tiny_plugins")


@pytest.fixture(params=["nasbench201", "darts"])
def trial(request: pytest.FixtureRequest) -> SearchTrial:
    made = small_search(
        space=request.param, precision="float64", epochs=1, alpha_lr=0.3, train_share=0.53
    )
    made.run()
    return made


def test_the_directions_are_the_gradient_and_one_orthogonal_to_it(trial: SearchTrial) -> None:
    batches = list(trial._data.validation())
    first, second = directions(trial, batches, "batch")
    a = torch.cat([part.flatten() for part in first.values()])
    b = torch.cat([part.flatten() for part in second.values()])
    torch.testing.assert_close(
        torch.stack([a @ a, b @ b, a @ b]), torch.tensor([1.0, 1, 0]).double()
    )
    for part in (*first.values(), *second.values()):
        assert part.sum(dim=-1).abs().max() < 1e-12
    # Along the gradient the loss of the whole split rises by its length.
    at = trial._bilevel.point(0)
    step = 1e-6
    losses = []
    for sign in (1, -1):
        moved = {n: alpha + sign * step * first[n] for n, alpha in trial.alphas.items()}
        op_weights = trial.method.relax(moved, at)
        losses.append(trial._bilevel.evaluate(Mixture(op_weights), batches, "batch")[0].item())
    slope = (losses[0] - losses[1]) / (2 * step)
    total = 0.0
    for batch in batches:
        loss = trial._bilevel.loss_at_alphas(at, batch, "batch")
        found = torch.autograd.grad(loss, list(trial.alphas.values()))
        total += torch.cat([g.flatten() for g in found]) * len(batch[1])
    length = (total / sum(len(labels) for _, labels in batches)).norm().item()
    assert slope == pytest.approx(length, rel=1e-4)
    # Batches of 12 and 11: the direction is that of the images' mean, not of the batches'.
    assert len({len(labels) for _, labels in batches}) == 2
    torch.testing.assert_close(a, total / total.norm(), rtol=0, atol=1e-10)


def test_the_middle_is_the_search_and_the_search_is_left_alone(trial: SearchTrial) -> None:
    before = flat(trial.state_dict())
    found = landscape(trial, size=3, extent=0.5)
    after = flat(trial.state_dict())
    for path, leaf in before.items():
        same = (
            torch.equal(leaf, after[path])
            if isinstance(leaf, torch.Tensor)
            else leaf == after[path]
        )
        assert same, path
    assert found.offsets == [-0.5, 0.0, 0.5]
    loss, accuracy = trial._bilevel.evaluate(
        Mixture(trial.op_weights), trial._data.validation(), "batch"
    ).tolist()
    assert found.loss[1][1] == pytest.approx(loss, abs=1e-12)
    assert found.accuracy[1][1] == pytest.approx(accuracy, abs=1e-12)
    assert found.images == sum(len(labels) for _, labels in trial._data.validation())
    # Rows go along the gradient: there the loss rises, across it only at second order.
    assert found.loss[2][1] > found.loss[1][1] - 1e-3
    assert landscape(trial, size=3, extent=0.5) == found
    assert landscape(trial, size=3, extent=0.5, norm="running") != found


@pytest.mark.parametrize("given", [{"size": 4}, {"size": 1}, {"extent": 0.0}, {"images": 0}])
def test_impossible_slices_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} must be"):
        landscape(small_search(), **given)  # type: ignore[arg-type]
