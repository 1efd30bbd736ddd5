"""The clamp-and-rescale projection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainables.simplex import clamp_and_rescale

VALUES = st.floats(-3.0, 3.0, allow_nan=False, width=32)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    values = draw(st.lists(VALUES, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float64).reshape(rows, columns)


@given(matrices())
def test_every_row_lands_on_the_simplex(matrix: Tensor) -> None:
    found = clamp_and_rescale(matrix)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(len(matrix), dtype=torch.float64))


@given(matrices())
def test_it_is_idempotent_and_the_identity_on_the_simplex(matrix: Tensor) -> None:
    simplex = torch.softmax(matrix, dim=-1)
    torch.testing.assert_close(clamp_and_rescale(simplex), simplex, rtol=0, atol=1e-15)
    once = clamp_and_rescale(matrix)
    torch.testing.assert_close(clamp_and_rescale(once), once, rtol=0, atol=1e-15)


@given(matrices(), st.randoms(use_true_random=False))
def test_it_commutes_with_permutations(matrix: Tensor, random: object) -> None:
    order = list(range(matrix.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    # Ties among the entries of an all-nonpositive row go to the first, which a permutation moves.
    rows = [row for row in matrix if (row > 0).any() or len(row.unique()) == len(row)]
    if rows:
        kept = torch.stack(rows)
        found = clamp_and_rescale(kept[:, order])
        torch.testing.assert_close(found, clamp_and_rescale(kept)[:, order], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # Divided by the sum 1.2; the Euclidean projection would give [0.8, 0.2].
        ([0.9, 0.3], [0.75, 0.25]),
        ([1.7, 0.25], [0.8, 0.2]),  # clamped to 1 first: 1 / 1.25 and 0.25 / 1.25
        ([-0.2, 0.5], [0.0, 1.0]),
        ([-0.3, -0.1, -0.2], [0.0, 1.0, 0.0]),  # all clamped away: the largest before the clamp
        ([0.0, 0.0], [1.0, 0.0]),
    ],
)
def test_examples(row: list[float], expected: list[float]) -> None:
    matrix = torch.tensor([[0.5] * len(row), row], dtype=torch.float64)
    found = clamp_and_rescale(matrix)
    torch.testing.assert_close(found[1], torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(matrix[1], torch.tensor(row, dtype=torch.float64))
